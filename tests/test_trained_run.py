"""`ddistill.load(RUN).sample(...)`, and runs of imported teachers."""

import shutil

import numpy as np
import pytest
from exported import classes_run, levels_run, matching_run, run
from flax import traverse_util
from runs import differences

import ddistill
from ddistill.data.facts import DataFacts
from ddistill.errors import CheckpointError, ConfigError
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.sampling import draw
from ddistill.export.__main__ import main as export
from ddistill.parsing import parse
from ddistill.planning.planner import plan_stages
from ddistill.runtime.files import read_object, write_json
from ddistill.settings import Settings
from ddistill.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    return run(levels_run(), tmp_path_factory.mktemp("levels"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return run(classes_run(), tmp_path_factory.mktemp("classes"))


def test_an_image_depends_on_seed_and_place_alone(levels):
    trained = ddistill.load(levels)
    ten = trained.sample(10, seed=3)
    assert ten.shape == (10, 8, 8, 1)
    assert ten.dtype == np.uint8
    assert len(np.unique(ten)) > 20
    cut = trained.sample(10, seed=3, batch_size=4)
    assert np.abs(ten.astype(int) - cut).max() <= 1
    assert np.abs(ten[:3].astype(int) - trained.sample(3, seed=3)).max() <= 1
    assert np.abs(ten.astype(int) - trained.sample(10, seed=4)).mean() > 5


def test_the_evaluations_seed_gives_the_evaluations_images(levels):
    trained = ddistill.load(levels)
    e, run = trained.settings.evaluation, trained.sampler_run(nfe=3)
    wanted = quantise(np.asarray(draw(run, trained.networks(run.plan), e, 0, 8)))
    found = trained.sample(8, seed=e.noise_seed, nfe=3)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_nfe_picks_the_student_and_the_teacher_takes_any(levels):
    trained = ddistill.load(levels)
    assert trained.nfes == (3, 4, 6)
    assert trained.sampler_run(nfe=4).plan.name == "even"
    assert trained.sampler_run(nfe=3).plan.name == "uneven"
    assert trained.sampler_run().plan.name == "pair"
    teacher = ddistill.load(levels, stage="teacher")
    assert teacher.sampler_run("teacher").nfe == 16
    assert teacher.sampler_run("teacher", 5).levels.num_steps == 5
    assert teacher.sample(2, nfe=5).shape == (2, 8, 8, 1)


def test_classes_go_to_their_owners(classes):
    trained = ddistill.load(classes)
    mixed = trained.sample(6, labels=[9, 0, 3, 7, 0, 5], seed=1)
    for label in (0, 9):
        alone = trained.sample(6, labels=label, seed=1)
        at = [9, 0, 3, 7, 0, 5].index(label)
        assert np.abs(mixed[at].astype(int) - alone[at]).max() <= 1
    every = trained.sample(10, seed=1)
    assert (
        np.abs(every[3].astype(int) - trained.sample(10, labels=np.arange(10), seed=1)[3]).max()
        <= 1
    )


def test_students_of_groups_of_classes_report_batches(classes):
    calls = []
    ddistill.load(classes).sample(12, batch_size=6, progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"nfe": 7}, r"nfe=7: the students of this run have 4 \(even\), 3 \(uneven\), 6"),
        ({"n": 0}, "n=0 must be 1 or more"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"n": "3"}, "n='3' is text; a whole number is needed"),
        ({"n": 2.0}, "n=2.0 is a number; a whole number is needed"),
        ({"n": None}, "n=None is a NoneType; a whole number is needed"),
        ({"n": True}, "n=True is a truth value; a whole number is needed"),
        ({"seed": "x"}, "seed='x' is text; a whole number is needed"),
        ({"seed": 2**64}, r"seed=18446744073709551616 must be less than 2\*\*32"),
        ({"nfe": "4"}, "nfe='4' is text; a whole number is needed"),
        ({"nfe": 0}, "nfe=0 must be 1 or more"),
        ({"batch_size": 1.5}, "batch_size=1.5 is a number; a whole number is needed"),
        ({"labels": [[1], [2, 3]]}, "labels"),
        ({"labels": 3}, "'pair' is unconditional; leave them out"),
    ],
)
def test_wrong_arguments_are_named(levels, options, message):
    with pytest.raises(ConfigError, match=message):
        ddistill.load(levels).sample(**{"n": 2, **options})


@pytest.mark.parametrize(
    "labels, message",
    [
        ([1, 10], "go from 1 to 10; classes are 0 to 9"),
        ([1], r"shape \(1,\) and type int64; 2 integers"),
        ([0.5, 1.0], "type float64; 2 integers"),
    ],
)
def test_wrong_labels_are_named(classes, labels, message):
    with pytest.raises(ConfigError, match=message):
        ddistill.load(classes).sample(2, labels=labels)


