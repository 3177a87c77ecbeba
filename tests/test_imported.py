"""Stages that start from a network of another project: `config.stages.X.source`."""

import dataclasses
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from exported import COMMON, LINEAR, UNET, diffusers_model, levels_run, run, settings

import ddistill
from ddistill import data, recipes
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError
from ddistill.export.__main__ import licences
from ddistill.interop.diffusers import read_teacher
from ddistill.interop.sources import write_noted
from ddistill.interop.tensors import read_tensors, write_tensors
from ddistill.parsing import parse
from ddistill.planning.planner import SOURCES, plan_stages
from ddistill.settings import ScheduleSettings, Settings, StageSettings, StudentsSettings
from ddistill.training.initial import initial_state
from ddistill.training.run_stages import starting_point
from ddistill.training.trained import Networks
from ddistill.workdir import default_workdir, read_base

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A model's repository: network, weights and scheduler side by side."""
    return diffusers_model(tmp_path / "model")


def stages(folder: Path, schedule: ScheduleSettings = LINEAR, **changes):
    options = {**COMMON, "steps": 0, "source": f"diffusers:{folder}", **changes}
    return settings(
        "imported", schedule, {"teacher": StageSettings({"name": "denoising"}, **options)}
    )


def plan(made, tmp_path):
    return plan_stages(made, facts(made), tmp_path / "run", tmp_path / "shared")[0]


def facts(made):
    return DataFacts.of(data.load(made.data, "train"))


def test_a_folder_says_what_the_network_is(folder):
    found = read_teacher(folder)
    assert found.network["channels"] == 8
    assert found.network["attention"] == (4,)
    assert found.image_shape == (8, 8, 1)
    assert (found.prediction, found.num_classes, found.licence) == ("eps", 0, "apache-2.0")
    assert found.schedule == {
        "name": "linear_beta",
        "steps": 16,
        "options": {"start": 0.01, "end": 0.4},
    }


def test_a_pipelines_folders_are_the_same_model(folder, tmp_path):
    whole = read_teacher(folder)
    for part in ("unet", "scheduler"):
        (folder / part).mkdir()
    for name, part in (
        ("config.json", "unet"),
        ("diffusion_pytorch_model.safetensors", "unet"),
        ("scheduler_config.json", "scheduler"),
    ):
        shutil.move(folder / name, folder / part / name)
    assert read_teacher(folder).digest == whole.digest


def test_the_average_of_a_training_script(folder):
    """unet/ and unet_ema/ of a checkpoint, the latter in two files and in float64."""
    plain = read_teacher(folder)
    for part in ("unet", "unet_ema"):
        (folder / part).mkdir()
        shutil.copy(folder / "config.json", folder / part)
        shutil.copy(folder / WEIGHTS, folder / part)
    edit(folder / "unet_ema" / "config.json", decay=0.9999, optimization_step=500, inv_gamma=1.0)
    tensors = read_tensors(folder / "unet_ema" / WEIGHTS)
    doubled = {name: 2 * x.astype(np.float64) for name, x in tensors.items()}
    (folder / "unet_ema" / WEIGHTS).unlink()
    names = sorted(doubled)
    table = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(table.values()):
        kept = {name: doubled[name] for name in names if table[name] == file}
        write_tensors(folder / "unet_ema" / file, kept)
    index = folder / "unet_ema" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    averaged = read_teacher(folder)
    assert averaged.source == f"diffusers:{folder} (unet_ema/{index.name}, the average)"
    assert averaged.digest != plain.digest
    for a, b in zip(jax.tree.leaves(averaged.params), jax.tree.leaves(plain.params)):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, 2 * b)
    assert read_teacher(folder / "unet").digest == plain.digest


def test_training_goes_on_from_what_was_read(folder, tmp_path):
    made = plan(stages(folder, steps=5), tmp_path)
    start = starting_point(made, {}, Networks())
    state = initial_state(made, start)
    found = read_teacher(folder)
    for a, b in zip(jax.tree.leaves(state.params["student"]), jax.tree.leaves(found.params)):
        np.testing.assert_array_equal(a, b)


def test_the_stage_is_its_files_wherever_they_lie(folder, tmp_path):
    first = plan(stages(folder), tmp_path)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert plan(stages(moved), tmp_path).digest == first.digest
    weights = moved / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert plan(stages(moved), tmp_path).digest != first.digest


def test_an_experiment_takes_over_network_and_levels(folder):
    made = recipes.with_teacher(levels_run(), f"diffusers:{folder}")
    assert made.schedule == LINEAR
    assert made.stages["teacher"].network["channels"] == 8
    assert made.stages["teacher"].steps == 0
    assert made.stages["even"] == levels_run().stages["even"]


def test_a_finished_run_does_not_need_the_files_any_more(folder, tmp_path):
    made = recipes.with_teacher(levels_run(), f"diffusers:{folder}")
    workdir = run(made, tmp_path)
    plans = plan_stages(made, facts(made), workdir, tmp_path / "shared")
    write_noted(workdir / SOURCES, {"teacher": (made.stages["teacher"].source, plans[0].imported)})
    shutil.rmtree(folder)
    opened = ddistill.load(workdir)
    assert opened.plan("teacher").digest == plans[0].digest
    assert licences(opened, opened.plan("pair")) == ["apache-2.0"]
    # Where the stage is still to be trained, they are missed before anything starts from nothing.
    plan = opened.plan("teacher")
    with pytest.raises(ConfigError, match="is not there any more, and the stage is not complete"):
        starting_point(plan, {}, Networks())


CONFIG = """
from exported import levels_run
from ddistill.recipes import check_variant, to_config

def get_config(variant=""):
    check_variant(variant)
    return to_config(levels_run(), variant)
"""


