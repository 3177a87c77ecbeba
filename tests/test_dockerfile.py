"""`launch/Dockerfile`: lint, and whether its names are the project's. It is not built here."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from launching import LAUNCH, ROOT

import ddistill
from ddistill import main

DOCKERFILE = LAUNCH / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """Keyword and arguments, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    split = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(keyword, " ".join(rest.split())) for keyword, rest in split]


def of(keyword: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == keyword]


def test_hadolint_has_nothing_to_say():
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; the extra 'test' has it")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_the_wheel_of_this_project_is_copied_and_installed_with_its_extras():
    wheel = f"dist/{PROJECT['name']}-{ddistill.__version__}-py3-none-any.whl"
    (copied,) = [words.split()[0] for words in of("COPY") if "whl" in words]
    assert fnmatch.fnmatch(wheel, copied)
    (install,) = [run for run in of("RUN") if "pip install" in run]
    assert '"${wheels[0]}${EXTRAS:+[$EXTRAS]}"' in install
    named = re.search(r"^# EXTRAS: (.*?), and others", DOCKERFILE.read_text(), re.MULTILINE)
    assert set(re.split(r", | or ", named[1])) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("wheels, status", [(1, 0), (2, 1)])
def test_exactly_one_wheel_is_installed(tmp_path, wheels, status):
    (install,) = [run for run in of("RUN") if "pip install" in run]
    for i in range(wheels):
        (tmp_path / f"ddistill-{i}-py3-none-any.whl").touch()
    check = install[: install.index("&& python")].replace("/tmp/wheel", str(tmp_path))
    (shell,) = of("SHELL")
    assert "pipefail" in shell
    assert subprocess.run(["bash", "-c", check.strip().rstrip("&")]).returncode == status


def test_the_python_is_one_that_the_project_supports():
    (default,) = [words for words in of("ARG") if words.startswith("PYTHON_VERSION")]
    found = tuple(map(int, default.split("=")[1].split(".")))
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert lowest <= found
    assert of("FROM") == ["python:${PYTHON_VERSION}-slim-bookworm"]


def test_only_what_is_copied_is_sent_to_the_builder():
    rules = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    kept = {rule.removeprefix("!").split("/")[0] for rule in rules[1:]}
    assert all(rule.startswith("!") for rule in rules[1:])
    assert kept == {words.split()[0].split("/")[0] for words in of("COPY")}
    assert (ROOT / "configs").is_dir()


def test_the_program_is_the_first_process_and_not_of_root():
    (entry,) = of("ENTRYPOINT")
    assert entry == f'["python", "-m", "{main.__name__}"]'
    assert of("USER") == ["1000"]
    assert "--uid 1000" in of("RUN")[-1]
    assert of("CMD") == ['["--doctor"]']
