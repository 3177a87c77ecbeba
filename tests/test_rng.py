"""Named random keys: each depends on its example and its name alone."""

import jax
import numpy as np

from ddistill.runtime.rng import named_keys

NAMES = ("noise", "level", "dropout", "flip", "pairs")


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_an_examples_key_does_not_depend_on_the_other_examples():
    keys = jax.random.split(jax.random.key(3), 6)
    order = np.array([4, 0, 5, 2])
    np.testing.assert_array_equal(
        data(named_keys(keys[order], "noise")), data(named_keys(keys, "noise"))[order]
    )


def test_a_name_gives_the_same_keys_whatever_was_used_before():
    keys = jax.random.split(jax.random.key(3), 2)
    forwards = {name: data(named_keys(keys, name)) for name in NAMES}
    backwards = {name: data(named_keys(keys, name)) for name in reversed(NAMES)}
    for name in NAMES:
        np.testing.assert_array_equal(forwards[name], backwards[name])


def test_names_and_examples_have_distinct_keys_and_none_is_the_examples_own():
    keys = jax.random.split(jax.random.key(3), 5)
    found = [data(keys), *(data(named_keys(keys, name)) for name in NAMES)]
    rows = np.concatenate(found)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_keys_are_the_same_in_every_process():
    """Python's own hash of a string differs from process to process."""
    keys = jax.random.split(jax.random.key(0), 2)
    assert data(named_keys(keys, "noise")).tolist() == [
        [1505821618, 1612333731],
        [1223289903, 2819335320],
    ]
