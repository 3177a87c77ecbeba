"""The launch scripts: what a dry run prints, and whole runs with stand-ins for the clusters."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
TPU_VM, SBATCH, JOBSET = LAUNCH / "tpu_vm.sh", LAUNCH / "slurm.sbatch", LAUNCH / "gke_jobset.yaml"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
HOSTS = 3
STOPPED = 75

# What a shell would take apart, expand or lose if it were quoted once too little or too often.
ARGS = [
    "--config=configs/a b.py",
    """--config.note=it's "two"  words, $HOME `id` \\ * & ; | > #""",
    "--config.empty=",
    "",
]
SETTINGS = {
    "NAME": "my-run",
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "WORKDIR": "gs://my-bucket/runs/my run",
    "REPO": "https://example.org/me/ddistill",
    "REF": "v1",
    "POLL": "0",
}
# Set where the tests run, these would change what the scripts do.
OURS = re.compile(r"SLURM_.*|(NAME|PROJECT|ZONE|TYPE|VERSION|SPOT|WORKDIR|REPO|REF|SETUP|DRY_RUN)$")

# Writes down its arguments, one JSON list a line, and then does what its own code says.
STAND_IN = """\
    #!{python} -SE
    import json, os, sys
    with open({calls!r}, "a") as file:
        file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
    """


class Cluster:
    """Commands that come first on the PATH, and what they were called with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.record = folder / "calls.jsonl"

    def add(self, name: str, code: str = "", folder: Path | None = None) -> Path:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        head = STAND_IN.format(python=sys.executable, calls=str(self.record), name=name)
        path.write_text(textwrap.dedent(head) + textwrap.dedent(code))
        path.chmod(0o755)
        return path

    def calls(self, name: str = "") -> list[list[str]]:
        if not self.record.exists():
            return []
        rows = [json.loads(line) for line in self.record.read_text().splitlines()]
        return [row for row in rows if not name or row[0] == name]

    def env(self, **settings: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not OURS.match(k)}
        return {**kept, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", **settings}

    def bash(
        self, *words: str | Path, cwd: Path | None = None, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        # A script that leaves something open or waits for ever ends here.
        return subprocess.run(
            ["bash", *map(str, words)],
            env=self.env(**settings),
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    """Every command that a dry run must not call."""
    made = Cluster(tmp_path / "cluster")
    for name in ("gcloud", "ssh", "srun", "sbatch", "scontrol", "kubectl", "git", "sleep"):
        made.add(name)
    return made


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines()]


def dry(cluster: Cluster, *words: str, **settings: str) -> list[list[str]]:
    """The commands that `tpu_vm.sh` would run."""
    done = cluster.bash(TPU_VM, "--dry-run", *words, **{**SETTINGS, **settings})
    assert done.returncode == 0, done.stderr
    assert cluster.calls() == [], "a dry run called something"
    return commands(done.stdout)


def remote(command: list[str]) -> tuple[str, str]:
    """Which hosts, and what they run."""
    flags = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
    return flags["--worker"], flags["--command"]


def ssh_of(found: list[list[str]]) -> list[tuple[str, str]]:
    return [remote(c) for c in found if "ssh" in c]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


# ------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_script(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; the extra 'test' has it")
    done = subprocess.run(
        [shellcheck, "--external-sources", "--shell=bash", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(script):
    if script.name != "environment.sh":  # which is sourced by the others
        assert "\nset -euo pipefail\n" in script.read_text()
        assert os.access(script, os.X_OK)


def test_the_words_by_which_the_scripts_know_a_stopped_run_are_those_of_the_program():
    sources = [path.read_text() for path in (ROOT / "ddistill").rglob("*.py")]
    assert any(re.search(r"""say\(\s*f?["']Stopped by """, text) for text in sources)
    for path in (TPU_VM, SBATCH, JOBSET):
        assert "^Stopped by " in path.read_text()


# ------------------------------------------------------------------------------ TPU, in a dry run


def test_auto_prints_everything_from_nothing_to_the_run(cluster):
    found = dry(cluster, "auto", *ARGS)
    assert {tuple(c[:3]) for c in found} == {("gcloud", "compute", "tpus")}
    for command in found:
        assert "--project=my-project" in command
        assert "--zone=us-west4-a" in command
    verbs = [c[4] for c in found]
    first, last = verbs.index("create"), len(verbs) - 1 - verbs[::-1].index("list")
    assert verbs.count("create") == 1
    assert "delete" not in verbs
    assert first < last < verbs.index("ssh")  # looks again after the request, before it connects
    assert found[first] == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "my-run", "--node-id=my-run"),
        *("--project=my-project", "--zone=us-west4-a", "--accelerator-type=v5litepod-16"),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    assert found[-4:] == dry(cluster, "run", *ARGS)


