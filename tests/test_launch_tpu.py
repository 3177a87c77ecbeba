"""`launch/tpu_vm.sh`: what a dry run prints, and what is refused."""

import re
import shlex

import pytest
from launching import ARGS, SETTINGS, TPU_VM, Cluster, commands, one_line, remote, tools


def dry(cluster: Cluster, *words: str, **settings: str) -> list[list[str]]:
    """The commands that `tpu_vm.sh` would run."""
    done = cluster.bash(TPU_VM, "--dry-run", *words, **{**SETTINGS, **settings})
    assert done.returncode == 0, done.stderr
    assert cluster.calls() == [], "a dry run called something"
    return commands(done.stdout)


def ssh_of(found: list[list[str]]) -> list[tuple[str, str]]:
    return [remote(c) for c in found if "ssh" in c]


# ---------------------------------------------------------------------------------- in a dry run


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
    assert "host-start v1 .venv/bin/python -m ddistill.main " in start
    assert start.endswith(""" --workdir="$HOME"/buckets/'my-bucket/runs/my run' --distributed""")
    assert watch.endswith("host-watch")
    # Its words as the shell of a host sees them.
    words = shlex.split(start)
    cache, *given = words[words.index("ddistill.main") + 1 : -2]
    assert given == ARGS
    assert cache == "--cache=$HOME/buckets/my-bucket/runs/my run/shared"


def test_a_shared_folder_needs_no_mount(cluster):
    steps = ssh_of(dry(cluster, "run", *ARGS, WORKDIR="/mnt/a b"))
    assert len(steps) == 3
    assert not any("host-mount" in text for _, text in steps)
    assert shlex.split(steps[1][1])[-2:] == ["--workdir=/mnt/a b", "--distributed"]
    assert "--cache" not in steps[1][1]


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
    path = tools(tmp_path / "tools", "bash", "dirname", "sed")
    ways = [
        cluster.bash(TPU_VM, *words, *arguments, **SETTINGS, **settings, PATH=path)
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
    real = cluster.bash(TPU_VM, task, *arguments, **SETTINGS, DRY_RUN="0", PATH=path)
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


# -------------------------------------------------------------------------------- what it refuses


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
