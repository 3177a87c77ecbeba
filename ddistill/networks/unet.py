"""The U-Net of diffusion models, one module for the family of DDPM and diffusers' UNet2DModel.

Sources: DDPM (arXiv 2006.11239, hojonathanho/diffusion), its PyTorch form (w86763777/pytorch-ddpm,
the CFD teacher) and ADM (arXiv 2105.05233: scale-shift conditioning, resampling residual blocks).
"""

import dataclasses
from typing import Protocol, Unpack

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.convolution import CONV_IMPLS, Conv, ConvOptions, glorot, upsample, zeros
from ddistill.networks.extras import add_extras, check_extras
from ddistill.networks.layers import (
    Attention,
    GroupNorm,
    downsample,
    embed_class,
    embed_waves,
    sinusoidal_embedding,
)

RESAMPLE = ("conv", "resblock")
TIME_CONDITIONING = ("additive", "scale_shift")
DTYPES = ("float32", "bfloat16")


class UNetFields(Protocol):
    """The fields that all U-Nets have; `UNet` says what they mean."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    out_channels: int
    num_classes: int
    dropout: float
    dtype: str
    conv_impl: str
    extras: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Options of all blocks of a U-Net, as in `UNet`."""

    time_conditioning: str
    head_dim: int
    dropout: float
    norm_groups: int
    norm_eps: float
    remat: bool
    dtype: str
    conv_impl: str

    def norm(self, name: str) -> GroupNorm:
        """A group norm of this network."""
        return GroupNorm(self.norm_groups, self.norm_eps, self.dtype, name=name)

    def conv(self, features: int, name: str, **options: Unpack[ConvOptions]) -> Conv:
        """A convolution of this network."""
        return Conv(features, dtype=self.dtype, impl=self.conv_impl, name=name, **options)

    def block(self, features: int, name: str, resample: str = "") -> nn.Module:
        """A residual block of this network."""
        # `train` is the third argument after self.
        cls = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        return cls(features, self, resample, name=name)

    def attention(self, name: str, norm: bool = True) -> nn.Module:
        """A self-attention block of this network."""
        cls = nn.remat(Attention) if self.remat else Attention
        groups = self.norm_groups if norm else 0
        return cls(self.head_dim, groups, self.norm_eps, self.dtype, name=name)


class ResBlock(nn.Module):
    """norm, SiLU, conv, time, norm, SiLU, dropout, zero conv, plus the input.

    Attributes:
      features: output channels.
      config: options of the U-Net.
      resample: "", "up" or "down": resamples after the first SiLU and on the shortcut (ADM).
    """

    features: int
    config: BlockConfig
    resample: str = ""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], embedding: Float[Array, "B E"], train: bool
    ) -> Float[Array, "B h w D"]:
        """Returns `[B, H, W, features]`, H and W halved or doubled where the block resamples."""
        c, d = self.config, self.features
        resize = {"": lambda v: v, "up": upsample, "down": downsample}[self.resample]
        conditioned = c.time_conditioning == "scale_shift"
        h = c.norm("norm1")(x, silu=True)
        h = downsample(h) if self.resample == "down" else h
        h = c.conv(d, "conv1", upsampled=self.resample == "up")(h)
        time = nn.Dense(
            2 * d if conditioned else d, dtype=c.dtype, kernel_init=glorot, name="time"
        )(embedding)
        if conditioned:
            h = c.norm("norm2")(h, silu=True, scale_shift=jnp.split(time, 2, axis=-1))
        else:
            h = c.norm("norm2")(h + time[:, None, None, :], silu=True)
        h = nn.Dropout(c.dropout, deterministic=not train)(h)
        h = c.conv(d, "conv2", kernel_init=zeros)(h)
        x = resize(x)
        if x.shape[-1] != d:
            x = c.conv(d, "shortcut", size=1)(x)
        return x + h


