"""Settings and data that cannot work are told, with the way out, before anything compiles.

Nothing is written by then either.

Most cases go through `ddistill.main.run` in this process; the command line's own are at the end.
"""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from runs import plans_of, snapshot, tiny_settings

from ddistill import main
from ddistill.errors import CheckpointError, ConfigError, DataError
from ddistill.settings import to_plain
from ddistill.training.checkpoints import Checkpoints, write_json
from ddistill.training.folders import check_folders
from ddistill.training.state import create_state

UNET = {
    "name": "unet",
    "channels": 8,
    "multipliers": (1,),
    "blocks": 1,
    "attention": (),
    "mid_attention": False,
    "norm_groups": 4,
    "out_channels": 1,
}


def config(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The tiny run as nested dictionaries, with some entries set by dotted name.

    `...` removes an entry.
    """
    plain = copy.deepcopy(to_plain(dataclasses.asdict(tiny_settings())))
    for name, value in (changes or {}).items():
        *groups, last = name.split(".")
        group = plain
        for key in groups:
            group = group[key]
        if value is ...:
            del group[last]
        else:
            group[last] = value
    return plain


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """Names of compilations so far in this process, starting with empty caches."""
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.clear_caches()
    return events


@pytest.fixture
def refused(compiled, tmp_path):
    """`refused(changes, error)` runs a config, checks that nothing happened, returns the text."""

    def run(changes: dict[str, Any], error: type[Exception] = ConfigError, stage: str = "") -> str:
        before, files = len(compiled), snapshot(tmp_path)
        with pytest.raises(error) as caught:
            main.run(config(changes), tmp_path / "run", tmp_path / "shared", stage, "the command")
        assert len(compiled) == before, "something was compiled"
        assert snapshot(tmp_path) == files, "something was written"
        text = str(caught.value)
        assert "\n" not in text
        return text

    return run


def test_the_compile_counter_counts(compiled):
    before = len(compiled)
    jax.jit(lambda x: x * 17 + 3)(np.float32(1))
    assert len(compiled) > before


def test_planning_a_good_run_compiles_and_writes_nothing(compiled, tmp_path):
    """Every check is passed here, so none of them needs the compiler."""
    before = len(compiled)
    plans = plans_of(tiny_settings(), tmp_path / "run")
    check_folders(list(plans.values()))
    unet = config({"stages.teacher.network": {**UNET, "num_classes": 10}})
    unet["stages"]["student"]["network"] = unet["stages"]["teacher"]["network"]
    with pytest.raises(ConfigError, match="is not a stage of this config"):
        main.run(unet, tmp_path / "run", tmp_path / "shared", "no such stage", "")
    assert len(compiled) == before
    assert snapshot(tmp_path) == {}
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "shared").exists()


# ---------------------------------------------------------------------------- names and spelling

SPELLING = {
    "top key": ({"sede": 1}, "config.sede is not a setting.", "'seed'"),
    "stage key": (
        {"stages.teacher.batchsize": 8},
        "config.stages.teacher.batchsize is not a setting.",
        "'batch_size'",
    ),
    "optimizer key": (
        {"stages.teacher.optimizer.learning_rat": 1.0},
        "config.stages.teacher.optimizer.learning_rat is not a setting.",
        "'learning_rate'",
    ),
    "training key": ({"training.log_evry": 5}, "config.training.log_evry", "'log_every'"),
    "objective key": (
        {"stages.student.objective.substep": 2},
        "config.stages.student.objective.substep is not a setting of 'sfddm'.",
        "'substeps'",
    ),
    "network key": ({"stages.teacher.network.widht": 4}, "network.widht is not a field", "'width'"),
    "schedule option": (
        {"schedule.options": {"max_bta": 0.9}},
        "schedule.options.max_bta is not an option of 'cosine'.",
        "'max_beta'",
    ),
    "data key": ({"data.flipp": True}, "data.flipp is not a setting.", "'flip'"),
    "noise schedule": ({"schedule.name": "cosin"}, "schedule.name='cosin'", "'cosine'"),
    "objective": (
        {"stages.student.objective": {"name": "sfdm"}},
        "config.stages.student.objective.name='sfdm'",
        "'sfddm'",
    ),
    "network": ({"stages.teacher.network.name": "unett"}, "network.name='unett'", "'unet'"),
    "optimizer": (
        {"stages.teacher.optimizer.name": "adamm"},
        "config.stages.teacher.optimizer.name='adamm'",
        "'adam'",
    ),
    "rate schedule": (
        {"stages.student.optimizer.schedule": "cosinus"},
        "config.stages.student.optimizer.schedule='cosinus'",
        "'cosine'",
    ),
    "prediction": (
        {"stages.teacher.prediction": "epps"},
        "config.stages.teacher.prediction='epps'",
        "'eps'",
    ),
    "error": ({"stages.teacher.objective.error": "x_0"}, "objective.error='x_0'", "'x0'"),
    "spacing": ({"stages.student.grid.spacing": "trail"}, "grid.spacing='trail'", "'trailing'"),
    "grid time": (
        {"stages.student.grid.time": "maped"},
        "config.stages.student.grid.time='maped'",
        "'mapped'",
    ),
    "data": ({"data": {"name": "digit"}}, "data.name='digit'", "'digits'"),
    "pipeline": (
        {"pipeline": ("teacher", "studnet")},
        "config.pipeline='studnet'",
        "'student'",
    ),
}


@pytest.mark.parametrize("case", SPELLING.values(), ids=SPELLING.keys())
def test_a_wrong_name_is_told_with_the_nearest_right_one(refused, case):
    changes, named, nearest = case
    text = refused(changes)
    assert named in text
    assert f"Did you mean {nearest}?" in text


@pytest.mark.parametrize(
    "changes, named, nearest",
    [
        ({"teacher_samplers": {"dddim": (2,)}}, "evaluation.teacher_samplers='dddim'", "'ddim'"),
        ({"full_sampler": "heunn"}, "evaluation.full_sampler='heunn'", "'heun'"),
        ({"student_sampler": "ddimm"}, "evaluation.student_sampler='ddimm'", "'ddim'"),
        ({"teacher": "techer"}, "evaluation.teacher='techer'", "'teacher'"),
        ({"classifier": "studen"}, "evaluation.classifier='studen'", "'student'"),
    ],
    ids=["few steps", "full", "student", "teacher", "classifier"],
)
def test_evaluation_names_are_checked_before_training(refused, changes, named, nearest):
    evaluation = {"enabled": True, "classifier": "", **changes}
    text = refused({f"evaluation.{k}": v for k, v in evaluation.items()})
    assert f"config.{named}" in text
    assert f"Did you mean {nearest}?" in text


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"seed": "zero"}, ["config.seed='zero'", "a int is needed"]),
        ({"seed": True}, ["config.seed=True", "a int is needed"]),
        ({"stages.teacher.steps": 2.5}, ["config.stages.teacher.steps=2.5", "a int is needed"]),
        ({"stages": 3}, ["config.stages=3 should be a group of settings"]),
        ({"name": ...}, ["config.name is missing and has no default"]),
        ({"stages.teacher.objective": {}}, ["teacher.objective.name is missing", "denoising"]),
        ({"stages.teacher.network": {"width": 4}}, ["teacher.network.name is missing", "unet"]),
        ({"stages.teacher.network": {}}, ["teacher.network is empty", "no teacher", "unet"]),
        ({"data": {}}, ["data.name is missing", "digits"]),
        ({"pipeline": ("teacher", "teacher")}, ["config.pipeline names 'teacher' twice"]),
    ],
)
def test_wrong_types_and_missing_settings(refused, changes, parts):
    text = refused(changes)
    for part in parts:
        assert part in text


# ------------------------------------------------------------------------------ numbers and grids


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"stages.student.grid.steps": 17}, ["grid.steps=17", "has 16 steps", "1 to 16"]),
        ({"stages.student.grid.steps": -1}, ["grid.steps=-1", "1 to 16"]),
        (
            {"stages.student.grid.explicit": (0, 8, 8, 16)},
            ["grid=[0, 8, 8, 16] must increase strictly", "entry 1 is 8 and entry 2 is 8"],
        ),
        (
            {"stages.student.grid.explicit": (1, 8, 16)},
            ["grid=[1, 8, 16] starts at 1", "must be 0"],
        ),
        ({"stages.student.grid.explicit": (0, 8, 17)}, ["goes to 17", "last index is 16"]),
        ({"stages.student.objective.substeps": 9}, ["substeps=9", "8 teacher levels", "1 to 8"]),
        (
            {"stages.teacher.accumulate": 3},
            ["config.stages.teacher.batch_size=8 does not divide by accumulate=3"],
        ),
        ({"stages.teacher.accumulate": 0}, ["accumulate=0 must be 1 or more"]),
        ({"stages.teacher.steps": 0}, ["config.stages.teacher.steps=0 must be 1 or more"]),
        ({"stages.teacher.ema": (0.9, 1.0)}, ["config.stages.teacher.ema=(0.9, 1.0)", "[0, 1)"]),
        ({"stages.teacher.optimizer.learning_rate": 0.0}, ["learning_rate=0.0 must be above 0"]),
        ({"stages.teacher.optimizer.learning_rate": np.nan}, ["learning_rate=nan must be above"]),
        ({"stages.teacher.optimizer.warmup": 41}, ["warmup=41", "the stage's 40 steps"]),
        ({"stages.teacher.optimizer.clip": -1.0}, ["clip=-1.0 must be 0 (off) or above"]),
        (
            {"stages.teacher.optimizer.weight_decay": 0.1},
            ["weight_decay=0.1 has no effect on 'adam'", "adamw"],
        ),
        ({"schedule.steps": 0}, ["schedule.steps=0"]),
        ({"training.log_every": 0}, ["config.training.log_every=0 must be 1 or more"]),
        ({"training.checkpoint_every": 0}, ["config.training.checkpoint_every=0 must be 1"]),
        ({"training.keep": 0}, ["config.training.keep=0 must be 1 or more"]),
        ({"training.scan_steps": -1}, ["config.training.scan_steps=-1 must be 0 or more"]),
        ({"seed": -1}, ["config.seed=-1 must be 0 or more"]),
        ({"stages.teacher.objective.gama": 1}, ["objective.gama", "'gamma'"]),
        ({"stages.student.objective.hidden_weight": -1.0}, ["hidden_weight=-1.0"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_numbers_that_cannot_work(refused, changes, parts):
    text = refused(changes)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"samples": 0}, ["config.evaluation.samples=0 must be 1 or more"]),
        ({"full_steps": 17}, ["ddim with 17 steps", "16 levels"]),
        ({"teacher_samplers": {"ddim": (0,)}}, ["ddim with 0 steps", "16 levels"]),
        ({"samples": 4}, ["config.evaluation.samples=4 is below grid_images=16"]),
    ],
)
def test_evaluation_numbers(refused, changes, parts):
    evaluation = {"enabled": True, "classifier": "", **changes}
    text = refused({f"evaluation.{k}": v for k, v in evaluation.items()})
    for part in parts:
        assert part in text


# --------------------------------------------------------------------- stages and where they start


@pytest.mark.parametrize(
    "changes, parts",
    [
        (
            {"stages.student.teacher": "techer"},
            ["config.stages.student.teacher='techer'", "Did you mean 'teacher'?"],
        ),
        (
            {"pipeline": ("student",)},
            ["config.stages.student.teacher='teacher'", "not a stage before this one", "nothing"],
        ),
        (
            {"pipeline": ("student", "teacher")},
            ["config.stages.student.teacher='teacher'", "not a stage before this one"],
        ),
        (
            {"stages.student.teacher": "", "stages.student.init": "fresh"},
            ["config.stages.student.teacher is empty, but 'sfddm' needs one"],
        ),
        (
            {"stages.student.teacher": ""},
            ["config.stages.student.init='teacher', but config.stages.student.teacher is empty"],
        ),
        (
            {"stages.student.init": "techer"},
            ["config.stages.student.init='techer'", "Did you mean 'teacher'?"],
        ),
        ({"stages.student.init": "student"}, ["init='student' is not a stage before this one"]),
        (
            {"stages.student.network.width": 7},
            [
                "config.stages.student.init takes the weights of 'teacher'",
                "network.width is 7 here and None there",
                "init='fresh'",
            ],
        ),
        (
            {"stages.student.prediction": "x0"},
            ["config.stages.student.prediction='x0'", "'teacher'", "predicts 'v'"],
        ),
        (
            {"stages.student.prediction": "x0", "stages.student.network": {}},
            ["config.stages.student.prediction='x0'", "predicts 'v'", "Leave prediction empty"],
        ),
        (
            {"stages.teacher.network.num_classes": 0},
            ["config.stages.teacher.conditional=True needs", "num_classes above 0"],
        ),
        (
            {
                "stages.teacher.conditional": False,
                "stages.teacher.network": {"name": "tiny"},
                "stages.student.init": "fresh",
            },
            ["config.stages.student.conditional=True", "'teacher'", "unconditional"],
        ),
    ],
    ids=[
        "unknown teacher",
        "no teacher in the pipeline",
        "order",
        "no teacher",
        "init from no teacher",
        "unknown init",
        "init from itself",
        "init from another network",
        "init from another prediction",
        "inherited prediction",
        "classes",
        "classes of the teacher",
    ],
)
def test_stages_that_do_not_fit_together(refused, changes, parts):
    text = refused(changes)
    for part in parts:
        assert part in text


def test_an_unknown_stage_is_refused(refused):
    text = refused({}, stage="studnet")
    assert "--stage=studnet is not a stage of this config. Did you mean 'student'?" in text
    assert "Stages: teacher, student, evaluate." in text


@pytest.mark.parametrize("stage", ["student", "evaluate"])
def test_a_stage_alone_needs_the_stages_before_it(refused, stage):
    text = refused({}, CheckpointError, stage=stage)
    assert "Stage 'teacher' in " in text
    assert "is not complete" in text
    assert "--stage=teacher first" in text


# -------------------------------------------------------------------------------- what is on disk


def occupy(settings, workdir: Path, name: str) -> Path:
    """Leaves behind what a stage of these settings leaves in its folder when it starts."""
    from ddistill.training.folders import claim
    from ddistill.training.interrupt import StopRequest
    from ddistill.training.progress import Reporter

    plan = plans_of(settings, workdir)[name]
    with claim(plan, Reporter(), StopRequest()):
        pass
    return plan.folder


@pytest.mark.parametrize("stage", ["", "evaluate", "student"])
def test_a_folder_of_other_settings_is_refused_before_training(refused, tmp_path, stage):
    """The student's folder is refused before hours go into its teacher; nothing is overwritten."""
    folder = occupy(tiny_settings(), tmp_path / "run", "student")
    (folder / "metrics.jsonl").write_text("precious\n")
    text = refused({"stages.student.optimizer.learning_rate": 0.5}, CheckpointError, stage)
    assert f"{folder} holds stage 'student' of other settings" in text
    assert "optimizer.learning_rate was 0.01 and is now 0.5" in text
    assert "another --workdir" in text


def test_a_folder_of_another_teacher_is_refused(refused, tmp_path):
    occupy(tiny_settings(), tmp_path / "run", "student")
    text = refused({"stages.teacher.steps": 20}, CheckpointError)
    assert "data, schedule, seed or the stages before it have changed" in text


def test_labels_of_a_stage_may_change(tmp_path):
    """What results are called does not change what was learnt."""
    occupy(tiny_settings(), tmp_path / "run", "student")
    settings = tiny_settings()
    student = dataclasses.replace(settings.stages["student"], method="ours", variant="x")
    renamed = dataclasses.replace(settings, stages={**settings.stages, "student": student})
    check_folders(list(plans_of(renamed, tmp_path / "run").values()))


def test_a_checkpoint_of_another_network_is_refused(compiled, tmp_path, monkeypatch):
    """A checkpoint that somebody put there: the tensor is named, and nothing is compiled before."""
    plan = plans_of(tiny_settings(), tmp_path / "run")["teacher"]
    params = {"student": {"final": {"kernel": np.zeros((7, 1), np.float32)}}}
    from ddistill.training.stages import optimizers

    checkpoints = Checkpoints(plan.folder / "checkpoints", keep=2)
    state = create_state(params, optimizers(plan), plan.settings.ema)
    checkpoints.save(17, state, {}, 1.0)
    checkpoints.close()
    before, files = len(compiled), snapshot(plan.folder / "checkpoints")
    with pytest.raises(CheckpointError) as caught:
        main.run(config(), tmp_path / "run", tmp_path / "shared", "", "the command")
    text = str(caught.value)
    assert "belongs to another network or optimiser" in text
    assert "ema/0.3/final/kernel: (7, 1) on disk, (6, 1) wanted" in text
    assert len(compiled) == before
    assert snapshot(plan.folder / "checkpoints") == files


def test_a_lost_final_checkpoint_is_told(compiled, tmp_path):
    """The stage says that it is complete, but its weights are gone."""
    folder = occupy(tiny_settings(), tmp_path / "run", "teacher")
    write_json(folder / "complete.json", {"steps": 40})
    before = len(compiled)
    with pytest.raises(CheckpointError, match=r"final checkpoint \(step 40\) of stage 'teacher'"):
        main.run(config(), tmp_path / "run", tmp_path / "shared", "student", "the command")
    assert len(compiled) == before


# ------------------------------------------------------------------------------------------- data


def image(path: Path, mode: str = "RGB", size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size)).save(path)


