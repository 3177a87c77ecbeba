"""The part that EDM's two networks share: fields, and the way down and up the levels."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.convolution import zeros
from ddistill.networks.edm_blocks import SQRT_HALF, BlockOptions
from ddistill.networks.resampling import filter_down, filter_up
from ddistill.networks.unet import check_at_least, check_call, check_common
from ddistill.typing import Images, Labels, PerExample


class EdmUNet(nn.Module):
    """Base of `SongUNet` and `DhariwalUNet`.

    Predicts from noisy images, their times and, where conditional, their classes. Subclasses define
    `block_options` and `embed`, and their own defaults.

    Attributes:
      channels: base width; level i has `channels * multipliers[i]`.
      multipliers: one per resolution level, outermost first; each further level halves the size.
      blocks: residual blocks per level on the way down (one more on the way up).
      attention: image heights at which blocks are followed by self-attention; the middle always has
        one.
      out_channels: channels of the output.
      embedding_multiplier: the embedding of time and class has `channels` times as many channels.
      num_classes: 0 for an unconditional network; class `num_classes` is the null class.
      augment_dim: entries of EDM's augmentation labels. They are zero, as in sampling; the weights
        exist so that every tensor of EDM's files has a place.
      dropout: rate before the second convolution of every residual block.
      remat, dtype, conv_impl, extras: as in `UNet`.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    out_channels: int = 3
    embedding_multiplier: int = 4
    num_classes: int = 0
    augment_dim: int = 0
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    conv_impl: str = "auto"
    extras: tuple[str, ...] = ()

    # No fields, for they have no annotation. "skip" adds the downsampled image to every level,
    # "residual" the features that it has become there.
    encoder = "standard"
    # "skip": every level adds to the output.
    decoder = "standard"

    @nn.compact
    def __call__(
        self,
        x: Images,
        time: PerExample,
        cond: Labels | None = None,
        *,
        train: bool = False,
        taps: tuple[str, ...] = (),
        extra: Float[Array, "B X"] | None = None,
    ) -> Images | tuple[Images, dict[str, Array]]:
        """Runs the network; arguments, taps, results and errors are those of `UNet`.

        EDM's weights expect c_noise = ln(sigma) / 4 as the time.
        """
        self.check()
        check_call(self, x.shape, cond, taps)
        options = self.block_options()
        embedding = self.embed(options, time, cond, extra)
        out, features = self._run_levels(options, x, embedding, train)
        out = out.astype(jnp.float32)
        return (out, {name: features[name] for name in taps}) if taps else out

    def check(self) -> None:
        """Raises `ConfigError` for field values that cannot work at any image size."""
        check_at_least(self, 1, "embedding_multiplier")
        check_at_least(self, 0, "augment_dim")
        check_common(self)

    def block_options(self) -> BlockOptions:
        """The options of this network's blocks."""
        raise NotImplementedError(f"{type(self).__name__} does not define its block_options.")

    def embed(
        self,
        options: BlockOptions,
        time: PerExample,
        cond: Labels | None,
        extra: Float[Array, "B X"] | None = None,
    ) -> Float[Array, "B E"]:
        """The embedding of time, class and extra inputs, an input of every block."""
        raise NotImplementedError(f"{type(self).__name__} does not define its embedding.")

    @property
    def stem_width(self) -> int:
        """Channels of the first convolution."""
        return self.channels

    def attends_on_the_way_up(self, height: int, block: int) -> bool:
        """Whether attention follows a block, 0 .. `blocks`, of a level of this height."""
        return height in self.attention

    def _run_levels(
        self, options: BlockOptions, x: Images, embedding: Float[Array, "B E"], train: bool
    ) -> tuple[Array, dict[str, Array]]:
        """The output and the features by tap, as of `UNet`."""
        h, skips, features = self._down(options, x, embedding, train)
        h = options.block(h.shape[-1], "mid_0", attend=True)(h, embedding, train)
        h = options.block(h.shape[-1], "mid_1")(h, embedding, train)
        features["mid"] = h
        last = len(self.multipliers) - 1
        out = None
        for i in range(last, -1, -1):
            width = self.channels * self.multipliers[i]
            for j in range(self.blocks + 1):
                attend = self.attends_on_the_way_up(h.shape[1], j)
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = options.block(width, f"up_{i}_{j}", attend)(h, embedding, train)
            features[f"up_{last - i}"] = h
            if i == 0 or self.decoder == "skip":
                part, features["last"] = self._output(options, h, i)
                out = part if out is None else filter_up(out, options.taps) + part
            if i:
                h = options.block(width, f"up_{i}_resample", resample="up")(h, embedding, train)
        assert out is not None  # level 0 always has an output
        return out, features

    def _down(
        self, options: BlockOptions, x: Images, embedding: Float[Array, "B E"], train: bool
    ) -> tuple[Array, list[Array], dict[str, Array]]:
        """The innermost activations, the skip connections first to last, and features by tap."""
        h = options.conv(self.stem_width, "conv_in")(x)
        side, skips, features = x, [h], {}
        for i, multiplier in enumerate(self.multipliers):
            if i:
                name = f"down_{i - 1}_resample"
                h = options.block(h.shape[-1], name, resample="down")(h, embedding, train)
                if self.encoder == "skip":
                    side = filter_down(side, options.taps)
                    h = h + options.conv(h.shape[-1], f"down_{i - 1}_side", size=1)(side)
                if self.encoder == "residual":
                    side = _downsampled(options, side, h.shape[-1], f"down_{i - 1}_side")
                    h = side = (h + side) * SQRT_HALF
                skips.append(h)
            for j in range(self.blocks):
                attend = h.shape[1] in self.attention
                block = options.block(self.channels * multiplier, f"down_{i}_{j}", attend)
                h = block(h, embedding, train)
                skips.append(h)
            features[f"down_{i}"] = h
        return h, skips, features

    def _output(self, options: BlockOptions, h: Array, level: int) -> tuple[Array, Array]:
        """A level's part of the output, and the features before its last convolution."""
        prefix = f"up_{level}_" if level else ""
        h = options.norm(h.shape[-1], f"{prefix}norm_out")(h, silu=True)
        return options.conv(self.out_channels, f"{prefix}conv_out", kernel_init=zeros)(h), h


def _downsampled(options: BlockOptions, side: Array, width: int, name: str) -> Array:
    """A convolution, then the filter; both pad with zeros, at the image's border alone."""
    margin = len(options.taps) // 2 - 1
    side = jnp.pad(side, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return filter_down(options.conv(width, name)(side), options.taps, pad=False)
