"""A noise level, and tables of them."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from ddistill.typing import AnyArray


@struct.dataclass
class Level:
    """One noise level, or one for each example of a batch.

    Attributes:
      alpha: `[]` or `[B]`, what the clean image is multiplied by.
      sigma: `[]` or `[B]`, the standard deviation of the noise.
      time: `[]` or `[B]`, the network's time input: a DDPM index, a log-SNR, EDM's c_noise.
    """

    alpha: Float[Array, "*B"]
    sigma: Float[Array, "*B"]
    time: Float[Array, "*B"]


@struct.dataclass
class Schedule:
    """A table of noise levels.

    Attributes:
      alpha, sigma, time: `[T+1]` each, as in `Level`; index 0 is the clean end, T the noisiest.
    """

    alpha: Float[Array | np.ndarray, " T_1"]
    sigma: Float[Array | np.ndarray, " T_1"]
    time: Float[Array | np.ndarray, " T_1"]

    @property
    def num_steps(self) -> int:
        """T, the number of steps from the noisiest level to the clean end."""
        return self.alpha.shape[0] - 1

    def at(self, index: int | Int[Array | np.ndarray, "*B"]) -> Level:
        """The level at an index in 0 .. T, or the levels at an array of indices (may be traced).

        Raises:
          IndexError: a Python integer outside of 0 .. T; -1 would silently be the noisiest level.
        """
        if isinstance(index, int) and not 0 <= index <= self.num_steps:
            raise IndexError(f"Level index {index}; the schedule has levels 0 to {self.num_steps}.")
        return Level(*gather(self, index))


def gather(schedule: Schedule, index: int | AnyArray) -> list[Array]:
    """The three tables at an index; numpy stays numpy unless the index is jax's."""
    tables = (schedule.alpha, schedule.sigma, schedule.time)
    if isinstance(index, jax.Array):
        return _rows(tables, index)
    return [cast(Array, t[index]) for t in tables]


@jax.jit
def _rows(tables: tuple[AnyArray, ...], index: Array) -> list[Array]:
    # Traced once for each length of tables, and one program where nothing else is compiled.
    return [jnp.asarray(table)[index] for table in tables]


def snr(level: Level | Schedule) -> Float[Array, "*B"]:
    """Signal-to-noise ratio alpha^2 / sigma^2; infinite where sigma = 0."""
    return jnp.square(jnp.asarray(level.alpha) / level.sigma)


def log_snr(level: Level | Schedule) -> Float[Array, "*B"]:
    """Logarithm of the signal-to-noise ratio; infinite where sigma = 0."""
    return 2.0 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def betas(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """Noise added by each forward step, `1 - (alpha_i / alpha_{i-1})^2` for i = 1 .. T, float64.

    On a subsequence these are SFDDM's beta' (arXiv 2405.14961), each in [0, 1). Near the clean end
    of a variance-preserving table they are read off sigma, which has more digits there in float32.
    """
    alpha, sigma = (np.asarray(x, np.float64) for x in (schedule.alpha, schedule.sigma))
    before, after = np.square(alpha[:-1]), np.square(alpha[1:])
    by_sigma = (np.square(sigma[1:]) - np.square(sigma[:-1])) / before
    preserving = np.abs(after + np.square(sigma[1:]) - 1.0) < 1e-6
    return np.where(preserving & (after > 0.5), by_sigma, 1.0 - after / before)
