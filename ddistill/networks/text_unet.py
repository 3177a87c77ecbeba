"""The U-Net of text-to-image latent diffusion, one module for the family of Stable Diffusion.

Sources: latent diffusion (arXiv 2112.10752); block-removed students (BK-SDM, arXiv 2305.15798);
the embedding of a guidance scale (LCM, arXiv 2310.04378); depths per level (SDXL, arXiv
2307.01952).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.conditions import Condition, TextCondition
from ddistill.errors import ConfigError, check_choice
from ddistill.networks.attention import ATTENTION_IMPLS
from ddistill.networks.convolution import CONV_IMPLS, zeros
from ddistill.networks.layers import embed_waves, embedding_layer, sinusoidal_embedding
from ddistill.networks.transformer import TransformerConfig
from ddistill.networks.unet import DTYPES, BlockConfig, check_at_least

# Of the guidance scale minus one, before its sinusoids (LCM).
_GUIDANCE_SCALE = 1000.0


class TextUNet(nn.Module):
    """U-Net of Stable Diffusion: predicts from a noisy latent, its time and a text.

    Defaults are the network of Stable Diffusion 1.5: 859,520,964 parameters. Tuples with one entry
    for each level, outermost first, may have a single entry for all levels.

    Attributes:
      widths: channels per level; each further level halves the size.
      blocks: residual blocks per level on the way down (one more on the way up).
      attends: indices of the levels where every residual block is followed by a transformer.
      depth: blocks of the transformers of each level; the middle has the last level's.
      heads: attention heads per level, which divide its width; the middle has the last level's.
      context_dim: channels of the text's vectors.
      middle: whether there is a middle: residual block, transformer, residual block (BK-SDM's Small
        and Tiny have none).
      linear_projection: transformers begin and end with linear layers (2.x, XL) or with
        convolutions of size 1 (1.x): the same function, other shapes of kernels.
      upcast_attention: scores of float32 inputs are computed in full float32 on every platform
        (2.1).
      guidance_dim: width of the sinusoids of `TextCondition.guidance`, which is the extra input
        "guidance" too; 0 for no such input. Before training it has no effect.
      added_dim: width of `TextCondition.added` (XL: 2816); 0 for no such input.
      out_channels: channels of the output.
      dropout: rate after the second SiLU of every residual block.
      norm_groups: of every group norm.
      norm_eps: of group norms in residual blocks and before the last convolution; those of
        transformers have 1e-6.
      remat: recompute each residual block and transformer in the backward pass.
      dtype: of convolutions and matrix products: "float32" or "bfloat16".
      conv_impl: one of `CONV_IMPLS`; same parameters and results, other speed.
      attention_impl: one of `ATTENTION_IMPLS`; the same.
    """

    # Conditional, and on texts.
    reads_text: ClassVar[bool] = True

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: tuple[int, ...] = (2,)
    attends: tuple[int, ...] = (0, 1, 2)
    depth: tuple[int, ...] = (1,)
    heads: tuple[int, ...] = (8,)
    context_dim: int = 768
    middle: bool = True
    linear_projection: bool = False
    upcast_attention: bool = False
    guidance_dim: int = 0
    added_dim: int = 0
    out_channels: int = 4
    dropout: float = 0.0
    norm_groups: int = 32
    norm_eps: float = 1e-5
    remat: bool = False
    dtype: str = "float32"
    conv_impl: str = "auto"
    attention_impl: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"],
        cond: TextCondition | None = None,
        *,
        train: bool = False,
        taps: tuple[str, ...] = (),
        extra: Float[Array, "B X"] | None = None,
    ):
        """Runs the network.

        Feature taps: `down_0` (outermost) ... `down_{L-1}`, the output of a down level's last
        block, before downsampling; `mid`, what enters the way up, so the last down level's output
        where there is no middle; `up_0` (innermost) ... `up_{L-1}` (outermost), the output of an up
        level's last block, before upsampling; `last`, what enters the last convolution. `out_i` is
        the output of the up level beside `down_i`: networks of unlike depths have the same sizes
        there.

        Args:
          x: noisy latents; H and W divide by 2^(L-1).
          time: the level's index in the table of the network's training, from 0.
          cond: the text; it has no default here, a network without text is given the states of "".
          train: whether dropout is on; then an rng named "dropout" is needed.
          taps: names of the features to return too.
          extra: the values of `extras`, `[B, 1]` or `[B, 0]`, in place of `TextCondition.guidance`.

        Returns:
          The output `[B, H, W, out_channels]` in float32, or (output, {tap: features}) when taps
          are named.

        Raises:
          ConfigError: the fields do not fit together, or the arguments do not fit them.
        """
        check_text_unet(self)
        if self.extras and isinstance(cond, TextCondition):
            if extra is not None:
                cond = dataclasses.replace(cond, guidance=extra[:, 0])
            elif cond.guidance is None and self.is_initializing():
                cond = dataclasses.replace(cond, guidance=jnp.ones(len(x)))
        text = _checked(self, x.shape, cond, taps)
        resnets, transformers = self._configs()
        emb = self._embedding(time, text)

        def block(h: Array, level: int, name: str) -> Array:
            h = resnets.block(self.widths[level], name)(h, emb, train)
            return attend(h, level, name) if level in self.attends else h

        def attend(h: Array, level: int, name: str) -> Array:
            heads, depth = self.at("heads", level), self.at("depth", level)
            return transformers.transformer(heads, depth, f"{name}_text")(h, text.states)

        last = len(self.widths) - 1
        h = resnets.conv(self.widths[0], "conv_in")(x)
        skips, features = [h], {}
        for i in range(last + 1):
            for j in range(self.at("blocks", i)):
                h = block(h, i, f"down_{i}_{j}")
                skips.append(h)
            features[f"down_{i}"] = h
            if i != last:
                h = resnets.conv(h.shape[-1], f"down_{i}_resample", stride=2, symmetric=True)(h)
                skips.append(h)
        if self.middle:
            h = resnets.block(h.shape[-1], "mid_0")(h, emb, train)
            h = attend(h, last, "mid")
            h = resnets.block(h.shape[-1], "mid_1")(h, emb, train)
        features["mid"] = h
        for i in range(last, -1, -1):
            for j in range(self.at("blocks", i) + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), i, f"up_{i}_{j}")
            features[f"up_{last - i}"] = features[f"out_{i}"] = h
            if i != 0:
                h = resnets.conv(h.shape[-1], f"up_{i}_resample", upsampled=True)(h)
        h = features["last"] = resnets.norm("norm_out")(h, silu=True)
        out = resnets.conv(self.out_channels, "conv_out", kernel_init=zeros)(h).astype(jnp.float32)
        return (out, {name: features[name] for name in taps}) if taps else out

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the scalar inputs beside the time."""
        return ("guidance",) if self.guidance_dim else ()

    @property
    def extra_parameters(self) -> tuple[str, ...]:
        """The entries of the parameters that belong to `extras`."""
        return self.extras

    def example_condition(self) -> Condition:
        """A condition of one example, of one token, with the inputs that the network has."""
        ones = jnp.ones((1,))
        return TextCondition(
            states=jnp.zeros((1, 1, self.context_dim)),
            pooled=jnp.zeros((1, self.context_dim)),
            guidance=ones if self.guidance_dim else None,
            added=jnp.zeros((1, self.added_dim)) if self.added_dim else None,
        )

    def at(self, field: str, level: int) -> int:
        """The entry of a level of a field with one entry per level, or one for all."""
        values: tuple[int, ...] = getattr(self, field)
        return values[level if len(values) > 1 else 0]

    def _configs(self) -> tuple[BlockConfig, TransformerConfig]:
        resnets = BlockConfig(
            time_conditioning="additive",
            head_dim=0,
            dropout=self.dropout,
            norm_groups=self.norm_groups,
            norm_eps=self.norm_eps,
            remat=self.remat,
            dtype=self.dtype,
            conv_impl=self.conv_impl,
        )
        transformers = TransformerConfig(
            norm_groups=self.norm_groups,
            linear_projection=self.linear_projection,
            upcast=self.upcast_attention,
            remat=self.remat,
            dtype=self.dtype,
            attention_impl=self.attention_impl,
        )
        return resnets, transformers

    def _embedding(self, time: Array, text: TextCondition) -> Float[Array, "B E"]:
        """SiLU of the embedding of time, guidance and added vector; every block projects it."""
        width = 4 * self.widths[0]
        emb = sinusoidal_embedding(time, self.widths[0], cosines_first=True, includes_last=False)
        if text.guidance is not None:
            layer = embedding_layer(self.widths[0], "guidance", use_bias=False, kernel_init=zeros)
            scale = _GUIDANCE_SCALE * (text.guidance - 1.0)
            emb = emb + layer(sinusoidal_embedding(scale, self.guidance_dim))
        emb = embed_waves(emb, width)
        if text.added is not None:
            added = embedding_layer(width, "added_0")(text.added)
            emb = emb + embedding_layer(width, "added_1")(nn.silu(added))
        return nn.silu(emb)


