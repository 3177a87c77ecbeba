"""docs/extending.md: its two files are run from a folder outside of the package."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flax import linen as nn

from ddistill import data, extensions, networks, objectives, register, samplers
from ddistill.data import Source
from ddistill.data.digits import DigitsSettings, count_digits, describe_digits, load_digits
from ddistill.errors import ConfigError
from ddistill.evaluation.records.names import METHODS
from ddistill.extensions import Extension, add, added, import_noted
from ddistill.objectives import Objective, make_objective
from ddistill.planning.identity import Kind, kinds_of
from ddistill.samplers.algorithms import ddim

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
# Networks of one resolution, and the fewest programs to score with.
SMALL = (
    "--config.stages.teacher.network.multipliers=(1,)",
    "--config.stages.teacher.network.attention=()",
    "--config.evaluation.samples=16",
    "--config.evaluation.batch_size=16",
    "--config.evaluation.full_steps=4",
    "--config.evaluation.interpolations=0",
)


def files_of_the_page() -> dict[str, str]:
    """The Python blocks of the page that a line `NAME.py` comes before."""
    found = re.findall(r"`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(found)


def python(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess:
    root = str(PAGE.parent.parent)
    paths = os.pathsep.join(filter(None, (root, path)))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder with the page's files and a run of them."""
    folder = tmp_path_factory.mktemp("mine")
    files = files_of_the_page()
    assert set(files) == {"my_consistency.py", "my_digits.py"}
    for name, text in files.items():
        (folder / name).write_text(text)
    done = python(folder, "-m", "ddistill.main", *command("runs/mine"))
    assert done.returncode == 0, done.stderr
    return folder


def command(workdir: str, *changes: str) -> list[str]:
    return ["--config=my_digits.py:smoke", f"--workdir={workdir}", *SMALL, *changes]


@pytest.mark.slow
def test_the_pages_method_is_trained_scored_and_found_again(mine):
    rows = json.loads((mine / "runs/mine/results.json").read_text())
    own = {(row["method"], row["nfe"]) for row in rows}
    assert ("my_consistency", 1) in own
    manifest = json.loads((mine / "runs/mine/stages/student/complete.json").read_text())
    assert manifest["teacher_calls"] == manifest["steps"] * manifest["batch_size"]
    again = python(mine, "-m", "ddistill.main", *command("runs/mine"))
    assert "evaluation: complete, found on disk" in again.stdout
    stages = json.loads((mine / "runs/mine/stages.json").read_text())
    assert stages["extensions"] == {"objective my_consistency": "my_consistency"}


@pytest.mark.slow
def test_its_hyperparameters_are_checked_and_digested(mine):
    wrong = python(
        mine,
        "-m",
        "ddistill.main",
        *command("runs/mine", "--config.stages.student.objective.rat=1"),
    )
    assert wrong.returncode == 2
    assert "rate" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
    other = python(
        mine,
        "-m",
        "ddistill.main",
        *command("runs/mine", "--config.stages.student.objective.rate=0.5"),
    )
    assert other.returncode == 2
    assert "objective.rate was 0.9 and is now 0.5" in other.stderr


@pytest.mark.slow
def test_its_run_is_opened_where_the_module_can_be_imported(mine):
    code = "import ddistill; print(ddistill.load('runs/mine').sample(2, nfe=1).shape)"
    opened = python(mine, "-c", code, path=str(mine))
    assert opened.stdout.strip() == "(2, 8, 8, 1)", opened.stderr
    refused = python(mine, "-c", "import sys; sys.path.remove(''); " + code)
    assert "objective 'my_consistency' of the module 'my_consistency'" in refused.stderr
    assert "PYTHONPATH" in refused.stderr


@pytest.mark.slow
def test_its_training_resumes_with_its_average(mine):
    """A run that is stopped after a checkpoint and started again ends as the one that was not."""
    steps = json.loads((mine / "runs/mine/stages/student/complete.json").read_text())["steps"]
    code = (
        "import sys; from ddistill.training.checkpoints import Checkpoints as C; save = C.save\n"
        "def stop(self, step, *rest):\n"
        "    save(self, step, *rest)\n"
        "    if 'student' in str(self.folder) and step < STEPS:\n"
        "        self.close(); import os; os._exit(9)\n"
        "C.save = stop\n"
        "from ddistill import main; from absl import app\n"
        "app.run(main.main, flags_parser=main.parse_flags)"
    ).replace("STEPS", str(steps))
    arguments = [*command("runs/again", "--cache=runs/shared"), "--stage=student"]
    died = python(mine, "-c", code, *arguments)
    assert died.returncode == 9, died.stderr
    done = python(mine, "-m", "ddistill.main", *arguments)
    assert done.returncode == 0, done.stderr
    assert "going on from the checkpoint" in done.stdout
    ends = [
        json.loads((mine / f"runs/{name}/stages/student/complete.json").read_text())["final_loss"]
        for name in ("mine", "again")
    ]
    assert ends[0] == ends[1]


