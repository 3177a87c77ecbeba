"""Noise levels: what `z = alpha * x0 + sigma * eps` means at every step, and which steps are used.

A `Schedule` is a table of levels; index 0 is the clean end, index T the noisiest. A student's
process is a `subsequence` of its teacher's table, picked by a grid of indices. Everything is
computed in float64 and stored in float32, because 1 - abar loses all its digits in float32.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from ddistill.errors import ConfigError, check_choice, nearest

SPACINGS = ("trailing", "leading", "quadratic", "log_snr")


@struct.dataclass
class Level:
    """One noise level, or one for each example of a batch.

    Attributes:
      alpha: `[]` or `[B]`, what the clean image is multiplied by.
      sigma: `[]` or `[B]`, the standard deviation of the noise.
      time: `[]` or `[B]`, what the network is told: a DDPM index, a log-SNR, EDM's c_noise.
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
        return Level(*_gather(self, index))


def _gather(schedule: Schedule, index: Any) -> list[Any]:
    """The three tables at an index; numpy stays numpy unless the index is jax's."""
    tables = (schedule.alpha, schedule.sigma, schedule.time)
    return [(jnp.asarray(t) if isinstance(index, jax.Array) else t)[index] for t in tables]


def snr(level: Level | Schedule) -> Float[Array, "*B"]:
    """Signal-to-noise ratio alpha^2 / sigma^2; infinite where sigma = 0."""
    return jnp.square(jnp.asarray(level.alpha) / level.sigma)


