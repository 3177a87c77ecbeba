"""Settings and data that cannot work are told, with the way out, before anything compiles.

Nothing is written by then either.

The cases go through `ddistill.experiment.run` in this process.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import UNET, config, manifest, plans_of, snapshot, tiny_settings

from ddistill import experiment
from ddistill.errors import CheckpointError, ConfigError
from ddistill.runtime.files import write_json
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.folders import check_folders
from ddistill.training.state import create_state


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
        experiment.run(unet, tmp_path / "run", tmp_path / "shared", "no such stage", "")
    assert len(compiled) == before
    assert snapshot(tmp_path) == {}
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "shared").exists()


# ---------------------------------------------------------------------------- names and spelling

SPELLING = {
    "key of a group below": (
        {"stages.teacher.learning_rate": 1.0},
        "config.stages.teacher.learning_rate is not a setting.",
        "'optimizer.learning_rate'",
    ),
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
    "select_checkpoint": (
        {"stages.teacher.select_checkpoint": "bst"},
        "config.stages.teacher.select_checkpoint='bst'",
        "'best'",
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
    ],
    ids=["few steps", "full", "student", "teacher"],
)
def test_evaluation_names_are_checked_before_training(refused, changes, named, nearest):
    evaluation = {"enabled": True, "classifier": "", **changes}
    text = refused({f"evaluation.{k}": v for k, v in evaluation.items()})
    assert f"config.{named}" in text
    assert f"Did you mean {nearest}?" in text


def test_scores_need_a_classifier_among_the_stages(refused):
    text = refused({"evaluation.enabled": True, "evaluation.classifier": "student"})
    assert "config.evaluation.classifier='student'" in text
    assert "no stage of this config trains a classifier" in text


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"seed": "zero"}, ["config.seed='zero'", "a whole number is needed"]),
        ({"seed": True}, ["config.seed=True", "a whole number is needed"]),
        (
            {"stages.teacher.steps": 2.5},
            ["config.stages.teacher.steps=2.5", "a whole number is needed"],
        ),
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
        (
            {"stages.student.objective.tap": "lost"},
            ["config.stages.student.objective: feature tap='lost'", "Did you mean 'last'?"],
        ),
        ({"stages.student.objective.substeps": 9}, ["substeps=9", "8 teacher levels", "1 to 8"]),
        (
            {"stages.teacher.accumulate": 3},
            ["config.stages.teacher.batch_size=8 is not divisible by accumulate=3"],
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


def second_student(**grid):
    """Changes that add a student of the student, which has 2 levels of the teacher's 16."""
    student = config()["stages"]["student"]
    second = {**student, "teacher": "student", "init": "fresh", "grid": {**student["grid"], **grid}}
    second = {**second, "objective": {"name": "sfddm", "substeps": 1}}
    return {"stages.second": second, "pipeline": ("teacher", "student", "second")}


@pytest.mark.parametrize(
    "grid", [{"steps": 3}, {"explicit": (0, 1, 3)}], ids=lambda grid: next(iter(grid))
)
def test_levels_beyond_those_of_a_teacher_that_is_a_student(refused, grid):
    """`schedule.steps` would change nothing here."""
    text = refused(second_student(**grid))
    key, value = next(iter(grid.items()))
    assert f"config.stages.second.grid.{key}={value} goes beyond the 2 levels" in text
    assert "its teacher 'student'" in text
    assert "Allowed: 1 to 2" in text
    assert "config.stages.student.grid" in text
    assert "schedule.steps" not in text


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"substeps": "2"}, "substeps='2' is text; a whole number is needed"),
        ({"substeps": None}, "substeps=None"),
        ({"feature_weight": "x"}, "feature_weight='x' is text; a number is needed"),
        ({"lookback": 1}, "lookback=1 is a whole number; a truth value is needed"),
        ({"tap": 3}, "tap=3 is a whole number; text is needed"),
        ({"substeps": 9.5}, "substeps=9.5 is a number; a whole number is needed"),
        ({"hidden_weight": -1.0}, "hidden_weight=-1.0"),
    ],
)
def test_hyperparameters_of_a_wrong_type_name_stage_and_type(refused, changes, part):
    objective = {"name": "sfddm", "substeps": 2, **changes}
    assert f"config.stages.student.objective.{part}" in refused(
        {"stages.student.objective": objective}
    )