# ------------------------------------------------------------------------------- registrations


@pytest.fixture
def clean(monkeypatch):
    """Registrations of a test are undone after it."""
    monkeypatch.setattr(extensions, "_ADDED", dict(extensions._ADDED))
    tables = objectives.OBJECTIVES, networks.NETWORKS, data.SOURCES, samplers.SAMPLERS, METHODS
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before):
        table.clear()
        table.update(rows)


def test_an_objective_of_ones_own(clean):
    @register.objective("halved", version=3)
    @dataclasses.dataclass(frozen=True)
    class Halved(Objective):
        share: float = 0.5

    assert make_objective({"name": "halved", "share": 1}) == Halved(1.0)
    assert added("objective", "halved").version == 3
    with pytest.raises(ConfigError, match="objective.shar is not a setting of 'halved'.*'share'"):
        make_objective({"name": "halved", "shar": 1})


@pytest.mark.parametrize(
    ("name", "text"),
    [("sfddm", "taken by ddistill"), ("My method", "lower-case letters"), ("x", "version=0")],
)
def test_names_and_versions_are_checked(clean, name, text):
    @dataclasses.dataclass(frozen=True)
    class Mine(Objective):
        pass

    with pytest.raises(ConfigError, match=text):
        register.objective(name, version=0 if name == "x" else 1)(Mine)
    assert added("objective", name) is None


def test_classes_are_checked(clean):
    with pytest.raises(ConfigError, match="is not a subclass of ddistill.objectives.Objective"):
        register.objective("mine")(dict)

    @dataclasses.dataclass(frozen=True)
    class Open(Objective):
        share: float

    with pytest.raises(ConfigError, match="the field 'share' of Open has no plain default"):
        register.objective("mine")(Open)
    with pytest.raises(ConfigError, match="not a subclass of flax.linen.Module"):
        register.network("mine")(dict)


def test_a_class_that_is_no_dataclass_of_its_own_is_refused(clean):
    class Undecorated(Objective):
        share: float = 0.5

    with pytest.raises(ConfigError, match="Undecorated is not a dataclass"):
        register.objective("mine")(Undecorated)


def test_what_a_finished_run_could_not_import_is_refused(clean):
    with pytest.raises(ConfigError, match="Put it into a module beside the file"):
        add({}, Extension("objective", "mine", "ddistill_config_file"), Objective)


def test_a_network_of_ones_own(clean):
    @register.network("mine")
    class Mine(nn.Module):
        width: int = 4

        @nn.compact
        def __call__(self, x, time, cond=None, *, train=False, taps=()):
            return nn.Dense(x.shape[-1])(nn.Dense(self.width)(x))

    module = networks.build("mine", width=2)
    assert module == Mine(width=2)
    with pytest.raises(ConfigError, match="network.widht is not a field of 'mine'.*'width'"):
        networks.build("mine", widht=2)


def test_a_source_of_ones_own(clean):
    @dataclasses.dataclass(frozen=True)
    class MySettings(DigitsSettings):
        name: str = "mine"
        threads: int = dataclasses.field(default=1, metadata={"run": True})

    source = Source(MySettings, load_digits, count_digits, describe_digits)
    register.data_source("mine", source)
    digits = data.load({"name": "mine", "threads": 2}, "train")
    assert len(digits) == len(data.load({"name": "digits"}, "train"))
    kinds = kinds_of(MySettings)
    assert (kinds["threads"], kinds["flip"]) == (Kind.RUN, Kind.CONTENT)
    assert data.setting_types()["threads"] is int


def test_a_sampler_of_ones_own(clean):
    mine = dataclasses.replace(ddim, name="mine", label="Mine")
    register.sampler(mine)
    assert samplers.get_sampler("mine") is mine
    assert added("sampler", "mine").module == __name__
    assert register.sampler(mine, version=2) is mine  # as where a module is loaded again
    assert added("sampler", "mine").version == 2
    for name in ("heun", "sfddm"):
        with pytest.raises(ConfigError, match=f"the name '{name}' is taken by the method"):
            register.sampler(dataclasses.replace(ddim, name=name, label="Mine"))
        assert added("sampler", name) is None


def test_noted_modules_are_imported_or_named(clean):
    imported = []
    with pytest.raises(ConfigError, match="network 'theirs' of the module 'their.module'"):
        import_noted({"network theirs": "their.module"}, imported.append)
    assert imported == ["their.module"]
    with pytest.raises(ConfigError, match=r"No module named 'no_such_module'.*PYTHONPATH"):
        import_noted({"network theirs": "no_such_module"}, __import__)