def log_snr(level: Level | Schedule) -> Float[Array, "*B"]:
    """Logarithm of the signal-to-noise ratio; infinite where sigma = 0."""
    return 2.0 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def betas(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """Noise added by each forward step, `1 - (alpha_i / alpha_{i-1})^2` for i = 1 .. T, float64.

    On a subsequence these are SFDDM's beta' (arXiv 2405.14961), each in [0, 1).
    """
    alpha = np.asarray(schedule.alpha, np.float64)
    return 1.0 - np.square(alpha[1:] / alpha[:-1])


# ------------------------------------------------------------------------------- constructors


def from_alphas_cumprod(
    table: Sequence[float] | np.ndarray, clean: bool = True, dtype: Any = np.float32
) -> Schedule:
    """A variance-preserving schedule from the products abar of the alphas (DDPM eq. 4).

    Args:
      table: abar in (0, 1], strictly decreasing. `[T]` with `clean`, `[T+1]` without.
      clean: put a clean level (alpha 1, sigma 0) before the table. Schedule index i is then table
        index i-1, and `time` is the table's index (-1 for the clean level, which no network sees).
        Without it the table is kept as it is, with `time` = index, and the process ends slightly
        noisy.
      dtype: of the arrays; float64 is for tests.

    Raises:
      ConfigError: values outside of (0, 1] or not decreasing.
    """
    abar = np.asarray(table, np.float64)
    fewest = 1 if clean else 2
    if abar.ndim != 1 or len(abar) < fewest:
        raise ConfigError(f"alphas_cumprod has shape {abar.shape}; [{fewest}] or longer is needed.")
    if not (np.all(abar > 0) and np.all(abar <= 1)):
        raise ConfigError(
            f"alphas_cumprod goes from {abar.min()} to {abar.max()}; allowed is 0 < abar <= 1."
        )
    if np.any(np.diff(abar) >= 0):
        at = int(np.argmax(np.diff(abar) >= 0))
        raise ConfigError(
            f"alphas_cumprod must decrease strictly; entries {at} and {at + 1} are {abar[at]} and "
            f"{abar[at + 1]}."
        )
    time = np.arange(len(abar), dtype=np.float64)
    if clean:
        abar, time = np.concatenate([[1.0], abar]), np.concatenate([[-1.0], time])
    return Schedule(
        np.sqrt(abar).astype(dtype), np.sqrt(1.0 - abar).astype(dtype), time.astype(dtype)
    )


def cosine(
    T: int, s: float = 0.008, max_beta: float = 0.999, clean: bool = True, dtype: Any = np.float32
) -> Schedule:
    """Cosine schedule (arXiv 2102.09672 eq. 17): abar ~ cos^2((t + s) / (1 + s) * pi / 2).

    Args:
      T: number of steps.
      s: offset that keeps the first beta from vanishing.
      max_beta: upper bound of every beta; it decides how noisy the last level is.
      clean: with it, T betas after a clean level. Without, CFD's table (arXiv 2211.12039): T + 1
        entries, none of them clean, from the cosine on T + 1 intervals.
      dtype: of the arrays; float64 is for tests.
    """
    _check_steps(T, max_beta=max_beta)
    if not s >= 0:
        raise ConfigError(f"schedule option s={s} must be 0 or more.")
    entries = T if clean else T + 1
    t = np.arange(entries + 1, dtype=np.float64) / entries
    f = np.square(np.cos((t + s) / (1.0 + s) * np.pi / 2.0))
    return _from_betas(np.minimum(1.0 - f[1:] / f[:-1], max_beta), clean, dtype)


def cosine_log_snr(
    T: int, bound: float = 20.0, clean: bool = True, dtype: Any = np.float32
) -> Schedule:
    """PD's continuous cosine (arXiv 2202.00512): log-SNR -2 log tan(a u + b) at u = i / T.

    a and b are such that it goes from `bound` at u = 0 to -`bound` at u = 1, and abar is its
    sigmoid. `time` is 1000 (2 / pi) arctan(exp(-log-SNR / 2)), from about 0 to about 1000.

    Args:
      T: number of steps.
      bound: largest absolute log-SNR.
      clean: makes level 0 clean (alpha 1, sigma 0), so that the last step returns the prediction
        itself, as PD's sampler and target do.
      dtype: of the arrays; float64 is for tests.
    """
    _check_steps(T)
    if not bound > 0:
        raise ConfigError(f"schedule option bound={bound} must be above 0.")
    b = np.arctan(np.exp(-bound / 2.0))
    a = np.arctan(np.exp(bound / 2.0)) - b
    angle = a * np.arange(T + 1, dtype=np.float64) / T + b
    # With log-SNR = -2 log tan(angle): alpha = cos(angle), sigma = sin(angle).
    alpha, sigma = np.cos(angle), np.sin(angle)
    if clean:
        alpha[0], sigma[0] = 1.0, 0.0
    time = 1000.0 * angle / (np.pi / 2.0)
    return Schedule(alpha.astype(dtype), sigma.astype(dtype), time.astype(dtype))


def linear_beta(
    T: int, start: float = 1e-4, end: float = 0.02, dtype: Any = np.float32
) -> Schedule:
    """Betas linear from `start` to `end` (DDPM, arXiv 2006.11239 section 4).

    The defaults belong to T = 1000; for another T, multiply both by 1000 / T.
    """
    _check_steps(T, start=start, end=end)
    return _from_betas(np.linspace(start, end, T, dtype=np.float64), True, dtype)


def scaled_linear_beta(
    T: int, start: float = 0.00085, end: float = 0.012, dtype: Any = np.float32
) -> Schedule:
    """Betas whose square roots are linear from sqrt(start) to sqrt(end) (latent diffusion)."""
    _check_steps(T, start=start, end=end)
    roots = np.linspace(np.sqrt(start), np.sqrt(end), T, dtype=np.float64)
    return _from_betas(np.square(roots), True, dtype)


def sigmoid_beta(
    T: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, dtype: Any = np.float32
) -> Schedule:
    """Sigmoid schedule (arXiv 2212.11972, algorithm 1); SFDDM's teachers use its defaults.

    abar(u) goes from 1 at u = 0 to 0 at u = 1 along a sigmoid read between `start` and `end` at
    temperature `tau`; betas are bounded by 0.999.
    """
    _check_steps(T)
    if not (start < end and tau > 0):
        raise ConfigError(
            f"schedule options start={start}, end={end}, tau={tau}: start must be below end, and "
            "tau above 0."
        )
    u = np.arange(T + 1, dtype=np.float64) / T
    high, low = _sigmoid(end / tau), _sigmoid(start / tau)
    abar = (high - _sigmoid((u * (end - start) + start) / tau)) / (high - low)
    return _from_betas(np.clip(1.0 - abar[1:] / abar[:-1], 0.0, 0.999), True, dtype)


def karras(
    T: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    dtype: Any = np.float32,
) -> Schedule:
    """EDM's levels (arXiv 2206.00364 eq. 5): alpha 1, sigma from sigma_min to sigma_max, before 0.

    Index 0 is sigma = 0, index 1 sigma_min, index T sigma_max (with T = 1 only sigma_max). `time`
    is c_noise = ln(sigma) / 4; the clean level repeats that of index 1.
    """
    _check_steps(T)
    if not (0 < sigma_min < sigma_max < np.inf and rho > 0):
        raise ConfigError(
            f"schedule options sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}: needed are "
            "0 < sigma_min < sigma_max and rho > 0."
        )
    ramp = np.linspace(0.0, 1.0, T) if T > 1 else np.ones(1)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    noisy = (low + ramp * (high - low)) ** rho
    sigma = np.concatenate([[0.0], noisy])
    time = np.log(np.concatenate([noisy[:1], noisy])) / 4.0
    return Schedule(np.ones(T + 1, dtype), sigma.astype(dtype), time.astype(dtype))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "cosine_log_snr": cosine_log_snr,
    "linear_beta": linear_beta,
    "scaled_linear_beta": scaled_linear_beta,
    "sigmoid_beta": sigmoid_beta,
    "karras": karras,
}


