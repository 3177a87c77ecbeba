"""Loggers: what they receive, and that a logger that fails costs a line and nothing else."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from runs import config, plans_of, tiny_settings

from ddistill.errors import ConfigError
from ddistill.extensions import _ADDED
from ddistill.parsing import parse
from ddistill.register import logger as register
from ddistill.runtime import loggers
from ddistill.runtime.loggers import LOGGERS, LoggerKind, LogTarget, RunLoggers
from ddistill.settings import Settings

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
SETTINGS = {"name": "tiny", "training": {"log_every": 10}}


class Kept:
    """Keeps what it receives, and fails in the method that it is told."""

    made: list["Kept"] = []  # noqa: RUF012

    def __init__(self, target: LogTarget, fails: str = ""):
        self.target, self.fails, self.calls = target, fails, []
        self._call("open")
        Kept.made.append(self)

    def _call(self, name: str, *values) -> None:
        if name == self.fails:
            raise RuntimeError(f"{name} is\nbroken")
        self.calls.append((name, *values))

    def config(self, settings):
        self._call("config", settings)

    def scalars(self, step, values):
        self._call("scalars", step, dict(values))

    def images(self, step, pictures):
        self._call("images", step, list(pictures))

    def close(self):
        self._call("close")


@pytest.fixture
def kept(monkeypatch):
    """Registers `Kept` as "kept", and as "METHOD" one that fails in that method."""
    monkeypatch.setattr(Kept, "made", [])
    monkeypatch.setitem(LOGGERS, "kept", LoggerKind(Kept))
    for name in ("open", "config", "scalars", "images", "close"):
        made = LoggerKind(lambda target, name=name: Kept(target, name))
        monkeypatch.setitem(LOGGERS, name, made)
    return Kept


def use(names: tuple[str, ...], folder: Path = Path("w"), step: int = 0) -> list[str]:
    """Opens loggers for a stage, passes everything once, and returns what was said."""
    said: list[str] = []
    run = RunLoggers(names, "tiny", folder, SETTINGS, said.append)
    opened = run.open("teacher", step)
    opened.scalars(step + 10, {"loss": 0.5, "loss/0": 0.25})
    opened.images(step + 10, {"preview": PICTURE})
    opened.scalars(step + 20, {"loss": 0.25})
    opened.close()
    run.open("student", 0).close()
    return said


def test_a_logger_receives_everything_in_order(kept):
    assert use(("kept", "jsonl")) == []
    first, second = kept.made
    assert first.target == LogTarget("tiny", "teacher", Path("w"), 0)
    assert second.target.stage == "student"
    assert first.calls == [
        ("open",),
        ("config", SETTINGS),
        ("scalars", 10, {"loss": 0.5, "loss/0": 0.25}),
        ("images", 10, ["preview"]),
        ("scalars", 20, {"loss": 0.25}),
        ("close",),
    ]


@pytest.mark.parametrize("fails", ["open", "config", "scalars", "images", "close"])
def test_a_logger_that_fails_is_off_for_the_run_and_the_others_go_on(kept, fails):
    said = use((fails, "kept"))
    assert said == [
        f"warning: the logger {fails} is off for the rest of this run, and the training continues: "
        f"{fails} is broken"
    ]
    whole = [own for own in kept.made if not own.fails]
    assert [len(own.calls) for own in whole] == [6, 3]
    broken = [own for own in kept.made if own.fails]
    assert len(broken) == (fails != "open")  # and none for the second stage
    assert all(own.calls[-1] == ("close",) for own in broken if fails != "close")


def test_a_package_that_is_not_there_is_named_once_with_its_extra(kept, monkeypatch):
    for name in ("tensorboard", "mlflow"):
        monkeypatch.setitem(LOGGERS, name, LoggerKind(Kept, "no_such_package", name))
    # TensorBoard is a default that nobody has asked for.
    assert use(("tensorboard", "mlflow", "kept")) == [
        "note: no logs for mlflow, because no_such_package is not installed: "
        "pip install 'ddistill[mlflow]', or set config.training.loggers."
    ]
    assert len(kept.made) == 2


def test_names_are_checked_when_a_run_is_planned(tmp_path):
    wanted = parse(config({"training.loggers": "tensorbord"}), Settings)
    with pytest.raises(ConfigError, match=r"loggers='tensorbord'.*'tensorboard'. Allowed: jsonl,"):
        plans_of(wanted, tmp_path / "run")
    plans_of(tiny_settings(loggers=("jsonl", "wandb")), tmp_path / "run")


def test_a_users_logger_is_registered_by_its_name(monkeypatch):
    monkeypatch.setattr(loggers, "LOGGERS", LOGGERS)
    try:
        assert register("mine")(Kept) is Kept
        assert LOGGERS["mine"].open is Kept
        with pytest.raises(ConfigError, match="'wandb'.*taken by ddistill"):
            register("wandb")(Kept)
        with pytest.raises(ConfigError, match="is not a class or a function"):
            register("other")("text")
    finally:
        LOGGERS.pop("mine", None)
        _ADDED.pop(("logger", "mine"), None)


# ------------------------------------------------------------------------- packages, for real


def events(folder: Path) -> list[bytes]:
    """The records of TensorBoard's event files, in order."""
    found = []
    for path in sorted(folder.glob("events*")):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            found.append(content[12 : 12 + size])
            content = content[16 + size :]
    return found


