"""Sampling from students that share out classes: every image is its class's owner's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ddistill.denoiser import Denoiser
from ddistill.partitions import ConditionPartition, ProductPartition, timestep_partition
from ddistill.samplers import ddim
from ddistill.schedules import cosine
from ddistill.students import RoutedDenoiser, clone, in_groups, stack

# -------------------------------------------------------------------------------- who is asked

CLASSES, STEPS = 6, 3
MODULE = tiny.TinyNet(num_classes=CLASSES)
SCHEDULE = cosine(STEPS)
OWNERS = ConditionPartition(jnp.array([0, 0, 1, 1, 2, 2, 2]), 3)
MIXES = {
    "random": np.random.default_rng(0).integers(0, CLASSES, 12),
    "in order": np.arange(12) % CLASSES,
    "one class": np.full(12, 3),
    "one student": np.array([4, 5] * 6),
    "nearly one": np.array([0] * 11 + [5]),
    "two students": np.array([5] * 7 + [0] * 5),
}


def students(params, partition=OWNERS):
    return RoutedDenoiser(Denoiser.from_module(MODULE, params, "v"), partition)


def unlike(count):
    return stack([tiny.tiny_params(i, MODULE) for i in range(count)])


def noise(count=12):
    return jax.random.normal(jax.random.key(3), (count, *tiny.IMAGE))


def images(network, label, asked=None):
    """The batch in groups; notes in `asked` how many rows each call was for."""

    def sample(denoiser, rows):
        if asked is not None:
            asked.append(len(rows))
        return ddim(denoiser, SCHEDULE, noise(len(label))[rows], cond=jnp.asarray(label[rows]))

    return np.asarray(in_groups(network, label, len(label), sample))


@pytest.mark.parametrize("label", MIXES.values(), ids=MIXES.keys())
def test_every_image_is_made_by_the_owner_of_its_class_and_in_its_place(label):
    """Against each student alone, asked for the whole batch."""
    router, asked = students(unlike(3)), []
    found = images(router, label, asked)
    alone = [
        np.asarray(ddim(router.student(k), SCHEDULE, noise(), cond=jnp.asarray(label)))
        for k in range(3)
    ]
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(alone)) > 0.05
    for i, k in enumerate(np.asarray(OWNERS.owners)[label]):
        np.testing.assert_allclose(found[i], alone[k][i], rtol=1e-5, atol=1e-6)
    # Pieces of one size; those who own none of the batch are not asked.
    assert set(asked) == {4}
    assert sum(asked) < 12 + 4 * len(set(np.asarray(OWNERS.owners)[label]))


@pytest.mark.parametrize("label", MIXES.values(), ids=MIXES.keys())
def test_equal_students_give_exactly_what_one_gives(label):
    one = Denoiser.from_module(MODULE, tiny.tiny_params(0, MODULE), "v")
    found = images(students(clone(one.params, 3)), label)
    rows = np.arange(12).reshape(3, 4)  # in batches of the same size
    wanted = [ddim(one, SCHEDULE, noise()[r], cond=jnp.asarray(label[r])) for r in rows]
    np.testing.assert_array_equal(found, np.concatenate(wanted))


def test_another_mix_of_classes_compiles_nothing(compiled):
    router = students(unlike(3))
    images(router, MIXES["in order"])
    before = len(compiled)
    for label in MIXES.values():
        images(router, label)
    assert len(compiled) == before


def test_ranges_and_classes_together():
    """Within a group of classes every step asks the owner of its level."""
    times = timestep_partition(SCHEDULE, 2)
    both = ProductPartition(times, OWNERS)
    router = students(unlike(6), both)
    label = MIXES["random"]
    found = images(router, label)
    for i in range(12):
        # One image at a time: level and class have one owner, who is asked step by step.
        alone = ddim(router, SCHEDULE, noise()[i : i + 1], cond=jnp.asarray(label[i : i + 1]))
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-5, atol=1e-6)
    used = {int(both.owner(SCHEDULE.at(t), jnp.int32(c))) for t in (1, 2, 3) for c in label}
    assert used == set(range(6)), "the mix should need everybody"


def test_without_classes_nobody_can_be_asked():
    with pytest.raises(ValueError, match="partitioned by class or text, and no cond"):
        in_groups(students(unlike(3)), None, 4, lambda denoiser, rows: noise(4))


def test_a_network_that_is_not_shared_out_by_class_is_left_in_one_piece():
    calls = []
    times = students(unlike(2), timestep_partition(SCHEDULE, 2))
    for network in (times, times.student(0)):
        in_groups(network, MIXES["random"], 12, lambda d, rows: calls.append((d, len(rows))))
        assert calls.pop() == (network, 12)