def make_schedule(name: str, T: int, **options: Any) -> Schedule:
    """A schedule by its constructor's name.

    Args:
      name: one of `SCHEDULES`.
      T: number of steps.
      **options: the constructor's own, as in its signature.

    Raises:
      ConfigError: an unknown name or option, or a value that cannot work.
    """
    check_choice("schedule.name", name, SCHEDULES)
    known = [p for p in inspect.signature(SCHEDULES[name]).parameters if p not in ("T", "dtype")]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"schedule.options.{option} is not an option of '{name}'."
                f"{nearest(option, known)} Allowed: {', '.join(known)}."
            )
    return SCHEDULES[name](T, **options)


def _from_betas(beta: np.ndarray, clean: bool, dtype: Any) -> Schedule:
    return from_alphas_cumprod(np.cumprod(1.0 - beta), clean, dtype)


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def _check_steps(T: int, **rates: float) -> None:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1:
        raise ConfigError(f"schedule.steps={T!r} must be an integer of 1 or more.")
    for name, value in rates.items():
        if not 0 < value < 1:
            raise ConfigError(f"schedule option {name}={value} must lie between 0 and 1.")


# -------------------------------------------------------------------------------------- grids


def uniform_grid(T: int, N: int, spacing: str = "trailing") -> Int[np.ndarray, " N_1"]:
    """N + 1 strictly increasing indices of a schedule with T steps; the first is 0.

    Args:
      T: steps of the schedule.
      N: steps of the grid, 1 .. T.
      spacing: "trailing" ends at T: floor(i T / N + 1/2). "leading" is SFDDM's released rule,
        1 + floor(i T / N) for i < N after the clean level; its noisiest level lies T / N short of
        T. (The released code truncates T / N first, which differs where N does not divide T.)
        "quadratic" is T (i / N)^2, dense at the clean end (DDIM, arXiv 2010.02502 appendix D).

    Raises:
      ConfigError: an unknown spacing, or N outside of 1 .. T.
    """
    _check_count(T, N)
    if spacing == "log_snr":
        raise ConfigError("spacing='log_snr' needs a schedule: use log_snr_grid or make_grid.")
    check_choice("grid.spacing", spacing, SPACINGS)
    i = np.arange(N + 1)
    if spacing == "trailing":
        return (2 * i * T + N) // (2 * N)
    if spacing == "leading":
        return np.concatenate([[0], 1 + i[:-1] * T // N])
    return _increasing(np.floor(T * np.square(i / N) + 0.5).astype(np.int64), T)


def log_snr_grid(schedule: Schedule, N: int) -> Int[np.ndarray, " N_1"]:
    """N + 1 indices whose log-SNRs are as evenly spaced as the table allows, from T to the end.

    A clean end has infinite SNR: the even spacing then goes down to index 1, and the last step from
    there to 0, as on EDM's grid. The grid always ends at T.

    Raises:
      ConfigError: N outside of 1 .. T.
    """
    T = schedule.num_steps
    _check_count(T, N)
    low = 1 if schedule.sigma[0] == 0 else 0
    alpha, sigma = (np.asarray(t[low:], np.float64) for t in (schedule.alpha, schedule.sigma))
    value = np.log(alpha) - np.log(sigma)
    wanted = np.linspace(value[-1], value[0], N + 1 - low)[::-1]
    closest = np.abs(value - wanted[:, None]).argmin(axis=1) + low
    return _increasing(np.concatenate([np.zeros(low, np.int64), closest]), T)


def make_grid(
    schedule: Schedule, steps: int, spacing: str = "trailing", explicit: Any = None
) -> Int[np.ndarray, " N_1"]:
    """The grid that settings describe.

    Args:
      schedule: whose levels are picked.
      steps: N.
      spacing: one of `SPACINGS`.
      explicit: indices 0 = phi_0 < ... < phi_N, which override `steps` and `spacing`.

    Raises:
      ConfigError: an unknown spacing, N outside of 1 .. T, or a list that is no grid.
    """
    if explicit is not None:
        return check_grid(explicit, schedule.num_steps)
    check_choice("grid.spacing", spacing, SPACINGS)
    if spacing == "log_snr":
        return log_snr_grid(schedule, steps)
    return uniform_grid(schedule.num_steps, steps, spacing)


def check_grid(grid: Any, T: int) -> Int[np.ndarray, " N_1"]:
    """Returns `grid` as an integer array.

    Raises:
      ConfigError: not a list of at least two integers, not starting at 0, not strictly increasing,
        or going beyond T.
    """
    indices = np.asarray(grid)
    if indices.ndim != 1 or len(indices) < 2 or indices.dtype.kind not in "iu":
        raise ConfigError(f"grid={_short(indices)} must be a list of two or more integers.")
    if len(indices) - 1 > T:
        _check_count(T, len(indices) - 1)
    if indices[0] != 0:
        raise ConfigError(
            f"grid={_short(indices)} starts at {indices[0]}. The first index must be 0, the clean "
            "end, where sampling stops."
        )
    steps = np.diff(indices.astype(np.int64))
    if np.any(steps <= 0):
        at = int(np.argmax(steps <= 0))
        raise ConfigError(
            f"grid={_short(indices)} must increase strictly, but entry {at} is {indices[at]} and "
            f"entry {at + 1} is {indices[at + 1]}."
        )
    if indices[-1] > T:
        raise ConfigError(
            f"grid={_short(indices)} goes to {indices[-1]}, but the schedule's last index is {T}."
        )
    return indices.astype(np.int64)


def subsequence(schedule: Schedule, grid: Any) -> Schedule:
    """The schedule read at a grid's indices: SFDDM's aligned chain, PD's halving, DDIM's jumps.

    The marginals q(z | x0) at the kept levels and their times stay what they were. A traced `grid`
    is not checked.

    Raises:
      ConfigError: see `check_grid`.
    """
    if not isinstance(grid, jax.core.Tracer):
        grid = check_grid(grid, schedule.num_steps)
    return Schedule(*_gather(schedule, grid))


def index_time(schedule: Schedule) -> Schedule:
    """The same levels, with the network told its own index 0 .. N-1 (-1 at the clean end)."""
    own = np.arange(schedule.num_steps + 1) - 1
    return schedule.replace(time=own.astype(schedule.time.dtype))  # type: ignore[attr-defined]


def _increasing(indices: np.ndarray, T: int) -> np.ndarray:
    """Moves equal neighbours apart by as little as it takes, inside of 0 .. T."""
    i = np.arange(len(indices))
    spread = np.maximum.accumulate(indices - i) + i
    return np.minimum(spread, T - i[::-1])


def _check_count(T: int, N: int) -> None:
    if isinstance(N, bool) or not isinstance(N, (int, np.integer)) or not 1 <= N <= T:
        raise ConfigError(
            f"grid.steps={N!r}, but the schedule has {T} steps. Allowed: 1 to {T}; for more, make "
            "schedule.steps larger."
        )


def _short(indices: np.ndarray) -> str:
    values = indices.tolist()
    many = isinstance(values, list) and len(values) > 12
    return f"[{', '.join(map(str, values[:12]))}, ...]" if many else str(values)
