"""Partitions and routing: who answers for what, and that nobody else does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables
from ddistill.objectives.inputs import Share
from ddistill.objectives.sampling import draw_index
from ddistill.partitions import (
    ConditionPartition,
    ProductPartition,
    condition_partition,
    level_ranges,
    timestep_partition,
)
from ddistill.samplers import ddim, dpm_solver_pp
from ddistill.schedules import cosine, karras, linear_beta, log_snr, make_grid, subsequence
from ddistill.students import RoutedDenoiser, clone, stack, take


def owners(partition, schedule, cond=None):
    """The owner of each of levels 1 .. T."""
    return np.asarray(partition.owner(schedule.at(np.arange(1, schedule.num_steps + 1)), cond))


# ---------------------------------------------------------------------------------- partitions


@given(steps=st.integers(1, 300), data=st.data())
@settings(max_examples=60, deadline=None)
def test_equal_ranges_tile_the_levels(steps, data):
    count = data.draw(st.integers(1, min(steps, 12)))
    schedule = cosine(steps)
    found = owners(timestep_partition(schedule, count), schedule)
    # arXiv 2410.04191: I_k = {t : floor(t K / T) = k}, t from 0.
    np.testing.assert_array_equal(found, np.arange(steps) * count // steps)
    sizes = np.bincount(found, minlength=count)
    assert sizes.sum() == steps
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("make", [linear_beta, karras, cosine])
@pytest.mark.parametrize("spacing", ["index", "log_snr"])
def test_ranges_are_contiguous_on_every_schedule(make, spacing):
    schedule = make(1000)
    found = owners(timestep_partition(schedule, 3, spacing), schedule)
    assert set(found) == {0, 1, 2}
    assert np.all(np.diff(found) >= 0)


def test_log_snr_ranges_have_equal_extent():
    schedule = linear_beta(1000)
    partition = timestep_partition(schedule, 4, "log_snr")
    low, high = level_ranges(partition, schedule)
    values = np.asarray(log_snr(schedule.at(np.arange(1, 1001))))
    extents = values[low - 1] - values[high - 1]
    np.testing.assert_allclose(extents, (values[0] - values[-1]) / 4, rtol=0.02)


def test_explicit_boundaries_and_ranges_with_a_margin():
    schedule = cosine(20)
    partition = timestep_partition(schedule, 3, boundaries=(4, 15))
    low, high = level_ranges(partition, schedule)
    np.testing.assert_array_equal((low, high), ([1, 4, 15], [3, 14, 20]))
    low, high = level_ranges(partition, schedule, margin=2)
    np.testing.assert_array_equal((low, high), ([1, 2, 13], [5, 16, 20]))


def test_a_subsequence_keeps_its_owners():
    """A sampler that visits few levels asks the students that were trained on them."""
    schedule = linear_beta(1000)
    partition = timestep_partition(schedule, 3)
    grid = make_grid(schedule, 7, "trailing")
    asked = owners(partition, subsequence(schedule, grid))
    np.testing.assert_array_equal(asked, owners(partition, schedule)[grid[1:] - 1])


@pytest.mark.parametrize("jit", [False, True])
def test_owner_of_one_level_is_that_of_many(jit):
    schedule = linear_beta(1000)
    partition = timestep_partition(schedule, 7)
    owner = jax.jit(lambda i: partition.owner(schedule.at(i))) if jit else None
    together = owners(partition, schedule)
    for i in (1, 142, 143, 144, 500, 857, 858, 1000):
        alone = owner(jnp.int32(i)) if owner else partition.owner(schedule.at(i))
        assert alone.shape == ()
        assert int(alone) == together[i - 1]


@pytest.mark.parametrize(
    ("count", "spacing", "boundaries", "words"),
    [
        (21, "index", (), ["count=21", "20 noise levels", "1 to 20"]),
        (0, "index", (), ["count=0"]),
        (2, "indx", (), ["students.spacing='indx'", "'index'"]),
        (3, "index", (5,), ["boundaries=[5]", "2 increasing levels from 2 to 20"]),
        (3, "index", (9, 5), ["boundaries=[9, 5]"]),
        (2, "index", (1,), ["boundaries=[1]"]),
        (2, "index", (21,), ["boundaries=[21]"]),
    ],
)
def test_partitions_that_cannot_work_are_refused(count, spacing, boundaries, words):
    with pytest.raises(ConfigError) as caught:
        timestep_partition(cosine(20), count, spacing, boundaries)
    for word in words:
        assert word in str(caught.value)


def test_levels_of_equal_noise_cannot_be_told_apart():
    from ddistill.schedules import Schedule

    alpha = np.array([1.0, 0.9, 0.5, 0.5, 0.1], np.float32)
    sigma = np.sqrt(1 - alpha**2)
    with pytest.raises(ConfigError, match="levels 2 and 3 have the same noise"):
        timestep_partition(Schedule(alpha, sigma, np.arange(5.0)), 2, boundaries=(3,))


def test_a_student_without_a_level_on_the_grid_is_refused():
    schedule = cosine(100)
    partition = timestep_partition(schedule, 8)
    few = subsequence(schedule, make_grid(schedule, 4, "trailing"))
    with pytest.raises(ConfigError, match="student 0 of 8 owns none of the 4 levels"):
        level_ranges(partition, few)


def test_classes_are_shared_out_evenly():
    partition = condition_partition(10, 3)
    found = np.asarray(partition.owner(None, jnp.arange(11)))
    np.testing.assert_array_equal(found[:10], np.arange(10) * 3 // 10)
    assert found[10] == 2  # the null class has an owner too
    owned = partition.owned_classes(10)
    np.testing.assert_array_equal(owned.sum(axis=0), 1)
    with pytest.raises(ValueError, match="no class"):
        partition.owner(None)
    with pytest.raises(ConfigError, match="count=11"):
        condition_partition(10, 11)


def test_composition_owns_each_level_and_class_once():
    schedule = cosine(12)
    partition = ProductPartition(timestep_partition(schedule, 2), condition_partition(10, 5))
    assert partition.count == 10
    levels, classes = partition.owned_levels(schedule), partition.owned_classes(10)
    for level in range(1, 13):
        for label in range(10):
            k = int(partition.owner(schedule.at(level), jnp.int32(label)))
            whose = np.flatnonzero(levels[:, level - 1] & classes[:, label])
            np.testing.assert_array_equal(whose, [k])


# ---------------------------------------------------------------------------------- stacks


def test_students_are_stacked_taken_and_cloned():
    trees = [tiny.tiny_params(i) for i in range(3)]
    stacked = stack(trees)
    for k, tree in enumerate(trees):
        chex.assert_trees_all_equal(take(stacked, k), tree)
    chex.assert_trees_all_equal(jax.jit(take)(stacked, jnp.int32(2)), trees[2])
    cloned = clone(trees[1], 2)
    assert all(x.shape[0] == 2 for x in jax.tree.leaves(cloned))
    for k in range(2):
        chex.assert_trees_all_equal(take(cloned, k), trees[1])


# ---------------------------------------------------------------------------------- training draws


@pytest.mark.parametrize("full_range_share", [None, 0.2])
def test_a_student_is_shown_its_range_and_the_share_outside(full_range_share):
    tables = make_level_tables(cosine(32), np.arange(33), share=Share(9, 16, full_range_share))
    keys = jax.random.split(jax.random.key(0), 20_000)
    index = np.asarray(jax.jit(draw_index)(keys, tables))
    inside = (index >= 9) & (index <= 16)
    if full_range_share is None:
        assert inside.all()
    else:
        assert (index.min(), index.max()) == (1, 32)
        # What is drawn from everywhere falls into the range, of 1 / 4, too.
        np.testing.assert_allclose(np.mean(~inside), full_range_share * (1 - 1 / 4), atol=0.01)
    counts = np.bincount(index[inside], minlength=17)[9:]
    assert counts.min() > 0.85 * counts.max()


# ---------------------------------------------------------------------------------- routing


def routed(params, count=3, steps=12):
    schedule = cosine(steps)
    students = tiny.tiny_denoiser().replace(params=params)
    return RoutedDenoiser(students, timestep_partition(schedule, count)), schedule


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
@pytest.mark.parametrize("loop", ["scan", "dispatch"])
def test_students_that_are_the_teacher_sample_as_the_teacher(sampler, loop):
    teacher = tiny.tiny_denoiser()
    router, schedule = routed(clone(teacher.params, 3))
    noise = jax.random.normal(jax.random.key(1), (4, *tiny.IMAGE))
    expected = sampler(teacher, schedule, noise, clip=1.0, loop=loop)
    found = sampler(router, schedule, noise, clip=1.0, loop=loop)
    np.testing.assert_array_equal(found, expected)


def test_another_student_never_changes_an_answer():
    trees = [tiny.tiny_params(i) for i in range(3)]
    router, schedule = routed(stack(trees))
    z = jax.random.normal(jax.random.key(1), (4, *tiny.IMAGE))
    found = owners(router.partition, schedule)
    for j in range(3):
        changed = [jax.tree.map(lambda x: x + 1.0, t) if k == j else t for k, t in enumerate(trees)]
        disturbed = RoutedDenoiser(router.students.replace(params=stack(changed)), router.partition)
        for level in range(1, 13):
            a, b = (d(z, schedule.at(level)).x0 for d in (router, disturbed))
            assert np.array_equal(a, b) == (found[level - 1] != j)


def test_a_batch_of_mixed_levels_is_answered_by_each_owner():
    params = stack([tiny.tiny_params(i) for i in range(3)])
    router, schedule = routed(params)
    z = jax.random.normal(jax.random.key(1), (5, *tiny.IMAGE))
    index = np.array([12, 1, 5, 8, 9])
    mixed, features = router.with_features(("last",))(z, schedule.at(index))
    for i, level in enumerate(index):
        alone = router(z[i : i + 1], schedule.at(int(level)))
        np.testing.assert_allclose(mixed.x0[i], alone.x0[0], rtol=1e-5, atol=1e-6)
    assert features["last"].shape[0] == 5


def test_only_the_owner_is_computed():
    """The program of a step holds one forward pass of one student, whatever K is."""

    def flops(router, schedule):
        def step(level):
            return router(jnp.zeros((4, *tiny.IMAGE)), schedule.at(level)).x0

        return jax.jit(step).lower(jnp.int32(3)).compile().cost_analysis()["flops"]

    one, eight = (flops(*routed(clone(tiny.tiny_params(), count), count)) for count in (1, 8))
    assert eight < 1.05 * one + 200  # looking up the owner, and slices


def test_routing_by_class_asks_the_students_of_the_classes():
    module = tiny.TinyNet(num_classes=4)
    params = stack([tiny.tiny_params(i, module) for i in range(2)])
    students = Denoiser.from_module(module, params, "v")
    partition = ConditionPartition(jnp.array([0, 1, 0, 1]), 2)
    router, schedule = RoutedDenoiser(students, partition), cosine(8)
    z, cond = jax.random.normal(jax.random.key(0), (3, *tiny.IMAGE)), jnp.array([2, 3, 0])
    found = router(z, schedule.at(4), cond)
    for i, k in enumerate((0, 1, 0)):
        alone = students.replace(params=take(params, k))(
            z[i : i + 1], schedule.at(4), cond[i : i + 1]
        )
        np.testing.assert_allclose(found.x0[i], alone.x0[0], rtol=1e-5, atol=1e-6)
