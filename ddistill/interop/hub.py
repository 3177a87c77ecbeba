"""Models of the Hugging Face hub, fetched by the hub's own client into the client's cache.

    hf://ORG/NAME[@REVISION][/FOLDER]

REVISION is a branch, a tag or a commit ("main" by default), FOLDER a folder of the repository. The
client, `huggingface_hub` (extra `hub`), has the cache, the login and the mirrors; its environment
variables (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE) hold here too.
"""

import functools
import glob
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from urllib.parse import unquote

from absl import logging

from ddistill.errors import ConfigError
from ddistill.interop.diffusers_folders import CONFIG, INDEX, SCHEDULER, Found, find_model
from ddistill.interop.diffusers_weights import STEM
from ddistill.text import one_line, printable

PREFIX = "hf://"
_CARD = "README.md"
_NAME = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(
    rf"hf://(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>refs/pr/\d+|[^/@]+))?(?:/(?P<folder>.*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A folder of a model's repository on the hub.

    Attributes:
      repo: "ORG/NAME".
      revision: branch, tag or commit; "" for the main branch.
      folder: path in the repository; "" for all of it.
    """

    repo: str
    revision: str
    folder: str

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repo}{revision}{f'/{self.folder}' if self.folder else ''}"


@dataclass(frozen=True)
class Snapshot:
    """The files of an address on this machine.

    Attributes:
      folder: the folder that the address names.
      commit: hash of the commit that the files are of.
    """

    folder: Path
    commit: str


def parse_address(text: str) -> Address:
    """The parts of "hf://ORG/NAME[@REVISION][/FOLDER]".

    Raises:
      ConfigError: the text has another form.
    """
    found = _ADDRESS.fullmatch(text)
    folder = (found["folder"] or "").strip("/") if found else ""
    if not found or ".." in folder.split("/"):
        raise ConfigError(
            f"{text!r} should be hf://ORG/NAME, hf://ORG/NAME@REVISION or "
            "hf://ORG/NAME@REVISION/FOLDER; write a '/' in REVISION as %2F."
        )
    return Address(found["repo"], unquote(found["revision"] or ""), folder)


def is_repo(text: str) -> bool:
    """Whether a text has the form of an id of the hub, ORG/NAME."""
    return bool(re.fullmatch(rf"{_NAME}/{_NAME}", text, re.ASCII))


@functools.lru_cache(maxsize=64)
def fetch(address: Address) -> Snapshot:
    """Downloads the files that a teacher of diffusers needs, unless they are in the cache.

    A commit that is in the cache needs no network. For a branch or a tag the hub is asked first,
    and the cache is used where the hub does not answer; a warning says so.

    Raises:
      ConfigError: huggingface_hub is not installed; the repository, revision or folder does not
        exist; access is refused; or the hub cannot be reached and the cache has no copy.
    """
    hub = _client()
    if _COMMIT.fullmatch(address.revision) and (cached := _cached(hub, address)):
        try:
            find_model(cached.folder)
        except ConfigError:
            pass  # an earlier download was for another folder, or did not finish
        else:
            return cached
    try:
        return _download(hub, address)
    except ConfigError:
        raise
    # The client's HTTP library differs between its releases, and its exceptions share no class.
    except Exception as error:
        problem = _in_words(hub, address, error)
        if cached := _cached(hub, address):
            logging.warning("%s The copy of %s in the cache is used.", problem, cached.commit)
            return cached
        raise ConfigError(problem) from error


def _client() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ConfigError(
            "hf:// needs the package huggingface_hub: pip install 'ddistill[hub]'. Or download the "
            "model and give its folder, diffusers:FOLDER."
        ) from None
    return huggingface_hub


def _cached(hub: ModuleType, address: Address) -> Snapshot | None:
    """What the cache has of an address; None for nothing."""
    # The client refuses a copy that lacks a file of these patterns; weights that are not needed
    # are missing in every copy.
    patterns = [p for name in (CONFIG, SCHEDULER, INDEX) for p in (name, f"*/{name}")]
    try:
        root = _get(hub, address, patterns, local_files_only=True)
    except Exception:  # of many kinds, all of which mean that there is no copy
        return None
    folder = root / address.folder
    return Snapshot(folder, root.name) if folder.is_dir() else None


def _download(hub: ModuleType, address: Address) -> Snapshot:
    """Downloads the small files first, and then the weights that these and the names choose."""
    info = hub.HfApi().model_info(address.repo, revision=address.revision or None)
    names = [file.rfilename for file in info.siblings or ()]
    pinned = Address(address.repo, str(info.sha), address.folder)
    prefix = f"{address.folder}/" if address.folder else ""
    if not any(name.startswith(prefix) for name in names):
        folders = sorted({name.rpartition("/")[0] for name in names} - {""})
        raise ConfigError(
            f"{pinned} does not exist. Folders of {address.repo}: "
            f"{', '.join(map(printable, folders[:8])) or 'none'}."
        )
    small = [name for name in names if _is_small(name)]
    root = _get(hub, pinned, list(map(glob.escape, small)))
    found = _choose(root, pinned, names, small)
    logging.info("Fetching %d files of %s.", len(found), pinned)
    # By the revision, which the cache then knows without a network. It may have moved meanwhile.
    root = _get(hub, address, [glob.escape(name) for name in (*small, *found)])
    return Snapshot(root / address.folder, root.name)


def _is_small(name: str) -> bool:
    """Whether a file is read to decide which weights are needed, or is the model card."""
    base = name.rpartition("/")[2]
    index = base.startswith(STEM) and base.endswith(".json")
    return base in (CONFIG, SCHEDULER, INDEX) or index or name == _CARD


def _get(
    hub: ModuleType, address: Address, patterns: Sequence[str], local_files_only: bool = False
) -> Path:
    revision = address.revision or None
    return Path(
        hub.snapshot_download(
            address.repo,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=local_files_only,
        )
    )


def _choose(root: Path, pinned: Address, names: Sequence[str], small: Sequence[str]) -> list[str]:
    """The files that `find_model` takes from the repository, which is not downloaded for that.

    Weights are chosen by names and JSON files alone, so empty files stand for the others.
    """
    with tempfile.TemporaryDirectory(prefix="ddistill-hub-") as made:
        # The folder's own name can decide (`unet`), and never that of the temporary folder.
        mirror = Path(made) / "repository"
        for name in names:
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                continue
            (mirror / name).parent.mkdir(parents=True, exist_ok=True)
            if name in small:
                shutil.copyfile(root / name, mirror / name)
            else:
                (mirror / name).touch()
        try:
            found = find_model(mirror / pinned.folder)
        except ConfigError as error:
            place = f"{PREFIX}{pinned.repo}@{pinned.revision}"
            raise ConfigError(str(error).replace(str(mirror), place)) from None
        return [path.relative_to(mirror).as_posix() for path in _files(found)]


def _files(found: Found) -> list[Path]:
    return [*found.files, *([found.index.path] if found.index else [])]


def _in_words(hub: ModuleType, address: Address, error: Exception) -> str:
    """One line for an exception of the client."""
    errors, page = hub.errors, f"https://huggingface.co/{address.repo}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{address} is gated: accept its conditions at {page}, and log in with "
            "'hf auth login' or set HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{address}: the hub has no model {address.repo!r}, or it is private. Look at {page}; "
            "for a private model log in with 'hf auth login' or set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{address}: {address.repo} has no branch, tag or commit {address.revision!r}. Its "
            f"revisions: {page}/commits."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{address} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub."
    reason = one_line(str(error) or type(error).__name__)[:200]
    return (
        f"{address} cannot be fetched: {reason} ({type(error).__name__}). Without a network, "
        "download the model elsewhere and give its folder, diffusers:FOLDER."
    )
