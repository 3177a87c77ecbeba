"""The algebra of diffusion: predictions, steps and targets. Pure functions; no network, no loop.

    z = alpha x0 + sigma eps        v = alpha eps - sigma x0        rho = alpha / sigma

    flow = eps - x0, the velocity dz/dt of the straight path z = (1 - t) x0 + t eps

Images are `[B, H, W, C]` (any shape with a leading batch works), levels `[]` or `[B]`. Nothing here
assumes alpha^2 + sigma^2 = 1, so that the same code serves DDPM's levels and EDM's (alpha = 1).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from ddistill.errors import check_choice
from ddistill.schedules import Level, Schedule, snr

KINDS = ("x0", "eps", "v", "edm", "flow")
WEIGHTS = ("uniform", "snr", "truncated_snr", "min_snr", "edm")


@struct.dataclass
class Prediction:
    """A denoiser's answer at z, in both terms: `z = alpha * x0 + sigma * eps`.

    Attributes:
      x0: `[B, H, W, C]`, the expected clean image.
      eps: `[B, H, W, C]`, the expected noise.
    """

    x0: Float[Array, "B ..."]
    eps: Float[Array, "B ..."]


def expand(coefficient: Array, like: Array) -> Array:
    """Gives `[]` or `[B]` coefficients the trailing axes that broadcast over `like`, `[B, ...]`."""
    missing = np.ndim(like) - np.ndim(coefficient)
    if np.ndim(coefficient) == 0 or missing <= 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * missing)


def _scales(level: Level, like: Array) -> tuple[Array, Array]:
    return expand(level.alpha, like), expand(level.sigma, like)


# -------------------------------------------------------------------------------- predictions


def from_x0(x0: Array, z: Array, level: Level) -> Prediction:
    """The prediction that says `x0` at `z`; sigma must be above 0."""
    alpha, sigma = _scales(level, z)
    return Prediction(x0, (z - alpha * x0) / sigma)


def from_eps(eps: Array, z: Array, level: Level) -> Prediction:
    """The prediction that says `eps` at `z`.

    Errors of `eps` come out in x0 multiplied by sigma / alpha: 2e4 at the last level of a cosine
    table. That is inherent in eps-prediction; "v" and "x0" do not have it.
    """
    alpha, sigma = _scales(level, z)
    return Prediction((z - sigma * eps) / alpha, eps)


def convert(
    kind: str, output: Array, z: Array, level: Level, sigma_data: float = 0.5
) -> Prediction:
    """Converts a network's output to x0 and eps; the only code that depends on prediction types.

    Args:
      kind: "x0", "eps", "v" (arXiv 2202.00512 appendix D), "edm", EDM's preconditioned F
        (arXiv 2206.00364 eq. 7), here in the form that holds for any alpha, or "flow", the velocity
        eps - x0 of flow matching (arXiv 2210.02747), at any level.
      output: `[B, H, W, C]`.
      z: `[B, H, W, C]`, the noisy images.
      level: their levels.
      sigma_data: standard deviation of the data, for "edm".

    Raises:
      ConfigError: an unknown kind.
    """
    check_choice("prediction", kind, KINDS)
    if kind == "x0":
        return from_x0(output, z, level)
    if kind == "eps":
        return from_eps(output, z, level)
    alpha, sigma = _scales(level, z)
    if kind == "v":
        square = alpha * alpha + sigma * sigma
        return Prediction(
            (alpha * z - sigma * output) / square, (sigma * z + alpha * output) / square
        )
    if kind == "flow":
        total = alpha + sigma
        return Prediction((z - sigma * output) / total, (z + alpha * output) / total)
    # EDM's c_skip, c_out for z / alpha at noise sigma / alpha, multiplied out: no division by
    # alpha or sigma is left.
    square = sigma * sigma + (alpha * sigma_data) ** 2
    scaled = (sigma_data / jnp.sqrt(square)) * output
    return Prediction(
        (alpha * sigma_data**2 / square) * z + sigma * scaled, (sigma / square) * z - alpha * scaled
    )


def output_of(
    kind: str, prediction: Prediction, z: Array, level: Level, sigma_data: float = 0.5
) -> Float[Array, "B ..."]:
    """The output, in a network's own terms, that says `prediction`: the inverse of `convert`.

    Raises:
      ConfigError: an unknown kind.
    """
    check_choice("prediction", kind, KINDS)
    if kind == "x0":
        return prediction.x0
    if kind == "eps":
        return prediction.eps
    alpha, sigma = _scales(level, z)
    if kind == "v":
        return alpha * prediction.eps - sigma * prediction.x0
    if kind == "flow":
        return prediction.eps - prediction.x0
    root = jnp.sqrt(sigma * sigma + (alpha * sigma_data) ** 2)
    return (sigma / sigma_data * prediction.x0 - alpha * sigma_data * prediction.eps) / root


def input_scale(kind: str, level: Level, sigma_data: float = 0.5) -> Float[Array, "*B"]:
    """Factor of z at the network's input.

    EDM's c_in for "edm"; for "flow" 1 / (alpha + sigma), with which the input lies on the straight
    path at t = `flow_time`, whichever the levels are; 1 for the other prediction types.
    """
    check_choice("prediction", kind, KINDS)
    if kind == "flow":
        return 1.0 / (level.alpha + level.sigma)
    if kind != "edm":
        return jnp.ones_like(level.alpha)
    return 1.0 / jnp.sqrt(jnp.square(level.sigma) + jnp.square(level.alpha * sigma_data))


def flow_time(level: Level | Schedule) -> Float[Array, "*B"]:
    """t = sigma / (alpha + sigma) in [0, 1], the place of a level on the straight path.

    z / (alpha + sigma) = (1 - t) x0 + t eps holds at any level, and is z itself on that path.
    """
    return level.sigma / (level.alpha + level.sigma)  # type: ignore[return-value]


def analytic_prediction(z: Array, level: Level) -> Prediction:
    """The exact prediction for data of mean 0 and variance 1.

    At a very noisy level that of other data hardly differs from it: the analytic first step of
    samplers (arXiv 2210.05475) takes it in place of a network's.
    """
    alpha, sigma = _scales(level, z)
    spread = jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))
    # x0 = (z - sigma eps) / alpha, with the difference of spread and sigma taken exactly.
    return Prediction(z * alpha / (spread * (spread + sigma)), z / spread)


def clip_x0(prediction: Prediction, z: Array, level: Level, limit: float = 1.0) -> Prediction:
    """Bounds x0 to [-limit, limit] and derives eps anew, so that both still belong to `z`."""
    return from_x0(jnp.clip(prediction.x0, -limit, limit), z, level)


# -------------------------------------------------------------------------------------- steps


def add_noise(x0: Array, eps: Array, level: Level) -> Float[Array, "B ..."]:
    """A sample of q(z | x0): alpha x0 + sigma eps (DDPM, arXiv 2006.11239 eq. 4)."""
    alpha, sigma = _scales(level, x0)
    return alpha * x0 + sigma * eps


def ddim_step(
    prediction: Prediction,
    z: Array,
    level: Level,
    next_level: Level,
    eta: float = 0.0,
    noise: Array | None = None,
) -> Float[Array, "B ..."]:
    """One step of DDIM (arXiv 2010.02502 eq. 12) from `level` to the less noisy `next_level`.

    Args:
      prediction: at `z`.
      z: `[B, H, W, C]`.
      level, next_level: where z is and where it goes.
      eta: 0 is deterministic, 1 is DDPM's ancestral step. A Python number.
      noise: `[B, H, W, C]` standard normal; needed with eta > 0.

    Raises:
      ValueError: eta > 0 without noise.
    """
    alpha, sigma = _scales(next_level, z)
    if eta == 0.0:
        return alpha * prediction.x0 + sigma * prediction.eps
    if noise is None:
        raise ValueError(f"ddim_step with eta={eta} needs noise.")
    # q^2 is the ratio of the two SNRs; sigma'^2 (1 - q^2) is the variance of q(z' | z, x0). In this
    # form both scales are finite, and 0, where the next level is clean. 1 - eta^2 (1 - q^2), with
    # the 1 taken off first: with eta = 1 it is q^2, of which 1 - (1 - q^2) leaves nothing.
    q, lost = (expand(x, z) for x in snr_step(level, next_level))
    removed = jnp.maximum(lost * (1.0 + q), 0.0)
    kept = jnp.sqrt(jnp.maximum((1.0 - eta) * (1.0 + eta) + (eta * q) ** 2, 0.0))
    mean = alpha * prediction.x0 + sigma * kept * prediction.eps
    return mean + eta * sigma * jnp.sqrt(removed) * noise


def posterior_step(
    prediction: Prediction, z: Array, level: Level, next_level: Level, noise: Array
) -> Float[Array, "B ..."]:
    """One ancestral step: a sample of q(z' | z, x0) (DDPM, arXiv 2006.11239 eq. 6 and 7).

    The variance is the posterior's, which is 0 where the next level is clean.
    """
    return ddim_step(prediction, z, level, next_level, eta=1.0, noise=noise)


def multistep_x0(
    x0: Array, previous: Array, before: Level, here: Level, there: Level
) -> Float[Array, "B ..."]:
    """The x0 with which a DDIM step from `here` to `there` is one of DPM-Solver++(2M).

    arXiv 2211.01095 algorithm 2: with lambda = log(alpha / sigma), h the step in lambda and r the
    former step over this one, x0 + (x0 - previous) / (2 r).

    Args:
      x0: `[B, H, W, C]`, the prediction at `here`.
      previous: the prediction at `before`.
      before, here, there: `[]` or `[B]`; where `before` is `here` there was no former step, and
        there as well as into a clean level, where h is infinite, x0 stays as it is.
    """
    h_before, h = _log_step(before, here), _log_step(here, there)
    second_order = (h_before > 0) & jnp.isfinite(h)
    factor = jnp.where(second_order, h / (2.0 * jnp.where(second_order, h_before, 1.0)), 0.0)
    return x0 + expand(factor, x0) * (x0 - previous)


def mean_flow(first: Prediction, second: Prediction, z: Array, here: Level) -> Prediction:
    """The prediction at `z` with the mean of two velocities eps - x0.

    With a second velocity from the end of a DDIM step, a DDIM step of the result is one of Heun's
    method in t of `flow_time`: d(z / (alpha + sigma)) / dt = eps - x0. It is finite where the image
    is gone (alpha = 0), unlike `trapezoid_x0`.

    Args:
      first, second: at `z`, and at another state.
      z: `[B, H, W, C]`.
      here: the level of `z`, `[]` or `[B]`.
    """
    velocity = 0.5 * ((first.eps - first.x0) + (second.eps - second.x0))
    return convert("flow", velocity, z, here)


# Heun's correction weights the second denoiser call by half the ratio of the noise levels before
# and after the step. EDM's own grids stay below this ratio; the first step of a cosine table
# reaches 1e4, where the trapezoid resolves nothing and amplifies the network's error.
HEUN_MAX_RATIO = 100.0


def trapezoid_x0(first: Array, second: Array, here: Level, there: Level) -> Float[Array, "B ..."]:
    """The x0 with which a DDIM step from `here` to `there` is one of Heun's method.

    d(z / alpha) / d(sigma / alpha) = eps (EDM, arXiv 2206.00364 algorithm 1 without churn). The
    trapezoid of both eps equals x_1 + (s / s') / 2 (x_2 - x_1) with s = sigma / alpha, which stays
    exact where alpha is close to 0. A step that lowers the noise by more than `HEUN_MAX_RATIO`, as
    one to a clean level does, is Euler's.

    Args:
      first, second: `[B, H, W, C]`, x0 at `here`, and at `there` after a DDIM step.
      here, there: `[]` or `[B]`.
    """
    ratio = here.sigma * there.alpha / (here.alpha * there.sigma)
    weight = jnp.where(ratio <= HEUN_MAX_RATIO, ratio / 2.0, 0.0)
    return first + expand(weight, first) * (second - first)


def snr_step(level: Level, next_level: Level) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """q = (alpha sigma') / (alpha' sigma), the root of the ratio of two levels' SNRs, and 1 - q.

    Both have their digits in float32 wherever the step leads: q down to 0 at a clean level, and
    1 - q between neighbours of a long table, where subtracting q from 1 would leave few.

    Args:
      level, next_level: `[]` or `[B]`; from noisy to less noisy, `level.sigma` above 0.
    """
    alpha, sigma = level.alpha, level.sigma
    to_alpha, to_sigma = next_level.alpha, next_level.sigma
    # Differences of close numbers are exact, unlike the difference of their rounded products.
    lost = ((to_alpha - alpha) * sigma + alpha * (sigma - to_sigma)) / (to_alpha * sigma)
    return (alpha / to_alpha) * (to_sigma / sigma), lost


def _log_step(level: Level, next_level: Level) -> Float[Array, "*B"]:
    """How much log(alpha / sigma) grows in a step; infinite into a clean level."""
    q, lost = snr_step(level, next_level)
    near = lost < 0.5
    return -jnp.where(near, jnp.log1p(-jnp.where(near, lost, 0.0)), jnp.log(q))


def one_step_target(x0s: Sequence[Array], levels: Sequence[Level]) -> Float[Array, "B ..."]:
    """The x0 with which ONE DDIM step from `levels[0]` lands where the k steps of a rollout landed.

    Progressive distillation's target (arXiv 2202.00512 appendix G) for any k. The textbook form,
    (z_k - r z_0) / (alpha_k - r alpha_0) with r = sigma_k / sigma_0, subtracts nearly equal
    images and divides by the length of the step. It equals

        x~ = sum_j (rho_{j+1} - rho_j) x_j / (rho_k - rho_0),

    a convex combination of the predictions, here folded one step at a time:
    x~ <- w x_j + (1 - w) x~, with w of `fold_weight`. That has no singularity at a clean end:
    there w = 1, and the last prediction is the target.

    Args:
      x0s: k predictions `[B, H, W, C]`, in the order in which they were made.
      levels: the k + 1 levels, strictly less noisy from one to the next; `levels[0].sigma` > 0.

    Raises:
      ValueError: the lengths do not fit together.
    """
    if len(x0s) == 0 or len(levels) != len(x0s) + 1:
        raise ValueError(
            f"one_step_target got {len(x0s)} predictions and {len(levels)} levels; k >= 1 "
            "predictions come with k + 1 levels."
        )
    target, first = x0s[0], levels[0]
    for x0, here, there in zip(x0s[1:], levels[1:-1], levels[2:]):
        w = expand(fold_weight(first, here, there), x0)
        target = w * x0 + (1.0 - w) * target
    return target


def fold_weight(first: Level, here: Level, there: Level) -> Float[Array, "*B"]:
    """Weight in [0, 1] of the prediction at `here` when a walk from `first` goes on to `there`:

    w = (alpha_there - sigma_there rho_here) / (alpha_there - sigma_there rho_first),

    which is the ratio of what `snr_step` calls 1 - q for the two steps to `there`. At a clean level
    both are 1 up to rounding, and the weight is exactly 1.
    """
    ratio = snr_step(here, there)[1] / snr_step(first, there)[1]
    clean = 0 * ratio + (there.sigma == 0)  # of the type of the ratio, also in numpy
    return ratio * (1 - clean) + clean


# ------------------------------------------------------------------------------------ weights


def error_weight(
    name: str, level: Level, gamma: float = 5.0, sigma_data: float = 0.5
) -> Float[Array, "*B"]:
    """Weight of the squared x0 error at a level.

    Args:
      name: "uniform" (1), "snr" (the eps error), "truncated_snr" (max(1, SNR), arXiv 2202.00512
        section 4), "min_snr" (min(SNR, gamma), arXiv 2303.09556 eq. 7) or "edm" ((sigma^2 +
        sigma_data^2) / (sigma sigma_data)^2 at noise sigma / alpha, arXiv 2206.00364 table 1).
      level: `[]` or `[B]`; sigma > 0.
      gamma: bound of "min_snr".
      sigma_data: standard deviation of the data, for "edm".

    Raises:
      ConfigError: an unknown name.
    """
    check_choice("weight", name, WEIGHTS)
    ratio = snr(level)
    if name == "uniform":
        return jnp.ones_like(ratio)
    if name == "truncated_snr":
        return jnp.maximum(ratio, 1.0)
    if name == "min_snr":
        return jnp.minimum(ratio, gamma)
    if name == "edm":
        return ratio + 1.0 / sigma_data**2
    return ratio
