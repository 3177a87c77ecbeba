"""What all launch scripts have in common."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import ENVIRONMENT, JOBSET, LAUNCH, ROOT, SBATCH, STATUSES, TPU_VM

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


@each_script
def test_bash_reads_the_script(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def complaints(script: str | Path, text: str = "") -> str:
    """What shellcheck has to say of a file, or of a text as file "-"."""
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; the extra 'test' has it")
    words = [shellcheck, "--external-sources", "--shell=bash", script]
    done = subprocess.run(words, cwd=ROOT, input=text, capture_output=True, text=True)
    return done.stdout + done.stderr


@each_script
def test_shellcheck_has_nothing_to_say(script):
    assert complaints(script) == ""


def test_shellcheck_has_nothing_to_say_about_the_container():
    jobset = yaml.safe_load(re.sub(r"\$\{\w+\}", "x", JOBSET.read_text()))
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert complaints("-", pod["containers"][0]["args"][0]) == ""


@each_script
def test_scripts_stop_at_the_first_error(script):
    if script != ENVIRONMENT:  # which is sourced by the others
        assert "\nset -euo pipefail\n" in script.read_text()
        assert os.access(script, os.X_OK)


def test_the_scripts_know_a_stopped_run_by_the_statuses_of_the_program():
    one, other = STATUSES
    for path in (TPU_VM, SBATCH):
        assert f" {one} | {other})" in path.read_text()
    # Where srun has killed the last tasks, the words of the first one tell.
    sources = [path.read_text() for path in (ROOT / "ddistill").rglob("*.py")]
    assert any(re.search(r"""say\(\s*f?["']Stopped by """, text) for text in sources)
    assert "^Stopped by " in SBATCH.read_text()


def variables(script: Path) -> set[str]:
    """The environment variables that a script reads: those with a default and those it asks for."""
    text = script.read_text()
    if script == JOBSET:
        return set(re.findall(r"\$\{([A-Z_]+)\}", text))
    found = set(re.findall(r"\$\{([A-Z][A-Z_]+):[-+]", text))
    found |= set(re.findall(r"^ *need ([A-Z_]+) ", text, re.MULTILINE))
    return {name for name in found if not name.startswith(("SLURM_", "HOSTNAME"))}


def test_the_table_of_variables_is_what_the_scripts_read():
    page = (ROOT / "docs" / "launch.md").read_text()
    page = page[page.index("## Variables of the scripts") :]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.+?) \|$", page, re.MULTILINE)
    listed = {(n, script) for n, scripts, _ in rows for script in re.findall(r"`(.+?)`", scripts)}
    read = {(name, script.name) for script in [*SCRIPTS, JOBSET] for name in variables(script)}
    assert listed == read
    names = [name for name, _, _ in rows]
    assert names == sorted(set(names))
