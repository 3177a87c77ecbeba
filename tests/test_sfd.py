"""SFD: the teacher's path, the student's updates along it, the analytic first step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser

from ddistill import samplers
from ddistill.denoiser import Denoiser
from ddistill.diffusion import analytic_prediction, ddim_step
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.base import student_updates
from ddistill.objectives.parts import StageFacts
from ddistill.objectives.sfd import teacher_path
from ddistill.schedules import Schedule, cosine, make_grid, subsequence
from ddistill.training.step import _joined

MEAN, STD = 0.3, 0.7


def sfd(levels=4, **hyper):
    return make_objective({"name": "sfd", **hyper}).prepare(StageFacts(np.arange(levels + 1) * 8))


def updates(objective, networks, batch, tables):
    """(losses, shared arrays) of all updates of a train step whose student does not change."""
    losses = []
    for update in objective.updates:
        values, metrics, aside = update.loss(networks, batch, tables)
        batch = batch.replace(shared={**batch.shared, **aside.shared})
        losses.append((np.asarray(values), metrics))
    return losses, batch.shared


def test_a_student_that_is_the_teacher_of_as_many_steps_has_nothing_to_learn():
    tables, same = tiny.tables(levels=4), tiny.tiny_denoiser(1)
    objective = sfd(substeps=1, solver="ddim")
    networks = {"student": same, "teacher": same}
    losses, shared = updates(objective, networks, tiny.batch(5), tables)
    assert len(losses) == 4
    for n, (values, metrics) in enumerate(losses):
        np.testing.assert_allclose(values, 0.0, atol=1e-5)
        assert list(metrics) == [f"step_{n + 1}_distance"]
    # Its last state is DDIM's image from the same noise.
    noise = jax.vmap(lambda k: jax.random.normal(k, tiny.IMAGE))(tiny.batch(5).key("noise"))
    levels = subsequence(cosine(32), make_grid(cosine(32), 4))
    images = samplers.ddim(same, levels, noise)
    np.testing.assert_allclose(shared["state"], images, rtol=1e-4, atol=1e-4)


def test_every_step_starts_where_the_students_own_step_has_ended():
    tables = tiny.tables(levels=4)
    student, teacher = tiny.tiny_denoiser(1), tiny.tiny_denoiser(2)
    objective = sfd(state_norm="l2")
    losses, shared = updates(
        objective, {"student": student, "teacher": teacher}, tiny.batch(5), tables
    )
    noise = jax.vmap(lambda k: jax.random.normal(k, tiny.IMAGE))(tiny.batch(5).key("noise"))
    z, keys = noise * jnp.maximum(1.0, tables.student.at(4).sigma), tiny.batch(5).dropout_key
    for n in range(4):
        here, there = tables.student.at(4 - n), tables.student.at(3 - n)
        every = jax.tree.map(lambda x: jnp.broadcast_to(x, (5,)), here)
        z = ddim_step(student(z, every, None, key=keys), z, every, there)
        wanted = np.mean(np.square(np.asarray(z - shared["path"][:, n])), axis=(1, 2, 3))
        np.testing.assert_allclose(losses[n][0], wanted, rtol=1e-4)


def test_the_path_is_the_teachers_sampler_on_the_fine_grid():
    """Two steps of eight sub-steps each are DPM-Solver++(2M) or DDIM in sixteen steps."""
    schedule = cosine(16)
    tables = make_level_tables(schedule, np.array([0, 8, 16]))
    teacher = GaussianDenoiser(MEAN, STD)
    z = jnp.asarray(np.random.default_rng(0).standard_normal((4, 1, 1, 1)), jnp.float32)
    for solver in ("ddim", "dpm_solver_pp"):
        objective = make_objective({"name": "sfd", "substeps": 8, "solver": solver})
        walk = objective.prepare(StageFacts(np.array([0, 8, 16]))).walk(teacher, tables, None)
        path = teacher_path(walk, z, 2, 8)
        _, states = samplers.get_sampler(solver)(teacher, schedule, z, trajectory=True)
        np.testing.assert_allclose(path[:, 0], states[8], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(path[:, 1], states[16], rtol=1e-4, atol=1e-5)


def test_the_denoiser_that_a_student_of_three_steps_needs():
    """Euler's steps on 80, 10.93, 0.67, 0.006 along a Gaussian's path; numbers of a float64 script.

    The teacher's own predictions there are 0.30367, 0.32685 and 0.60344.
    """
    k, count = 64, 3
    sigmas = np.array([0.006, 0.669886, 10.9293, 80.0])
    coarse = sigmas ** (1 / 7)
    fine = np.interp(np.arange(count * k + 1) / k, np.arange(count + 1), coarse) ** 7
    schedule = Schedule(*(np.float32(x) for x in (np.ones_like(fine), fine, np.log(fine) / 4)))
    grid = np.arange(count + 1) * k
    tables = make_level_tables(schedule, grid)
    objective = make_objective({"name": "sfd", "substeps": k}).prepare(StageFacts(grid))
    start = MEAN + 0.6 * np.sqrt(STD**2 + 80.0**2)
    walk = objective.walk(GaussianDenoiser(MEAN, STD), tables, None)
    path = teacher_path(walk, jnp.full((1, 1, 1, 1), start, jnp.float32), count, k)
    states = [start, *np.asarray(path, np.float64).ravel()]
    needed = [
        (sigmas[i] * states[n + 1] - sigmas[i - 1] * states[n]) / (sigmas[i] - sigmas[i - 1])
        for n, i in enumerate((3, 2, 1))
    ]
    np.testing.assert_allclose(needed, [0.31527, 0.49024, 0.71856], atol=1e-3)


def test_the_analytic_first_step():
    top = Schedule(np.ones(2), np.array([0.006, 80.0]), np.zeros(2)).at(1)
    assert float(analytic_prediction(jnp.float32(48.0), top).eps) == pytest.approx(
        0.59995, abs=1e-5
    )
    tables = tiny.tables(levels=4)
    objective = sfd(analytic_first=True)
    assert objective.sampler == "ddim_afs"
    networks = {"student": tiny.tiny_denoiser(1), "teacher": tiny.tiny_denoiser(2)}
    losses, shared = updates(objective, networks, tiny.batch(5), tables)
    assert [name for _, metrics in losses for name in metrics] == [
        f"step_{n}_distance" for n in (2, 3, 4)
    ]
    # What the updates have walked is what the sampler makes.
    noise = jax.vmap(lambda k: jax.random.normal(k, tiny.IMAGE))(tiny.batch(5).key("noise"))
    levels = subsequence(cosine(32), make_grid(cosine(32), 4))
    for loop in ("dispatch", "scan", "unroll"):
        made, states = samplers.ddim_afs(
            networks["student"], levels, noise, trajectory=True, loop=loop
        )
        np.testing.assert_allclose(made, shared["state"], rtol=1e-4, atol=1e-4)
        assert states.shape == (5, *noise.shape)


def test_the_analytic_first_step_saves_a_call():
    calls = []

    def counted(z, level, cond=None):
        calls.append(level)
        return GaussianDenoiser(MEAN, STD)(z, level)

    levels = subsequence(cosine(32), make_grid(cosine(32), 4))
    samplers.ddim_afs(counted, levels, jnp.ones((1, 1, 1, 1)), loop="unroll")
    assert len(calls) == samplers.nfe("ddim_afs", 4) == 3
    assert samplers.nfe("ddim_afs", 1) == 1
    assert samplers.get_sampler("ddim_afs").steps_for(3) == 4


def test_states_and_paths_carry_no_gradient():
    tables, denoiser = tiny.tables(levels=4), tiny.tiny_denoiser(1)

    def last_state(params):
        networks = {"student": denoiser.replace(params=params), "teacher": denoiser}
        batch, total = tiny.batch(3), 0.0
        for update in sfd().updates:
            aside = update.loss(networks, batch, tables)[2]
            batch = batch.replace(shared={**batch.shared, **aside.shared})
            total += jnp.sum(aside.shared["state"]) + jnp.sum(aside.shared["path"])
        return total

    gradient = jax.grad(last_state)(denoiser.params)
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(gradient))


def test_costs_and_needs():
    objective = sfd()
    assert objective.teacher_calls() == 16
    assert objective.teacher_calls(2) == 32
    assert student_updates(objective, 10) == 40
    assert student_updates(sfd(analytic_first=True), 10) == 30
    needs = objective.requires
    assert needs.teacher
    assert needs.all_levels
    assert not needs.images


@pytest.mark.parametrize(
    ("hyper", "grid", "words"),
    [
        ({"solver": "heun"}, (0, 8), "solver"),
        ({"state_norm": "huber"}, (0, 8), "state_norm"),
        ({"substeps": 0}, (0, 8), "substeps=0 must be 1 or more"),
        ({"substeps": 4}, (0, 3, 11), r"only 3 teacher levels apart. Allowed: 1 to 3"),
        ({"analytic_first": True}, (0, 8), "leaves the network no step"),
    ],
)
def test_settings_that_cannot_work_are_refused(hyper, grid, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "sfd", **hyper}).prepare(StageFacts(np.array(grid)))


# --------------------------------------------------------------------------------------- SFD-v


def told_nothing(seed):
    """A student whose network ignores the number of steps that it is given."""
    module = tiny.TinyNet(extras=("step_count",))
    params = {
        **tiny.tiny_params(seed),
        "extra_step_count": {"kernel": jnp.zeros((1, 6)), "bias": jnp.zeros(6)},
    }
    return Denoiser.from_module(module, params, "v")


@pytest.mark.parametrize("first", [False, True])
def test_every_number_of_steps_is_walked_as_by_a_student_of_that_number(first):
    full = make_level_tables(cosine(32), np.arange(33))
    method = make_objective({"name": "sfd", "step_counts": (2, 4, 3), "analytic_first": first})
    method = method.prepare(StageFacts(np.arange(33)))
    teacher = tiny.tiny_denoiser(2)
    for step, count in enumerate((4, 3, 2, 4)):
        # The objective's own updates, as far as they are due.
        due = [u for u in method.updates if u.due(step)]
        assert len(due) == count - first
        tables = dataclasses.replace(full, step=np.int32(step))
        networks = {"student": told_nothing(1), "teacher": teacher}
        batch, losses = tiny.batch(3), []
        for update in due:
            values, _, aside = update.loss(networks, batch, tables)
            batch = batch.replace(shared={**batch.shared, **aside.shared})
            losses.append(np.asarray(values))
        grid = make_grid(cosine(32), count)
        plain = make_objective({"name": "sfd", "analytic_first": first}).prepare(StageFacts(grid))
        networks["student"] = tiny.tiny_denoiser(1)
        coarse = make_level_tables(cosine(32), grid)
        wanted, shared = updates(plain, networks, tiny.batch(3), coarse)
        np.testing.assert_allclose(losses, [values for values, _ in wanted], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.shared["state"], shared["state"], rtol=1e-4, atol=1e-5)
    assert student_updates(method, 9) == 3 * (4 + 3 + 2 - 3 * first)
    assert method.teacher_calls(2) == 2 * 4 * 3
    assert method.extra_inputs == {"step_count": (2, 4, (2, 3, 4))}
    # What an update leaves to the next one where it does not run.
    kept = method.updates[-1].fallback({}, batch, full)
    assert kept.keys() == {"state", "path"}


def test_means_of_updates_that_do_not_always_run():
    ran = [{"loss": 2.0}, {"loss": 4.0, "ran/loss": 1.0}, {"loss": 0.0, "ran/loss": 0.0}]
    joined = _joined([{k: jnp.float32(v) for k, v in own.items()} for own in ran])
    assert joined == {"loss": 3.0, "ran/loss": 1.0}


@pytest.mark.parametrize(
    ("hyper", "levels", "words"),
    [
        ({"step_counts": (2, 2)}, 32, "must be different whole numbers of 1 or more"),
        ({"step_counts": (1, 2), "analytic_first": True}, 32, "of 2 or more"),
        ({"step_counts": (2, 5)}, 4, "the student's grid has 4 steps. Set grid.steps to 0"),
        (
            {"step_counts": (2, 5), "substeps": 7},
            32,
            "only 6 teacher levels apart. Allowed: 1 to 6",
        ),
    ],
)
def test_numbers_of_steps_that_cannot_work(hyper, levels, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "sfd", **hyper}).prepare(StageFacts(make_grid(cosine(32), levels)))
