"""Programs that start anew with large memory pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddistill.runtime.large_pages import (
    VARIABLE,
    glibc_version,
    is_offered,
    is_ours,
    restart_with_large_pages,
    with_large_pages,
)

ASKED, ALWAYS, NEVER = "always [madvise] never", "[always] madvise never", "always madvise [never]"


@pytest.mark.parametrize(
    ("environment", "glibc", "switch", "offered"),
    [
        ({}, (2, 36), ASKED, True),
        ({VARIABLE: "glibc.malloc.arena_max=1"}, (2, 35), ASKED, True),
        ({VARIABLE: "glibc.malloc.hugetlb=0"}, (2, 36), ASKED, False),
        ({VARIABLE: "glibc.malloc.hugetlb=1"}, (2, 36), ASKED, False),
        ({}, (2, 34), ASKED, False),
        ({}, (), ASKED, False),
        ({}, (2, 36), ALWAYS, False),
        ({}, (2, 36), NEVER, False),
        ({}, (2, 36), None, False),
    ],
)
def test_where_large_pages_help(environment, glibc, switch, offered, tmp_path):
    if switch is not None:
        (tmp_path / "enabled").write_text(switch + "\n")
    assert is_offered(environment, glibc, tmp_path / "enabled") is offered


def test_other_options_of_the_user_stay():
    given = {VARIABLE: "glibc.malloc.arena_max=1", "HOME": "/home/me"}
    assert with_large_pages(given) == {
        VARIABLE: "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1",
        "HOME": "/home/me",
    }
    assert with_large_pages({})[VARIABLE] == "glibc.malloc.hugetlb=1"


# Says whether it was started anew, with its process id, its arguments and its input.
PROGRAM = """
import os, sys
from pathlib import Path
from ddistill.runtime import large_pages

large_pages._SWITCH = Path(sys.argv[1])
print("starts", flush=True)
large_pages.restart_with_large_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], os.getpid(), sys.flags.utf8_mode)
print(sys.stdin.read())
"""


@pytest.mark.skipif(glibc_version() < (2, 35), reason="this C library has no such option")
@pytest.mark.parametrize("switch", [ASKED, NEVER])
def test_a_program_starts_anew_once_with_its_arguments(switch, tmp_path):
    (tmp_path / "enabled").write_text(switch)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    words = [str(tmp_path / "program.py"), str(tmp_path / "enabled"), "a b", "--c=$d"]
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    said, _ = process.communicate("the input")
    starts, option = (2, "glibc.malloc.hugetlb=1") if switch == ASKED else (1, None)
    expected = ["starts"] * starts
    assert said.splitlines() == [
        *expected,
        f"{option} ['a b', '--c=$d'] {process.pid} 1",
        "the input",
    ]


@pytest.mark.skipif(glibc_version() < (2, 35), reason="this C library has no such option")
def test_a_program_whose_variable_is_dropped_starts_anew_once(tmp_path):
    """Such as by a wrapper of Python."""
    (tmp_path / "enabled").write_text(ASKED)
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nunset {VARIABLE}\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "program.py").write_text(
        f"import sys\nsys.executable = {str(wrapper)!r}\n" + PROGRAM
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "enabled")],
        stdin=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if k != VARIABLE},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line.split(" ")[0] for line in done.stdout.splitlines()[:3]] == ["starts"] * 2 + [
        "None"
    ]


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["python", "-m", "ddistill.main", "--config=x"], True),
        (["python", "-X", "utf8", "-m", "ddistill", "list"], True),
        (["python", "-m", "mine.train", "-m", "ddistill"], False),
        (["python", "-m", "ddistillation"], False),
        (["python", "-m"], False),
        (["python", "train.py"], False),
    ],
)
def test_only_programs_of_the_package_start_anew(words, ours):
    assert is_ours(words) is ours


@pytest.mark.skipif(glibc_version() < (2, 35), reason="this C library has no such option")
def test_the_command_starts_anew_once(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom pathlib import Path\nreal, read = os.execve, Path.read_text\n"
        "def execve(path, words, environment):\n"
        "    print('anew', words[1:3], environment['GLIBC_TUNABLES'], flush=True)\n"
        "    real(path, words, environment)\n"
        "def read_text(self, *args, **kwargs):\n"
        "    return '[madvise]' if self.name == 'enabled' else read(self, *args, **kwargs)\n"
        "os.execve, Path.read_text = execve, read_text\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ddistill", "--version"],
        env={**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout.splitlines()
    assert said[0] == "anew ['-m', 'ddistill'] glibc.malloc.hugetlb=1", done.stderr
    assert len(said) == 2
    assert said[1].startswith("ddistill ")


def test_a_program_that_cannot_start_anew_goes_on(monkeypatch, tmp_path):
    (tmp_path / "enabled").write_text(ASKED)
    monkeypatch.setattr("ddistill.runtime.large_pages._SWITCH", tmp_path / "enabled")
    monkeypatch.setattr("ddistill.runtime.large_pages.glibc_version", lambda: (2, 36))
    monkeypatch.delenv(VARIABLE, raising=False)
    called = []

    def refuse(*args):
        called.append(args)
        raise OSError("no memory")

    monkeypatch.setattr(os, "execve", refuse)
    traced = sys.gettrace()
    try:
        sys.settrace(None)
        restart_with_large_pages()
        assert len(called) == 1
        sys.settrace(lambda *_: None)
        restart_with_large_pages()
    finally:
        sys.settrace(traced)
    assert len(called) == 1