def test_a_run_with_another_teacher_has_a_folder_of_its_own(folder, tmp_path, monkeypatch):
    """Of the teacher's content, wherever it lies; the plain run's folder would refuse it."""
    monkeypatch.chdir(tmp_path)
    Path("config.py").write_text(CONFIG)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)

    def workdir(*variant: str) -> Path:
        words = ":".join(("config.py", *variant))
        config = runpy.run_path("config.py")["get_config"](":".join(variant))
        return default_workdir(config, read_base(words))[0]

    assert workdir() == Path("runs/levels")
    first = workdir("diffusers", str(folder))
    assert re.fullmatch(r"runs/levels-[0-9a-f]{8}", str(first))
    assert workdir("diffusers", f"{moved}/") == first
    overridden = recipes.to_config(levels_run())
    overridden.stages.teacher.source = f"diffusers:{folder}"
    other = default_workdir(overridden, read_base("config.py"))[0]
    assert other not in (Path("runs/levels"), first)  # its other settings are not the variant's
    # A finished run is found again after its teacher's files have gone.
    noted = {"teacher": (f"diffusers:{folder}", read_teacher(folder))}
    write_noted(other / SOURCES, noted)
    kept = folder.rename(tmp_path / "away")
    assert default_workdir(overridden, read_base("config.py"))[0] == other
    kept.rename(folder)
    weights = moved / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert workdir("diffusers", str(moved)) != first


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: shutil.rmtree(f), "is not a folder. Put config.json, one of diffusion_pytorch"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json holds a list"),
        (
            lambda f: (f / "scheduler_config.json").unlink(),
            "scheduler_config.json are missing. It says on what noise levels",
        ),
        (
            lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(),
            "There are no weights in .* diffusion_pytorch_model.bin",
        ),
        (
            lambda f: cut(f / "diffusion_pytorch_model.safetensors"),
            "diffusion_pytorch_model.safetensors is no whole safetensors file",
        ),
        (
            lambda f: edit(f / "config.json", block_out_channels=[8, 24]),
            "has shape .* the config.json beside it asks for",
        ),
    ],
)
def test_files_that_are_missing_or_damaged_are_named(folder, tmp_path, change, message):
    change(folder)
    with pytest.raises(ConfigError, match=rf"config.stages.teacher.source: .*{message}"):
        plan(stages(folder), tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "diffuser:x"}, "kind='diffuser' is not known. Did you mean 'diffusers'"),
        ({"source": "diffusers"}, "source='diffusers' should be KIND:PATH, KIND one of diffusers"),
        ({"prediction": "v"}, "prediction='v', but .* predicts 'eps'. Leave it empty"),
        ({"network": {**UNET, "channels": 16}}, "network.channels=16, but .* has 8. Leave"),
        ({"students": StudentsSettings(count=2)}, "is one network, but .*students.count=2"),
        ({"init": "teacher"}, "has the weights; leave .*init and .*resume out"),
        ({"steps": -1}, "steps=-1 must be 0 or more"),
        (
            {"schedule": ScheduleSettings("linear_beta", 16, {"start": 0.01, "end": 0.3})},
            "other noise levels .* set config.schedule to name='linear_beta', steps=16",
        ),
    ],
)
def test_settings_that_do_not_fit_the_files_are_named(folder, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(stages(folder, **changes), tmp_path)


def test_images_of_another_size_are_refused(folder, tmp_path):
    edit(folder / "config.json", sample_size=16, down_block_types=["DownBlock2D"] * 2)
    edit(folder / "config.json", up_block_types=["UpBlock2D"] * 2)
    made = stages(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    kept = {k: v for k, v in read_tensors(weights).items() if "blocks" not in k or "att" not in k}
    middle = {k: v for k, v in read_tensors(weights).items() if "mid_block.att" in k}
    write_tensors(weights, {**kept, **middle})
    with pytest.raises(ConfigError, match=r"\(16, 16, 1\) .* the data are \(8, 8, 1\)"):
        plan(made, tmp_path)


def test_without_a_source_steps_are_still_needed(tmp_path):
    made = settings(
        "plain", LINEAR, {"teacher": StageSettings({"name": "denoising"}, network=UNET, **COMMON)}
    )
    teacher = dataclasses.replace(made.stages["teacher"], steps=0)
    with pytest.raises(ConfigError, match="steps=0 must be 1 or more"):
        plan(dataclasses.replace(made, stages={"teacher": teacher}), tmp_path)


def test_any_config_can_be_given_a_teacher_on_the_command_line(folder, tmp_path):
    config = Path(__file__).parent.parent / "configs" / "sfddm_digits.py"
    spec = importlib.util.spec_from_file_location("sfddm_digits", config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = parse(module.get_config(f"diffusers:{folder}"), Settings)
    assert made.schedule == LINEAR
    plans = {
        p.name: p for p in plan_stages(made, facts(made), tmp_path / "run", tmp_path / "shared")
    }
    assert plans["teacher"].imported is not None
    student = plans["sfddm_n4"]
    assert student.module.channels == 8
    assert student.indices.tolist() == [0, 4, 8, 12, 16]
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        module.get_config("diffusers:nowhere")
    with pytest.raises(ConfigError, match=r"none, or a teacher: :diffusers:PATH, :edm:PATH"):
        module.get_config("smok")


@pytest.mark.slow
def test_the_command_line_takes_a_teacher(folder, tmp_path):
    config = Path(__file__).parent.parent / "configs" / "sfddm_digits.py"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ddistill.main", "--stage=teacher"),
            *(f"--config={config}:diffusers:{folder}", f"--workdir={tmp_path / 'run'}"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"teacher: 44,969 parameters from diffusers:{folder}" in done.stdout