def test_wrong_folders_are_named(levels, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"nowhere does not exist; it should hold config.json"
    ):
        ddistill.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no config.json"):
        ddistill.load(tmp_path)
    with pytest.raises(ConfigError, match="stage='pairs' is not known. Did you mean 'pair'"):
        ddistill.load(levels, stage="pairs")
    plan = ddistill.load(levels).plan("teacher")
    write_json(plan.folder / "stage.json", {"digest": "other", "settings": {"seed": 7}})
    try:
        with pytest.raises(CheckpointError, match="holds stage 'teacher' of other settings"):
            ddistill.load(levels)
    finally:
        (plan.folder / "stage.json").unlink()


def test_a_run_that_was_moved_without_its_shared_stages_says_what_to_copy(levels, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(levels, moved)
    found = ddistill.load(moved)
    assert found.network(found.sampler_run(nfe=4)) is not None  # a student needs no teacher
    teacher = found.sampler_run("teacher")
    name = teacher.plan.folder.name
    with pytest.raises(CheckpointError, match=f"copy the folder {name} there.* cache=FOLDER"):
        found.network(teacher)
    with pytest.raises(SystemExit, match=f"error: .*copy the folder {name} .*--cache=FOLDER"):
        export(["--to=safetensors", "--stage=teacher", str(moved), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    there = ddistill.load(moved, "teacher", cache=levels.parent / "shared")
    assert there.network(there.sampler_run("teacher")) is not None
    shutil.rmtree(moved / "stages" / "even")
    with pytest.raises(CheckpointError, match="Stage 'even' of .* was not copied"):
        found.network(found.sampler_run(nfe=4))


def test_a_folder_of_the_home_folder(levels, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(levels.parent))
    assert ddistill.load(f"~/{levels.name}").folder == levels
    found = ddistill.load(f"~/{levels.name}", "teacher", cache="~/shared")
    assert found.plan("teacher").folder.parent == levels.parent / "shared"
    for folder in (3, None, b"run"):
        with pytest.raises(ConfigError, match=r"folder=.* is a .*; a path is needed"):
            ddistill.load(folder)


def test_whole_numbers_of_numpy_will_do(levels):
    trained = ddistill.load(levels)
    assert trained.sample(np.int64(2), seed=np.uint8(1), nfe=np.int32(4)).shape == (2, 8, 8, 1)


def test_a_run_is_opened_as_it_was_planned(classes):
    facts = DataFacts.from_json(read_object(classes / "data.json"))
    settings = parse(read_object(classes / "config.json"), Settings)
    planned = plan_stages(settings, facts, classes, classes.parent / "shared")
    opened = ddistill.load(classes).plans
    for plan, found in zip(planned, opened, strict=True):
        assert found.settings == plan.settings
        assert (found.digest, found.folder) == (plan.digest, plan.folder)
        assert found.module == plan.module
        assert differences(found.tables, plan.tables) == []
        assert differences(found.partition, plan.partition) == []
        assert found.manifest() == plan.manifest()


def test_a_student_is_opened_without_the_networks_it_was_trained_beside(tmp_path):
    workdir = run(matching_run(), tmp_path)
    opened = ddistill.load(workdir)
    plan = opened.plan("student")
    assert set(plan.modules) == {"student"}
    kept = Checkpoints(plan.folder / "checkpoints", keep=1, read_only=True)
    saved = kept._saved_shapes(plan.settings.steps)
    kept.close()
    assert any(path.startswith("params/fake/") for path in saved)
    weights = opened.networks.weights(plan)
    for path, x in traverse_util.flatten_dict(weights.params, sep="/").items():
        assert saved[f"params/student/{path}"] == x.shape
    assert ddistill.load(workdir).sample(2).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("stages.json", None, "has no stages.json.* train a run of another version again"),
        ("stages.json", {"format": 1}, "another version of ddistill .format 1;.* Train it again"),
        ("stages.json", {"digests": {"even": ""}}, "'teacher' of config.json is not in stages"),
        ("config.json", {"sede": 1}, r"config\.json: .*sede.*If another version of ddistill"),
        ("data.json", {"class_counts": None}, r"data\.json: key 'class_counts' is null"),
    ],
)
def test_runs_of_other_versions_are_refused_in_one_line(levels, tmp_path, name, changes, message):
    shutil.copytree(levels, tmp_path / "run")
    path = tmp_path / "run" / name
    whole = read_object(path)
    path.unlink()
    if changes is not None:
        write_json(path, {**whole, **changes})
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        ddistill.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_folders_that_checkpoints_cannot_be_read_from_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not UTF-8.*Rename the folder"):
        ddistill.load(tmp_path / "caf\udce9")
