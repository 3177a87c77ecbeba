"""Guidance of a teacher, and alarms that stop a stage."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import plans_of, tiny_settings

from ddistill.denoiser import Denoiser
from ddistill.errors import TrainingError
from ddistill.samplers import ddim
from ddistill.schedules import cosine
from ddistill.settings import GridSettings, StudentsSettings
from ddistill.training.alarms import PATIENCE, AlarmMonitor
from ddistill.training.trained import guided
from ddistill.wrapped_denoiser import GuidedDenoiser

CLASSES, SCHEDULE = 4, cosine(16)
MODULE = tiny.TinyNet(num_classes=CLASSES)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return tiny.tiny_denoiser(0, "v", MODULE)


@pytest.fixture(scope="module")
def asked():
    """Noisy images, each at a level of its own, and their classes."""
    z = jax.random.normal(jax.random.key(1), (5, *tiny.IMAGE))
    return z, SCHEDULE.at(np.array([1, 4, 9, 13, 16])), jnp.array([0, 3, 1, 1, 2])


def under(denoiser, asked, cond):
    z, level, _ = asked
    return denoiser(z, level, jnp.broadcast_to(jnp.asarray(cond), z.shape[:1]))


def same(found, wanted, atol=1e-5):
    for name in ("x0", "eps"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("scale", "cond"), [(1.0, None), (0.0, CLASSES)], ids=["the class", "no class"]
)
def test_the_ends_of_the_scale(denoiser, asked, scale, cond):
    """Scale 1 is the plain denoiser under the class, scale 0 the one that is told no class."""
    plain, other = (under(denoiser, asked, c) for c in (asked[2], CLASSES))
    assert float(jnp.max(jnp.abs(plain.x0 - other.x0))) > 0.01, "the classes must matter here"
    same(
        GuidedDenoiser(denoiser, scale, CLASSES)(*asked),
        under(denoiser, asked, asked[2] if cond is None else cond),
    )


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_x0_and_eps_are_linear_in_the_scale_and_stay_one_answer(asked, prediction, scale):
    """arXiv 2207.12598 eq. 6 in both terms, computed here in float64 from two plain calls."""
    denoiser = tiny.tiny_denoiser(0, prediction, MODULE)
    z, level, cond = asked
    found = GuidedDenoiser(denoiser, scale, CLASSES)(*asked)
    for name in ("x0", "eps"):
        own, none = (
            np.asarray(getattr(under(denoiser, asked, c), name), np.float64)
            for c in (cond, CLASSES)
        )
        np.testing.assert_allclose(
            getattr(found, name), (1 - scale) * none + scale * own, rtol=1e-3, atol=1e-4
        )
    alpha, sigma = (x[:, None, None, None] for x in (level.alpha, level.sigma))
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, z, rtol=1e-3, atol=2e-4)


def test_features_are_those_under_the_class(denoiser, asked):
    guide = GuidedDenoiser(denoiser, 3.0, CLASSES)
    prediction, features = guide.with_features(("last",))(*asked)
    _, wanted = denoiser.with_features(("last",))(*asked)
    assert features["last"].shape == wanted["last"].shape
    np.testing.assert_allclose(features["last"], wanted["last"], rtol=1e-4, atol=1e-5)
    same(prediction, guide(*asked))


@pytest.mark.parametrize("index", [7, (7, 7, 7, 7, 7)], ids=["one level", "a level each"])
def test_under_jit_with_either_form_of_level(denoiser, asked, index):
    z, _, cond = asked
    guide, level = GuidedDenoiser(denoiser, 2.0, CLASSES), SCHEDULE.at(np.array(index))
    wanted = guide(z, SCHEDULE.at(np.full(5, 7)), cond)
    same(jax.jit(lambda g, z, level, cond: g(z, level, cond))(guide, z, level, cond), wanted)
    same(guide(z, level, jnp.int32(1)), guide(z, level, jnp.full(5, 1)))


def test_it_is_a_denoiser_that_samplers_take(denoiser, asked):
    """Two steps of DDIM by hand, where each asks the class and no class."""
    noise, _, cond = asked
    grid = SCHEDULE.at(np.array([0, 8, 16]))
    steps = dataclasses.replace(SCHEDULE, alpha=grid.alpha, sigma=grid.sigma, time=grid.time)
    found = ddim(GuidedDenoiser(denoiser, 2.0, CLASSES), steps, noise, cond=cond)
    z = noise
    for here, there in ((2, 1), (1, 0)):
        own, none = (
            denoiser(z, steps.at(here), jnp.broadcast_to(jnp.asarray(c), cond.shape))
            for c in (cond, CLASSES)
        )
        x0, eps = (2 * getattr(own, n) - getattr(none, n) for n in ("x0", "eps"))
        z = steps.alpha[there] * x0 + steps.sigma[there] * eps
    np.testing.assert_allclose(found, z, rtol=1e-3, atol=1e-4)


def test_without_a_class_there_is_nothing_to_be_guided_to(denoiser, asked):
    z, level, _ = asked
    guide = GuidedDenoiser(denoiser, 2.5, CLASSES)
    for call in (guide, guide.with_features(("last",))):
        with pytest.raises(ValueError, match=r"scale 2\.5 needs conditions; cond is None"):
            call(z, level)


def test_the_null_class_is_the_teachers(tmp_path):
    """A student whose network knows more classes than the teacher's must not name one of those."""
    wanted = tiny_settings()
    student = dataclasses.replace(
        wanted.stages["student"],
        network={"name": "tiny", "num_classes": 12},
        init="fresh",
        guidance=2.0,
    )
    stages = {**wanted.stages, "student": student}
    plans = plans_of(dataclasses.replace(wanted, stages=stages), tmp_path / "run")
    teacher = tiny.tiny_denoiser(0, "v", tiny.TinyNet(num_classes=10))
    guide = guided(plans["student"], teacher)
    z = jax.random.normal(jax.random.key(0), (2, *tiny.IMAGE))
    level = plans["teacher"].levels.at(9)
    cond = jnp.array([1, 2])
    own, none = (teacher(z, level, c).x0 for c in (cond, jnp.array([10, 10])))
    np.testing.assert_allclose(guide(z, level, cond).x0, 2 * own - none, rtol=1e-4, atol=1e-5)


