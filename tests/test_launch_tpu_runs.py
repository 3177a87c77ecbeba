"""`launch/tpu_vm.sh`: whole runs on a slice of paper, and the part of it that runs on one host."""

import contextlib
import os
import re
import shutil
import signal
import subprocess

import pytest
from launching import (
    ARGS,
    HOSTS,
    STOPPED,
    Slice,
    commands,
    make_repository,
    one_line,
    tools,
    wait_for,
)

RUN = ["host-install", "host-mount", "host-start", "host-watch"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def tpu(tmp_path, repository):
    return lambda plan: Slice(tmp_path / "slice", repository, plan)


def test_a_run_from_nothing(tpu):
    slice_ = tpu("end")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 0, done.stderr
    assert slice_.verbs() == ["create", *RUN]
    homes = [slice_.folder / f"host{i}" for i in range(HOSTS)]
    # All hosts, with the arguments as they were given and the bucket as a folder of the host.
    buckets = [f"{home}/buckets/my-bucket/runs/my run" for home in homes]
    expected = [
        ["-m", "ddistill.main", f"--cache={at}/shared", *ARGS, f"--workdir={at}"] for at in buckets
    ]
    assert sorted(slice_.programs()) == sorted([*words, "--distributed"] for words in expected)
    assert [(home / "extras").read_text() for home in homes] == ["tpu\n"] * HOSTS
    assert sorted(call[-1] for call in slice_.calls("gcsfuse")) == [
        f"{home}/buckets/my-bucket" for home in homes
    ]
    assert "end on host0" in done.stdout  # what the hosts print is shown
    assert "paid for until" in done.stderr
    assert slice_.node.read_text() == "READY\n"


def test_a_dry_run_prints_what_a_real_one_calls(tpu):
    slice_ = tpu("end")
    printed = commands(slice_.run("--dry-run", "auto", *ARGS).stdout)
    assert slice_.calls() == []
    assert slice_.run("auto", *ARGS).returncode == 0
    assert printed == slice_.calls("gcloud")


def test_the_run_goes_on_after_preemptions_on_a_new_tpu(tpu):
    slice_ = tpu("preempt preempt end")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 0, done.stderr
    assert slice_.verbs() == ["create", *RUN, *["delete", "create", *RUN] * 2]
    assert len(slice_.programs()) == 3 * HOSTS
    assert len({tuple(words) for words in slice_.programs()}) == HOSTS  # the same command each time


@pytest.mark.parametrize("word", ["stop", "early", "interrupt"])
def test_the_run_goes_on_after_a_signal_without_a_new_tpu(tpu, word):
    slice_ = tpu(f"{word} end")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 0, done.stderr
    assert slice_.verbs() == ["create", *RUN, *RUN]


@pytest.mark.parametrize("word", ["fail", "killed"])
def test_a_run_that_fails_is_not_started_again(tpu, word):
    slice_ = tpu(f"{word} end")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 3
    assert slice_.verbs() == ["create", *RUN]
    assert re.search(r"^error: the run failed on \S+ with status \d+$", done.stderr, re.MULTILINE)
    assert slice_.queue.exists()  # to look at it


def test_restarts_have_an_end(tpu):
    slice_ = tpu("stop stop stop end")
    done = slice_.run("auto", *ARGS, RESTARTS="1")
    assert done.returncode == 3
    assert "not complete after 1 restarts" in done.stderr.splitlines()[-1]
    assert slice_.verbs() == ["create", *RUN, *RUN]


def test_trouble_of_gcloud_has_an_end(tpu):
    slice_ = tpu("end")
    (slice_.folder / "broken").write_text("tpu-vm ssh")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 1
    assert "gcloud failed 5 times in a row" in done.stderr.splitlines()[-1]
    assert slice_.verbs() == ["create", *["host-install"] * 5]


@pytest.mark.parametrize("kind", ["queued-resources", "tpu-vm"])
def test_nothing_is_created_or_deleted_where_gcloud_cannot_tell_the_state(tpu, kind):
    slice_ = tpu("end")
    (slice_.folder / "broken").write_text(f"{kind} list")
    assert slice_.run("create").returncode == 1
    assert slice_.run("delete").returncode == 1
    assert slice_.verbs() == []


def test_a_request_that_fails_is_told_once(tpu):
    slice_ = tpu("end")
    (slice_.folder / "created").write_text("FAILED")
    slice_.queue.write_text("FAILED")
    slice_.node.write_text("")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 4
    assert slice_.verbs() == ["delete", "create"]  # the old one is replaced, the new one is not
    assert "describe my-run" in done.stderr.splitlines()[-1]


def test_create_waits_for_a_request_in_the_queue(tpu):
    slice_ = tpu("end")
    slice_.queue.write_text("WAITING_FOR_RESOURCES")
    slice_.add("sleep", f"echo ACTIVE >'{slice_.queue}'; echo READY >'{slice_.node}'")
    done = slice_.run("create", POLL="7")
    assert done.returncode == 0, done.stderr
    assert slice_.calls("sleep") == [["sleep", "7"]]
    assert slice_.verbs() == []


def test_the_tpu_is_deleted_at_the_end_where_that_is_asked_for(tpu):
    slice_ = tpu("preempt end")
    assert slice_.run("auto", *ARGS, DELETE="1").returncode == 0
    assert slice_.verbs()[-1] == "delete"
    assert not slice_.queue.exists()
    again = slice_.run("delete")
    assert again.returncode == 0
    assert "there is no TPU my-run" in again.stderr


# ------------------------------------------------------------------------------------ on one host


@pytest.fixture
def host(tpu):
    """Runs a `host-` subcommand in an installed copy of the repository."""
    slice_ = tpu("wait")
    home = slice_.folder / "host0"
    shutil.copytree(slice_.repository, home / "ddistill")
    (home / "ddistill" / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(slice_.program, home / "ddistill" / ".venv" / "bin" / "python")

    def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        path = f"{slice_.folder / 'host-bin'}:{os.environ['PATH']}"
        settings = {"HOME": str(home), "PATH": path, **settings}
        return slice_.bash(home / "ddistill" / "launch" / "tpu_vm.sh", *words, **settings)

    folder = home / "ddistill" / "build" / "launch"
    run.slice, run.home, run.folder = slice_, home, folder
    yield run
    if (folder / "pid").exists() and not (folder / "status").exists():
        with contextlib.suppress(ProcessLookupError):  # it leads a session of its own
            os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)


def test_a_run_outlives_the_connection_and_is_started_once(host):
    log, pid = host.folder / "log", host.folder / "pid"
    start = ["host-start", "v1", ".venv/bin/python", "-m", "ddistill.main", *ARGS]
    first = host(*start)  # returns, although the run goes on
    assert (first.returncode, first.stdout) == (0, "")
    wait_for("wait on host0", log)
    again = host(*start)
    assert again.returncode == 0
    assert "already going on" in again.stderr
    assert host.slice.programs() == [["-m", "ddistill.main", *ARGS]]
    for other in ([start[0], "v2", *start[2:]], [*start, "--config.seed=1"]):
        refused = host(*other)
        assert refused.returncode == 2
        assert "another run is going on" in refused.stderr
        assert "v1 .venv/bin/python" in refused.stderr
    assert len(host.slice.programs()) == 1
    assert ": running; wait on host0" in host("host-status").stdout

    os.killpg(int(pid.read_text()), signal.SIGTERM)  # as when the host shuts down
    watched = host("host-watch")
    assert watched.returncode == STOPPED
    assert "] wait on host0\n" in watched.stdout
    assert "] Stopped by SIGTERM" in watched.stdout
    assert ": ended with status 75; Stopped by" in host("host-status").stdout

    host.slice.plan.write_text("end")
    assert host(*start).returncode == 0
    assert host("host-watch").returncode == 0
    assert "Stopped by" in (host.folder / "log.before").read_text()
    assert "Stopped by" not in log.read_text()


def test_a_host_that_went_down_counts_as_stopped(host):
    assert host("host-start", "v1", ".venv/bin/python").returncode == 0
    wait_for("wait on host0", host.folder / "log")
    os.killpg(int((host.folder / "pid").read_text()), signal.SIGKILL)
    assert host("host-watch").returncode == STOPPED
    assert ": gone without a status; " in host("host-status").stdout


def test_a_host_without_a_run(host):
    done = host("host-watch")
    assert done.returncode == 3
    assert "no run was started" in one_line(done)
    assert ": no run; " in host("host-status").stdout


def test_the_environment_is_made_once(host):
    shutil.rmtree(host.home / "ddistill" / ".venv")
    for _ in range(2):
        done = host("host-install", "3.12", "tpu,x")
        assert done.returncode == 0, done.stderr
    assert [call[1:5] for call in host.slice.calls("python3")] == [
        ["-m", "pip", "install", "--quiet"],
        ["-m", "uv", "venv", "--quiet"],
    ]
    assert (host.home / "extras").read_text() == "tpu,x\n" * 2  # which knows what is there


def test_a_bucket_is_mounted_or_the_run_does_not_begin(host, tmp_path):
    done = host("host-mount", "my-bucket", "--flag=1", "--other")
    assert done.returncode == 0, done.stderr
    place = str(host.home / "buckets" / "my-bucket")
    assert host.slice.calls("gcsfuse") == [["gcsfuse", "--flag=1", "--other", "my-bucket", place]]
    bare = tools(tmp_path / "bare", "bash", "dirname", "mkdir", "mountpoint", "hostname")
    done = host("host-mount", "my-bucket", PATH=bare)
    assert done.returncode == 2
    assert "gcsfuse is not on" in one_line(done)