def test_every_host_is_given_every_step(cluster):
    steps = ssh_of(dry(cluster, "run", *ARGS))
    assert [hosts for hosts, _ in steps] == ["all"] * 4
    install, mount, start, watch = (text for _, text in steps)
    assert "git fetch --quiet --depth=1 https://example.org/me/ddistill v1 " in install
    assert "host-install 3.12 tpu" in install
    assert "host-mount my-bucket --implicit-dirs" in mount
    assert "host-start .venv/bin/python -m ddistill.main " in start
    assert start.endswith(""" --workdir="$HOME"/buckets/'my-bucket/runs/my run' --distributed""")
    assert watch.endswith("host-watch")
    # Its words as the shell of a host sees them.
    words = shlex.split(start)
    assert words[words.index("ddistill.main") + 1 : -2] == ARGS


def test_a_shared_folder_needs_no_mount(cluster):
    steps = ssh_of(dry(cluster, "run", *ARGS, WORKDIR="/mnt/a b"))
    assert len(steps) == 3
    assert not any("host-mount" in text for _, text in steps)
    assert shlex.split(steps[1][1])[-2:] == ["--workdir=/mnt/a b", "--distributed"]


def test_a_preempted_tpu_is_replaced(cluster):
    verbs = [c[4] for c in dry(cluster, "create", ASSUME_STATE="SUSPENDED") if c[4] != "list"]
    assert verbs == ["delete", "create"]
    assert "create" not in [c[4] for c in dry(cluster, "create", ASSUME_STATE="ACTIVE")]


def test_settings_reach_the_commands(cluster):
    settings = {
        "SPOT": "0",
        "TYPE": "v6e-16",
        "VERSION": "v2-alpha-tpuv6e",
        "CREATE_FLAGS": "--internal-ips --network=n",
        "SSH_FLAGS": "--internal-ip",
        "SETUP": "sudo mount 'a b'",
        "DDISTILL_EXTRAS": "tpu,tensorboard",
        "PYTHON_VERSION": "3.11",
    }
    found = dry(cluster, "auto", "--config=c.py", **settings)
    create = next(c for c in found if c[4] == "create")
    assert create[-4:] == [
        *("--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e"),
        *("--internal-ips", "--network=n"),
    ]
    connections = [c for c in found if "ssh" in c]
    assert all("--internal-ip" in c for c in connections)
    assert remote(connections[0]) == ("all", "sudo mount 'a b'")
    assert remote(connections[1])[1].endswith("host-install 3.11 tpu,tensorboard")


def test_status_logs_and_delete(cluster):
    assert ssh_of(dry(cluster, "status"))[-1][1].endswith("host-status")
    assert ssh_of(dry(cluster, "logs", WORKER="2", LOG_LINES="7")) == [
        ("2", "tail -n 7 -F ddistill/build/launch/log")
    ]
    assert dry(cluster, "delete")[-1][3:] == [
        *("queued-resources", "delete", "my-run", "--project=my-project", "--zone=us-west4-a"),
        *("--force", "--quiet"),
    ]


@pytest.mark.parametrize("task", ["create", "run", "status", "logs", "delete", "auto"])
def test_a_dry_run_may_be_asked_for_in_three_ways_and_needs_no_gcloud(cluster, tmp_path, task):
    arguments = ARGS if task in ("run", "auto") else []
    (cluster.bin / "gcloud").unlink()
    tools = tmp_path / "tools"  # a PATH on which there is no gcloud, wherever the tests run
    tools.mkdir()
    for name in ("bash", "dirname", "sed"):
        (tools / name).symlink_to(str(shutil.which(name)))
    ways = [
        cluster.bash(TPU_VM, *words, *arguments, **SETTINGS, **settings, PATH=str(tools))
        for words, settings in [
            (["--dry-run", task], {}),
            ([task, "--dry-run"], {}),
            ([task], {"DRY_RUN": "1"}),
        ]
    ]
    assert [done.returncode for done in ways] == [0, 0, 0], ways[0].stderr
    assert len({done.stdout for done in ways}) == 1
    assert "gcloud compute tpus" in ways[0].stdout
    assert {done.stderr for done in ways} == {""}
    real = cluster.bash(
        TPU_VM, task, *arguments, **SETTINGS, DRY_RUN="0", PATH=f"{tools}:{cluster.bin}"
    )
    assert "gcloud is not on the PATH" in one_line(real)


