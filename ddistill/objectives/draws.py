"""What is drawn for an example: noise, a level, a class; each example from its own key."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddistill.diffusion import add_noise
from ddistill.objectives.process import Batch, Process
from ddistill.schedules import Level


def normal(keys: Key[Array, " B"], like: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Standard normal noise of the shape of `like`, each example from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], jnp.float32))(keys)


def uniform_index(keys: Key[Array, " B"], low: Any, high: Any) -> Int[Array, " B"]:
    """Integers uniform on low .. high (both included), each example from its own key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), low, high + 1))(keys)


def draw_index(keys: Key[Array, " B"], process: Process) -> Int[Array, " B"]:
    """A level for every example, uniform on those that the student is trained on."""
    index = uniform_index(keys, process.low, process.high)
    outside = process.outside
    if outside is None:
        return index
    leave_keys, index_keys = streams(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), 2)
    leave = jax.vmap(lambda key: jax.random.bernoulli(key, outside))(leave_keys)
    return jnp.where(leave, uniform_index(index_keys, 1, process.count), index)


LAWS = ("uniform", "lognormal")
# Of log(sigma / alpha) in EDM (arXiv 2206.00364 table 1).
_LOG_MEAN, _LOG_STD = -1.2, 1.2


def draw_level(keys: Key[Array, " B"], process: Process, law: str) -> Int[Array, " B"]:
    """A level for every example, on those that the student is trained on.

    Args:
      keys: `[B]`.
      process: the student's levels.
      law: "uniform" over the table, as `draw_index`; "lognormal": the first level at least as noisy
        as sigma / alpha = exp(-1.2 + 1.2 n), n standard normal (EDM).
    """
    if law == "uniform":
        return draw_index(keys, process)
    drawn = jax.vmap(lambda key: jax.random.normal(key, ()))(keys)
    levels = process.student
    # The clean end is -inf; what is filled up repeats the noisiest level.
    table = jnp.log(jnp.asarray(levels.sigma)) - jnp.log(jnp.asarray(levels.alpha))
    index = jnp.searchsorted(table, _LOG_MEAN + _LOG_STD * drawn)
    return jnp.clip(index, process.low, process.high).astype(jnp.int32)


def draw_class(keys: Key[Array, " B"], process: Process) -> Int[Array, " B"] | None:
    """A class for every example, uniform on those of the student; None where there are none."""
    if process.classes is None or process.class_count is None:
        return None
    return process.classes[uniform_index(keys, 0, process.class_count - 1)]


def draw_pair(keys: Key[Array, " B"], pairs: int, process: Process, own: bool) -> Int[Array, " B"]:
    """Rows of a stage's pairs, uniform, with repetition.

    Args:
      keys: `[B]`.
      pairs: their number.
      process: whose classes are the student's.
      own: only pairs of the student's classes; pair i is of class i modulo the number of classes.
    """
    if not own or process.classes is None:
        return uniform_index(keys, 0, pairs - 1)
    class_keys, row_keys = streams(keys, 2)
    count = process.classes.shape[0]
    owned: Any = draw_class(class_keys, process)
    return owned + count * uniform_index(row_keys, 0, pairs // count - 1)


def noisy(
    batch: Batch, process: Process
) -> tuple[Int[Array, " B"], Level, Float[Array, "B H W C"]]:
    """A student level for every example, as `draw_index` draws it, and the image brought to it.

    Returns:
      The levels' numbers, the levels, and z at them.
    """
    index_keys, noise_keys = streams(batch.keys, 2)
    index = draw_index(index_keys, process)
    level = process.student.at(index)
    return index, level, add_noise(batch.image, normal(noise_keys, batch.image), level)


def streams(keys: Key[Array, " B"], count: int) -> list[Key[Array, " B"]]:
    """Splits the keys of every example into `count` independent sets."""
    split = jax.vmap(lambda key: jax.random.split(key, count))(keys)
    return [split[:, i] for i in range(count)]


def mean_per_example(values: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Mean over all axes but the first."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))
