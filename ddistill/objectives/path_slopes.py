"""Derivatives along the path of a schedule: of its levels, and of what a network says on it.

t = sigma / (alpha + sigma) is the place on the straight path (`flow_time`). With it z = alpha x0 +
sigma eps moves by dz/dt = alpha' x0 + sigma' eps along the path of a prediction, on any schedule,
and z / (alpha + sigma) by the velocity eps - x0. Derivatives of networks are in forward mode: one
`jax.jvp` gives the value and its total derivative, in the image and in the time input at once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.denoiser import NetworkDenoiser, forward_mode
from ddistill.diffusion import Prediction, add_noise
from ddistill.errors import ConfigError
from ddistill.objectives.inputs import LevelTables
from ddistill.objectives.states import State
from ddistill.schedules import Level
from ddistill.typing import Images, Labels, PerExample

# Rows that the slope of a table is read off.
FEWEST_LEVELS = 3
# What is differentiated: `(prediction, z, level) -> images`.
Output = Callable[[Prediction, Images, Level], Images]


def check_dense(steps: int) -> None:
    """Raises `ConfigError` for a student of too few levels to read a derivative in time off."""
    if steps < FEWEST_LEVELS:
        raise ConfigError(
            f"a grid of {steps} steps: the derivative in time is read off {FEWEST_LEVELS} levels. "
            "Set grid.steps to 64 or more, or to 0 for all of the teacher's levels; the student is "
            "sampled in any smaller number of steps."
        )


def path_slope(tables: LevelTables, index: Labels) -> Level:
    """The derivatives in t of alpha, sigma and the network's time at rows of the student's levels.

    The total alpha + sigma and the time are differentiated as quadratics through three rows, which
    is exact on the straight path; alpha' and sigma' follow from the former. The clean level, at
    which networks have no time, is not read.

    Args:
      tables: the levels, at least `FEWEST_LEVELS` of them.
      index: `[B]` rows in 1 .. N.
    """
    levels = tables.student
    middle = jnp.clip(index, 2, tables.count - 1)
    rows = (middle - 1, middle, middle + 1)
    alpha, sigma, time = (jnp.asarray(x) for x in (levels.alpha, levels.sigma, levels.time))
    total = alpha + sigma
    place, rest = sigma / total, alpha / total  # t and 1 - t
    # Differences of t near 1 have few digits left in float32, and those of 1 - t have all.
    clean = place[middle] < 0.5
    ts = [jnp.where(clean, place[row], -rest[row]) for row in rows]
    t = jnp.where(clean, place[index], -rest[index])
    growth = _quadratic_slope(ts, [total[row] for row in rows], t)
    return Level(
        alpha=growth * rest[index] - total[index],
        sigma=growth * place[index] + total[index],
        time=_quadratic_slope(ts, [time[row] for row in rows], t),
    )


def _quadratic_slope(ts: list[Array], values: list[Array], t: Array) -> Float[Array, " B"]:
    """The slope at `t` of the quadratics through three points each."""
    first = (values[1] - values[0]) / (ts[1] - ts[0])
    second = (values[2] - values[1]) / (ts[2] - ts[1])
    curvature = (second - first) / (ts[2] - ts[0])
    return first + curvature * ((t - ts[0]) + (t - ts[1]))


def scaled(slope: Level, factor: PerExample) -> Level:
    """The slope in another variable, of which `factor` is the derivative of t."""
    return jax.tree.map(lambda x: factor * x, slope)


def with_derivative(
    network: NetworkDenoiser, output: Output, state: State, direction: Prediction, slope: Level
) -> tuple[Images, Images]:
    """A network's output at a state and its total derivative along the path.

    Gradients in the weights go through both; a caller that has no use for the second one's takes
    `jax.lax.stop_gradient` of it, and the compiler drops what it needs.

    Args:
      network: the student.
      output: what is made of its prediction.
      state: the noisy images, their levels and conditions, and the key of dropout.
      direction: the prediction on whose path z moves; no gradient is taken through it.
      slope: of the levels, see `path_slope`.
    """
    direction = jax.lax.stop_gradient(direction)
    key = {} if state.dropout_key is None else {"key": state.dropout_key}

    network = forward_mode(network)

    def answer(z: Images, level: Level) -> Images:
        return output(network(z, level, state.cond, **key), z, level)

    moves = add_noise(direction.x0, direction.eps, slope)
    found: tuple[Images, Images] = jax.jvp(answer, (state.z, state.level), (moves, slope))
    return found


def velocity(prediction: Prediction) -> Float[Array, "B ..."]:
    """eps - x0, the velocity of z / (alpha + sigma) in t."""
    return prediction.eps - prediction.x0
