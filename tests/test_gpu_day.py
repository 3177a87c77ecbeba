"""`benchmarks/gpu_day.sh`: both calls at tiny sizes, and what they leave when the time is short."""

import contextlib
import dataclasses
import importlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import runs  # adds the network "tiny"
from PIL import Image
from test_launch_scripts import complaints

from ddistill.data.facts import DataFacts
from ddistill.evaluation.checks import check_evaluation
from ddistill.evaluation.records.rows import read_rows
from ddistill.planning.planner import plan_stages

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("benchmarks")
SCRIPT = ROOT / "benchmarks" / "gpu_day.sh"
STAGES = ["classifier", "teacher", "sfddm_n4", "pd_n16", "pd_n8", "pd_n4"]
STAGES += ["o2mkd_warmup", "o2mkd_k4", "pairs", "dm_k2"]
TINY = [name for name in STAGES if name not in ("pd_n16", "pd_n8")]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """JPEGs of two classes, as the archive of CIFAR-10 has them: train/CLASS/NUMBER.jpg."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (10, 10, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i:04d}.jpg")
    return folder


# ------------------------------------------------------------------------------------ the script


def test_the_script_is_sound():
    assert complaints(SCRIPT) == ""
    assert "\nset -euo pipefail\n" in SCRIPT.read_text()


def called(cluster, *words: str, **settings: str) -> list[list[str]]:
    cluster.add("python")
    cluster.bash(SCRIPT, *words, PYTHON=str(cluster.bin / "python"), **settings)
    return cluster.calls("python")


def test_the_script_calls_python_with_its_settings(cluster):
    (call,) = called(cluster, "train", DATA="a b", OUT="out", BUDGET="7", SIZE="tiny")
    assert call[1:3] == ["benchmarks/gpu_day.py", "train"]
    assert call[3:] == ["--out=out", "--budget=7", "--size=tiny", "--data=a b"]


def test_the_script_installs_wheels_first(cluster):
    (cluster.folder / "one.whl").parent.mkdir(parents=True, exist_ok=True)
    (cluster.folder / "one.whl").touch()
    pip, call = called(cluster, "tables", WHEELS=str(cluster.folder))
    assert pip[1:4] == ["-m", "pip", "install"]
    assert pip[-1] == str(cluster.folder / "one.whl")
    assert "--no-index" in pip
    assert call[2] == "tables"


def test_the_script_explains_itself(cluster):
    done = cluster.bash(SCRIPT)
    assert done.returncode == 2
    for name in ("DATA", "OUT", "BUDGET", "PYTHON", "WHEELS", "SIZE"):
        assert f"\n  {name} " in done.stderr


# ------------------------------------------------------------------------------------ the tables


def in_this_process(script, arguments, seconds):
    """Runs a benchmark without a process of its own, which would import everything again."""
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        importlib.import_module(Path(script).stem).main(list(arguments))
    return said.getvalue(), 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_table_is_printed(tmp_path):
    import gpu_day

    # A script that is there for two dtypes is run for the first.
    wanted = list({table.script: table for table in reversed(gpu_day.TABLES)}.values())[::-1]
    rows = {
        "train_step.py": "| jax bfloat16 |",
        "student_axis.py": "| vmap ",
        "inception.py": "| ours |",
        "matching_step.py": "| DMD step |",
    }
    assert [table.script for table in wanted] == list(rows)
    assert gpu_day.tables(tmp_path, 3000.0, "tiny", in_this_process, wanted) == []
    sections = (tmp_path / "tables.md").read_text().split("\n## ")[1:]
    for section, row in zip(sections, rows.values(), strict=True):
        assert row in section, section


def test_a_table_that_fails_or_has_no_time_does_not_end_the_others(tmp_path):
    import gpu_day

    wanted = [gpu_day.Table(name, (), (), 1.0) for name in ("a.py", "b.py")]
    asked = []

    def run(script, arguments, seconds):
        asked.append((script, arguments[-2], seconds))
        return f"output of {script}", int(script == "a.py")

    failed = gpu_day.tables(tmp_path, 100.0, "tiny", run, wanted)
    assert [line.split(":")[0].strip() for line in failed] == ["a.py"]
    # Half of the time, and what the first one left to the second.
    assert [round(seconds, -1) for _, _, seconds in asked] == [50, 100]
    assert asked[0][1] == "--seconds=40"
    page = (tmp_path / "tables.md").read_text()
    assert "output of a.py" in page
    assert "output of b.py" in page
    short = gpu_day.tables(tmp_path, 30.0, "tiny", run, wanted)
    assert "left out" in short[0]


def test_a_benchmark_that_does_not_end_is_killed():
    import gpu_day

    # Not one of ours: a module of the standard library that waits for a connection.
    script = "import time; print('begun', flush=True); time.sleep(60)"
    folder = gpu_day.FOLDER
    try:
        gpu_day.FOLDER = Path("")
        output, status = gpu_day.in_a_process("-c", [script], 5.0)
    finally:
        gpu_day.FOLDER = folder
    assert output == "begun\n\nkilled after 5 s"
    assert status == -signal.SIGKILL


def test_at_a_deadline_a_benchmark_prints_what_it_has():
    code = (
        "import time; from timing import Deadline, Variant; d = Deadline(1.0);"
        "made = []; d.watch(lambda: print([v.name for v in made if v.seconds]));"
        "d.prepare('one', lambda: Variant('one', lambda: None, 0.0), made); time.sleep(60)"
    )
    folder = ROOT / "benchmarks"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['one']"


# ---------------------------------------------------------------------------------- the training


def test_the_full_experiment_can_be_planned(tmp_path):
    import gpu_day_stages as stages

    made = stages.settings(stages.SIZES["full"], "folder", 10, dict.fromkeys(STAGES, 1000))
    assert list(made.pipeline) == STAGES == list(stages.SHARES)
    images = np.broadcast_to(np.uint8(0), (100, 32, 32, 3))
    labels = np.arange(100, dtype=np.int32) % 10
    from ddistill.data import Dataset

    dataset = Dataset("black", images, labels, 10, tuple("0123456789"))
    plans = plan_stages(made, DataFacts.of(dataset), tmp_path, tmp_path)
    check_evaluation(made, plans)
    counts = {plan.name: len(plan.students) for plan in plans}
    assert counts["o2mkd_k4"] == 4
    assert counts["dm_k2"] == 2


@pytest.fixture
def tiny(monkeypatch):
    """The tiny size with the tests' smallest network, which compiles in a second."""
    import gpu_day_stages
    import gpu_day_train

    small = dataclasses.replace(
        gpu_day_stages.SIZES["tiny"],
        network={"name": "tiny", "out_channels": 3},
        narrow={"width": 3},
    )
    assert runs.TinyNet.__name__ == "TinyNet"
    monkeypatch.setitem(gpu_day_train.SIZES, "tiny", small)
    return gpu_day_train


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_stages_are_trained_and_scored_from_an_archive(tiny, photographs, tmp_path):
    archive = tmp_path / "photographs.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(photographs, arcname=".")
    assert tiny.train(archive, tmp_path / "out", 3000.0, "tiny") == []
    found = json.loads((tmp_path / "out" / "gpu_day.json").read_text())
    assert set(found["stages"]) == {*TINY, "evaluation"}
    assert all(stage["state"] == "complete" for stage in found["stages"].values())
    rows = read_rows(tmp_path / "out" / "results.json")
    methods = {row.method for row in rows}
    assert {"sfddm", "pd", "o2mkd", "msd_dm"} <= methods
    assert all(np.isfinite(row.value) for row in rows)
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    # Twice as fast, twice as long.
    day = tiny.Day("tiny", photographs, None, tmp_path, (tiny.time.monotonic(), 1000.0))
    day.size = dataclasses.replace(day.size, most=10**9)
    day.pace = 1e-4
    slow = day.length("teacher", STAGES[1:])
    day.pace = 5e-5
    assert day.length("teacher", STAGES[1:]) == pytest.approx(2 * slow, rel=0.01)


def test_stages_without_their_sources_are_left_out(tiny, photographs, tmp_path, monkeypatch):
    def run(day, made, stage, seconds, work=None):
        return "stopped after 1 s"

    monkeypatch.setattr(tiny.Day, "run", run)
    failed = tiny.train(photographs, tmp_path / "out", 100.0, "tiny")
    found = json.loads((tmp_path / "out" / "gpu_day.json").read_text())["stages"]
    assert found["teacher"]["state"] == "stopped"
    assert found["sfddm_n4"] == {"state": "left out", "reason": "needs teacher"}
    assert found["evaluation"]["state"] == "left out"
    assert len(failed) == len(TINY) + 2  # and the probe


def test_an_archive_is_unpacked_in_part(tiny, photographs, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "all"), "gztar", photographs)
    folder = tiny.unpack(Path(archive), tmp_path, 3)
    assert len(list(folder.rglob("*.jpg"))) == 4 * 3


def test_missing_data_is_one_line(capsys):
    import gpu_day

    with pytest.raises(SystemExit):
        gpu_day.main(["train", "--out=out", "--data=nowhere"])
    assert "DATA='nowhere' is neither a folder" in capsys.readouterr().err