def _checked(
    net: TextUNet, shape: tuple[int, ...], cond: TextCondition | None, taps: tuple[str, ...]
) -> TextCondition:
    """The text, after the checks of a call's arguments while it is traced."""
    if not isinstance(cond, TextCondition):
        raise ConfigError(
            f"A text_unet takes a TextCondition; {type(cond).__name__} was given. The states of "
            "the empty text stand for no text."
        )
    factor = 2 ** (len(net.widths) - 1)
    if len(shape) != 4 or any(side % factor for side in shape[1:3]):
        raise ConfigError(
            f"Latents of shape {shape} do not fit widths={net.widths}: [B, H, W, C] is needed, "
            f"with H and W that divide by {factor}."
        )
    if cond.states.shape[-1] != net.context_dim:
        raise ConfigError(
            f"The text has {cond.states.shape[-1]} channels, and context_dim={net.context_dim}."
        )
    for field, value in (("guidance_dim", cond.guidance), ("added_dim", cond.added)):
        if (value is not None) != (getattr(net, field) > 0):
            name = field.removesuffix("_dim")
            state = "missing" if value is None else "given"
            raise ConfigError(
                f"TextCondition.{name} is {state}, and {field}={getattr(net, field)}."
            )
    levels = range(len(net.widths))
    ways = ("down", "up", "out")
    names = (*(f"{way}_{i}" for way in ways for i in levels), "mid", "last")
    for tap in taps:
        check_choice("feature tap", tap, names)
    return cond


