"""What a discriminator is trained on, and what its logits are worth: pure functions of logits.

Logits are of "real": at the optimum log p(x) / q(x), p the data's density and q the student's, so
that they also weigh the score difference of other divergences than the reverse KL (f-distill).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DIVERGENCES = ("rkl", "kl", "js", "softened_rkl", "squared_hellinger", "jeffreys")
# Density ratios are bounded to this range, as f-distill's released code does.
RATIO_RANGE = (0.1, 20.0)


def discriminator_loss(fake: Float[Array, "B N"], real: Float[Array, "B N"]) -> Float[Array, " B"]:
    """softplus(fake) + softplus(-real), the mean over heads (arXiv 2405.14867); 2 ln 2 at 0."""
    return jnp.mean(jax.nn.softplus(fake) + jax.nn.softplus(-real), axis=-1)


def generator_loss(fake: Float[Array, "B N"]) -> Float[Array, " B"]:
    """softplus(-fake), the mean over heads; ln 2 at 0."""
    return jnp.mean(jax.nn.softplus(-fake), axis=-1)


def smoothness(logits: Float[Array, "B N"], moved: Float[Array, "B N"]) -> Float[Array, " B"]:
    """Squared change of logits under a small change of the image: R1 without second derivatives."""
    return jnp.mean(jnp.square(logits - moved), axis=-1)


def divergence_weights(name: str, logits: Float[Array, "B N"]) -> Float[Array, " B"]:
    """Weights of the score difference for another f-divergence, with a mean of 1 over the batch.

    h(r) = r^2 f''(r) of r = p / q, up to a factor, for the divergence E_q f(r): reverse KL 1, KL r,
    Jensen-Shannon r / (1 + r), softened reverse KL 1 / (1 + r), squared Hellinger sqrt(r), Jeffreys
    1 + r.

    Args:
      name: one of `DIVERGENCES`.
      logits: of the generated images.
    """
    ratio = jnp.clip(jnp.exp(jnp.mean(logits, axis=-1)), *RATIO_RANGE)
    h = {
        "rkl": jnp.ones_like(ratio),
        "kl": ratio,
        "js": 1.0 - 1.0 / (1.0 + ratio),
        "softened_rkl": 1.0 / (1.0 + ratio),
        "squared_hellinger": jnp.sqrt(ratio),
        "jeffreys": 1.0 + ratio,
    }[name]
    return h / jnp.mean(h)
