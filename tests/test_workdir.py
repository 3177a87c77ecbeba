"""The folder of a run whose user names none: what gives another one, and what does not."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import config

from ddistill.errors import DataError
from ddistill.workdir import default_workdir, file_settings, read_base


def workdir(changes: dict[str, Any], base: dict[str, Any] | None = None) -> str:
    return str(default_workdir(config(changes), config(base))[0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training.log_every": 7, "training.checkpoint_every": 3, "training.keep": 1},
        {"training.mesh.model": 2, "training.scan_steps": 4, "training.loggers": ("jsonl",)},
        {"evaluation.samples": 64, "evaluation.noise_seed": 1},
        {"stages.student.variant": "mine", "stages.student.students.mapping": "vmap"},
        {"stages.student.samplers": {"ddim": (2,)}},
        {"data.flip": False},  # as the digits have it anyway
        {"seed": 0.0, "stages.student.steps": 40.0},
        {"stages.student.optimizer.momentum": 0.5},
        {"stages.student.objective.output_weight": 0},
    ],
)
def test_what_is_not_learnt_keeps_the_folder(changes):
    assert workdir(changes) == "runs/tiny"


def test_what_is_learnt_gives_a_folder_of_its_own():
    changes = (
        {"seed": 1},
        {"seed": 2},
        {"data.flip": True},
        {"schedule.steps": 32},
        {"stages.student.steps": 50},
        {"stages.student.grid.explicit": (0, 4, 16)},
    )
    found = [workdir(change) for change in changes]
    assert all(re.fullmatch(r"runs/tiny-[0-9a-f]{8}", name) for name in found)
    assert len(set(found)) == len(changes)
    for change, name in zip(changes, found):
        assert workdir({**change, "training.log_every": 3}) == name
    # A name that a user gives is taken, and a stage that is not run says nothing.
    assert workdir({"name": "mine"}) == "runs/mine"
    unused = {"pipeline": ("teacher",), "stages.student.steps": 50}
    assert workdir(unused, {"pipeline": ("teacher",)}) == "runs/tiny"


def test_the_checkpoints_count_where_the_best_one_is_handed_on():
    best = {"stages.student.select_checkpoint": "best"}
    other = {**best, "training.checkpoint_every": 20}
    assert workdir({"training.checkpoint_every": 20}) == "runs/tiny"
    assert workdir(best) != workdir(other)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def test_images_count_by_what_they_are_and_not_by_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for place, value in (("here", 9), ("elsewhere/cats", 9), ("other", 10)):
        for name in ("a", "b"):
            picture(tmp_path / place / name / "0.png", value)
    own = {"data": {"name": "folder", "path": "", "test_fraction": 0.0}}

    def at(place: str, **more: Any) -> str:
        return workdir({"data": {**own["data"], "path": f"{tmp_path}/{place}", **more}}, own)

    first = at("here")
    assert first != "runs/tiny"
    assert at("here/") == at("elsewhere/cats", workers=3, in_memory_limit_mb=0.001) == first
    assert len({first, at("other"), at("here", flip=True), at("here", image_size=4)}) == 4
    # The place that the config itself names, by another path.
    named = {"data": {**own["data"], "path": str(tmp_path / "here")}}
    moved = {"data": {**own["data"], "path": str(tmp_path / "elsewhere" / "cats")}}
    assert workdir(moved, named) == workdir(named, named) == "runs/tiny"
    with pytest.raises(DataError, match="nowhere"):
        at("nowhere")


def test_images_that_were_opened_are_handed_on():
    assert default_workdir(config({"seed": 1}), config())[1] is None
    opened = default_workdir(config({"data.flip": True}), config())[1]
    assert opened is not None
    assert opened.hflip


def test_settings_in_any_bytes_have_a_folder():
    one, other = (
        workdir({"stages.student.students.embeddings": name}) for name in ("caf\udce9", "caf\udce8")
    )
    assert one != other
    assert one.encode().startswith(b"runs/tiny-")


def test_the_config_without_flags(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("def get_config(variant='plain'): return {'name': variant}\n")
    assert read_base(str(file)).name == "plain"
    assert read_base(f"{file}:smoke").name == "smoke"
    assert read_base(f"{file}:diffusers:/a:b").name == read_base(f"{file}:edm:x").name == "plain"
    file.write_text("def get_config(needed): return {}\n")
    assert read_base(str(file)) is None
    # Without anything to compare with, everything counts.
    assert str(default_workdir(config(), None)[0]).startswith("runs/tiny-")


def test_the_settings_of_the_file_behind_a_command_are_those_without_its_flags(tmp_path):
    path = tmp_path / "my config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "from ddistill import recipes\n"
        "def get_config(variant=''):\n"
        "    settings = recipes.digits('mine', recipes.digits_students())\n"
        "    return recipes.digits_config(settings, variant, ('teacher',))\n"
    )
    for flag in (f"--config='{path}'", f"--config '{path}'"):
        found = file_settings(f"python -m ddistill.main {flag} --config.seed=7 --stage=evaluate")
        assert found["seed"] == 0
        assert found["evaluation"]["samples"] == 1024
    smoke = file_settings(f"python -m ddistill.main --config='{path}:smoke'")
    assert smoke["evaluation"]["samples"] != 1024
    for command in ("", "python train.py", "--config=nowhere.py", "an 'open quote", "--config"):
        assert file_settings(command) == {}
