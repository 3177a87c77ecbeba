"""Diffusion transformers: DiT (arXiv 2212.09748) and SiT (arXiv 2401.08740).

Both are one network. SiT predicts the velocity of flow matching (prediction "flow") and its time is
in [0, 1]; the times of the schedule "linear_path" are 1000 times as large, so SiT's network has
`time_scale=0.001` on it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.attention import ATTENTION_IMPLS
from ddistill.networks.convolution import Conv, traced_once, zeros
from ddistill.networks.dit_blocks import DiTBlock, DiTOptions, modulate, modulations
from ddistill.networks.extras import add_extras, check_extras
from ddistill.networks.layers import embed_class, embed_waves, sinusoidal_embedding
from ddistill.networks.unet import DTYPES, check_at_least
from ddistill.networks.weights import variable_shapes

# Sinusoids of the time.
FREQUENCIES = 256
_small = traced_once(nn.initializers.normal(0.02))


class Size(NamedTuple):
    """The size of a DiT by its letter."""

    width: int
    depth: int
    heads: int


SIZES = {
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1152, 28, 16),
}
PATCHES = (2, 4, 8)


def named_size(name: str) -> dict[str, int]:
    """Options of the network of a name such as "XL/2": `width`, `depth`, `heads`, `patch_size`.

    Raises:
      ConfigError: another name.
    """
    names = [f"{letter}/{patch}" for letter in SIZES for patch in PATCHES]
    check_choice("size of a DiT", name, names)
    letter, patch = name.split("/")
    return {**SIZES[letter]._asdict(), "patch_size": int(patch)}


class DiT(nn.Module):
    """A transformer over the patches of an image: predicts from it, its time and its class.

    Defaults are DiT-XL/2 without classes: 674 million parameters.

    Attributes:
      patch_size: height and width of a patch; has to divide those of the image.
      width: channels of a token; divides by 4 and by `heads`.
      depth: number of blocks.
      heads: attention heads.
      mlp_ratio: width of the hidden layer of each block, in multiples of `width`.
      out_channels: channels of the output.
      learned_sigma: whether the network also has channels for a variance (DiT's and ADM's files).
        They are computed from weights that are kept, and left out of the output.
      num_classes: 0 for an unconditional network; class `num_classes` is the null class.
      time_scale: the time is multiplied by it before the sinusoids, whose frequencies go from 1 to
        1/10000.
      includes_last: whether 1/10000 is the lowest frequency, as in diffusers, or the one that would
        follow it, as in DiT's own code.
      qk_norm: whether queries and keys of each head are divided by their root mean square and
        multiplied by a learned scale (arXiv 2302.05442), which keeps scores bounded.
      double_norm: whether scales and shifts of the adaptive norms are normalised too, over their
        channels (sCM, arXiv 2410.11081 section 4.1). Other weights than without it fit such a
        network.
      dropout: rate after the attention and in the hidden layer of each block.
      mlp_norm_eps: of the norm before the hidden layer; all other norms have 1e-6.
      remat: recompute each block in the backward pass instead of storing its activations.
      dtype: of matrix products: "float32" or "bfloat16".
      attention_impl: one of `ATTENTION_IMPLS`; same parameters and results, other speed.
      extras: names of scalar inputs beside the time, see `ddistill.networks.extras`.
    """

    patch_size: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: int = 4
    out_channels: int = 4
    learned_sigma: bool = False
    num_classes: int = 0
    time_scale: float = 1.0
    includes_last: bool = True
    qk_norm: bool = False
    double_norm: bool = False
    dropout: float = 0.0
    mlp_norm_eps: float = 1e-6
    remat: bool = False
    dtype: str = "float32"
    attention_impl: str = "auto"
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

        Feature taps, as maps `[B, H / patch_size, W / patch_size, width]`: `block_0` ...
        `block_{depth-1}`, the output of a block; `mid`, that of the block in the middle, of index
        (depth - 1) // 2; `last`, what enters the last linear layer.

        Args:
          x: noisy images or latents.
          time: real-valued time inputs, see `Level.time`.
          cond: class ids in 0 ... num_classes, or None for the null class (or no class at all).
          train: whether dropout is on; then an rng named "dropout" is needed.
          taps: names of the features to return too.
          extra: values of the inputs `extras`, a column for each; may be None where there are none.

        Returns:
          The output `[B, H, W, out_channels]` in float32, or (output, {tap: features}) when taps
          are named.

        Raises:
          ConfigError: the fields do not fit together or the arguments do not fit them.
          ValueError: `extra` has another number of columns than there are `extras`.
        """
        check_dit(self)
        _check_call(self, x.shape, cond, taps)
        options = DiTOptions(**{name: getattr(self, name) for name in DiTOptions.__match_args__})
        batch, rows, columns = x.shape[0], *(side // self.patch_size for side in x.shape[1:3])
        emb = nn.silu(self._embedding(time, cond, extra))
        p = self.patch_size
        h = Conv(self.width, size=p, stride=p, dtype=self.dtype, impl="matmul", name="patches")(x)
        h = h.reshape(batch, rows * columns, self.width)
        h = h + positions(rows, columns, self.width).astype(h.dtype)

        def as_map(tokens: Array) -> Array:
            return tokens.reshape(batch, rows, columns, self.width)

        # `train` is the third argument after self.
        block = nn.remat(DiTBlock, static_argnums=(3,)) if self.remat else DiTBlock
        features = {}
        for i in range(self.depth):
            h = block(options, name=f"block_{i}")(h, emb, train)
            features[f"block_{i}"] = as_map(h)
        features["mid"] = features[f"block_{(self.depth - 1) // 2}"]
        shift, scale = modulations(options, emb, "modulation_out", ("shift", "scale"))
        h = modulate(options, h, shift, scale, 1e-6)
        features["last"] = as_map(h)
        out = self._unpatched(h, rows, columns)
        return (out, {name: features[name] for name in taps}) if taps else out

    def _embedding(self, time: Array, cond: Array | None, extra: Array | None) -> Array:
        """The embedding of time, class and extra inputs, before the SiLU."""
        waves = sinusoidal_embedding(
            time * self.time_scale,
            FREQUENCIES,
            cosines_first=True,
            includes_last=self.includes_last,
        )
        emb = embed_waves(waves, self.width, _small)
        emb = embed_class(cond, emb, self.num_classes, _small)
        return add_extras(self, emb, extra, self.time_scale, FREQUENCIES)

    def _unpatched(self, h: Float[Array, "B N D"], rows: int, columns: int) -> Array:
        """The image of the tokens, by the last linear layer, in float32."""
        p, batch = self.patch_size, h.shape[0]
        channels = self.out_channels * (2 if self.learned_sigma else 1)
        last = nn.Dense(p * p * channels, dtype=self.dtype, kernel_init=zeros, name="dense_out")
        h = last(h).astype(jnp.float32).reshape(batch, rows, columns, p, p, channels)
        h = h[..., : self.out_channels]  # before the transposition, which moves less then
        return jnp.swapaxes(h, 2, 3).reshape(batch, rows * p, columns * p, self.out_channels)


def positions(rows: int, columns: int, width: int) -> Float[Array, "N D"]:
    """Sinusoids of the column, then of the row, of each token; a constant.

    Each half has `width / 4` sines, then cosines, at frequencies 10000^(-4i/width).
    """
    omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    parts = []
    for place in np.meshgrid(np.arange(columns), np.arange(rows)):
        angles = place.reshape(-1, 1) * omega
        parts += [np.sin(angles), np.cos(angles)]
    return jnp.asarray(np.concatenate(parts, axis=1), jnp.float32)


def check_dit(net: DiT) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work at any image size."""
    check_choice("dtype", net.dtype, DTYPES)
    check_choice("attention_impl", net.attention_impl, ATTENTION_IMPLS)
    check_extras(net.extras)
    check_at_least(net, 1, "patch_size", "width", "depth", "heads", "mlp_ratio", "out_channels")
    check_at_least(net, 0, "num_classes")
    if net.width % 4 or net.width % net.heads:
        raise ConfigError(
            f"width={net.width} must divide by 4 (sinusoids of positions) and by heads={net.heads}."
        )
    if not 0.0 <= net.dropout < 1.0:
        raise ConfigError(f"dropout={net.dropout} must be in [0, 1).")
    if not net.mlp_norm_eps > 0.0:
        raise ConfigError(f"mlp_norm_eps={net.mlp_norm_eps} must be above 0.")


def _check_call(
    net: DiT, shape: tuple[int, ...], cond: Array | None, taps: tuple[str, ...]
) -> None:
    """Raises `ConfigError` for arguments of a call that do not fit the fields."""
    if len(shape) != 4 or any(side % net.patch_size for side in shape[1:3]):
        raise ConfigError(
            f"Images of shape {shape} do not fit patch_size={net.patch_size}: [B, H, W, C] is "
            f"needed, with H and W that divide by {net.patch_size}."
        )
    if cond is not None and not net.num_classes:
        raise ConfigError("cond was given, but num_classes=0 makes the network unconditional.")
    names = (*(f"block_{i}" for i in range(net.depth)), "mid", "last")
    for tap in taps:
        check_choice("feature tap", tap, names)


def dit_shapes(net: DiT, channels: int) -> dict:
    """The shapes of the parameters of `net` for images of some channels; nothing is computed."""
    net = net.clone(attention_impl="chunked")
    image = jax.ShapeDtypeStruct((1, net.patch_size, net.patch_size, channels), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    return variable_shapes(net, image, time)["params"]  # type: ignore[no-any-return]