def of_folder(path: Path, **options: Any) -> dict[str, Any]:
    return {"data": {"name": "folder", "path": str(path), "test_fraction": 0.0, **options}}


@pytest.fixture
def pictures(tmp_path_factory, monkeypatch) -> Path:
    """An empty place for images, apart from the run's folders."""
    place = tmp_path_factory.mktemp("pictures")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return place


def test_a_missing_folder_of_images(refused, pictures):
    (pictures / "faces").mkdir()
    text = refused(of_folder(pictures / "face"), DataError)
    assert f"data.path={pictures / 'face'} does not exist" in text
    assert f"Did you mean '{pictures / 'faces'}'?" in text
    assert "data.path is missing" in refused({"data": {"name": "folder"}})


def test_a_file_in_place_of_a_folder(refused, pictures):
    (pictures / "faces.zip").write_text("")
    assert "is a file" in refused(of_folder(pictures / "faces.zip"), DataError)


def test_an_empty_folder_of_images(refused, pictures):
    (pictures / "empty").mkdir()
    assert "holds no files" in refused(of_folder(pictures / "empty"), DataError)
    (pictures / "empty" / "notes.txt").write_text("")
    text = refused(of_folder(pictures / "empty"), DataError)
    assert "no images, only other files (1 .txt)" in text
    assert ".png" in text


