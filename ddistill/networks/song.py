"""DDPM++ and NCSN++ (arXiv 2011.13456) as EDM has them (arXiv 2206.00364 appendix F)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.edm_blocks import SQRT_HALF, BlockOptions, class_vector
from ddistill.networks.edm_unet import EdmUNet
from ddistill.networks.extras import add_extras
from ddistill.networks.layers import embed_waves, embedding_layer, sinusoidal_embedding
from ddistill.networks.resampling import FILTERS
from ddistill.networks.unet import check_at_least
from ddistill.typing import Labels, PerExample

EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


class SongUNet(EdmUNet):
    """U-Net of EDM for small images: DDPM++ and NCSN++.

    All blocks of the way down attend, and the last of a level on the way up. Defaults
    are EDM's DDPM++ for CIFAR-10: 55.7 M parameters. NCSN++ has embedding "fourier",
    noise_multiplier 2, encoder "residual" and resample_filter (1, 3, 3, 1).

    Attributes:
      embedding: "positional" (sinusoids of fixed frequencies) or "fourier" (of random ones, which
        are kept among the parameters and not trained).
      noise_multiplier: the sinusoids have `channels` times as many channels.
      encoder: "standard", "residual" (NCSN++) or "skip": how the downsampled image joins the
        levels.
      decoder: "standard", or "skip": every level adds to the output.
      resample_filter: (1, 1) or (1, 3, 3, 1).
    """

    embedding: str = "positional"
    noise_multiplier: int = 1
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def check(self) -> None:
        """Raises `ConfigError` for field values that cannot work at any image size."""
        check_choice("embedding", self.embedding, EMBEDDINGS)
        check_choice("encoder", self.encoder, ENCODERS)
        check_choice("decoder", self.decoder, DECODERS)
        if self.resample_filter not in FILTERS:
            raise ConfigError(
                f"resample_filter={self.resample_filter} is not known. Allowed: "
                f"{', '.join(map(str, FILTERS))}."
            )
        check_at_least(self, 1, "noise_multiplier")
        super().check()

    def block_options(self) -> BlockOptions:
        """The options of this network's blocks: single-head attention, sums times sqrt(1/2)."""
        return BlockOptions(
            dropout=self.dropout,
            eps=1e-6,
            scale_shift=False,
            skip_scale=SQRT_HALF,
            project=True,
            head_dim=0,
            taps=self.resample_filter,
            remat=self.remat,
            dtype=self.dtype,
            conv_impl=self.conv_impl,
        )

    def attends_on_the_way_up(self, height: int, block: int) -> bool:
        """Whether attention follows a block: the last of a level alone."""
        return height in self.attention and block == self.blocks

    def embed(
        self,
        options: BlockOptions,
        time: PerExample,
        cond: Labels | None,
        extra: Float[Array, "B X"] | None = None,
    ) -> Float[Array, "B E"]:
        """The embedding of time, class and extra inputs, an input of every block."""
        width = self.channels * self.noise_multiplier
        emb = self._sinusoids(time, width)
        if self.num_classes:
            classes = class_vector(cond, time, self.num_classes)
            emb = emb + embedding_layer(width, "class")(classes * np.sqrt(self.num_classes))
        if self.augment_dim:
            labels = jnp.zeros((time.shape[0], self.augment_dim))
            emb = emb + embedding_layer(width, "augment", use_bias=False)(labels)
        wide = self.channels * self.embedding_multiplier
        return nn.silu(add_extras(self, embed_waves(emb, wide), extra))

    def _sinusoids(self, time: Array, width: int) -> Float[Array, "B F"]:
        if self.embedding == "positional":
            return sinusoidal_embedding(time, width)
        normal = nn.initializers.normal(16.0)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", normal, (width // 2,)))
        angles = time.astype(jnp.float32)[:, None] * (2.0 * np.pi * frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
