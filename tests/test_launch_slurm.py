"""`launch/slurm.sbatch`: its directives, a dry run, and jobs with a stand-in for srun."""

import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
from launching import ARGS, ROOT, SBATCH, STATUSES, STOP, commands, one_line, wait_for

from ddistill.runtime import ending


def directives() -> dict[str, str]:
    words = re.findall(r"^#SBATCH --(\S+)$", SBATCH.read_text(), re.MULTILINE)
    return dict((*word.split("=", 1), "")[:2] for word in words)


def test_slurm_reads_what_the_script_asks_for():
    text = SBATCH.read_text()
    asked = directives()
    assert text.startswith("#!")
    # SLURM stops reading at the first command.
    assert text.rindex("\n#SBATCH") < text.index("\nset -euo pipefail")
    # One task a GPU, see the comment there.
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert not {"gpus-per-task", "gpu-bind"} & asked.keys()
    assert "requeue" in asked
    assert asked["open-mode"] == "append"
    # To the tasks ("B:" would be to this script alone), with time to save.
    name, seconds = asked["signal"].split("@")
    assert name == "TERM"
    assert int(seconds) >= 60


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_slurm_dry_run(cluster, way):
    words, settings = (["--dry-run"], {}) if way == "flag" else ([], {"DRY_RUN": "1"})
    done = cluster.bash(SBATCH, *words, *ARGS, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.calls() == []
    enter, start, _, requeue = commands(done.stdout)
    assert enter == ["cd", str(ROOT)]
    python = [".venv/bin/python", "-m", "ddistill.main"]
    cpus = f"--cpus-per-task={directives()['cpus-per-task']}"
    expected = ["srun", "--kill-on-bad-exit=1", cpus, *python, *ARGS]
    assert start == [*expected, "--distributed"]
    assert requeue == ["scontrol", "requeue", "$SLURM_JOB_ID"]


@pytest.fixture
def slurm(cluster, tmp_path):
    """Runs the script as SLURM does: a copy elsewhere, in a job that was submitted in the root."""
    root = tmp_path / "repo sitory"
    (root / "ddistill").mkdir(parents=True)
    (root / "ddistill" / "main.py").touch()
    cluster.add("python", folder=root / ".venv" / "bin")
    spool = tmp_path / "spool"
    spool.mkdir()
    shutil.copy(SBATCH, spool / "slurm_script")
    job = {
        "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "6",
    }

    script = [spool / "slurm_script", *ARGS]

    def run(says: str, status: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
        cluster.add("srun", f"pwd; echo {shlex.quote(says)}; exit {status}")
        return cluster.bash(*script, **{**job, **settings})

    run.cluster, run.root, run.script, run.job = cluster, root, script, job
    return run


def test_a_complete_slurm_job_is_not_requeued(slurm, tmp_path):
    done = slurm("report: It was never Stopped by anything", TMPDIR=str(tmp_path / "spool"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(slurm.root))  # where srun was started
    python = [".venv/bin/python", "-m", "ddistill.main"]
    expected = ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=6", *python, *ARGS]
    expected += ["--distributed"]
    assert slurm.cluster.calls() == [expected]
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["slurm_script"]


@pytest.mark.parametrize("status", [*STATUSES, 128 + signal.SIGKILL])
def test_a_slurm_job_that_was_stopped_puts_itself_back(slurm, status):
    """srun ends with the status of a task that it has killed where that is the highest."""
    done = slurm(f"step 10\n{STOP}", status, SLURM_RESTART_COUNT="99")
    assert done.returncode == 0, done.stderr
    assert STOP in done.stdout
    assert slurm.cluster.calls("scontrol") == [["scontrol", "requeue", "17"]]


def test_a_slurm_job_that_was_stopped_before_it_could_answer_puts_itself_back(slurm):
    done = slurm("", ending.TERMINATED)
    assert done.returncode == 0, done.stderr
    assert slurm.cluster.calls("scontrol") == [["scontrol", "requeue", "17"]]


def test_a_slurm_job_is_not_put_back_for_ever(slurm):
    done = slurm(STOP, ending.TERMINATED, SLURM_RESTART_COUNT="100")
    assert done.returncode == 1
    assert "after 100 times" in one_line(done)
    assert slurm.cluster.calls("scontrol") == []


@pytest.mark.parametrize("says, status", [(STOP, 5), ("", 1), ("", 128 + signal.SIGKILL)])
def test_a_slurm_job_that_fails_is_not_put_back(slurm, says, status):
    done = slurm(says, status)
    assert done.returncode == status
    assert slurm.cluster.calls("scontrol") == []


def test_a_slurm_job_that_is_cancelled_is_not_put_back(slurm):
    (slurm.cluster.bin / "sleep").unlink()
    stop = f"stop() {{ echo {shlex.quote(STOP)}; exit 143; }}; trap stop TERM"
    slurm.cluster.add("srun", f"{stop}; echo started; while true; do sleep 0.02; done")
    out = slurm.cluster.folder / "out"
    with out.open("w") as file:
        words, env = ["bash", *slurm.script], slurm.cluster.env(**slurm.job)
        process = subprocess.Popen(words, env=env, stdout=file, start_new_session=True)
    wait_for("started", out)
    os.killpg(process.pid, signal.SIGTERM)  # scancel also signals the script, unlike --signal
    assert process.wait(timeout=30) == -signal.SIGTERM
    assert slurm.cluster.calls("scontrol") == []


def test_what_a_slurm_job_needs_is_told_before_it_starts(slurm):
    refused = [
        (slurm("", SLURM_NTASKS_PER_NODE="1"), "1 tasks for 4 GPUs a node"),
        (slurm("", SLURM_JOB_ID=""), "sbatch launch/slurm.sbatch '--config=configs/a b.py'"),
        (slurm("", SLURM_SUBMIT_DIR=str(slurm.cluster.folder)), "is not the repository's root"),
        (slurm("", PYTHON="nowhere/python"), "PYTHON=nowhere/python is not there"),
    ]
    for done, part in refused:
        assert done.returncode == 2
        assert part in one_line(done)
    done = slurm.cluster.bash(SBATCH, "--dry-run")
    assert "--config=" in one_line(done)
    assert slurm.cluster.calls() == []