def test_networks_that_cannot_be_built_name_the_stage(refused):
    text = refused({"stages.teacher.network": {"name": "tiny", "num_classes": 10, "width": -1}})
    assert "config.stages.teacher.network (" in text
    assert "cannot be built for images of shape (8, 8, 1)" in text


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
                "network.width is 7 here and 6 there",
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
            {"stages.teacher.network.num_classes": 5},
            ["teacher.network.num_classes=5 is below the 10 classes", "set it to 10"],
        ),
        (
            {"stages.teacher.objective.null_class": 0},
            ["config.stages.teacher.objective.null_class=0", "10 classes is 10"],
        ),
        (
            {
                "stages.teacher.conditional": False,
                "stages.teacher.objective.label_dropout": 0.0,
                "stages.teacher.network": {"name": "tiny"},
                "stages.student.init": "fresh",
            },
            ["config.stages.student.conditional=True", "'teacher'", "unconditional"],
        ),
        (
            {"stages.student.network.width": 7, "stages.student.init": "fresh"},
            [
                "config.stages.student.objective: the features at tap 'last'",
                "(8, 8, 7) in the student and (8, 8, 6) in the teacher",
            ],
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
        "too few classes",
        "null class",
        "classes of the teacher",
        "features of another width",
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
    from ddistill.runtime.console import Reporter
    from ddistill.runtime.interrupt import StopRequest
    from ddistill.training.folders import claim

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
    assert "of other settings: stage 'teacher': steps was 40 and is now 20. Choose" in text


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"seed": 1}, "seed was 0 and is now 1."),
        ({"schedule.steps": 32}, "schedule.steps was 16 and is now 32."),
        ({"data.flip": True}, "data.flip was False and is now True."),
        ({"stages.student.grid.steps": 4}, "grid.steps was 2 and is now 4."),
        ({"stages.student.ema": (0.3,)}, "ema was [0.3, 0.99] and is now [0.3]."),
        ({"stages.student.objective.substeps": 4}, "objective.substeps was 2 and is now 4."),
    ],
)
def test_what_differs_is_told_with_both_values(refused, tmp_path, changes, part):
    occupy(tiny_settings(), tmp_path / "run", "student")
    assert f"of other settings: {part} Choose another --workdir" in refused(
        changes, CheckpointError
    )


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
    occupy(tiny_settings(), tmp_path / "run", "teacher")
    params = {"student": {"final": {"kernel": np.zeros((7, 1), np.float32)}}}
    from ddistill.training.initial import optimizers

    checkpoints = Checkpoints(plan.folder / "checkpoints", keep=2)
    state = create_state(params, optimizers(plan), plan.settings.ema)
    checkpoints.save(17, state, {}, 1.0)
    checkpoints.close()
    before, files = len(compiled), snapshot(plan.folder / "checkpoints")
    with pytest.raises(CheckpointError) as caught:
        experiment.run(config(), tmp_path / "run", tmp_path / "shared", "", "the command")
    text = str(caught.value)
    assert "belongs to another network or optimiser" in text
    assert "ema/0.3/final/kernel: (7, 1) on disk, (6, 1) wanted" in text
    assert len(compiled) == before
    assert snapshot(plan.folder / "checkpoints") == files


def test_a_lost_final_checkpoint_is_told(compiled, tmp_path):
    """The stage says that it is complete, but its weights are gone."""
    folder = occupy(tiny_settings(), tmp_path / "run", "teacher")
    plan = plans_of(tiny_settings(), tmp_path / "run")["teacher"]
    write_json(folder / "complete.json", manifest(plan, steps=40, handed_on=40))
    before = len(compiled)
    with pytest.raises(CheckpointError, match="at step 40, which stage 'teacher' hands on"):
        experiment.run(config(), tmp_path / "run", tmp_path / "shared", "student", "the command")
    assert len(compiled) == before
