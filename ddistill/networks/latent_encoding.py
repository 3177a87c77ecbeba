"""Images to the latents that networks see, by the encoder of an autoencoder."""

import jax
from flax import linen as nn
from flax import struct

from ddistill.networks.autoencoder_kl import draw
from ddistill.typing import Images, Keys, Params, Scalar


@struct.dataclass
class LatentEncoder:
    """An encoder with its parameters. A pytree: `params` and `scaling` are data.

    Attributes:
      params: of the module.
      scaling: factor of the latents.
      module: a network with the method `encode` of `AutoencoderKL`.
    """

    params: Params
    scaling: Scalar
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(self, keys: Keys, images: Images) -> Images:
        """Latents `[B, h, w, c]`, each a draw from the Gaussian of its image.

        Args:
          keys: `[B]`, of this use alone.
          images: `[B, H, W, C]` in [-1, 1].
        """
        moments: jax.Array = self.module.apply(  # type: ignore[assignment]
            {"params": self.params}, images, method="encode"
        )
        shape = (*moments.shape[1:-1], moments.shape[-1] // 2)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return draw(moments, noise) * self.scaling
