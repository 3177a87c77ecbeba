"""One student at any number of steps: `sample`, exports, and what a step is told."""

import itertools
import json

import numpy as np
import pytest
from exported import COMMON, UNET
from exported import run as pretended
from exported import settings as run_settings
from jax import export as jax_export

import ddistill
from ddistill.data.augment import to_unit
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling import noise_bank
from ddistill.export.__main__ import main as export
from ddistill.schedules import linear_path, uniform_grid
from ddistill.settings import ScheduleSettings, StageSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of random networks: a two-time student on 16 levels, sampled in 1 and 4 steps."""
    network = {**UNET, "multipliers": (1,), "attention": (), "time_scale": 0.005}
    teacher = StageSettings({"name": "denoising"}, network=network, prediction="flow", **COMMON)
    student = StageSettings(
        {"name": "meanflow"},
        teacher="teacher",
        init="teacher",
        samplers={"ddim": (1, 4)},
        method="meanflow",
        **{**COMMON, "steps": 4},
    )
    stages = {"teacher": teacher, "student": student}
    made = run_settings("any_steps", ScheduleSettings("linear_path", 16), stages)
    return pretended(made, tmp_path_factory.mktemp("any_steps"))


def by_hand(trained, noise, steps):
    """DDIM, the network told the time of the level where each step ends."""
    plan = trained.plan("student")
    student, levels = trained.networks(plan), linear_path(16)
    z = noise
    grid = uniform_grid(16, steps)[::-1]
    for i, j in itertools.pairwise(grid):
        here, there = levels.at(int(i)), levels.at(int(j))
        told = student.given(end_time=there.time)
        prediction = told(z, here)
        x0 = np.clip(prediction.x0, -1, 1)
        eps = (z - here.alpha * x0) / here.sigma
        z = there.alpha * x0 + there.sigma * eps
    return z


def test_a_loaded_run_takes_any_number_of_steps(folder):
    trained = ddistill.load(folder)
    assert trained.nfes == (1, 4)
    seed = trained.settings.evaluation.noise_seed
    noise = noise_bank(trained.settings.evaluation, (8, 8, 1), 0, 4)
    for count in (1, 3):
        found = to_unit(trained.sample(4, seed=seed, nfe=count))
        wanted = by_hand(trained, noise, count)
        assert np.abs(found - np.clip(wanted, -1, 1)).max() < 2.5 / 255
    with pytest.raises(ConfigError, match="nfe=17 is not possible: stage 'student' has 16 levels"):
        trained.sample(1, nfe=17)


def test_exports_have_the_number_that_is_asked_for(folder, tmp_path):
    trained, out = ddistill.load(folder), tmp_path / "program"
    export(["--to=stablehlo", "--nfe=2", str(folder), str(out)])
    program = jax_export.deserialize(bytearray((out / "sampler.stablehlo").read_bytes()))
    noise = np.asarray(noise_bank(trained.settings.evaluation, (8, 8, 1), 0, 3))
    wanted = trained.sample(3, seed=trained.settings.evaluation.noise_seed, nfe=2).astype(int)
    assert np.abs(wanted - np.asarray(program.call(noise))).max() <= 1
    with pytest.raises(SystemExit, match="is given end_time, which UNet2DModel does not support"):
        export(["--to=diffusers", str(folder), str(tmp_path / "folder")])
    export(["--to=safetensors", str(folder), str(tmp_path / "weights")])
    manifest = json.loads((tmp_path / "weights" / "ddistill.json").read_text())
    assert manifest["network"]["extras"] == ["end_time"]
    assert manifest["inputs_by_step"] == ["end_time"]
