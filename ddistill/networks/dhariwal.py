"""ADM (arXiv 2105.05233) as EDM has it (arXiv 2206.00364 appendix F)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ddistill.networks.edm_blocks import BlockOptions, class_vector
from ddistill.networks.edm_levels import run_levels
from ddistill.networks.unet import check_at_least, check_call, check_common


class DhariwalUNet(nn.Module):
    """Predicts from a noisy image, its time and, where conditional, a class.

    Defaults are those of ImageNet-64, which has 1000 classes: 295.9 M parameters with them.

    Attributes:
      channels: base width; level i has `channels * multipliers[i]`.
      multipliers: one per resolution level, outermost first; each further level halves the size.
      blocks: residual blocks per level on the way down (one more on the way up).
      attention: image heights at which every block is followed by self-attention; the middle always
        has one.
      head_dim: channels per attention head, at least: a width has as many heads as fit into it, and
        no attention where none does.
      out_channels: channels of the output.
      embedding_multiplier: the width of what the blocks are told is `channels` times it.
      num_classes: 0 for an unconditional network; class `num_classes` is the null class.
      augment_dim: as in `SongUNet`.
      dropout: rate before the second convolution of every residual block.
      remat, dtype, conv_impl: as in `UNet`.
    """

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (32, 16, 8)
    head_dim: int = 64
    out_channels: int = 3
    embedding_multiplier: int = 4
    num_classes: int = 0
    augment_dim: int = 0
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    conv_impl: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"],
        cond: Int[Array, " B"] | None = None,
        *,
        train: bool = False,
        taps: tuple[str, ...] = (),
    ):
        """Runs the network; arguments, taps, results and errors are those of `UNet`.

        EDM's weights expect c_noise = ln(sigma) / 4 as the time.
        """
        check_dhariwal(self)
        check_call(self, x.shape, cond, taps)
        options = BlockOptions(
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
        embedding = self._embedding(options, time, cond)
        out, features = run_levels(
            self, options, x, embedding, train, stem_width=self.channels * self.multipliers[0]
        )
        out = out.astype(jnp.float32)
        return (out, {name: features[name] for name in taps}) if taps else out

    def _embedding(
        self, options: BlockOptions, time: Array, cond: Array | None
    ) -> Float[Array, "B E"]:
        """Time and class as every block is told of them."""
        # Frequencies 10000^(-i / half): unlike DDPM's, they end short of 1 / 10000.
        half = self.channels // 2
        frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angles = time.astype(jnp.float32)[:, None] * frequencies
        emb = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        if self.augment_dim:
            labels = jnp.zeros((time.shape[0], self.augment_dim))
            emb = emb + options.dense(self.channels, "augment", use_bias=False)(labels)
        wide = self.channels * self.embedding_multiplier
        emb = nn.silu(options.dense(wide, "time_0")(emb))
        emb = options.dense(wide, "time_1")(emb)
        if self.num_classes:
            classes = class_vector(cond, time, self.num_classes)
            emb = emb + options.dense(wide, "class", use_bias=False)(classes)
        return nn.silu(emb)


def check_dhariwal(net: DhariwalUNet) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work at any image size."""
    check_at_least(net, 1, "head_dim", "embedding_multiplier")
    check_at_least(net, 0, "augment_dim")
    check_common(net)
