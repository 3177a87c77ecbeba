"""ADM (arXiv 2105.05233) as EDM has it (arXiv 2206.00364 appendix F)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.edm_blocks import BlockOptions, class_vector
from ddistill.networks.edm_unet import EdmUNet
from ddistill.networks.extras import add_extras
from ddistill.networks.layers import embed_waves, embedding_layer, sinusoidal_embedding
from ddistill.networks.unet import check_at_least
from ddistill.typing import Labels, PerExample


class DhariwalUNet(EdmUNet):
    """U-Net of ADM, as in EDM. Every block attends at the heights `attention`, on both ways.

    Defaults are those of ImageNet-64, which has 1000 classes: 295.9 M parameters with them.

    Attributes:
      head_dim: channels per attention head, at least: a width has as many heads as fit into it, and
        no attention where none does.
    """

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (32, 16, 8)
    head_dim: int = 64

    def check(self) -> None:
        """Raises `ConfigError` for field values that cannot work at any image size."""
        check_at_least(self, 1, "head_dim")
        super().check()

    def block_options(self) -> BlockOptions:
        """The options of this network's blocks: scale-shift conditioning, several heads."""
        return BlockOptions(
            dropout=self.dropout,
            eps=1e-5,
            scale_shift=True,
            skip_scale=1.0,
            project=False,
            head_dim=self.head_dim,
            taps=(1, 1),
            remat=self.remat,
            dtype=self.dtype,
            conv_impl=self.conv_impl,
        )

    @property
    def stem_width(self) -> int:
        """Channels of the first convolution: those of level 0."""
        return self.channels * self.multipliers[0]

    def embed(
        self,
        options: BlockOptions,
        time: PerExample,
        cond: Labels | None,
        extra: Float[Array, "B X"] | None = None,
    ) -> Float[Array, "B E"]:
        """The embedding of time, class and extra inputs, an input of every block."""
        emb = sinusoidal_embedding(time, self.channels, cosines_first=True, includes_last=False)
        if self.augment_dim:
            labels = jnp.zeros((time.shape[0], self.augment_dim))
            emb = emb + embedding_layer(self.channels, "augment", use_bias=False)(labels)
        wide = self.channels * self.embedding_multiplier
        emb = embed_waves(emb, wide)
        if self.num_classes:
            classes = class_vector(cond, time, self.num_classes)
            emb = emb + embedding_layer(wide, "class", use_bias=False)(classes)
        return nn.silu(add_extras(self, emb, extra))
