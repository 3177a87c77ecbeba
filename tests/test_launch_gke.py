"""`launch/gke_jobset.yaml`: what it asks for, and its container's command in a folder."""

import re
import shlex
import shutil
import signal
import subprocess
from typing import Any

import pytest
import yaml
from launching import ARGS, JOBSET, STATUSES, STOP, Cluster, wait_for

from ddistill.runtime import ending

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
def cluster(tmp_path):
    return Cluster(tmp_path / "cluster")


@pytest.fixture
def container(jobset, cluster):
    """The container's command, in a folder of its own."""

    def start(
        git: int = 0,
        pip: int = 0,
        status: int = 0,
        says: str = "",
        wait: bool = False,
    ) -> subprocess.Popen[bytes]:
        cluster.add("git", f'if [ "$1" = init ]; then mkdir "${{!#}}"; fi; exit {git}')
        code = f"""
            if [ "$2" = pip ]; then exit {pip}; fi
            stop() {{ echo {shlex.quote(STOP)}; exit {ending.TERMINATED}; }}
            trap stop TERM
            echo started
            while {str(wait).lower()}; do sleep 0.02; done
            echo {shlex.quote(says)}
            exit {status}
            """
        cluster.add("python", code)
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
    folders = ["--cache=/bucket/runs/my-run/shared", *given, "--workdir=/bucket/runs/my-run"]
    expected = ["python", "-m", "ddistill.main", *folders]
    assert program == [*expected, "--distributed"]
    assert (cluster.folder / "out").read_text() == "started\ncomplete\n"


def test_a_container_that_is_stopped_saves_and_does_not_count_as_complete(container, cluster):
    process = container(wait=True)
    wait_for("started", cluster.folder / "out")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == ending.TERMINATED
    assert (cluster.folder / "out").read_text() == f"started\n{STOP}\n"


@pytest.mark.parametrize(
    "trouble, status",
    [({"git": 2}, 69), ({"pip": 2}, 69), *(({"status": n}, n) for n in (1, 2, *STATUSES))],
)
def test_a_container_that_fails_says_what_kind_it_is(container, trouble, status):
    assert container(**trouble).wait(timeout=30) == status
