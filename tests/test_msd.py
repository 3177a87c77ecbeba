"""MSD's students evaluated: whose images, whose rows, what the report shows of their training."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluated import Run, images
from runs import Notes, plans_of, tiny_settings

from ddistill import data
from ddistill.errors import ConfigError
from ddistill.evaluation.checks import check_evaluation
from ddistill.evaluation.report.diagnostics import diagnostic_grids
from ddistill.evaluation.report.students_table import students_table
from ddistill.evaluation.sampling import conditions, noise_bank
from ddistill.recipes import msd
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import MeshSettings, OptimizerSettings
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.trained import Networks, load_state

COUNT = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A conditional teacher and three one-step students of its classes, scarcely trained."""
    settings = tiny_settings(log_every=5)
    teacher = dataclasses.replace(settings.stages["teacher"], steps=6, accumulate=1)
    students = msd(
        COUNT,
        steps=4,
        batch_size=8,
        optimizer=OptimizerSettings(learning_rate=0.05),
        dm={"regression_weight": 0.0},
        ema=(0.5,),
    )
    stages = {"teacher": teacher, **students}
    evaluation = dataclasses.replace(
        settings.evaluation,
        enabled=True,
        classifier="",
        samples=16,
        batch_size=16,
        full_steps=2,
        grid_images=5,
        strip_images=3,
    )
    settings = dataclasses.replace(
        settings, stages=stages, pipeline=tuple(stages), evaluation=evaluation
    )
    plans = plans_of(settings, tmp_path_factory.mktemp("msd") / "run")
    train = data.load(settings.data, "train")
    run_stages(list(plans.values()), RunContext(settings, train, Notes(), StopRequest()))
    return Run(settings, list(plans.values()), train)


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    rows, _, _ = trained.evaluate(folder, report=True)
    return rows, folder


def test_every_image_is_its_owners(trained, evaluated):
    _, folder = evaluated
    plan = trained.plans[-1]
    sampler_run = trained.sampler_runs()["dm_k3"]
    cond = conditions(sampler_run, 0, 16)
    np.testing.assert_array_equal(cond, np.arange(16) % 10)
    noise = noise_bank(trained.settings.evaluation, plan.image_shape, 0, 16)
    router = Networks()(plan)
    found, level = images(folder, "dm_k3"), plan.levels.at(1)
    for i, c in enumerate(cond):
        k = int(plan.partition.group(c))
        assert k == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2][c]
        z = noise[i : i + 1] * jnp.maximum(1.0, level.sigma)
        wanted = [router.student(j)(z, level, jnp.array([c])).x0 for j in range(COUNT)]
        clipped = [np.clip(np.asarray(x), -1, 1)[0] for x in wanted]
        np.testing.assert_allclose(found[i], clipped[k], atol=1e-5)
        assert np.abs(clipped[k] - clipped[(k + 1) % COUNT]).max() > 1e-3, "students are alike"


def test_rows_say_one_evaluation_of_one_of_three(trained, evaluated):
    rows = [row for row in evaluated[0] if row.method == "msd_dm"]
    assert {(row.nfe, row.students) for row in rows} == {(1, COUNT)}
    # One teacher call an image of every student, and none for the pairs, of which there are none.
    assert {row.teacher_calls for row in rows} == {4 * 8 * COUNT}


def test_the_table_says_who_answers_for_what(trained):
    table = students_table(trained.plans, Networks(), trained.train, trained.settings.evaluation)
    cells = [dict(zip(table.columns, row)) for row in table.rows]
    assert [c["levels, classes"] for c in cells] == [
        "classes 0 to 3",
        "classes 4 to 6",
        "classes 7 to 9",
    ]
    assert [c["jump"] for c in cells] == ["", "", ""]


