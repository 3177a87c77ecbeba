"""Chains of halvings: their levels, their teachers, and kills inside them."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from runs import (
    STEPS,
    differences,
    plans_of,
    saved_state,
    saved_steps,
    tiny_chain,
    tiny_settings,
)
from test_resume import Launcher, succeeded

from ddistill.errors import ConfigError
from ddistill.evaluation.checks import check_evaluation
from ddistill.planning.lineage import cost, distillation
from ddistill.recipes import halvings, progressive
from ddistill.schedules import make_schedule
from ddistill.settings import EvaluationSettings, GridSettings, OptimizerSettings
from ddistill.training.trained import load_network

STUDENTS = ("pd_n4", "rcfd_n2", "pd_n1")
CONFIG = """
from runs import tiny_chain
from ddistill.recipes import to_config

def get_config():
    return to_config(tiny_chain())
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return plans_of(tiny_chain(), tmp_path_factory.mktemp("planned") / "run")


def test_every_student_reads_its_levels_off_one_table(planned):
    table = make_schedule("cosine", 16)
    for name, levels in zip(STUDENTS, (4, 2, 1)):
        plan = planned[name]
        np.testing.assert_array_equal(plan.indices, np.arange(0, 17, 16 // levels))
        for row in ("alpha", "sigma", "time"):
            wanted = getattr(table, row)[plan.indices]
            np.testing.assert_array_equal(getattr(plan.levels, row), wanted)
            # The tables of all stages have one length, so that they are one compiled program.
            assert getattr(plan.tables.student, row).shape == (17,)
            assert getattr(plan.tables.teacher, row).shape == (17,)


def test_a_stage_knows_its_teachers_levels_and_no_others(planned):
    np.testing.assert_array_equal(planned["pd_n4"].tables.grid[:5], [0, 4, 8, 12, 16])
    for name, teacher in (("rcfd_n2", "pd_n4"), ("pd_n1", "rcfd_n2")):
        count = int(planned[name].tables.count)
        np.testing.assert_array_equal(
            planned[name].tables.grid[: count + 1], np.arange(0, 2 * count + 1, 2)
        )
        np.testing.assert_array_equal(
            planned[name].tables.teacher.alpha[: 2 * count + 1], planned[teacher].levels.alpha
        )


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(1024, 256, [512, 256]), (8, 1, [4, 2, 1]), (12, 3, [6, 3]), (2, 1, [1])],
)
def test_halvings(start, end, expected):
    assert halvings(start, end) == expected


@pytest.mark.parametrize(("start", "end"), [(12, 2), (8, 8), (7, 1), (8, 3), (4, 8), (1, 1)])
def test_chains_that_cannot_end_there_are_refused(start, end):
    with pytest.raises(ConfigError, match=rf"progressive\(start={start}, end={end}\)"):
        progressive(start, end, steps=1, batch_size=1, optimizer=OptimizerSettings())


def test_the_last_students_may_train_longer():
    stages = progressive(8, 1, steps=10, steps_last=20, batch_size=1, optimizer=OptimizerSettings())
    assert [s.steps for s in stages.values()] == [10, 20, 20]
    assert [s.teacher for s in stages.values()] == ["teacher", "pd_n4", "pd_n2"]
    assert all(s.init == "teacher" and s.ema == () for s in stages.values())


def test_a_chain_may_start_from_a_student_of_another_method(tmp_path):
    """CFD from SFDDM's 4-step student: levels, weights and cost go on from there."""
    settings = tiny_chain()
    sfddm = dataclasses.replace(
        tiny_settings().stages["student"], grid=GridSettings(steps=4), shared=False
    )
    chain = progressive(
        4,
        1,
        steps=3,
        batch_size=8,
        optimizer=OptimizerSettings(),
        method="cfd",
        teacher="sfddm_n4",
        classifier="classifier",
        loss={"classifier_weight": 1.0, "pixel_weight": 0.0},
    )
    first = {name: settings.stages[name] for name in ("classifier", "teacher")}
    stages = {**first, "sfddm_n4": sfddm, **chain}
    settings = dataclasses.replace(settings, stages=stages, pipeline=tuple(stages))
    plans = plans_of(settings, tmp_path / "run")
    np.testing.assert_array_equal(plans["cfd_n2"].indices, [0, 8, 16])
    np.testing.assert_array_equal(
        plans["cfd_n1"].levels.alpha, plans["teacher"].levels.alpha[[0, 16]]
    )
    path = distillation(plans["cfd_n1"], "teacher", list(plans.values()))
    assert [p.name for p in path] == ["sfddm_n4", "cfd_n2", "cfd_n1"]


@pytest.mark.parametrize(
    ("stage", "changes", "parts"),
    [
        ("pd_n4", {"grid": {"steps": 6}}, ["teacher level in the middle", "grid.steps=8"]),
        ("rcfd_n2", {"grid": {"steps": 5}}, ["grid.steps=5", "4 levels"]),
        ("rcfd_n2", {"classifier": ""}, ["rcfd_n2.classifier is empty", "Allowed: classifier"]),
        ("rcfd_n2", {"classifier": "clasifier"}, ["'clasifier'", "Did you mean 'classifier'?"]),
        ("pd_n4", {"classifier": "teacher"}, ["classifier='teacher'", "Allowed: classifier"]),
        ("rcfd_n2", {"accumulate": 2}, ["accumulate=2", "diversity", "gamma=1"]),
        ("classifier", {"ema": (0.9,)}, ["ema=(0.9,)", "batch norms", "ema=()"]),
        ("classifier", {"accumulate": 2}, ["accumulate=2", "batch norms", "whole batch"]),
        ("rcfd_n2", {"teacher": "classifier"}, ["teacher='classifier'", "is a classifier"]),
    ],
)
def test_stages_that_cannot_work_are_refused_while_planning(tmp_path, stage, changes, parts):
    settings = tiny_chain()
    if "grid" in changes:
        grid = dataclasses.replace(settings.stages[stage].grid, **changes["grid"])
        changes = {"grid": grid}
    broken = dataclasses.replace(settings.stages[stage], **changes)
    settings = dataclasses.replace(settings, stages={**settings.stages, stage: broken})
    with pytest.raises(ConfigError) as caught:
        plans_of(settings, tmp_path / "run")
    for part in parts:
        assert part in str(caught.value)