def test_help_names_every_setting_and_subcommand(cluster):
    done = cluster.bash(TPU_VM, "help")
    assert done.returncode == 0
    text = TPU_VM.read_text()
    settings = set(re.findall(r"\$\{([A-Z][A-Z_]+):?-", text)) - {"DRY_RUN", "ASSUME_STATE"}
    settings |= set(re.findall(r"^ *need ([A-Z]+) ", text, re.MULTILINE))
    tasks = set(re.findall(r"^    ([a-z]+)\) [a-z_]+( \"\$@\")? ;;$", text, re.MULTILINE))
    assert settings >= {"NAME", "SPOT", "WORKDIR", "LOG_LINES"}
    assert {task for task, _ in tasks} >= {"create", "auto", "logs"}
    for word in [*settings, *(task for task, _ in tasks), "--dry-run"]:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?!\w)", done.stdout), word


# -------------------------------------------------------------------------- TPU, what it refuses


@pytest.mark.parametrize("name", ["NAME", "PROJECT", "ZONE", "WORKDIR", "REPO", "REF"])
@pytest.mark.parametrize("flag", [[], ["--dry-run"]], ids=["real", "dry"])
def test_a_missing_variable_is_named_in_one_line(cluster, name, flag):
    for settings in (SETTINGS | {name: ""}, {k: v for k, v in SETTINGS.items() if k != name}):
        done = cluster.bash(TPU_VM, *flag, "auto", *ARGS, **settings)
        text = one_line(done)
        assert done.returncode == 2
        assert done.stdout == ""
        assert text.startswith(f"error: {name} is not set (")
        assert re.search(rf"for example {name}=\S+", text)
    assert cluster.calls() == []


REFUSED = {
    "a folder on the TPU": (["run", "--config=c"], {"WORKDIR": "runs/x"}, "WORKDIR=runs/x"),
    "a whole bucket": (["run", "--config=c"], {"WORKDIR": "gs://b"}, "WORKDIR=gs://b"),
    "two folders": (["auto", "--config=c", "--workdir=x"], {}, "variable WORKDIR"),
    "nothing to run": (["auto"], {}, "--config="),
    "a name with a dot": (["create"], {"NAME": "my.run"}, "NAME=my.run"),
    "arguments of another": (["delete", "all of them"], {}, "'all of them'"),
    "unknown": (["start"], {}, "start is not a subcommand"),
}


