"""Teachers of the Hugging Face hub: a small server of our own stands for the hub.

The client is the real one, with a cache and an endpoint of the test.
"""

import hashlib
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from exported import COMMON, LINEAR, diffusers_model, levels_run, settings

from ddistill import data, recipes
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError
from ddistill.interop import hub, sources
from ddistill.interop.diffusers import read_teacher
from ddistill.interop.sources import read_noted, read_source, write_noted
from ddistill.interop.tensors import read_tensors, write_tensors
from ddistill.planning.planner import SOURCES, plan_stages
from ddistill.settings import StageSettings

constants = pytest.importorskip("huggingface_hub.constants")
NAME = "me/tiny-ddpm"
FIRST, SECOND = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """The parts of the hub's protocol that the client uses to fetch a model.

    Attributes:
      commits: folders by hash.
      main: hash of the branch "main".
      refuse: the hub's code of an error and its status, for every request; None for none.
      fetched: paths of the files that were downloaded.
    """

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits, self.main = {FIRST: folder}, FIRST
        self.refuse: tuple[str, int] | None = None
        self.fetched: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.server.refuse:
            self.fail(*self.server.refuse)
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        commit = self.server.main if rest[1:2] in ([], ["main"]) else rest[1]
        if repo != NAME:
            self.fail("RepoNotFound", 404)
        elif commit not in self.server.commits:
            self.fail("RevisionNotFound", 404)
        elif api:
            self.answer_api(commit, tree=rest[:1] == ["tree"])
        else:
            self.answer_file(commit, "/".join(rest[2:]))

    def answer_api(self, commit, tree):
        folder = self.server.commits[commit]
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        if tree:
            found = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40}
                for n, p in zip(names, files)
            ]
        else:
            found = {"id": NAME, "sha": commit, "siblings": [{"rfilename": n} for n in names]}
        self.send(json.dumps(found).encode(), {"Content-Type": "application/json"})

    def answer_file(self, commit, name):
        content = (self.server.commits[commit] / name).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        if self.command == "GET":
            self.server.fetched.append(name)

    def send(self, content, headers, status=200):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def fail(self, code, status):
        self.send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)


@pytest.fixture
def server(tmp_path, monkeypatch):
    made = Hub(diffusers_model(tmp_path / "model"))
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{made.server_address[1]}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.fetch.cache_clear()
    yield made
    made.shutdown()
    made.server_close()
    hub.fetch.cache_clear()


@pytest.fixture
def offline(server, monkeypatch):
    """Ends the connection when called: from then on only the cache answers."""

    def end():
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.fetch.cache_clear()

    return end


def read(path, revision=""):
    return read_source(f"diffusers:{path}", "source", revision)


def refused(path, *parts):
    with pytest.raises(ConfigError) as caught:
        read(path)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("hf://google/ddpm-cifar10-32", ("google/ddpm-cifar10-32", "", "")),
        ("hf://a/b@v1.0", ("a/b", "v1.0", "")),
        ("hf://a/b@feature%2Fx/unet/", ("a/b", "feature/x", "unet")),
        ("hf://a/b@refs/pr/3/x/y", ("a/b", "refs/pr/3", "x/y")),
    ],
)
def test_addresses(text, parts):
    found = hub.parse_address(text)
    assert (found.repo, found.revision, found.folder) == parts


@pytest.mark.parametrize(
    "text", ["hf://a", "hf://a/b@", "hf:///b", "hf://a/b/../c", "hf://a/b@c@d"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="should be hf://ORG/NAME"):
        hub.parse_address(text)


def test_a_model_is_the_one_of_its_folder_and_the_commit_is_noted(server, tmp_path):
    folder = server.commits[FIRST]
    found, local = read(f"hf://{NAME}"), read_teacher(folder)
    assert found.digest == local.digest
    assert (found.hub_id, found.revision, found.licence) == (NAME, FIRST, "apache-2.0")
    weights = "diffusion_pytorch_model.safetensors"
    assert found.source == f"diffusers:hf://{NAME}@{FIRST} ({weights})"
    write_noted(tmp_path / SOURCES, {"teacher": ("s", found)})
    _, noted = read_noted(tmp_path / SOURCES)["teacher"]
    assert (noted.hub_id, noted.revision) == (NAME, FIRST)


def test_only_needed_files_are_fetched_and_the_cache_stands_in_offline(server, offline):
    """Of a pipeline with an average, half precision and more, in several files."""
    folder = server.commits[FIRST]
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "sample[1].png"):
        (folder / name).write_bytes(b"much")
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"much")
    shutil.copytree(folder, folder / "other" / "unet")
    shutil.copy(folder / "scheduler_config.json", folder / "other")
    whole = read(f"hf://{NAME}")
    weights = "diffusion_pytorch_model.safetensors"
    assert [name for name in server.fetched if "pytorch_model" in name] == [weights]
    inner = read(f"hf://{NAME}/other")
    assert inner.source == f"diffusers:hf://{NAME}@{FIRST}/other (unet/{weights})"
    assert inner.digest == whole.digest
    offline()
    for path in (f"hf://{NAME}", f"hf://{NAME}@main/other", f"hf://{NAME}@{FIRST}"):
        assert read(path).digest == whole.digest
    refused(f"hf://{NAME}@{SECOND}", "is not in the cache, and HF_HUB_OFFLINE forbids")


