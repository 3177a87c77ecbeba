"""Constructors of schedules, computed in float64: 1 - abar loses all its digits in float32."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from numpy.typing import DTypeLike

from ddistill.errors import ConfigError
from ddistill.schedules.levels import Schedule
from ddistill.typing import Options


def from_alphas_cumprod(
    table: Sequence[float] | np.ndarray, clean: bool = True, dtype: DTypeLike = np.float32
) -> Schedule:
    """A variance-preserving schedule from the products abar of the alphas (DDPM eq. 4).

    Args:
      table: abar in (0, 1], strictly decreasing; the last may be 0. `[T]` with `clean`, `[T+1]`
        without.
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
    if not (np.all(abar[:-1] > 0) and abar[-1] >= 0 and np.all(abar <= 1)):
        raise ConfigError(
            f"alphas_cumprod goes from {abar.min()} to {abar.max()}; allowed is 0 < abar <= 1, and "
            "0 for the last."
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
    T: int,
    s: float = 0.008,
    max_beta: float = 0.999,
    clean: bool = True,
    zero_snr: bool = False,
    dtype: DTypeLike = np.float32,
) -> Schedule:
    """Cosine schedule (arXiv 2102.09672 eq. 17): abar ~ cos^2((t + s) / (1 + s) * pi / 2).

    Args:
      T: number of steps.
      s: offset that keeps the first beta from vanishing.
      max_beta: upper bound of every beta; it decides how noisy the last level is.
      clean: with it, T betas after a clean level. Without, CFD's table (arXiv 2211.12039): T + 1
        entries, none of them clean, from the cosine on T + 1 intervals.
      zero_snr: see `scaled_linear_beta`.
      dtype: of the arrays; float64 is for tests.
    """
    _check_steps(T, max_beta=max_beta)
    if not s >= 0:
        raise ConfigError(f"schedule option s={s} must be 0 or more.")
    entries = T if clean else T + 1
    t = np.arange(entries + 1, dtype=np.float64) / entries
    f = np.square(np.cos((t + s) / (1.0 + s) * np.pi / 2.0))
    beta = np.minimum(1.0 - f[1:] / f[:-1], max_beta)
    return _from_betas(beta, dtype, clean=clean, zero_snr=zero_snr)


