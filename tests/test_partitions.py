"""Classes shared out among students: in order, at random, by likeness, or as listed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill.errors import ConfigError
from ddistill.partitions import condition_partition
from ddistill.schedules import cosine


def owners(partition, num_classes):
    """The students of the classes, as routing asks for them."""
    level = cosine(4).at(4)
    return np.array([int(partition.owner(level, c)) for c in range(num_classes)])


def assert_shared_out(found, num_classes, count):
    sizes = np.bincount(found, minlength=count)
    assert len(found) == num_classes
    assert len(sizes) == count
    assert sizes.max() - sizes.min() <= 1


@st.composite
def counts(draw):
    num_classes = draw(st.integers(1, 24))
    return num_classes, draw(st.integers(1, num_classes))


@settings(deadline=None, max_examples=40)
@given(counts(), st.sampled_from(["consecutive", "random", "clustered"]), st.integers(0, 99))
def test_every_class_has_one_owner_and_groups_are_of_one_size(sizes, grouping, seed):
    num_classes, count = sizes
    embeddings = np.random.default_rng(seed).normal(size=(num_classes, 3))
    partition = condition_partition(num_classes, count, grouping, seed=seed, embeddings=embeddings)
    found = np.asarray(partition.owners)
    assert_shared_out(found[:num_classes], num_classes, count)
    assert found[num_classes] == count - 1
    owned = partition.owned_classes(num_classes)
    np.testing.assert_array_equal(owned.sum(axis=0), 1)
    np.testing.assert_array_equal(np.argmax(owned, axis=0), found[:num_classes])


def test_imagenet_is_cut_as_published():
    """Four students of 250 consecutive classes (arXiv 2410.23274)."""
    found = np.asarray(condition_partition(1000, 4).owners)
    np.testing.assert_array_equal(found[:1000], np.repeat(np.arange(4), 250))


def test_routing_asks_the_same_owner():
    partition = condition_partition(7, 3, "random", seed=1)
    np.testing.assert_array_equal(owners(partition, 7), np.asarray(partition.owners)[:7])


def test_random_groups_depend_on_the_seed_alone():
    first, again, other = (
        np.asarray(condition_partition(20, 4, "random", seed=s).owners) for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(5))
def test_like_classes_come_together(seed):
    """Clouds far apart are found whatever the first centres are."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(4), 5))
    embeddings = 50.0 * np.eye(4)[truth] + rng.normal(size=(20, 4))
    found = np.asarray(
        condition_partition(20, 4, "clustered", seed=seed, embeddings=embeddings).owners
    )
    together = found[:20, None] == found[None, :20]
    np.testing.assert_array_equal(together, truth[:, None] == truth[None])
    # Named by their first class, so that the seed does not show.
    assert [int(np.argmax(found == k)) for k in range(4)] == sorted(
        int(np.argmax(found == k)) for k in range(4)
    )


def test_uneven_clouds_are_cut_into_groups_of_one_size():
    """Plain k-means would give 9 and 1."""
    embeddings = np.concatenate([np.linspace(0, 1, 9), [100.0]])[:, None]
    found = np.asarray(condition_partition(10, 2, "clustered", embeddings=embeddings).owners)[:10]
    assert_shared_out(found, 10, 2)
    np.testing.assert_array_equal(found, np.repeat([0, 1], 5))


def test_listed_groups_may_be_of_any_size():
    partition = condition_partition(5, 2, groups=((4, 0), (1, 2, 3)))
    np.testing.assert_array_equal(np.asarray(partition.owners)[:5], [0, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 6}, ["students.count=6", "1 to 5"]),
        ({"grouping": "cluster"}, ["students.grouping='cluster'", "Did you mean 'clustered'?"]),
        ({"groups": ((0, 1), (2, 3))}, ["no student owns the classes 4"]),
        ({"groups": ((0, 1, 2), (2, 3, 4))}, ["class 2 is owned by student 0 and by student 1"]),
        ({"groups": ((0, 1, 5), (2, 3, 4))}, ["groups[0] names class 5", "0 to 4"]),
        ({"groups": ((0, 1, 2, 3, 4), ())}, ["groups[1] is empty"]),
        ({"groups": ((0, 1, 2, 3, 4),)}, ["1 groups for 2 students"]),
        ({"grouping": "clustered"}, ["embedding of each of 5 classes", "given: none"]),
        ({"grouping": "clustered", "embeddings": np.ones((4, 2))}, ["given: 4"]),
        ({"grouping": "clustered", "embeddings": np.full((5, 2), np.nan)}, ["not finite"]),
    ],
)
def test_what_cannot_be_shared_out_is_refused(arguments, words):
    with pytest.raises(ConfigError) as caught:
        condition_partition(**{"num_classes": 5, "count": 2, **arguments})
    for word in words:
        assert word in str(caught.value)
