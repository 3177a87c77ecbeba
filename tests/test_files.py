"""Files that are written whole or not at all, and what is made of files that are damaged."""

import contextlib
import errno
import json
import os
import pwd
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddistill.data.memo import Memo
from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.records.rows import read_rows
from ddistill.evaluation.records.sampler_runs import read_sampler_runs
from ddistill.interop.inception import default_path
from ddistill.interop.sources import read_noted
from ddistill.interop.tensors import read_tensors, write_tensors
from ddistill.runtime import files, leftovers
from ddistill.runtime.metrics_log import MetricsLog, read_metrics
from ddistill.runtime.schemas import WHOLE, Schema

# What a power cut, a full disk or a wrong copy leaves of a JSON file.
DAMAGED = {
    "empty": b"",
    "zeros": b"\0" * 64,
    "cut off": b'{"steps": 4',
    "a list": b"[]",
    "null": b"null",
    "a number": b"12",
    "not UTF-8": b'{"steps": "\xff\xfe"}',
    "too deep": b"[" * 100_000,
}
damaged = pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with contextlib.suppress(RuntimeError), files.replacing(path) as file:
        file.write(b"half")
        raise RuntimeError("in the middle")
    assert files.read_object(path) == {"a": 1}
    files.write_json(path, {"a": 2})
    assert files.read_object(path) == {"a": 2}
    assert os.listdir(path.parent) == ["x.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                files.write_json(path, {"a": 2})
        assert files.read_object(path) == {"a": 1}
        assert os.listdir(tmp_path) == ["x.json"]


def test_file_and_folder_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    replace, sync = os.replace, os.fsync

    def note_sync(number):
        done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        sync(number)

    def note_replace(*names):
        done.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    files.write_text(tmp_path / "x", "text")
    assert done == ["file", "rename", "folder"]


def test_a_file_system_that_cannot_sync_folders_is_no_trouble(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(22, "Invalid argument")
        sync(number)

    monkeypatch.setattr(os, "fsync", refuse)
    files.write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "a.json", {})
        files.write_arrays(tmp_path / "b.npz", x=np.zeros(2))
        write_tensors(tmp_path / "c.safetensors", {"x": np.arange(3.0)})
    finally:
        os.umask(before)
    assert [stat.S_IMODE(x.stat().st_mode) for x in tmp_path.iterdir()] == [mode] * 3
    assert read_tensors(tmp_path / "c.safetensors")["x"].tolist() == [0, 1, 2]


def test_names_that_are_no_text_are_written_as_escapes(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    files.write_text(tmp_path / "x", json.dumps([name], ensure_ascii=False))
    assert json.loads((tmp_path / "x").read_text()) == [name]


# ------------------------------------------------------------------------------------- damage


@damaged
def test_a_damaged_object_is_named_or_counts_as_missing(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(files.DamagedFile) as caught:
        files.read_object(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert files.read_object_or_none(path) is None


def test_a_missing_key_is_damage_and_a_missing_file_is_not(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": 1})
    assert files.read_object(tmp_path / "x.json", Schema({"a": WHOLE})) == {"a": 1}
    with pytest.raises(files.DamagedFile, match="key 'b' is missing"):
        files.read_object(tmp_path / "x.json", Schema({"a": WHOLE, "b": WHOLE}))
    assert files.read_object_or_none(tmp_path / "x.json", Schema({"b": WHOLE})) is None
    assert files.read_object_or_none(tmp_path / "x.json" / "below") is None
    with pytest.raises(FileNotFoundError):
        files.read_object(tmp_path / "none")


@damaged
@pytest.mark.parametrize("read", [read_rows, read_sampler_runs])
def test_damaged_results_are_one_line_that_names_the_file(tmp_path, content, read):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    if read is read_rows and content == b"[]":
        assert read(path) == []
        return
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@damaged
def test_what_is_noted_of_sources_is_read_again_where_it_is_damaged(tmp_path, content):
    (tmp_path / "sources.json").write_bytes(content)
    assert read_noted(tmp_path / "sources.json") == {}
    files.write_json(tmp_path / "sources.json", {"teacher": {"setting": "x", "facts": None}})
    assert read_noted(tmp_path / "sources.json") == {}


@damaged
def test_a_damaged_memo_is_forgotten(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memo = Memo("a key")
    memo.remember({"n": [1, 2]})
    assert Memo("a key").recall() == {"n": [1, 2]}
    memo.path.write_bytes(content)
    assert memo.recall() is None


def test_damaged_lines_of_metrics_are_left_out(tmp_path):
    """In the middle too: the blocks of a file reach the disk in any order."""
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1}', b"\0\0\0", b"null", b"[1]", b"3", b'{"loss": 2}', b'{"step": "2"}']
    lines += [b'{"step": 2, "loss": 1.5}', b"\xff\xfe", b'{"step": 3, "lo']
    path.write_bytes(b"\n".join(lines))
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    log = MetricsLog(tmp_path, "s", 1)
    log.write(2, {"loss": 0.5})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_arrays_that_cannot_be_read_now_are_not_missing(tmp_path, monkeypatch):
    """Hours of samples are not made again because too many files are open."""
    path = tmp_path / "a.npz"
    files.write_arrays(path, a=np.ones(2))

    def refuse(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        files.read_arrays(path, ["a"])


@pytest.mark.parametrize("keep", [0, 1, 40, 200])
def test_damaged_arrays_count_as_missing(tmp_path, keep):
    path = tmp_path / "x.npz"
    files.write_arrays(path, a=np.arange(100), b=np.ones(3))
    assert files.read_arrays(path, ("a", "b"))["b"].tolist() == [1, 1, 1]
    assert files.read_arrays(path, ("a", "c")) is None
    path.write_bytes(path.read_bytes()[:keep])
    assert files.read_arrays(path, ("a",)) is None


def test_flipped_bits_anywhere_in_arrays_never_end_a_run(tmp_path):
    path = tmp_path / "x.npz"
    files.write_arrays(path, a=np.arange(4))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = files.read_arrays(path, ("a",))
        assert found is None or found["a"].shape == (4,)
    np.save(tmp_path / "y.npy", np.arange(4))
    assert files.read_arrays(tmp_path / "y.npy", ("a",)) is None


# ------------------------------------------------------------------------------- without a home


@pytest.fixture
def homeless(monkeypatch):
    """A user number without HOME and without a line in passwd."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("DDISTILL_INCEPTION", raising=False)

    def nobody(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_without_a_home_nothing_is_remembered_and_nothing_fails(homeless, tmp_path, monkeypatch):
    memo = Memo("k")
    memo.remember({"n": 1})
    assert memo.recall() is None
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        default_path()
    with pytest.raises(ConfigError, match=r"^~/x: no home folder stands behind '~'. Set HOME"):
        files.expand("~/x")
    assert files.expand("/x") == Path("/x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Memo("k").remember({"n": 1})
    assert Memo("k").recall() == {"n": 1}


# --------------------------------------------------------------------------------- leftovers


def dead_process() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def age(path: Path, seconds: float = 3600.0) -> None:
    """Makes a file look as if nobody had changed it for so long."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    own, dead, host = os.getpid(), dead_process(), leftovers._host()
    left = [f".x.json.{host}-{dead}-0123abcd.tmp", f".a b.npz.{host}-{dead}-ffffffff.tmp"]
    # Of an earlier life of a process of this number.
    left.append(f".x.json.{host}-{own}-{'%04x' % (int(leftovers._LIFE, 16) ^ 1)}abcd.tmp")
    kept = [
        leftovers.new_name("x.json"),
        f".x.json.{host}-{os.getppid()}-0123abcd.tmp",
        f".x.json.00000000-{dead}-0123abcd.tmp",
        f".x.json.{dead}-0123abcd.tmp",
        f"x.json.{host}-{dead}-0123abcd.tmp",
        f".x.json.{host}-{dead}-0123abcd.tmp.bak",
        ".notes.tmp",
        ".plot.20240101-12345678.tmp",
        ".x.json.tmp",
        "x.json",
    ]
    for name in (*left, *kept):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{host}-{dead}-0123abcd.tmp").mkdir()
    # Nothing is removed that may be at work, whoever has written it.
    assert leftovers.remove_leftovers(tmp_path) == 0
    for name in (*left, *kept):
        age(tmp_path / name)
    assert leftovers.remove_leftovers(tmp_path, tmp_path / "nowhere") == len(left)
    kept.append(f".folder.{host}-{dead}-0123abcd.tmp")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    # Another host's after a day, and a file without a host in its name never.
    for name in kept:
        age(tmp_path / name, 2 * 86400.0)
    assert leftovers.remove_leftovers(tmp_path) == 1
    kept.remove(f".x.json.00000000-{dead}-0123abcd.tmp")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.fixture
def another_start(monkeypatch):
    """Has this host, or one of its name, look as if it had been started another time."""
    before, read = leftovers._host(), Path.read_text

    def read_text(self, *args, **kwargs):
        if self.name == "boot_id":
            return "00000000-0000-0000-0000-000000000000\n"
        return read(self, *args, **kwargs)

    leftovers._host.cache_clear()
    monkeypatch.setattr(Path, "read_text", read_text)
    yield before
    leftovers._host.cache_clear()


@pytest.mark.skipif(
    not Path("/proc/sys/kernel/random/boot_id").exists(), reason="a system without boot numbers"
)
def test_a_host_of_the_same_name_is_another_host(tmp_path, another_start):
    """Outside containers the number of the namespace is the same everywhere."""
    path = tmp_path / f".x.npz.{another_start}-{dead_process()}-0123abcd.tmp"
    path.touch()
    age(path)
    assert leftovers._host() != another_start
    assert leftovers.remove_leftovers(tmp_path) == 0


def test_a_file_that_is_being_written_is_not_left_behind(tmp_path):
    with files.replacing(tmp_path / "x.json") as file:
        age(next(tmp_path.iterdir()))
        assert leftovers.remove_leftovers(tmp_path) == 0
        file.write(b"whole")
    assert os.listdir(tmp_path) == ["x.json"]


def test_the_file_of_a_killed_writer_is_removed_and_folders_below_stay_as_they_are(tmp_path):
    code = (
        "import os, sys; from ddistill.runtime import files\n"
        "with files.replacing(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    for folder in (tmp_path, tmp_path / "photos"):
        subprocess.run([sys.executable, "-c", code, str(folder / "x.json")], check=False)
    found = [*tmp_path.rglob(".x.json.*.tmp")]
    assert len(found) == 2
    assert leftovers.remove_leftovers(tmp_path) == 0
    for path in found:
        age(path)
    assert leftovers.remove_leftovers(tmp_path) == 1
    assert [path.parent.name for path in tmp_path.rglob(".x.json.*.tmp")] == ["photos"]
