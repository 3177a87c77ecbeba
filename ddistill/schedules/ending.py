"""Whether levels end in noise, which is where samplers start."""

from collections.abc import Callable

import numpy as np

from ddistill.errors import ConfigError
from ddistill.schedules.levels import Schedule
from ddistill.typing import Options

# The largest log-SNR of a level that passes for noise: the image is a sixth of the noise there.
# Published schedules end below: Stable Diffusion's at -5.4, EDM's at -8.8, DDPM's at -10.
NOISE = -3.5
# By constructor, the option that decides how noisy the last level is, and its usual value.
_DECISIVE = {"karras": "sigma_max", "cosine_log_snr": "bound", "cosine": "max_beta"}
_USUAL = {"sigma_max": 80.0, "bound": 20.0, "max_beta": 0.999}
_BY_BETA = ("linear_beta", "scaled_linear_beta", "logistic_beta")
_ENDS = {
    "linear_beta": (1e-4, 0.02),
    "scaled_linear_beta": (0.00085, 0.012),
    "logistic_beta": (1e-4, 0.02),
}


def last_log_snr(levels: Schedule) -> float:
    """Natural logarithm of the signal-to-noise ratio at the noisiest level."""
    alpha, sigma = float(levels.alpha[-1]), float(levels.sigma[-1])
    with np.errstate(divide="ignore"):
        return float(2.0 * (np.log(alpha) - np.log(sigma)))


def check_ends_in_noise(
    schedule: Schedule, build: Callable[..., Schedule], name: str, options: Options
) -> None:
    """Raises `ConfigError`, with a remedy, where the last level of a schedule is not noise.

    Args:
      schedule: `[T+1]`.
      build: options -> the schedule of as many steps, to try remedies.
      name, options: constructor and options of the schedule.
    """
    found, steps = last_log_snr(schedule), schedule.num_steps
    if found <= NOISE:
        return
    given = "".join(f", {key}={_short(value)}" for key, value in options.items())
    raise ConfigError(
        f"schedule.name={name!r} with steps={steps}{given} ends at alpha={schedule.alpha[-1]:.2g}, "
        f"sigma={schedule.sigma[-1]:.2g} (log-SNR {found:.1f}), where images are still seen, but "
        f"samplers start from pure noise (log-SNR {NOISE} or below). "
        f"{_remedy(build, name, options, steps)}"
    )


def _remedy(build: Callable[..., Schedule], name: str, options: Options, steps: int) -> str:
    if name in _DECISIVE:
        key = _DECISIVE[name]
        return f"Set schedule.options.{key}={_USUAL[key]:g}."
    if name in _BY_BETA:
        start, end = (
            float(options.get(key, usual)) for key, usual in zip(("start", "end"), _ENDS[name])
        )
        for factor in (1000.0 / steps, *(1.5**k for k in range(1, 20))):
            if factor <= 1.0 or end * factor >= 1.0:
                continue
            louder = {"start": _round(start * factor), "end": _round(end * factor)}
            if last_log_snr(build(**{**options, **louder})) <= NOISE:
                return (
                    f"Set schedule.options.start={louder['start']} and end={louder['end']} (both "
                    f"times {factor:.3g}: betas belong to a number of steps), or "
                    "schedule.name='cosine', which ends in noise with any number of steps. On the "
                    f'command line: --config.schedule.options="{louder}".'
                )
    more = " List more or larger betas, or use" if name == "listed_beta" else "Use"
    return f"{more} schedule.name='cosine', which ends in noise with any number of steps.".strip()


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:36]}..."