def test_panels_of_a_training(trained, evaluated):
    """Four pictures of each student; the last one is 0 where both denoisers are one."""
    plan, networks = trained.plans[-1], Networks()
    (grid,) = diagnostic_grids(trained.plans, networks, trained.settings.evaluation)
    assert [row.label for row in grid.rows[:2]] == [
        "student 0: images",
        "student 0: noised, by the teacher",
    ]
    assert len(grid.rows) == 4 * COUNT
    noise = noise_bank(trained.settings.evaluation, plan.image_shape, 0, 10)
    own = jax.tree.map(lambda x: x[1], load_state(plan).params)
    level = plan.levels.at(1)
    student = plan.objective.trains.bind(plan.module, plan_weights(own["student"]), "v")
    cond = jnp.asarray(np.resize([4, 5, 6], 10))
    image = student(noise * jnp.maximum(1.0, level.sigma), level, cond).x0
    np.testing.assert_allclose(grid.rows[4].images, np.clip(image, -1, 1), atol=1e-5)
    assert np.abs(grid.rows[7].images).max() == pytest.approx(1.0)

    teacher = networks(trained.plans[0])
    same = {"student": student, "teacher": teacher, "fake": teacher}
    tables = plan.students[1].tables
    *_, driven = plan.objective.diagnostics.panels.draw(same, noise, tables, cond)
    np.testing.assert_array_equal(driven, 0.0)
    assert "Inside the stage" in (evaluated[1] / "report.html").read_text()


def plan_weights(params):
    from ddistill.networks.weights import Weights

    return Weights(params)


def test_guidance_is_counted_twice_and_written_down(trained, tmp_path):
    rows, _, _ = trained.evaluate(tmp_path, guidance=2.0)
    teacher = [row for row in rows if row.method == "ddim"]
    assert {row.nfe for row in teacher} == {4}
    assert all("guidance=2" in row.protocol for row in teacher)
    plain = trained.sampler_runs()["teacher_ddim_2"]
    guided = trained.sampler_runs(guidance=2.0)["teacher_ddim_2"]
    assert (plain.nfe, guided.nfe) == (2, 4)
    students = [row for row in rows if row.method == "msd_dm"]
    assert all("guidance=none" in row.protocol for row in students)


def test_guidance_of_a_teacher_that_never_saw_the_null_class(trained):
    plans = [dataclasses.replace(p) for p in trained.plans]
    objective = dataclasses.replace(plans[0].objective, label_dropout=0.0)
    plans[0] = dataclasses.replace(plans[0], objective=objective)
    with pytest.raises(ConfigError, match=r"evaluation\.guidance=2\.0.*never seen the null class"):
        check_evaluation(trained.with_evaluation(guidance=2.0), plans)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """The state after four steps of two students with three networks each, by mapping and mesh."""
    folder = tmp_path_factory.mktemp("mapped")

    @functools.cache
    def run(count, mapping, **mesh):
        settings = tiny_settings(log_every=2, mesh=MeshSettings(**mesh))
        teacher = dataclasses.replace(settings.stages["teacher"], steps=2, accumulate=1)
        students = msd(
            count,
            steps=4,
            batch_size=8,
            # Adam would make much of rounding where a gradient is nearly 0.
            optimizer=OptimizerSettings(name="sgd", learning_rate=0.01),
            dm={"name": "dmd2", "features": ("last",), "student_every": 2},
            students={"mapping": mapping, "groups": ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))[:count]},
            ema=(0.5,),
        )
        stages = {"teacher": teacher, **students}
        settings = dataclasses.replace(settings, stages=stages, pipeline=tuple(stages))
        name = f"{mapping}_{'_'.join(f'{k}{v}' for k, v in mesh.items())}"
        plans = list(plans_of(settings, folder / name).values())
        run_stages(
            plans, RunContext(settings, data.load(settings.data, "train"), Notes(), StopRequest())
        )
        return load_state(plans[-1])

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mapping", "mesh"),
    [("vmap", {}), ("shard", {"student": 0}), ("loop", {"data": 2})],
    ids=["vmap", "shard", "batch over devices"],
)
def test_three_networks_a_student_under_every_mapping(learnt, mapping, mesh):
    one = {"student": 1, "data": 1}
    wanted = learnt(2, "loop", **one)
    found = learnt(2, mapping, **{**one, **mesh})
    assert set(found.params) == {"student", "fake", "discriminator"}
    for part in ("params", "opt_state", "ema"):
        chex.assert_trees_all_close(
            getattr(found, part), getattr(wanted, part), rtol=1e-4, atol=1e-5
        )
    apart = jax.tree.map(lambda x: x[0] - x[1], wanted.params["fake"])
    assert float(optax.tree.norm(apart)) > 1e-3, "both students have learnt the same"
