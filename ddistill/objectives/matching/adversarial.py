"""What a discriminator is trained on, and what its logits are worth: pure functions of logits.

Logits are of "real": at the optimum log p(x) / q(x), p the data's density and q the student's, so
that they also weigh the score difference of other divergences than the reverse KL (f-distill).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddistill.schedules import Schedule

DIVERGENCES = ("rkl", "kl", "js", "softened_rkl", "squared_hellinger", "jeffreys", "neyman")
# f-distill's released code bounds density ratios to this range and adds the floor to every mean
# that it divides by.
RATIO_RANGE = (0.1, 20.0)
MEAN_FLOOR = 1e-6


def discriminator_loss(fake: Float[Array, "B N"], real: Float[Array, "B N"]) -> Float[Array, " B"]:
    """softplus(fake) + softplus(-real), the mean over heads (arXiv 2405.14867); 2 ln 2 at 0."""
    return jnp.mean(jax.nn.softplus(fake) + jax.nn.softplus(-real), axis=-1)


def generator_loss(fake: Float[Array, "B N"]) -> Float[Array, " B"]:
    """softplus(-fake), the mean over heads; ln 2 at 0."""
    return jnp.mean(jax.nn.softplus(-fake), axis=-1)


def smoothness(logits: Float[Array, "B N"], moved: Float[Array, "B N"]) -> Float[Array, " B"]:
    """Squared change of logits under a small change of the image: R1 without second derivatives."""
    return jnp.mean(jnp.square(logits - moved), axis=-1)


def divergence_weights(
    name: str, logits: Float[Array, "B N"], ratio_mean: Float[Array, " B"] | None = None
) -> Float[Array, " B"]:
    """Weights of the score difference for another f-divergence, with a mean of 1 over the batch.

    h(r) = r^2 f''(r) of r = p / q, up to a factor, for the divergence E_q f(r): reverse KL 1, KL r,
    Jensen-Shannon r / (1 + r), softened reverse KL 1 / (1 + r), squared Hellinger sqrt(r), Jeffreys
    1 + r, Neyman 1 / r.

    Args:
      name: one of `DIVERGENCES`.
      logits: of the generated images.
      ratio_mean: what each image's ratio is divided by before h, such as that of its
        bin (`mean_of_bins`); None for nothing.
    """
    ratio = density_ratio(logits)
    if name == "rkl":
        return jnp.ones_like(ratio)
    if ratio_mean is not None:
        ratio = ratio / (ratio_mean + MEAN_FLOOR)
    h = {
        "kl": ratio,
        "js": 1.0 - 1.0 / (1.0 + ratio),
        "softened_rkl": 1.0 / (1.0 + ratio),
        "squared_hellinger": jnp.sqrt(ratio),
        "jeffreys": 1.0 + ratio,
        "neyman": 1.0 / ratio,
    }[name]
    return h / (jnp.mean(h) + MEAN_FLOOR)


def density_ratio(logits: Float[Array, "B N"]) -> Float[Array, " B"]:
    """exp of the mean logit over heads, bounded to `RATIO_RANGE`."""
    return jnp.clip(jnp.exp(jnp.mean(logits, axis=-1)), *RATIO_RANGE)


def noise_bins(index: Int[Array, " B"], levels: Schedule, top: int, count: int) -> Int[Array, " B"]:
    """Which of `count` equal intervals of the noise level t each example is in.

    t runs from level 1 to level `top`. As in f-distill's release, t is sigma where signals are not
    scaled (EDM, alpha = 1), and the position in the table where they are.

    Args:
      index: `[B]` rows of `levels`, from 1 to `top`.
      levels: the teacher's.
      top: the noisiest row.
      count: number of bins.
    """
    low, high, here = (levels.at(jnp.asarray(i)) for i in (1, top, index))
    unscaled = high.alpha == 1.0
    first, last, t = (
        jnp.where(unscaled, level.sigma, position)
        for level, position in ((low, 1.0), (high, float(top)), (here, index))
    )
    share = (t - first) / jnp.maximum(last - first, 1e-12)
    return jnp.clip(jnp.floor(count * share), 0, count - 1).astype(jnp.int32)


def mean_of_bins(
    values: Float[Array, " B"],
    bins: Int[Array, " B"],
    before: Float[Array, " M"],
    rate: float = 0.0,
) -> Float[Array, " M"]:
    """The mean of `values` in each bin, moved there from `before`.

    Args:
      values: `[B]`.
      bins: `[B]`, of M.
      before: `[M]`; a bin without examples keeps it.
      rate: the share of it that the others keep; 0 for the batch's own means.
    """
    inside = (bins[:, None] == jnp.arange(len(before))).astype(values.dtype)
    total, examples = jnp.sum(inside * values[:, None], axis=0), jnp.sum(inside, axis=0)
    means = rate * before + (1.0 - rate) * total / (examples + MEAN_FLOOR)
    return jnp.where(examples > 0, means, before)