def test_tensorboard_has_values_and_pictures_by_stage(tmp_path):
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    assert use(("tensorboard",), tmp_path) == []
    found = [event.FromString(record) for record in events(tmp_path / "tensorboard" / "teacher")]
    values = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert (10, "loss", 0.5) in values
    assert (20, "loss", 0.25) in values
    assert (10, "loss/0", 0.25) in values
    pictures = [v.image for e in found for v in e.summary.value if v.HasField("image")]
    assert [(p.height, p.width) for p in pictures] == [(2, 3)]


def test_tensorboard_hides_steps_that_are_trained_again(tmp_path):
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    use(("tensorboard",), tmp_path)
    use(("tensorboard",), tmp_path, step=10)
    found = [event.FromString(record) for record in events(tmp_path / "tensorboard" / "teacher")]
    starts = [e.step for e in found if e.HasField("session_log") and e.session_log.status == 1]
    assert starts == [11]


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert use(("wandb",), tmp_path) == []
    first = json.loads((tmp_path / "wandb" / "teacher.json").read_text())["id"]
    folders = list((tmp_path / "wandb").glob(f"offline-run-*-{first}"))
    assert len(folders) == 1
    assert len(list(folders[0].rglob("preview_10_*.png"))) == 1
    stored = next(folders[0].glob("run-*.wandb")).read_bytes()
    assert b"loss" in stored
    assert b"log_every" in stored
    assert use(("wandb",), tmp_path, step=20) == []
    assert json.loads((tmp_path / "wandb" / "teacher.json").read_text())["id"] == first
    assert use(("wandb",), tmp_path) == []  # a stage that starts anew is another W&B run
    assert json.loads((tmp_path / "wandb" / "teacher.json").read_text())["id"] != first


def test_wandb_without_an_account_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("wandb").teardown()  # else the mode of an earlier test remains
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = use(("wandb",), tmp_path)
    assert len(said) == 1
    assert "the logger wandb is off" in said[0]
    assert "No API key" in said[0]


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_mlflow_without_a_server(tmp_path, monkeypatch, kind):
    mlflow = pytest.importorskip("mlflow")
    where = {"file": f"file:{tmp_path}/mlruns", "sqlite": f"sqlite:///{tmp_path}/mlflow.db"}
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where[kind])
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    assert use(("mlflow",), folder) == []
    assert use(("mlflow",), folder, step=20) == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = {r.data.tags["mlflow.runName"]: r for r in client.search_runs([experiment])}
    run = runs["run/teacher"]
    assert run.info.status == "FINISHED"
    assert run.data.params["training.log_every"] == "10"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 0.5), (20, 0.25), (30, 0.5), (40, 0.25)]
    assert len(client.get_metric_history(run.info.run_id, "loss.0")) == 2
    assert len(client.list_artifacts(run.info.run_id, "images")) >= 1
