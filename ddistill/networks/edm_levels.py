"""The way of EDM's networks down and up their levels, without and with NCSN++'s side paths."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.networks.convolution import zeros
from ddistill.networks.edm_blocks import SQRT_HALF, BlockOptions
from ddistill.networks.resampling import filter_down, filter_up

ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


def run_levels(
    net: Any,
    options: BlockOptions,
    x: Float[Array, "B H W C"],
    embedding: Float[Array, "B E"],
    train: bool,
    *,
    encoder: str = "standard",
    decoder: str = "standard",
    attend_every: bool = True,
    stem_width: int = 0,
) -> tuple[Array, dict[str, Array]]:
    """Runs all that lies between the input and the output; called inside a compact module.

    Args:
      net: a network with the fields `channels`, `multipliers`, `blocks`, `attention` and
        `out_channels`, whose submodules the blocks become.
      options: of its blocks.
      x: images.
      embedding: what the blocks are told.
      train: whether dropout is on.
      encoder: "skip" adds the shrunken image to every level, "residual" what became of it there.
      decoder: "skip" lets every level add to the output.
      attend_every: whether every block of the way up attends where the size is one of
        `net.attention`, or the last of a level alone.
      stem_width: channels of the first convolution; 0 for `net.channels`.

    Returns:
      The output and the features by tap, as of `UNet`.
    """
    features: dict[str, Array] = {}
    stem = options.conv(stem_width or net.channels, "conv_in")(x)
    h, skips = _down(net, options, x, stem, embedding, train, encoder, features)
    h = options.block(h.shape[-1], "mid_0", attend=True)(h, embedding, train)
    h = options.block(h.shape[-1], "mid_1")(h, embedding, train)
    features["mid"] = h
    last = len(net.multipliers) - 1
    out = None
    for i in range(last, -1, -1):
        width = net.channels * net.multipliers[i]
        for j in range(net.blocks + 1):
            attend = h.shape[1] in net.attention and (attend_every or j == net.blocks)
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = options.block(width, f"up_{i}_{j}", attend)(h, embedding, train)
        features[f"up_{last - i}"] = h
        if i == 0 or decoder == "skip":
            part, features["last"] = _output(net, options, h, i)
            out = part if out is None else filter_up(out, options.taps) + part
        if i:
            h = options.block(width, f"up_{i}_resample", resample="up")(h, embedding, train)
    assert out is not None  # level 0 is always there
    return out, features


def _down(
    net: Any,
    options: BlockOptions,
    x: Array,
    h: Array,
    embedding: Array,
    train: bool,
    encoder: str,
    features: dict[str, Array],
) -> tuple[Array, list[Array]]:
    """The way down from the image `x` and its first features `h`.

    Returns what comes out of it and, first to last, what the way up is joined with.
    """
    side, skips = x, [h]
    for i, multiplier in enumerate(net.multipliers):
        if i:
            name = f"down_{i - 1}_resample"
            h = options.block(h.shape[-1], name, resample="down")(h, embedding, train)
            if encoder == "skip":
                side = filter_down(side, options.taps)
                h = h + options.conv(h.shape[-1], f"down_{i - 1}_side", size=1)(side)
            if encoder == "residual":
                side = _shrunken(options, side, h.shape[-1], f"down_{i - 1}_side")
                h = side = (h + side) * SQRT_HALF
            skips.append(h)
        for j in range(net.blocks):
            attend = h.shape[1] in net.attention
            block = options.block(net.channels * multiplier, f"down_{i}_{j}", attend)
            h = block(h, embedding, train)
            skips.append(h)
        features[f"down_{i}"] = h
    return h, skips


def _shrunken(options: BlockOptions, side: Array, width: int, name: str) -> Array:
    """A convolution, then the filter. Both see zeros outside of the image, and only there."""
    margin = len(options.taps) // 2 - 1
    side = jnp.pad(side, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return filter_down(options.conv(width, name)(side), options.taps, pad=False)


def _output(net: Any, options: BlockOptions, h: Array, level: int) -> tuple[Array, Array]:
    """What a level says of the output, and the features that it says it from."""
    prefix = f"up_{level}_" if level else ""
    h = options.norm(h.shape[-1], f"{prefix}norm_out")(h, silu=True)
    return options.conv(net.out_channels, f"{prefix}conv_out", kernel_init=zeros)(h), h