def check_text_unet(net: TextUNet) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work at any size of latents."""
    check_choice("dtype", net.dtype, DTYPES)
    check_choice("conv_impl", net.conv_impl, CONV_IMPLS)
    check_choice("attention_impl", net.attention_impl, ATTENTION_IMPLS)
    check_at_least(net, 1, "out_channels", "norm_groups", "context_dim")
    check_at_least(net, 0, "added_dim", "guidance_dim")
    if not 0.0 <= net.dropout < 1.0:
        raise ConfigError(f"dropout={net.dropout} must be in [0, 1).")
    levels = len(net.widths)
    if not levels or min(net.widths) < 4 or net.widths[0] % 2:
        raise ConfigError(
            f"widths={net.widths} must be one or more integers of at least 4, the first even."
        )
    for field in ("blocks", "depth", "heads"):
        values = getattr(net, field)
        if len(values) not in (1, levels) or min(values) < 1:
            raise ConfigError(
                f"{field}={values} must be one integer above 0, or {levels} of them, one for each "
                f"of widths={net.widths}."
            )
    if any(not 0 <= level < levels for level in net.attends):
        raise ConfigError(
            f"attends={net.attends}: levels are 0 to {levels - 1} with widths={net.widths}."
        )
    if net.guidance_dim % 2 or net.guidance_dim == 2:
        raise ConfigError(f"guidance_dim={net.guidance_dim} must be 0, or even and at least 4.")
    used = {*net.attends, *([levels - 1] if net.middle else [])}
    for level in sorted(used):
        if net.widths[level] % net.at("heads", level):
            raise ConfigError(
                f"heads={net.heads}: {net.at('heads', level)} heads do not divide the "
                f"{net.widths[level]} channels of level {level}."
            )
