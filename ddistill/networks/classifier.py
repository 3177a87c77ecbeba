"""A small convolutional classifier for digits, whose features also score samples."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError
from ddistill.networks.layers import Conv, GroupNorm, glorot


class DigitsClassifier(nn.Module):
    """Four convolutions and two dense layers; group norm, so there is no mutable state.

    Attributes:
      num_classes: number of classes.
      width: channels of the first level; the second has twice as many.
      feature_dim: width of the penultimate layer, whose activations are the features.
      dropout: rate before each dense layer.
      norm_groups: groups of the norms; has to divide `width`.
    """

    num_classes: int = 10
    width: int = 32
    feature_dim: int = 64
    dropout: float = 0.25
    norm_groups: int = 8

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False
    ) -> tuple[Float[Array, "B K"], Float[Array, "B D"]]:
        """Classifies images in [-1, 1].

        Args:
          x: images; both sides even.
          train: whether dropout is on; then an rng named "dropout" is needed.

        Returns:
          Logits `[B, num_classes]` and the features `[B, feature_dim]` that they are linear in.

        Raises:
          ConfigError: odd image sides, or groups that do not divide the channels.
        """
        if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
            raise ConfigError(f"DigitsClassifier takes [B, H, W, C], H and W even; got {x.shape}.")
        for i, (features, stride) in enumerate(
            [(self.width, 1), (self.width, 1), (2 * self.width, 2), (2 * self.width, 1)]
        ):
            x = Conv(features, stride=stride, name=f"conv_{i}")(x)
            x = GroupNorm(self.norm_groups, 1e-5, name=f"norm_{i}")(x, silu=True)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.silu(nn.Dense(self.feature_dim, kernel_init=glorot, name="features")(x))
        h = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, kernel_init=glorot, name="logits")(h)
        return logits, x.astype(jnp.float32)