def test_images_beside_folders_of_images(refused, pictures):
    image(pictures / "mixed" / "cats" / "a.png")
    image(pictures / "mixed" / "b.png")
    text = refused(of_folder(pictures / "mixed"), DataError)
    assert "b.png" in text
    assert "cats/a.png" in text


def test_images_of_different_sizes(refused, pictures):
    image(pictures / "sizes" / "a.png", size=8)
    image(pictures / "sizes" / "b.png", size=4)
    text = refused(of_folder(pictures / "sizes"), DataError)
    assert "b.png" in text
    assert "data.image_size" in text


def test_a_broken_image_is_named(refused, pictures):
    image(pictures / "broken" / "a.png")
    (pictures / "broken" / "b.png").write_bytes(b"not a picture")
    text = refused(of_folder(pictures / "broken"), DataError)
    assert str(pictures / "broken" / "b.png") in text
    assert "data.on_bad_image='skip'" in text


@pytest.mark.parametrize("network", [{"name": "tiny"}, UNET], ids=["tiny", "unet"])
def test_a_grey_network_on_colour_images_and_the_other_way_round(refused, pictures, network):
    image(pictures / "colour" / "a.png")
    common = {
        "stages.teacher.conditional": False,
        "stages.student.conditional": False,
        "stages.student.network": {},
    }
    grey = {**network, "out_channels": 1}
    text = refused({**common, **of_folder(pictures / "colour"), "stages.teacher.network": grey})
    assert "config.stages.teacher.network gives images of shape (8, 8, 1)" in text
    assert "the data are (8, 8, 3)" in text
    assert "network.out_channels=3 or data.channels=1" in text
    colour = {**network, "out_channels": 3}
    text = refused({**common, "stages.teacher.network": colour})
    assert "gives images of shape (8, 8, 3), the data are (8, 8, 1)" in text
    assert "network.out_channels=1 or data.channels=3" in text