@pytest.mark.parametrize("words, settings, part", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_before_anything_is_called(cluster, words, settings, part):
    done = cluster.bash(TPU_VM, *words, **{**SETTINGS, **settings})
    assert done.returncode == 2
    assert part in one_line(done)
    assert (done.stdout, cluster.calls()) == ("", [])


# ------------------------------------------------------------------------------- TPU, whole runs

# Holds the state of the TPU in two files; its hosts are folders, and their shells ours. With every
# `host-watch` one word of the plan is used up.
GCLOUD = """
    import subprocess
    from pathlib import Path

    folder = Path({folder!r})
    queue, node, plan = folder / "queue", folder / "node", folder / "plan"
    kind, verb = sys.argv[3:5]
    if (folder / "broken").exists() and (folder / "broken").read_text() == f"{{kind}} {{verb}}":
        sys.exit(1)
    if verb == "list":
        file = queue if kind == "queued-resources" else node
        print(file.read_text() if file.exists() else "", end="")
    elif verb == "create":
        queue.write_text("ACTIVE")
        node.write_text("READY")
    elif verb == "delete":
        queue.unlink()
        node.unlink()
    elif verb == "ssh":
        (command,) = [w.split("=", 1)[1] for w in sys.argv if w.startswith("--command=")]
        homes = [folder / f"host{{i}}" for i in range({hosts})]
        running = []
        for home in homes:
            home.mkdir(exist_ok=True)
            path = f"{{folder / 'host-bin'}}:{{os.environ['PATH']}}"
            env = {{**os.environ, "HOME": str(home), "PATH": path}}
            running.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=env))
        statuses = [process.wait() for process in running]
        if "host-watch" in command:
            word, *rest = plan.read_text().split()
            plan.write_text(" ".join(rest))
            if word == "preempt":
                queue.write_text("SUSPENDED")
                node.write_text("PREEMPTED")
                for home in homes:
                    home.rename(folder / f"gone{{len(rest)}}-{{home.name}}")
                sys.exit(255)
        sys.exit(next(filter(None, statuses), 0))
    """
# The Python of a host: host 0 does what the plan says, the others just end.
PROGRAM = """
    import signal, time
    from pathlib import Path

    def stop(*_):
        print("Stopped by SIGTERM in stage 'teacher'; everything up to there is saved.", flush=True)
        sys.exit(0)

    home = Path(os.environ["HOME"])
    signal.signal(signal.SIGTERM, stop)
    plan = Path({plan!r}).read_text().split()
    word = plan[0] if home.name == "host0" else "end"
    print(f"{{word}} on {{home.name}}", flush=True)
    if word in ("stop", "preempt"):
        stop()
    if word == "fail":
        sys.exit(1)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "early":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    while word == "wait":
        time.sleep(0.05)
    """
# Stands for the repository's own, which would install from the package index.
ENVIRONMENT = """
install_once() {
  echo "$1" >>"$HOME/extras"
  cp "%s" .venv/bin/python
}
"""


class Slice(Cluster):
    """A TPU slice of paper: a gcloud, hosts, and the repository that they install."""

    def __init__(self, folder: Path, plan: str):
        super().__init__(folder)
        self.plan = folder / "plan"
        self.plan.write_text(plan)
        self.add("gcloud", GCLOUD.format(folder=str(folder), hosts=HOSTS))
        program = self.add("program", PROGRAM.format(plan=str(self.plan)), folder)
        tools = folder / "host-bin"
        # Of the host: pip and uv, of which the second makes the folder of the environment.
        self.add(
            "python3", "'venv' in sys.argv and os.makedirs(sys.argv[-1] + '/bin')\n", folder=tools
        )
        self.add("gcsfuse", folder=tools)
        self.repository = folder / "repository"
        (self.repository / "launch").mkdir(parents=True)
        shutil.copy(TPU_VM, self.repository / "launch")
        (self.repository / "launch" / "environment.sh").write_text(ENVIRONMENT % program)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("add", ".")
        self.git("-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "one")
        self.git("tag", "v1")

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.repository, check=True)

    def run(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return self.bash(TPU_VM, *words, **{**SETTINGS, "REPO": str(self.repository), **settings})

    def verbs(self) -> list[str]:
        """What gcloud was asked to do, without its lists; of ssh the subcommand."""
        found = []
        for call in self.calls("gcloud"):
            command = remote(call)[1] if call[4] == "ssh" else call[4]
            host = re.search(r"host-\w+", command)
            found.append(host[0] if host else command)
        return [verb for verb in found if verb != "list"]

    def programs(self) -> list[list[str]]:
        return [call[1:] for call in self.calls("program")]


RUN = ["host-install", "host-mount", "host-start", "host-watch"]


@pytest.fixture
def tpu(tmp_path):
    return lambda plan: Slice(tmp_path / "slice", plan)


def test_a_run_from_nothing(tpu):
    slice_ = tpu("end")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 0, done.stderr
    assert slice_.verbs() == ["create", *RUN]
    homes = [slice_.folder / f"host{i}" for i in range(HOSTS)]
    # All hosts, with the arguments as they were given and the bucket as a folder of the host.
    expected = [
        ["-m", "ddistill.main", *ARGS, f"--workdir={home}/buckets/my-bucket/runs/my run"]
        for home in homes
    ]
    assert sorted(slice_.programs()) == sorted([*words, "--distributed"] for words in expected)
    assert [(home / "extras").read_text() for home in homes] == ["tpu\n"] * HOSTS
    assert sorted(call[-1] for call in slice_.calls("gcsfuse")) == [
        f"{home}/buckets/my-bucket" for home in homes
    ]
    assert "end on host0" in done.stdout  # what the hosts print is shown
    assert "paid for until" in done.stderr
    assert (slice_.folder / "node").read_text() == "READY"


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


@pytest.mark.parametrize("word", ["stop", "early"])
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
    assert (slice_.folder / "queue").exists()  # to look at it


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
    # Whatever is created has failed a moment later.
    code = (
        (slice_.bin / "gcloud").read_text().replace('write_text("ACTIVE")', 'write_text("FAILED")')
    )
    (slice_.bin / "gcloud").write_text(code)
    (slice_.folder / "queue").write_text("FAILED")
    (slice_.folder / "node").write_text("")
    done = slice_.run("auto", *ARGS)
    assert done.returncode == 4
    assert slice_.verbs() == ["delete", "create"]  # the old one is replaced, the new one is not
    assert "describe my-run" in done.stderr.splitlines()[-1]


def test_create_waits_for_a_request_in_the_queue(tpu):
    slice_ = tpu("end")
    (slice_.folder / "queue").write_text("WAITING_FOR_RESOURCES")
    code = f"""
        import pathlib
        pathlib.Path({str(slice_.folder / "queue")!r}).write_text("ACTIVE")
        pathlib.Path({str(slice_.folder / "node")!r}).write_text("READY")
        """
    slice_.add("sleep", code)
    done = slice_.run("create", POLL="7")
    assert done.returncode == 0, done.stderr
    assert slice_.calls("sleep") == [["sleep", "7"]]
    assert slice_.verbs() == []


def test_the_tpu_is_deleted_at_the_end_where_that_is_asked_for(tpu):
    slice_ = tpu("preempt end")
    assert slice_.run("auto", *ARGS, DELETE="1").returncode == 0
    assert slice_.verbs()[-1] == "delete"
    assert not (slice_.folder / "queue").exists()
    again = slice_.run("delete")
    assert again.returncode == 0
    assert "there is no TPU my-run" in again.stderr


# ---------------------------------------------------------------------------- TPU, on one host


@pytest.fixture
def host(tpu, tmp_path):
    """Runs a `host-` subcommand in an installed copy of the repository."""
    slice_ = tpu("wait")
    home = tmp_path / "host0"
    shutil.copytree(slice_.repository, home / "ddistill")
    (home / "ddistill" / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(slice_.folder / "program", home / "ddistill" / ".venv" / "bin" / "python")

    def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        path = f"{slice_.folder / 'host-bin'}:{os.environ['PATH']}"
        settings = {"HOME": str(home), "PATH": path, **settings}
        return slice_.bash(home / "ddistill" / "launch" / "tpu_vm.sh", *words, **settings)

    run.slice, run.home = slice_, home
    yield run
    folder = home / "ddistill" / "build" / "launch"
    if (folder / "pid").exists() and not (folder / "status").exists():
        with contextlib.suppress(ProcessLookupError):  # it leads a session of its own
            os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)


def wait_for(what: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_run_outlives_the_connection_and_is_started_once(host):
    folder = host.home / "ddistill" / "build" / "launch"
    start = ["host-start", ".venv/bin/python", "-m", "ddistill.main", *ARGS]
    first = host(*start)  # returns, although the run goes on
    assert (first.returncode, first.stdout) == (0, "")
    wait_for(lambda: "wait on host0" in (folder / "log").read_text())
    again = host(*start)
    assert again.returncode == 0
    assert "already going on" in again.stderr
    assert host.slice.programs() == [["-m", "ddistill.main", *ARGS]]
    assert ": running; wait on host0" in host("host-status").stdout

    os.killpg(int((folder / "pid").read_text()), signal.SIGTERM)  # as when the host shuts down
    watched = host("host-watch")
    assert watched.returncode == STOPPED
    assert "] wait on host0\n" in watched.stdout
    assert "] Stopped by SIGTERM" in watched.stdout
    assert ": ended with status 75; Stopped by" in host("host-status").stdout

    host.slice.plan.write_text("end")
    assert host(*start).returncode == 0
    assert host("host-watch").returncode == 0
    assert "Stopped by" in (folder / "log.before").read_text()
    assert "Stopped by" not in (folder / "log").read_text()


def test_a_host_that_went_down_counts_as_stopped(host):
    folder = host.home / "ddistill" / "build" / "launch"
    assert host("host-start", ".venv/bin/python").returncode == 0
    wait_for(lambda: "wait on host0" in (folder / "log").read_text())
    os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
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
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "dirname", "mkdir", "mountpoint", "hostname"):
        (bare / name).symlink_to(str(shutil.which(name)))
    done = host("host-mount", "my-bucket", PATH=str(bare))
    assert done.returncode == 2
    assert "gcsfuse is not on" in one_line(done)


# ------------------------------------------------------------------------------------------ SLURM


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
    done = cluster.bash(SBATCH, *words, *ARGS, SLURM_CPUS_PER_TASK="6", **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.calls() == []
    enter, start, _, requeue = commands(done.stdout)
    assert enter == ["cd", str(ROOT)]
    python = [".venv/bin/python", "-m", "ddistill.main"]
    expected = ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=6", *python, *ARGS]
    assert start == [*expected, "--distributed"]
    assert requeue == ["scontrol", "requeue", "$SLURM_JOB_ID"]


@pytest.fixture
def slurm(cluster, tmp_path):
    """Runs the script as SLURM does: a copy elsewhere, in a job that was submitted in the root."""
    root = tmp_path / "repo sitory"
    (root / "ddistill").mkdir(parents=True)
    (root / "ddistill" / "main.py").touch()
    python = cluster.add("python", folder=root / ".venv" / "bin")
    spool = tmp_path / "spool"
    spool.mkdir()
    shutil.copy(SBATCH, spool / "slurm_script")
    job = {
        "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_GPUS_ON_NODE": "4",
    }

    def run(says: str, status: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
        cluster.add("srun", f"print(os.getcwd())\nprint({says!r})\nsys.exit({status})")
        return cluster.bash(spool / "slurm_script", *ARGS, **{**job, **settings})

    run.cluster, run.root, run.python = cluster, root, python
    return run


STOP = "Stopped by SIGTERM in stage 'teacher'; everything up to there is saved."


def test_a_complete_slurm_job_is_not_requeued(slurm, tmp_path):
    done = slurm("report: It was never Stopped by anything", TMPDIR=str(tmp_path / "spool"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(slurm.root))  # where srun was started
    python = [".venv/bin/python", "-m", "ddistill.main"]
    expected = ["srun", "--kill-on-bad-exit=1", *python, *ARGS, "--distributed"]
    assert slurm.cluster.calls() == [expected]
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["slurm_script"]


def test_a_slurm_job_that_was_stopped_puts_itself_back(slurm):
    done = slurm(f"step 10\n{STOP}", SLURM_RESTART_COUNT="99")
    assert done.returncode == 0, done.stderr
    assert STOP in done.stdout
    assert slurm.cluster.calls("scontrol") == [["scontrol", "requeue", "17"]]


def test_a_slurm_job_is_not_put_back_for_ever(slurm):
    done = slurm(STOP, SLURM_RESTART_COUNT="100")
    assert done.returncode == 1
    assert "after 100 times" in one_line(done)
    assert slurm.cluster.calls("scontrol") == []


def test_a_slurm_job_that_fails_is_not_put_back(slurm):
    done = slurm(STOP, status=5)
    assert done.returncode == 5
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


# -------------------------------------------------------------------------------------------- GKE

GKE = {
    "NAME": "my-run",
    "SERVICE_ACCOUNT": "trainer",
    "BUCKET": "my-bucket",
    "RUN": "runs/my-run",
    "IMAGE": "python:3.12",
    "REPO": "https://example.org/me/ddistill",
    "REF": "v1",
    "ARGS": shlex.join(a.replace("$HOME", "") for a in ARGS),
}


def substituted() -> str:
    """What `envsubst` makes of the file."""
    return re.sub(
        r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))",
        lambda found: GKE.get(found[1] or found[2], ""),
        JOBSET.read_text(),
    )


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(substituted())


def job_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 1
    return job["template"]["spec"]


def container_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


def test_the_placeholders_are_those_listed_on_top():
    text = JOBSET.read_text()
    head = text[: text.index("\napiVersion")]
    assert all(line.startswith("#") for line in head.splitlines())
    listed = re.findall(r"^#   ([A-Z_]+)  ", head, re.MULTILINE)
    used = re.findall(r"\$\{(\w+)\}", text)
    assert set(listed) == set(used) == GKE.keys()
    assert len(listed) == len(GKE)
    # envsubst would also take these, which the shell in the container is meant to see.
    assert not re.findall(r"\$[A-Za-z_]", text)
    assert "$(" not in text  # Kubernetes would


def test_envsubst_makes_the_same_of_it():
    envsubst = shutil.which("envsubst")
    if envsubst is None:
        pytest.skip("envsubst (gettext) is not installed")
    done = subprocess.run(
        [envsubst], input=JOBSET.read_text(), env=GKE, capture_output=True, text=True, check=True
    )
    assert done.stdout == substituted()


def test_the_jobset_is_one_slice(jobset):
    assert (jobset["kind"], jobset["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    assert jobset["metadata"]["name"] == "my-run"
    job = job_of(jobset)
    pod = job["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container_of(jobset)["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, topology.split("x"))
    assert (topology, job["parallelism"]) == ("4x4", 4)
    assert rows * columns == job["parallelism"] * chips
    assert job["completions"] == job["parallelism"]
    assert pod["serviceAccountName"] == "trainer"


def test_the_jobset_starts_again_but_not_with_a_wrong_setting(jobset):
    from ddistill import main

    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] >= 10
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = job_of(jobset)
    assert job["backoffLimit"] == 0  # one host alone cannot start again
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (exit_rule,) = job["podFailurePolicy"]["rules"]
    assert exit_rule["action"] == "FailJob"
    assert exit_rule["onExitCodes"]["values"] == [main.USAGE_ERROR]
    assert exit_rule["onExitCodes"]["containerName"] == container_of(jobset)["name"]


def test_the_bucket_is_where_the_run_is_written(jobset):
    pod = job_of(jobset)["template"]
    assert pod["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    (volume,) = pod["spec"]["volumes"]
    (mount,) = container_of(jobset)["volumeMounts"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert mount["name"] == volume["name"]
    assert f'--workdir="{mount["mountPath"]}/runs/my-run"' in container_of(jobset)["args"][0]


@pytest.fixture
def container(jobset, cluster):
    """The container's command, in a folder of its own."""

    def start(
        git: int = 0,
        pip: int = 0,
        status: int = 0,
        says: str = "",
        wait: bool = False,
        slow_log: bool = False,
    ):
        cluster.add("git", f"'init' in sys.argv and os.mkdir(sys.argv[-1])\nsys.exit({git})")
        code = f"""
            import signal, time
            if "pip" in sys.argv:
                sys.exit({pip})
            def stop(*_):
                print({STOP!r}, flush=True)
                sys.exit(0)
            signal.signal(signal.SIGTERM, stop)
            print("started", flush=True)
            while {wait}:
                time.sleep(0.02)
            print({says!r}, flush=True)
            sys.exit({status})
            """
        cluster.add("python", code)
        # Slower than Python's end, as it may be on a busy machine.
        slow = """
            import time
            text = sys.stdin.read()
            time.sleep(0.3)
            for file in (open(sys.argv[1], "w"), sys.stdout):
                print(text, end="", file=file, flush=True)
            """
        if slow_log:
            cluster.add("tee", slow)
        (cluster.bin / "sleep").unlink()
        process = container_of(jobset)
        # A file and not a pipe: what is left running must not hold the test up.
        with (cluster.folder / "out").open("w") as out:
            return subprocess.Popen(
                [*process["command"], *process["args"]],
                env=cluster.env(),
                cwd=cluster.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    return start


def test_the_container_runs_the_command(container, cluster):
    assert container(says="complete").wait(timeout=30) == 0
    init, fetch, checkout = cluster.calls("git")
    assert fetch[-2:] == [GKE["REPO"], "v1"]
    assert (init[1], checkout[1]) == ("init", "checkout")
    pip, program = cluster.calls("python")
    assert pip[-2:] == ["--editable", ".[tpu]"]
    given = [argument.replace("$HOME", "") for argument in ARGS]
    expected = ["python", "-m", "ddistill.main", *given, "--workdir=/bucket/runs/my-run"]
    assert program == [*expected, "--distributed"]
    assert (cluster.folder / "out").read_text() == "started\ncomplete\n"


def test_a_container_that_is_stopped_saves_and_does_not_count_as_complete(container, cluster):
    process = container(wait=True)
    wait_for(lambda: "started" in (cluster.folder / "out").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == STOPPED
    assert (cluster.folder / "out").read_text() == f"started\n{STOP}\n"


def test_the_last_words_of_a_container_are_waited_for(container):
    assert container(says=STOP, slow_log=True).wait(timeout=30) == STOPPED


@pytest.mark.parametrize(
    "trouble, status", [({"git": 2}, 69), ({"pip": 2}, 69), ({"status": 2}, 2)]
)
def test_a_container_that_fails_says_what_kind_it_is(container, trouble, status):
    assert container(**trouble).wait(timeout=30) == status
