"""Previews: what is sampled, when, and that nothing of them can end a training."""

import dataclasses

import numpy as np
import pytest
from exported import classes_run, levels_run
from PIL import Image
from runs import LateStop, Notes, one_stage, plans_of, saved_state, tiny_chain

from ddistill import data
from ddistill.evaluation.previews import MOST_STEPS, Previews
from ddistill.evaluation.sampling_plan import short_runs
from ddistill.networks.weights import Weights
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.loggers import LOGGERS, LoggerKind, RunLoggers
from ddistill.settings import GridSettings, StageSettings, StudentsSettings
from ddistill.training.initial import abstract_weights
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages

SETTINGS = one_stage(preview_every=15, checkpoint_every=15)
PLACES = [15, 30]


def trained(settings, workdir, stop=None, maker=None, loggers=None):
    """Trains a run with previews; returns its plans and what was said."""
    plans, notes = plans_of(settings, workdir), Notes()
    context = RunContext(
        settings,
        data.load(settings.data, "train"),
        notes,
        StopRequest() if stop is None else stop,
        previews=maker or Previews(settings, workdir),
        loggers=loggers or RunLoggers(),
    )
    run_stages(list(plans.values()), context)
    return plans, notes.said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was not interrupted, and its stage."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    plans, _ = trained(SETTINGS, workdir)
    return workdir, plans["teacher"]


def files(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "previews").rglob("*.png")}


def test_a_preview_shows_the_moving_average_of_its_step(whole, tmp_path):
    workdir, plan = whole
    assert set(files(workdir)) == {f"{s:07d}.png" for s in PLACES}
    pictures = []
    for step in PLACES:
        state = saved_state(plan, step)
        average = Weights(state.ema[plan.ema_key()], None)
        pictures.append(Previews(SETTINGS, tmp_path).make(plan, average, step))
        raw = Previews(SETTINGS, tmp_path / "raw").make(
            plan, Weights(state.params["student"], None), step
        )
        assert np.array_equal(
            Image.open(Previews(SETTINGS, workdir).path(plan, step)), pictures[-1]
        )
        assert not np.array_equal(raw, pictures[-1])
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("looks", [16, 24])
def test_a_resumed_training_makes_the_same_previews(whole, tmp_path, looks):
    """Also where it was stopped in the step of a preview, after the checkpoint."""
    workdir = tmp_path / "run"
    with pytest.raises(Interrupted):
        trained(SETTINGS, workdir, LateStop(looks))
    stopped = len(files(workdir))
    trained(SETTINGS, workdir)
    assert stopped < len(PLACES)
    assert files(workdir) == files(whole[0])


def test_a_preview_that_fails_is_one_line_and_the_training_goes_on(tmp_path):
    class Failing(Previews):
        def make(self, plan, weights, step):
            raise MemoryError("out of\nmemory")

    plans, said = trained(SETTINGS, tmp_path / "run", maker=Failing(SETTINGS, tmp_path / "run"))
    assert plans["teacher"].manifest().steps == SETTINGS.stages["teacher"].steps
    assert [text for text in said if "preview" in text] == [
        "teacher: warning: no more previews, because that of step 15 failed: out of memory"
    ]


def test_loggers_receive_the_pictures(tmp_path, monkeypatch):
    received = []

    class Pictures:
        def __init__(self, target):
            self.scalars = self.config = lambda *values: None
            self.close = lambda: None

        def images(self, step, pictures):
            received.append((step, pictures["preview"]))

    monkeypatch.setitem(LOGGERS, "pictures", LoggerKind(Pictures))
    workdir = tmp_path / "run"
    trained(SETTINGS, workdir, loggers=RunLoggers(["pictures"], "tiny", workdir))
    assert [step for step, _ in received] == PLACES
    assert np.array_equal(received[0][1], Image.open(workdir / "previews/teacher/0000015.png"))


def test_stages_that_generate_no_images_are_named(tmp_path):
    plans = plans_of(tiny_chain(), tmp_path / "run")
    maker = Previews(tiny_chain(), tmp_path)
    assert maker.obstacle(plans["classifier"]) == (
        "the stage trains a classifier, which generates no images"
    )
    assert maker.obstacle(plans["teacher"]) == maker.obstacle(plans["pd_n4"]) == ""


def test_a_sampler_is_the_planned_one_and_never_long(tmp_path):
    settings = levels_run()
    plans = plans_of(settings, tmp_path / "run")
    steps = {
        name: [run.steps for run in short_runs(settings, plan, MOST_STEPS)]
        for name, plan in plans.items()
    }
    assert steps == {"teacher": [16], "even": [4], "uneven": [3], "pair": [6]}
    pair = plans["pair"]
    for planned, most, wanted in (((3, 5, 8), 6, 5), ((8, 12), 6, 6)):
        s = dataclasses.replace(pair.settings, samplers={"ddim": planned})
        (run,) = short_runs(settings, dataclasses.replace(pair, settings=s), most)
        assert (run.steps, run.levels.num_steps) == (wanted, wanted)
    (run,) = short_runs(settings, plans["teacher"], 6)
    assert (run.steps, run.levels.num_steps) == (6, 6)


def random_weights(plan):
    rng = np.random.default_rng(0)
    like = abstract_weights(plan)
    return Weights({k: fill(rng, v) for k, v in like.params.items()}, like.statistics)


def fill(rng, tree):
    if hasattr(tree, "items"):
        return {k: fill(rng, v) for k, v in tree.items()}
    return (0.1 * rng.standard_normal(tree.shape)).astype(np.float32)


def test_students_of_a_sweep_are_rows_and_those_of_a_partition_one_network(tmp_path):
    settings = one_stage()
    teacher = settings.stages["teacher"]
    common = {"teacher": "teacher", "init": "teacher", "steps": 2, "batch_size": 8}
    sweep = StageSettings(
        {"name": "sfddm", "substeps": 1},
        grid=GridSettings(steps=4),
        students=StudentsSettings(count=2, sweep={"grid_steps": (2, 4)}),
        **common,
    )
    shared = StageSettings(
        {"name": "o2mkd"},
        students=StudentsSettings(count=2, partition="timesteps"),
        samplers={"ddim": (4,)},
        **common,
    )
    stages = {"teacher": teacher, "sweep": sweep, "shared": shared}
    made = dataclasses.replace(settings, stages=stages, pipeline=tuple(stages))
    plans, maker = plans_of(made, tmp_path / "run"), Previews(made, tmp_path)
    sizes = {
        name: maker.make(plans[name], random_weights(plans[name]), 1).shape
        for name in ("sweep", "shared")
    }
    assert sizes["sweep"][0] == sizes["shared"][0]  # two rows each: two students, sixteen images
    assert [r.steps for r in short_runs(made, plans["sweep"], MOST_STEPS)] == [2, 4]
    assert short_runs(made, plans["shared"], MOST_STEPS)[0].plan.partition is not None


def test_students_of_groups_of_classes_sample_their_own(tmp_path):
    plan = plans_of(classes_run(), tmp_path / "run")["student"]
    (run,) = short_runs(classes_run(), plan, MOST_STEPS)
    assert (run.steps, run.plan.partition.groups) == (1, 2)