class UNet(nn.Module):
    """U-Net of DDPM: predicts from a noisy image, its time and, where conditional, a class.

    Defaults are DDPM's CIFAR-10 network: 35,746,307 parameters.

    Attributes:
      channels: base width; level i has `channels * multipliers[i]`.
      multipliers: one per resolution level, outermost first; each further level halves the size.
      blocks: residual blocks per level on the way down (one more on the way up).
      attention: image heights at which every block is followed by self-attention.
      mid_attention: whether the middle has attention between its two blocks.
      mid_norm: whether that attention has a norm before it, as all others have.
      head_dim: channels per attention head; 0 for a single head, as in DDPM.
      out_channels: channels of the output.
      resample: "conv" (strided convolution; nearest neighbour and convolution) or "resblock" (ADM).
      symmetric: strided convolutions pad all around alike, as in PyTorch; DDPM's pad two sides.
      time_conditioning: "additive" (DDPM) or "scale_shift" (ADM).
      time_scale: the time is multiplied by it before the sinusoids, whose frequencies go from 1 to
        1/10000. 1 suits DDPM's 0 ... 999; log-SNR or c_noise want about 1000 / their range.
      cosines_first, includes_last: how the sinusoids are laid out, see `sinusoidal_embedding`.
      num_classes: 0 for an unconditional network; class `num_classes` is the null class.
      dropout: rate after the second SiLU of every residual block.
      norm_groups, norm_eps: of every group norm. DDPM's TensorFlow code has eps 1e-6, diffusers'
        google/ddpm-* too, PyTorch's default is 1e-5.
      remat: recompute each block in the backward pass instead of storing its activations.
      dtype: what convolutions and matrix products compute in: "float32" or "bfloat16".
      conv_impl: one of `CONV_IMPLS`; same parameters and results, other speed.
      extras: names of scalar inputs beside the time, see `ddistill.networks.extras`.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    mid_attention: bool = True
    mid_norm: bool = True
    head_dim: int = 0
    out_channels: int = 3
    resample: str = "conv"
    symmetric: bool = False
    time_conditioning: str = "additive"
    time_scale: float = 1.0
    cosines_first: bool = False
    includes_last: bool = True
    num_classes: int = 0
    dropout: float = 0.0
    norm_groups: int = 32
    norm_eps: float = 1e-6
    remat: bool = False
    dtype: str = "float32"
    conv_impl: str = "auto"
    extras: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"],
        cond: Int[Array, " B"] | None = None,
        *,
        train: bool = False,
        taps: tuple[str, ...] = (),
        extra: Float[Array, "B X"] | None = None,
    ):
        """Runs the network.

        Feature taps: `down_0` (outermost) ... `down_{L-1}`, the output of a down level's last
        block, before downsampling; `mid`, the middle's output; `up_0` (innermost) ...
        `up_{L-1}` (outermost), the output of an up level's last block, before upsampling; `last`,
        what enters the last convolution, that is `up_{L-1}` after the last norm and SiLU.

        Args:
          x: noisy images.
          time: real-valued time inputs, see `Level.time`.
          cond: class ids in 0 ... num_classes, or None for the null class (or no class at all).
          train: whether dropout is on; then an rng named "dropout" is needed.
          taps: names of the features to return too.
          extra: values of the inputs `extras`, a column for each; may be None where there are none.

        Returns:
          The output `[B, H, W, out_channels]` in float32, or (output, {tap: features}) when taps
          are named.

        Raises:
          ConfigError: the fields do not fit together or the image size does not fit them.
          ValueError: `extra` has another number of columns than there are `extras`.
        """
        check_fields(self)
        check_call(self, x.shape, cond, taps)
        config = BlockConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(BlockConfig)}
        )
        emb = self._embedding(time, cond, extra)

        def block(h: Array, level: int, j: int, way: str) -> Array:
            features = self.channels * self.multipliers[level]
            h = config.block(features, f"{way}_{level}_{j}")(h, emb, train)
            attend = h.shape[1] in self.attention
            return config.attention(f"{way}_{level}_{j}_attention")(h) if attend else h

        levels = range(len(self.multipliers))
        h = config.conv(self.channels, "conv_in")(x)
        skips, features = [h], {}
        for i in levels:
            for j in range(self.blocks):
                h = block(h, i, j, "down")
                skips.append(h)
            features[f"down_{i}"] = h
            if i != levels[-1]:
                h = self._resample(config, h, emb, train, "down", i)
                skips.append(h)
        h = config.block(h.shape[-1], "mid_0")(h, emb, train)
        if self.mid_attention:
            h = config.attention("mid_attention", self.mid_norm)(h)
        h = config.block(h.shape[-1], "mid_1")(h, emb, train)
        features["mid"] = h
        for i in reversed(levels):
            for j in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), i, j, "up")
            features[f"up_{levels[-1] - i}"] = h
            if i != 0:
                h = self._resample(config, h, emb, train, "up", i)
        h = features["last"] = config.norm("norm_out")(h, silu=True)
        out = config.conv(self.out_channels, "conv_out", kernel_init=zeros)(h).astype(jnp.float32)
        return (out, {name: features[name] for name in taps}) if taps else out

    def _resample(
        self, config: BlockConfig, h: Array, emb: Array, train: bool, way: str, level: int
    ) -> Array:
        """Halves ("down") or doubles ("up") the size, keeping the channels."""
        features, name = h.shape[-1], f"{way}_{level}_resample"
        if self.resample == "resblock":
            return config.block(features, name, way)(h, emb, train)
        if way == "down":
            return config.conv(features, name, stride=2, symmetric=self.symmetric)(h)
        return config.conv(features, name, upsampled=True)(h)

    def _embedding(
        self, time: Array, cond: Array | None, extra: Array | None
    ) -> Float[Array, "B E"]:
        """SiLU of the embedding of time, class and extra inputs, which every block projects."""
        width = 4 * self.channels
        layout = {"cosines_first": self.cosines_first, "includes_last": self.includes_last}
        waves = sinusoidal_embedding(time * self.time_scale, self.channels, **layout)
        emb = embed_class(cond, embed_waves(waves, width), self.num_classes)
        return nn.silu(add_extras(self, emb, extra, self.time_scale))


def check_call(
    net: UNetFields, shape: tuple[int, ...], cond: Array | None, taps: tuple[str, ...]
) -> None:
    """Checks the arguments of a call while it is traced, before anything is compiled.

    Args:
      net: a U-Net.
      shape: of the images.
      cond, taps: the other arguments of the call.

    Raises:
      ConfigError: the arguments do not fit the fields.
    """
    if len(shape) != 4:
        raise ConfigError(f"A U-Net takes images [B, H, W, C]; the shape {shape} was given.")
    levels = len(net.multipliers)
    factor = 2 ** (levels - 1)
    for side in shape[1:3]:
        if side % factor:
            up, down = -(-side // factor) * factor, side // factor * factor
            raise ConfigError(
                f"Images of {shape[1]} x {shape[2]} do not fit multipliers={net.multipliers}: "
                f"{levels} levels halve the size {levels - 1} times, so both sides have to "
                f"divide by {factor}. Use {down or up} or {up} pixels, or fewer multipliers."
            )
    sizes = [shape[1] >> i for i in range(levels)]
    for size in net.attention:
        if size not in sizes:
            raise ConfigError(
                f"attention={net.attention}: no level is {size} pixels high; with images of "
                f"{shape[1]} pixels and multipliers={net.multipliers} they are {sizes}."
            )
    if cond is not None and not net.num_classes:
        raise ConfigError("cond was given, but num_classes=0 makes the network unconditional.")
    names = (*(f"{way}_{i}" for way in ("down", "up") for i in range(levels)), "mid", "last")
    for tap in taps:
        check_choice("feature tap", tap, names)


def check_fields(net: UNet) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work at any image size."""
    check_choice("resample", net.resample, RESAMPLE)
    check_choice("time_conditioning", net.time_conditioning, TIME_CONDITIONING)
    check_at_least(net, 1, "norm_groups")
    check_at_least(net, 0, "head_dim")
    check_common(net)


def check_at_least(net: object, least: int, *names: str) -> None:
    """Raises `ConfigError` for a field of `net` below `least`."""
    for name in names:
        if getattr(net, name) < least:
            raise ConfigError(f"{name}={getattr(net, name)} must be {least} or more.")


def check_common(net: UNetFields) -> None:
    """Raises `ConfigError` for values that cannot work of the fields that all U-Nets have."""
    check_choice("dtype", net.dtype, DTYPES)
    check_choice("conv_impl", net.conv_impl, CONV_IMPLS)
    check_extras(net.extras)
    check_at_least(net, 1, "channels", "blocks", "out_channels")
    check_at_least(net, 0, "num_classes")
    if net.channels < 4 or net.channels % 2:
        raise ConfigError(f"channels={net.channels} must be even and at least 4 (time sinusoids).")
    if not net.multipliers or min(net.multipliers) < 1:
        raise ConfigError(f"multipliers={net.multipliers} must be one or more integers above 0.")
    if not 0.0 <= net.dropout < 1.0:
        raise ConfigError(f"dropout={net.dropout} must be in [0, 1).")