UNCONDITIONAL = {
    "stages.teacher.conditional": False,
    "stages.teacher.network": {"name": "tiny"},
    "stages.teacher.objective": {"name": "denoising"},
    "stages.student.conditional": False,
    "stages.student.network": {"name": "tiny"},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (UNCONDITIONAL, ["class", "guidance=1"]),
        (
            {**UNCONDITIONAL, "stages.student.network": {}, "stages.student.prediction": ""},
            ["class", "guidance=1"],
        ),
        (
            {"stages.teacher.objective": {"name": "denoising"}},
            ["'teacher'", "never seen the null class", "guidance=1"],
        ),
        ({"stages.student.conditional": False}, ["conditional=False", "class", "guidance=1"]),
    ],
    ids=["unconditional", "inherited", "no label dropout", "student without classes"],
)
def test_teachers_that_cannot_be_guided(refused, changes, words):
    text = refused({**changes, "stages.student.guidance": 2.0})
    for word in ("config.stages.student.guidance=2.0", *words):
        assert word in text


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_scales_that_are_none(refused, scale):
    text = refused({"stages.student.guidance": scale})
    assert f"config.stages.student.guidance={scale} must be 0 or above; 1 is none" in text


def test_guidance_needs_a_teacher(refused):
    text = refused({"stages.teacher.guidance": 2.0})
    assert "config.stages.teacher.guidance=2.0 is the teacher's, and there is none" in text


# -------------------------------------------------------------------------------------- alarms

FINE = {"saturation": 0.0, "std_ratio": 1.0, "diversity": 1.0}
ODD, BAD = {**FINE, "saturation": 0.5}, {**FINE, "saturation": 0.9}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    wanted = tiny_settings()
    student = dataclasses.replace(
        wanted.stages["student"],
        objective={"name": "dmd", "regression_weight": 0.0},
        grid=GridSettings(steps=1),
        students=StudentsSettings(count=2, partition="classes"),
    )
    stages = {**wanted.stages, "student": student}
    wanted = dataclasses.replace(wanted, stages=stages)
    return plans_of(wanted, tmp_path_factory.mktemp("plans") / "run")