def test_shards_are_fetched_with_their_index(server):
    folder = server.commits[FIRST]
    stem = "diffusion_pytorch_model"
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    tensors = read_tensors(folder / f"{stem}.safetensors")
    table = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        write_tensors(folder / shard, {n: x for n, x in tensors.items() if table[n] == shard})
    size = sum(x.nbytes for x in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": table}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    (folder / f"{stem}.safetensors").unlink()
    assert read(f"hf://{NAME}").revision == FIRST
    assert set(names) < set(server.fetched)


def test_a_run_keeps_the_commit_it_began_with(server, tmp_path):
    """The branch may move; the run's notes say which commit was read."""
    stage = StageSettings(
        {"name": "denoising"}, source=f"diffusers:hf://{NAME}", **{**COMMON, "steps": 0}
    )
    made = settings("imported", LINEAR, {"teacher": stage})
    facts = DataFacts.of(data.load(made.data, "train"))
    first = plan_stages(made, facts, tmp_path / "run", tmp_path / "shared")[0]
    write_noted(tmp_path / "run" / SOURCES, {"teacher": (stage.source, first.imported)})
    moved = tmp_path / "moved"
    shutil.copytree(server.commits[FIRST], moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "_diffusers_version": "9"}))
    server.commits[SECOND], server.main = moved, SECOND
    hub.fetch.cache_clear()
    assert read(f"hf://{NAME}").revision == SECOND
    again = plan_stages(made, facts, tmp_path / "run", tmp_path / "shared")[0]
    assert again.imported.revision == FIRST
    assert again.digest == first.digest
    # Without hub and cache, what the run has noted is enough to open it.
    server.refuse = ("", 503)
    shutil.rmtree(tmp_path / "cache")
    hub.fetch.cache_clear()
    assert not sources.is_there(stage.source, FIRST)
    noted = plan_stages(made, facts, tmp_path / "run", tmp_path / "shared")[0]
    assert (noted.digest, noted.imported.params) == (first.digest, None)


def test_an_experiment_takes_a_teacher_of_the_hub(server):
    made = recipes.with_teacher(levels_run(), f"diffusers:hf://{NAME}@{FIRST}")
    assert made.schedule == LINEAR
    assert made.stages["teacher"].source == f"diffusers:hf://{NAME}@{FIRST}"
    recipes.check_variant(f"diffusers:hf://{NAME}")


# -------------------------------------------------------------------------------------- errors


def test_what_the_hub_refuses_is_one_line(server):
    refused("hf://me/other", "the hub has no model 'me/other', or it is private", "hf auth login")
    refused(f"hf://{NAME}@v2", f"{NAME} has no branch, tag or commit 'v2'")
    refused(f"hf://{NAME}/unet", f"hf://{NAME}@{FIRST}/unet does not exist", "Folders of")
    server.refuse = ("GatedRepo", 403)
    refused(f"hf://{NAME}", "is gated: accept its conditions at https://huggingface.co/me/tiny")
    server.refuse = ("", 400)
    refused(f"hf://{NAME}", "cannot be fetched: ", "diffusers:FOLDER")


def test_models_that_cannot_be_read_are_named_by_their_address(server):
    folder = server.commits[FIRST]
    (folder / "scheduler_config.json").unlink()
    refused(f"hf://{NAME}", f"hf://{NAME}@{FIRST}/scheduler_config.json are missing")
    assert not [name for name in server.fetched if name.endswith(".safetensors")]
    (folder / "my_ema.safetensors").write_bytes(b"x")
    hub.fetch.cache_clear()
    refused(f"hf://{NAME}", f"hf://{NAME}@{FIRST}/my_ema.safetensors seems to be an average")


def test_a_connection_that_fails_uses_the_cache_or_says_so(server, monkeypatch):
    read(f"hf://{NAME}")
    hub.fetch.cache_clear()

    def fail(*_, **__):
        raise TimeoutError("timed out\nafter 10 s")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    assert read(f"hf://{NAME}").revision == FIRST
    refused("hf://me/other", "cannot be fetched: timed out after 10 s (TimeoutError)")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.fetch.cache_clear()
    refused("hf://a/b", "pip install 'ddistill[hub]'", "diffusers:FOLDER")


def test_ids_in_place_of_folders_and_other_kinds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("google/ddpm", "is not a folder", "write diffusers:hf://google/ddpm.")
    with pytest.raises(ConfigError, match="edm:hf://a/b: models of the hub are read as diffusers:"):
        read_source("edm:hf://a/b", "source")
