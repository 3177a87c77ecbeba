"""Which of a schedule's levels are used: grids of indices, and the schedule read at them."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from ddistill.errors import ConfigError, check_choice
from ddistill.schedules.levels import Schedule, gather
from ddistill.typing import AnyArray

SPACINGS = ("trailing", "leading", "quadratic", "log_snr")


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
    there to 0, as on EDM's grid. Likewise it begins at T - 1 where level T has no image left. The
    grid always ends at T.

    Raises:
      ConfigError: N outside of 1 .. T.
    """
    T = schedule.num_steps
    _check_count(T, N)
    low = 1 if schedule.sigma[0] == 0 else 0
    high = T - 1 if schedule.alpha[-1] == 0 else T
    inner = slice(low, high + 1)
    alpha, sigma = (np.asarray(t[inner], np.float64) for t in (schedule.alpha, schedule.sigma))
    value = np.log(alpha) - np.log(sigma)
    count = max(0, N + 1 - low - (T - high))
    wanted = np.linspace(value[-1], value[0], count)[::-1] if count else value[:0]
    closest = np.abs(value - wanted[:, None]).argmin(axis=1) + low
    ends = np.zeros(low, np.int64), np.full(T - high, T)
    return _increasing(np.concatenate([ends[0], closest, ends[1]]), T)


def make_grid(
    schedule: Schedule,
    steps: int,
    spacing: str = "trailing",
    explicit: Sequence[int] | np.ndarray | None = None,
) -> Int[np.ndarray, " N_1"]:
    """The grid that settings describe.

    Args:
      schedule: the table of levels.
      steps: N.
      spacing: one of `SPACINGS`.
      explicit: indices 0 = phi_0 < ... < phi_N, which override `steps` and `spacing`.

    Raises:
      ConfigError: an unknown spacing, N outside of 1 .. T, or a list that is no grid.
    """
    if explicit is not None:
        return check_grid(explicit, schedule.num_steps)
    if spacing == "edm":
        raise ConfigError(
            "grid.spacing='edm' are EDM's own sigmas, for stages of pairs, which sample; levels of "
            f"other stages are rows of the table. Allowed: {', '.join(SPACINGS)}."
        )
    check_choice("grid.spacing", spacing, SPACINGS)
    if spacing == "log_snr":
        return log_snr_grid(schedule, steps)
    return uniform_grid(schedule.num_steps, steps, spacing)


def check_grid(grid: Sequence[int] | np.ndarray, T: int) -> Int[np.ndarray, " N_1"]:
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


def subsequence(schedule: Schedule, grid: Sequence[int] | AnyArray) -> Schedule:
    """The schedule read at a grid's indices: SFDDM's aligned chain, PD's halving, DDIM's jumps.

    The marginals q(z | x0) at the kept levels and their times stay what they were. A traced `grid`
    is not checked.

    Raises:
      ConfigError: see `check_grid`.
    """
    if isinstance(grid, jax.core.Tracer):
        return Schedule(*gather(schedule, grid))
    return Schedule(*gather(schedule, check_grid(np.asarray(grid), schedule.num_steps)))


def index_time(schedule: Schedule) -> Schedule:
    """The same levels, with indices 0 .. N-1 as times (-1 at the clean end)."""
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
