"""Stand-ins for what the launch scripts call: each writes its arguments down, some do a little."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from ddistill.runtime import ending

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
TPU_VM, SBATCH, JOBSET = LAUNCH / "tpu_vm.sh", LAUNCH / "slurm.sbatch", LAUNCH / "gke_jobset.yaml"
ENVIRONMENT = LAUNCH / "environment.sh"
STOPPED = 75
# Exit statuses of a run that was stopped by SIGINT and by SIGTERM.
STATUSES = (ending.INTERRUPTED, ending.TERMINATED)
# The last words of a run that was asked to stop.
STOP = "Stopped by SIGTERM in stage 'teacher'; everything up to there is saved."

# What a shell would take apart, expand or lose if it were quoted once too little or too often.
ARGS = [
    "--config=configs/a b.py",
    """--config.note=it's "two"  words, $HOME `id` \\ * & ; | > #""",
    "--config.empty=",
    "",
]
# Set where the tests run, these would change what the scripts do.
OURS = re.compile(
    r"SLURM_.*|DDISTILL_.*|(NAME|PROJECT|ZONE|TYPE|VERSION|SPOT|WORKDIR|REPO|REF|SETUP|DRY_RUN"
    r"|CREATE_FLAGS|SSH_FLAGS|GCSFUSE_FLAGS|PYTHON|PYTHON_VERSION|POLL|ASSUME_STATE|WORKER|DELETE"
    r"|MAX_REQUEUES|ARGS|RUN|BUCKET|IMAGE|SERVICE_ACCOUNT)$"
)

# Bash, because it starts ten times as fast as Python. A call is written in one piece, so that those
# of hosts that run at the same time do not mix.
STAND_IN = """\
#!/usr/bin/env bash
note() {{ local IFS=$'\\x1f'; printf '%s\\x1e' "$*" >>{record}; }}
note {name} "$@"
{code}
"""


class Cluster:
    """Commands that come first on the PATH, and what they were called with."""

    def __init__(self, folder: Path, *names: str):
        self.folder = folder
        self.bin = folder / "bin"
        self.record = folder / "calls"
        for name in names:
            self.add(name)

    def add(self, name: str, code: str = "", folder: Path | None = None) -> Path:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        record = shlex.quote(str(self.record))
        path.write_text(STAND_IN.format(record=record, name=name, code=code))
        path.chmod(0o755)
        return path

    def calls(self, name: str = "") -> list[list[str]]:
        if not self.record.exists():
            return []
        rows = [row.split("\x1f") for row in self.record.read_text().split("\x1e")[:-1]]
        return [row for row in rows if not name or row[0] == name]

    def env(self, **settings: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not OURS.match(k)}
        return {**kept, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", **settings}

    def bash(self, *words: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        # A script that leaves something open or waits for ever ends here.
        return subprocess.run(
            ["bash", *map(str, words)],
            env=self.env(**settings),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines()]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def wait_for(text: str, file: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < end, f"waited in vain for {text!r} in {file}"
        time.sleep(0.02)


def tools(folder: Path, *names: str) -> str:
    """A PATH with these commands of the machine and no others."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(str(shutil.which(name)))
    return str(folder)


# ------------------------------------------------------------------------------------ a TPU slice

HOSTS = 2
SETTINGS = {
    "NAME": "my-run",
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "WORKDIR": "gs://my-bucket/runs/my run",
    "REPO": "https://example.org/me/ddistill",
    "REF": "v1",
    "POLL": "0",
}

# Holds the state of the TPU in two files; its hosts are folders, and their shells ours. With every
# `host-watch` one word of the plan is used up. A request turns at once into what `created` says.
GCLOUD = """
kind=$3 verb=$4
cd {folder}
if [ -f broken ] && [ "$(<broken)" = "$kind $verb" ]; then exit 1; fi
case $verb in
  list)
    file=node
    if [ "$kind" = queued-resources ]; then file=queue; fi
    if [ -f $file ]; then echo "$(<$file)"; fi
    ;;
  create)
    cp created queue
    echo READY >node
    ;;
  delete) rm queue node ;;
  ssh)
    for word in "$@"; do
      case $word in --command=*) command=${{word#--command=}} ;; esac
    done
    hosts=()
    for ((i = 0; i < {hosts}; i++)); do
      mkdir -p host$i
      (cd host$i && HOME=$PWD PATH={folder}/host-bin:$PATH exec bash -c "$command") &
      hosts+=($!)
    done
    status=0
    for host in "${{hosts[@]}}"; do
      wait $host || {{ found=$?; [ $status != 0 ] || status=$found; }}
    done
    if [[ $command == *host-watch* ]]; then
      read -ra words <plan
      echo "${{words[*]:1}}" >plan
      if [ "${{words[0]}}" = preempt ]; then
        echo SUSPENDED >queue
        echo PREEMPTED >node
        for home in host?; do mv $home gone${{#words[@]}}-$home; done
        exit 255
      fi
    fi
    exit $status
    ;;
esac
"""
# The Python of a host: host 0 does what the plan says, the others just end.
PROGRAM = """
stop() {{ echo {stop}; exit {status}; }}
trap stop TERM
host=${{HOME##*/}} word=end
if [ $host = host0 ]; then read -r word _ <{folder}/plan; fi
echo "$word on $host"
case $word in
  stop | preempt) stop ;;
  interrupt) exit 130 ;;
  fail) exit 1 ;;
  killed) kill -KILL $$ ;;
  early)
    trap - TERM
    kill -TERM $$
    ;;
  wait) while true; do sleep 0.05; done ;;
esac
"""
# Stands for the repository's own, which would install from the package index.
INSTALL = """
install_once() {
  echo "$1" >>"$HOME/extras"
  cp "$HOME/../program" .venv/bin/python
}
"""


def make_repository(folder: Path) -> Path:
    """What the hosts install, as `v1`."""
    (folder / "launch").mkdir(parents=True)
    shutil.copy(TPU_VM, folder / "launch")
    (folder / "launch" / ENVIRONMENT.name).write_text(INSTALL)
    commit = ["-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "one"]
    for words in (["init", "--quiet"], ["add", "."], commit, ["tag", "v1"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


class Slice(Cluster):
    """A TPU slice of paper: a gcloud and hosts that install the repository."""

    def __init__(self, folder: Path, repository: Path, plan: str):
        super().__init__(folder)
        self.repository = repository
        self.plan, self.queue, self.node = (folder / name for name in ("plan", "queue", "node"))
        place = shlex.quote(str(folder))
        self.add("gcloud", GCLOUD.format(folder=place, hosts=HOSTS))
        words = {"stop": shlex.quote(STOP), "status": ending.TERMINATED}
        self.program = self.add("program", PROGRAM.format(folder=place, **words), folder)
        # Of the host: pip and uv, of which the second makes the folder of the environment.
        host_bin = folder / "host-bin"
        self.add("python3", 'if [ "$3" = venv ]; then mkdir -p "${!#}/bin"; fi', host_bin)
        self.add("gcsfuse", folder=host_bin)
        self.plan.write_text(f"{plan}\n")
        (folder / "created").write_text("ACTIVE\n")

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


def remote(command: list[str]) -> tuple[str, str]:
    """Which hosts, and what they run."""
    flags = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
    return flags["--worker"], flags["--command"]