def cosine_log_snr(
    T: int, bound: float = 20.0, clean: bool = True, dtype: DTypeLike = np.float32
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
    a = np.pi / 2.0 - 2.0 * b
    u = np.arange(T + 1, dtype=np.float64) / T
    angle = a * u + b
    # With log-SNR = -2 log tan(angle): sigma = sin(angle), and alpha = cos(angle), here the sine of
    # the other angle: close to pi / 2 a cosine has no digits.
    alpha, sigma = np.sin(a * (1.0 - u) + b), np.sin(angle)
    if clean:
        alpha[0], sigma[0] = 1.0, 0.0
    time = 1000.0 * angle / (np.pi / 2.0)
    return Schedule(alpha.astype(dtype), sigma.astype(dtype), time.astype(dtype))


def linear_beta(
    T: int,
    start: float = 1e-4,
    end: float = 0.02,
    zero_snr: bool = False,
    dtype: DTypeLike = np.float32,
) -> Schedule:
    """Betas linear from `start` to `end` (DDPM, arXiv 2006.11239 section 4).

    The defaults belong to T = 1000; for another T, multiply both by 1000 / T. `zero_snr` is that of
    `scaled_linear_beta`.
    """
    _check_steps(T, start=start, end=end)
    return _from_betas(np.linspace(start, end, T, dtype=np.float64), dtype, zero_snr=zero_snr)


def scaled_linear_beta(
    T: int,
    start: float = 0.00085,
    end: float = 0.012,
    zero_snr: bool = False,
    dtype: DTypeLike = np.float32,
) -> Schedule:
    """Betas whose square roots are linear from sqrt(start) to sqrt(end) (latent diffusion).

    Args:
      T: number of steps.
      start, end: the first and the last beta.
      zero_snr: shift and scale the alphas so that the last level is pure noise and the first
        noisy one stays as it is (arXiv 2305.08891). Networks on such levels predict v or x0.
      dtype: of the arrays; float64 is for tests.
    """
    _check_steps(T, start=start, end=end)
    roots = np.linspace(np.sqrt(start), np.sqrt(end), T, dtype=np.float64)
    return _from_betas(np.square(roots), dtype, zero_snr=zero_snr)


def logistic_beta(
    T: int,
    start: float = 1e-4,
    end: float = 0.02,
    bound: float = 6.0,
    zero_snr: bool = False,
    dtype: DTypeLike = np.float32,
) -> Schedule:
    """Betas from about `start` to about `end` along a logistic curve, read from -bound to bound.

    diffusers' `beta_schedule="sigmoid"`, which is GeoDiff's (arXiv 2203.02923); `sigmoid_beta` has
    such a curve in abar instead. `zero_snr` is that of `scaled_linear_beta`.
    """
    _check_steps(T, start=start, end=end)
    curve = _sigmoid(np.linspace(-bound, bound, T, dtype=np.float64))
    return _from_betas(start + (end - start) * curve, dtype, zero_snr=zero_snr)


def listed_beta(
    T: int, betas: Sequence[float], zero_snr: bool = False, dtype: DTypeLike = np.float32
) -> Schedule:
    """The T betas as they are listed, after a clean level (diffusers' `trained_betas`).

    `zero_snr` is that of `scaled_linear_beta`.
    """
    beta = np.asarray(betas, np.float64)
    if beta.shape != (T,):
        raise ConfigError(
            f"schedule.options.betas has shape {beta.shape}; schedule.steps={T} need as many."
        )
    if not (np.all(beta > 0) and np.all(beta < 1)):
        raise ConfigError(
            f"schedule.options.betas go from {beta.min()} to {beta.max()}; allowed is 0 < beta < 1."
        )
    return _from_betas(beta, dtype, zero_snr=zero_snr)


def sigmoid_beta(
    T: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, dtype: DTypeLike = np.float32
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
    return _from_betas(np.clip(1.0 - abar[1:] / abar[:-1], 0.0, 0.999), dtype)


def karras(
    T: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    dtype: DTypeLike = np.float32,
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


def linear_path(T: int, shift: float = 1.0, dtype: DTypeLike = np.float32) -> Schedule:
    """The straight path of flow matching (arXiv 2210.02747, 2209.03003): z = (1 - t) x0 + t eps.

    alpha = 1 - t and sigma = t at T + 1 values of t from 0 to 1, and `time` is 1000 t. The last
    level is pure noise, with alpha = 0 exactly: every sampler and every prediction but "eps" is
    finite there.

    Args:
      T: number of steps.
      shift: s above 0; the values of t are s u / (1 + (s - 1) u) at u = i / T (arXiv 2403.03206
        eq. 23). 1 is an even spacing, larger values put more levels where noise prevails.
      dtype: of the arrays; float64 is for tests.
    """
    _check_steps(T)
    if not 0 < shift < np.inf:
        raise ConfigError(f"schedule option shift={shift} must be above 0.")
    u = np.arange(T + 1, dtype=np.float64) / T
    t = shift * u / (1.0 + (shift - 1.0) * u)
    # 1 - t as a quotient of its own, which has its digits next to t = 1.
    alpha = (1.0 - u) / (1.0 + (shift - 1.0) * u)
    return Schedule(alpha.astype(dtype), t.astype(dtype), (1000.0 * t).astype(dtype))


def edm_sampling(
    name: str, options: Options, known: Schedule, steps: int, key: str
) -> tuple[Schedule, Int[np.ndarray, " N_1"]]:
    """The levels on which EDM samples in N steps (arXiv 2206.00364 eq. 5), for any table.

    A network with c_noise as its time is defined at every sigma between the ends of its table.
    Evenly spaced rows of a long table are other levels: they leave out sigma_min.

    Args:
      name, options: constructor and options of the run's schedule.
      known: the levels of the network, `[T+1]`.
      steps: N.
      key: dotted name of the setting with the value "edm", for messages.

    Returns:
      The levels, `[N+1]`, and the rows of `known` nearest to them.

    Raises:
      ConfigError: the schedule is not "karras", the times of the network are not c_noise, or
        N is below 1.
    """
    if name != "karras":
        raise ConfigError(
            f"{key}='edm' samples on EDM's own sigmas, which schedule.name='karras' alone has; the "
            f"run's is {name!r}. Set {key}='trailing'."
        )
    levels = karras(steps, **options)
    sigma = np.asarray(known.sigma[1:], np.float64)
    noise_times = np.allclose(known.time[1:], np.log(sigma) / 4.0, atol=1e-5)
    ends = np.isclose(sigma[-1], levels.sigma[-1], rtol=1e-6)
    if not noise_times or not ends or sigma[0] > float(levels.sigma[1]) * (1 + 1e-6):
        raise ConfigError(
            f"{key}='edm' samples at sigmas between the rows of the network's table, but its times "
            "are not c_noise, or its levels go from sigma "
            f"{sigma[0]:.3g} to {sigma[-1]:.3g} alone: its stage has a grid of its own. Set "
            f"{key}='trailing'."
        )
    apart = np.abs(np.log(sigma)[:, None] - np.log(levels.sigma[1:]))
    return levels, np.append(0, apart.argmin(axis=0) + 1)


def check_distinct(schedule: Schedule, name: str) -> None:
    """Raises `ConfigError` where float32 does not tell levels apart or has no image left in them.

    The last level alone may be noise without an image (zero terminal SNR).
    """
    alpha, sigma = (np.asarray(x, np.float64) for x in (schedule.alpha, schedule.sigma))
    with np.errstate(divide="ignore", invalid="ignore"):
        rises = np.diff(sigma / alpha) > 0
    if rises.all():
        return
    first = int(np.argmin(rises))
    raise ConfigError(
        f"schedule.name={name!r} with steps={schedule.num_steps}: levels {first} and {first + 1} "
        f"are the same in float32 (alpha={alpha[first]:.3g} and {alpha[first + 1]:.3g}, "
        f"sigma={sigma[first]:.3g} and {sigma[first + 1]:.3g}). Use fewer steps, or betas times "
        f"{1000 / schedule.num_steps:.3g} where the defaults are of 1000 steps."
    )


def _from_betas(
    beta: np.ndarray, dtype: DTypeLike, clean: bool = True, zero_snr: bool = False
) -> Schedule:
    abar = np.cumprod(1.0 - beta)
    if zero_snr:
        if len(abar) < 2:
            raise ConfigError("schedule option zero_snr=True needs 2 steps or more.")
        # arXiv 2305.08891 algorithm 1.
        alpha = np.sqrt(abar)
        abar = np.square((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]))
    return from_alphas_cumprod(abar, clean, dtype)


def _sigmoid(x: float | np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.asarray(x)))


def _check_steps(T: int, **rates: float) -> None:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1:
        raise ConfigError(f"schedule.steps={T!r} must be an integer of 1 or more.")
    for name, value in rates.items():
        if not 0 < value < 1:
            raise ConfigError(f"schedule option {name}={value} must lie between 0 and 1.")