# ------------------------------------------------------------------------------------ command line

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=""):
    if variant == "wrong":
        return ConfigDict({"a": 1}["c"])
    if variant == "text":
        return ConfigDict(seed=int("text"))
    return ConfigDict({"sede": 1})
"""
DIGITS = Path(__file__).parent.parent / "configs" / "sfddm_digits.py"
# Flags, and what the answer has to contain.
COMMANDS = {
    "override": (
        [f"--config={DIGITS}", "--config.stages.teacher.optimizer.learning_rat=1.0"],
        ["config.stages.teacher.optimizer.learning_rat", '"learning_rate"'],
    ),
    "override of a wrong type": ([f"--config={DIGITS}", "--config.seed=zero"], ["seed", "zero"]),
    "in the file": (
        ["--config=config.py"],
        ["config.sede is not a setting", "Did you mean 'seed'?"],
    ),
    "mistake in the file": (
        ["--config=config.py:wrong"],
        ["The config file config.py fails: KeyError: 'c' (line 6)"],
    ),
    "wrong value in the file": (
        ["--config=config.py:text"],
        ["The config file config.py fails: ValueError", "'text'", 'File "config.py", line 8'],
    ),
    "no file": (["--config=confg.py"], ["confg.py does not exist"]),
    "no file, other spelling": (["--config", "confg.py:smoke"], ["confg.py does not exist"]),
    "no config": ([], ["--config=FILE is missing"]),
    "variant": ([f"--config={DIGITS}:smok"], ["Variant ':smok' is not known", "':smoke'"]),
    "T' > T": (
        [f"--config={DIGITS}:smoke", "--config.stages.sfddm_n2.grid.steps=257"],
        ["grid.steps=257", "has 256 steps"],
    ),
    "unknown flag": ([f"--config={DIGITS}", "--workdri=x"], ["workdri", "workdir"]),
    "stray word": (["stray"], ["Arguments without a flag: stray."]),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags, parts", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_command_line_answers_in_one_line(tmp_path, flags, parts):
    (tmp_path / "config.py").write_text(CONFIG)
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "ddistill.main", *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == main.USAGE_ERROR, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    for part in parts:
        assert part in lines[0]
    assert done.stdout == ""
    assert [x.name for x in tmp_path.iterdir()] == ["config.py"]