def test_a_stage_without_classifier_keeps_its_digest_and_one_with_it_depends_on_it(tmp_path):
    settings = tiny_chain()
    ours = plans_of(settings, tmp_path / "run")
    longer = dataclasses.replace(settings.stages["classifier"], steps=21)
    other = plans_of(
        dataclasses.replace(settings, stages={**settings.stages, "classifier": longer}),
        tmp_path / "run",
    )
    same = [name for name in ours if ours[name].digest == other[name].digest]
    assert same == ["teacher", "pd_n4"]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    return Launcher(tmp_path_factory.mktemp("chains"), CONFIG)


@pytest.fixture(scope="module")
def straight(launcher):
    out = succeeded(launcher.run("straight"))
    return plans_of(tiny_chain(), launcher.workdir("straight")), out


@pytest.mark.slow
def test_kills_in_the_classifier_and_in_the_second_halving_change_nothing(launcher, straight):
    assert launcher.run("killed", "classifier:17:saved").returncode < 0
    plans = plans_of(tiny_chain(), launcher.workdir("killed"))
    early = saved_state(plans["classifier"], 17)

    killed = launcher.run("killed", "rcfd_n2:17:saved")
    assert killed.returncode < 0
    assert "classifier: going on from the checkpoint at step 17" in killed.stdout
    assert plans["pd_n4"].manifest() is not None
    assert saved_steps(plans["rcfd_n2"]) == [17]
    assert not plans["pd_n1"].folder.exists()

    out = succeeded(launcher.run("killed"))
    assert "pd_n4: complete" in out
    assert "rcfd_n2: going on from the checkpoint at step 17" in out
    late = saved_state(plans["classifier"], 20)
    assert not differences(late, saved_state(straight[0]["classifier"], 20))
    assert differences(early.statistics, late.statistics)
    assert set(late.statistics) == {"student"}
    network = load_network(plans["classifier"])
    assert not differences(network.weights.statistics, late.statistics["student"])
    for name in STUDENTS:
        assert not differences(
            saved_state(plans[name], STEPS), saved_state(straight[0][name], STEPS)
        )


@pytest.mark.slow
def test_students_start_as_their_teachers_and_go_on_learning(straight):
    plans, _ = straight
    states = [saved_state(plans[name], STEPS).params["student"] for name in STUDENTS]
    for before, after in itertools.pairwise(states):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
        assert all(0 < v < 1.0 for v in jax.tree.leaves(moved))


@pytest.mark.slow
def test_the_chain_costs_two_teacher_calls_an_example_and_stage(straight):
    plans, _ = straight
    chain = distillation(plans["pd_n1"], "teacher", list(plans.values()))
    assert [p.name for p in chain] == list(STUDENTS)
    assert cost(chain).teacher_calls == 3 * STEPS * 8 * 2
    assert cost(chain).updates == 3 * STEPS


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"teacher": "classifier"}, "evaluation.teacher='classifier' is a classifier"),
        ({"classifier": "teacher"}, "evaluation.classifier='teacher'"),
        ({"classifier": "clasifier"}, "Did you mean 'classifier'"),
        ({"clip": -1.0}, "evaluation.clip=-1.0"),
        ({"samples": 5, "grid_images": 4, "strip_images": 4}, "evaluation.samples=5"),
    ],
)
def test_evaluations_that_cannot_work_are_refused_before_training(tmp_path, changes, part):
    evaluation = EvaluationSettings(
        **{"samples": 64, "batch_size": 64, "grid_images": 8, "strip_images": 2, **changes}
    )
    settings = dataclasses.replace(tiny_chain(), evaluation=evaluation)
    with pytest.raises(ConfigError, match=part):
        check_evaluation(settings, list(plans_of(settings, tmp_path / "run").values()))


def test_a_method_without_a_name_in_the_results_is_refused_before_training(tmp_path):
    settings = tiny_chain()
    stage = dataclasses.replace(settings.stages["pd_n4"], method="pdd")
    settings = dataclasses.replace(
        settings,
        stages={**settings.stages, "pd_n4": stage},
        evaluation=EvaluationSettings(samples=64, batch_size=64),
    )
    with pytest.raises(ConfigError, match="pd_n4.method='pdd'.*Did you mean 'pd'"):
        check_evaluation(settings, list(plans_of(settings, tmp_path / "run").values()))


def test_a_classifier_knows_the_classes_of_the_data(tmp_path):
    settings = tiny_chain()
    network = {**settings.stages["classifier"].network, "num_classes": 7}
    stage = dataclasses.replace(settings.stages["classifier"], network=network)
    settings = dataclasses.replace(settings, stages={**settings.stages, "classifier": stage})
    with pytest.raises(ConfigError, match="num_classes=7, but the data have 10 classes"):
        plans_of(settings, tmp_path / "run")
