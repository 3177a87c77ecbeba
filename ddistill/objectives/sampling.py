"""What is drawn for an example: noise, a level, a class; each example from its own key."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddistill.conditions import Condition
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.runtime.rng import named_keys
from ddistill.typing import Index, Keys, Labels, Scalar


def normal(keys: Keys, like: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Standard normal noise of the shape of `like`, each example from its own key."""
    return _normal(keys, like.shape[1:])


# Functions of an objective's draws are traced once for all the places that call them.
@functools.partial(jax.jit, static_argnums=1)
def _normal(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


@jax.jit
def uniform_index(keys: Keys, low: Index | int, high: Labels | Index | int) -> Int[Array, " B"]:
    """Integers uniform on low .. high (both included), each example from its own key.

    `high` may be `[B]`, a bound for every example.
    """
    if jnp.ndim(high):
        return jax.vmap(lambda key, top: jax.random.randint(key, (), low, top + 1))(keys, high)
    return jax.vmap(lambda key: jax.random.randint(key, (), low, high + 1))(keys)


def draw_index(keys: Keys, tables: LevelTables) -> Int[Array, " B"]:
    """A level for every example, uniform on the levels that the student is trained on."""
    index = uniform_index(keys, tables.low, tables.high)
    full_range_share = tables.full_range_share
    if full_range_share is None:
        return index
    anywhere = uniform_index(named_keys(keys, "full range level"), 1, tables.count)
    return jnp.where(_leaves_range(keys, full_range_share), anywhere, index)


def _leaves_range(keys: Keys, share: Scalar) -> Bool[Array, " B"]:
    """Which examples are drawn from all levels and not from the student's own range."""
    own = named_keys(keys, "full range")
    return jax.vmap(lambda key: jax.random.bernoulli(key, share))(own)


LAWS = ("uniform", "lognormal")
# Mean and standard deviation of log(sigma / alpha) in EDM (arXiv 2206.00364 table 1).
EDM_LAW = (-1.2, 1.2)


@dataclass(frozen=True)
class Law:
    """How noise levels are drawn.

    Attributes:
      name: "uniform" over the table, as `draw_index`; or the first level at least as noisy as a
        random sigma / alpha, among a student's own levels: "lognormal", or "loglogistic". With
        t = sigma / (alpha + sigma), log(sigma / alpha) = log(t / (1 - t)): "lognormal" is the
        logit-normal law of t, and "loglogistic" of std 1 and mean log(s) is a uniform t shifted to
        s t / (1 + (s - 1) t) (arXiv 2403.03206 sections 3.1 and 5.3.2).
      mean, std: location and scale of log(sigma / alpha).
    """

    name: str = "uniform"
    mean: float = EDM_LAW[0]
    std: float = EDM_LAW[1]


def draw_level(keys: Keys, tables: LevelTables, law: Law) -> Int[Array, " B"]:
    """A level for every example, among the levels that the student is trained on.

    Args:
      keys: `[B]`.
      tables: the student's levels.
      law: their distribution.
    """
    if law.name == "uniform":
        return draw_index(keys, tables)
    index = _drawn(keys, tables, (tables.low, tables.high), law)
    full_range_share = tables.full_range_share
    if full_range_share is None:
        return index
    other = named_keys(keys, "full range level")
    anywhere = _drawn(other, tables, (1, tables.count), law)
    return jnp.where(_leaves_range(keys, full_range_share), anywhere, index)


# Distribution function and quantile function of the standard form of each law, both symmetric.
_STANDARD: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "lognormal": (jax.scipy.special.ndtr, jax.scipy.special.ndtri),
    "loglogistic": (jax.nn.sigmoid, jax.scipy.special.logit),
}


def _drawn(
    keys: Keys, tables: LevelTables, ends: tuple[Index | int, Index | int], law: Law
) -> Int[Array, " B"]:
    """The law cut off at both ends of a range of levels, by inverting its distribution."""
    levels, (low, high), mean, std = tables.student, ends, law.mean, law.std
    share_below, quantile = _STANDARD[law.name]
    # The clean end is -inf; what is filled up repeats the noisiest level.
    table = jnp.log(jnp.asarray(levels.sigma)) - jnp.log(jnp.asarray(levels.alpha))
    begin = (jnp.where(low > 1, table[low - 1], -jnp.inf) - mean) / std
    end = (jnp.where(high < tables.count, table[high], jnp.inf) - mean) / std
    # Probabilities near 1 have no digits left: a range far up is drawn as its mirror image.
    far = begin > 0
    begin, end = jnp.where(far, -end, begin), jnp.where(far, -begin, end)
    bounds = share_below(jnp.stack([begin, end]))
    share = jax.vmap(lambda key: jax.random.uniform(key, (), minval=1e-7))(keys)
    drawn = quantile(bounds[0] + (bounds[1] - bounds[0]) * share)
    value = mean + std * jnp.where(far, -drawn, drawn)
    return jnp.clip(jnp.searchsorted(table, value), low, high).astype(jnp.int32)


def draw_class(keys: Keys, tables: LevelTables) -> Int[Array, " B"] | None:
    """A class for every example, uniform on the classes of the student; None without classes."""
    if tables.classes is None or tables.class_count is None:
        return None
    return tables.classes[uniform_index(keys, 0, tables.class_count - 1)]


def draw_condition(keys: Keys, batch: Batch, tables: LevelTables) -> Condition | None:
    """A condition for every example: a class as of `draw_class`, or the batch's own text."""
    return batch.cond if tables.classes is None else draw_class(keys, tables)


def draw_pair(keys: Keys, pairs: int, tables: LevelTables, own: bool) -> Int[Array, " B"]:
    """Rows of a stage's pairs, uniform, with repetition.

    Args:
      keys: `[B]`.
      pairs: their number.
      tables: whose classes are the student's.
      own: only pairs of the student's classes; pair i is of class i modulo the number of classes.
    """
    if not own or tables.classes is None:
        return uniform_index(keys, 0, pairs - 1)
    count = tables.classes.shape[0]
    owned = draw_class(named_keys(keys, "class"), tables)
    assert owned is not None, "there are classes"
    return owned + count * uniform_index(named_keys(keys, "row"), 0, pairs // count - 1)