def watched(plan, intervals, student=1, resumed=()):
    """Metrics of log intervals, of one student of two; what was said, and when it stopped.

    After the steps in `resumed` another watch goes on from what a checkpoint keeps of the one.
    """
    said = []

    def new():
        stop = lambda step, what: TrainingError(f"step {step}: {what}")  # noqa: E731
        return AlarmMonitor(plan, 1, said.append, stop)

    monitor = new()
    for step, means in enumerate(intervals, 1):
        if plan.stacked:
            other = {f"{n}/{1 - student}": v for n, v in FINE.items()}
            means = {**means, **{f"{n}/{student}": v for n, v in means.items()}, **other}
        try:
            monitor(means, step)
        except TrainingError as error:
            return said, step, str(error)
        if step in resumed:
            kept = json.loads(json.dumps(monitor.record()))
            monitor = new()
            monitor.restore(kept)
    return said, None, ""


def test_an_alarm_is_told_when_it_begins(plans):
    said, stopped, _ = watched(plans["student"], [FINE, ODD, ODD, ODD, ODD, FINE, ODD])
    assert [line.split(":")[0] for line in said] == [
        "alarm at step 2 of student 1",
        "alarm at step 7 of student 1",
    ]
    assert "saturation 0.5" in said[0]
    assert stopped is None


@pytest.mark.parametrize(
    ("intervals", "at"),
    [
        ([FINE, BAD, BAD, BAD], 4),
        ([BAD, BAD, FINE, BAD, BAD, FINE], None),
        ([BAD, BAD, ODD, BAD, BAD], None),
        ([ODD] * 5 + [BAD, BAD], None),
        ([ODD] * 5 + [BAD] * 3, 8),
        # Intervals without a step of the student's.
        ([BAD, {}, {}, BAD, {}, BAD], 6),
        ([BAD, {}, {}, {}, {}], None),
        ([BAD, {}, BAD, {}, FINE, BAD, BAD], None),
    ],
    ids=["stays", "goes", "calms", "gets bad", "stays bad", "every other", "once", "gone"],
)
def test_a_fatal_alarm_that_stays_stops_the_stage(plans, intervals, at):
    assert PATIENCE == 3
    said, stopped, text = watched(plans["student"], intervals)
    assert stopped == at
    everywhere = range(len(intervals))
    assert watched(plans["student"], intervals, resumed=everywhere) == (said, stopped, text)
    if at:
        assert f"step {at}: saturation 0.9" in text
        assert "of student 1" in text
        assert len(said) == 1


COLLAPSED = {"diversity": 5e-4}


def test_what_a_student_was_born_with_is_known_after_a_resume(plans):
    for intervals, at in (([{"diversity": 1.0}] + [COLLAPSED] * 4, 4), ([COLLAPSED] * 6, None)):
        for resumed in ((), (2,), (1, 3)):
            assert watched(plans["student"], intervals, resumed=resumed)[1] == at


@pytest.mark.parametrize(("drift", "name"), [(0.6, "brighter"), (-0.6, "brighter")])
def test_a_drift_of_the_mean_is_told_either_way(plans, drift, name):
    said, stopped, _ = watched(plans["student"], [FINE] + [{"mean_drift": drift}] * 5)
    assert len(said) == 1
    assert f"mean_drift {drift}" in said[0]
    assert name in said[0]
    assert stopped is None
    assert (
        watched(plans["student"], [{"mean_drift": 0.0}] + [{"mean_drift": 3 * drift}] * 4)[1] == 4
    )


def test_short_intervals_stop_no_sooner(plans):
    """Intervals that a checkpoint cuts in two count as the steps that they have."""
    said = []
    stop = lambda step, what: TrainingError(f"step {step}: {what}")  # noqa: E731
    monitor = AlarmMonitor(plans["student"], 10, said.append, stop)
    bad = {**{f"{n}/0": v for n, v in FINE.items()}, **{f"{n}/1": v for n, v in BAD.items()}}
    for step in (5, 10, 15, 20, 25):
        monitor(bad, step)
    with pytest.raises(TrainingError, match="for 30 steps"):
        monitor(bad, 30)


def test_a_student_that_is_alone_has_no_number(plans):
    plan = dataclasses.replace(
        plans["student"],
        settings=dataclasses.replace(plans["student"].settings, students=StudentsSettings()),
    )
    said, stopped, text = watched(plan, [BAD] * 3)
    assert stopped == 3
    assert "student" not in (said[0] + text).replace("student's", "")
