"""DDPM++ and NCSN++ (arXiv 2011.13456) as EDM has them (arXiv 2206.00364 appendix F)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.edm_blocks import SQRT_HALF, BlockOptions, class_vector
from ddistill.networks.edm_levels import DECODERS, ENCODERS, run_levels
from ddistill.networks.layers import sinusoidal_embedding
from ddistill.networks.resampling import FILTERS
from ddistill.networks.unet import check_at_least, check_call, check_common

EMBEDDINGS = ("positional", "fourier")


class SongUNet(nn.Module):
    """Predicts from a noisy image, its time and, where conditional, a class.

    Defaults are EDM's DDPM++ for CIFAR-10: 55.7 M parameters. NCSN++ has embedding "fourier",
    noise_multiplier 2, encoder "residual" and resample_filter (1, 3, 3, 1).

    Attributes:
      channels: base width; level i has `channels * multipliers[i]`.
      multipliers: one per resolution level, outermost first; each further level halves the size.
      blocks: residual blocks per level on the way down (one more on the way up).
      attention: image heights at which every block of the way down and the last of the way up
        is followed by self-attention of a single head; the middle always has one.
      out_channels: channels of the output.
      embedding: "positional" (sinusoids of fixed frequencies) or "fourier" (of random ones, which
        are kept among the parameters and not trained).
      noise_multiplier: the width of those sinusoids is `channels * noise_multiplier`.
      embedding_multiplier: the width of what the blocks are told, likewise.
      encoder: "standard", "residual" (NCSN++) or "skip": how the shrunken image joins the levels.
      decoder: "standard", or "skip": every level adds to the output.
      resample_filter: (1, 1) or (1, 3, 3, 1).
      num_classes: 0 for an unconditional network; class `num_classes` is the null class.
      augment_dim: entries of EDM's augmentation labels. They are zero, as in sampling; the weights
        are there so that EDM's files are read whole.
      dropout: rate before the second convolution of every residual block.
      remat, dtype, conv_impl: as in `UNet`.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    out_channels: int = 3
    embedding: str = "positional"
    noise_multiplier: int = 1
    embedding_multiplier: int = 4
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
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
        check_song(self)
        check_call(self, x.shape, cond, taps)
        options = BlockOptions(
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
        out, features = run_levels(
            self,
            options,
            x,
            self._embedding(options, time, cond),
            train,
            encoder=self.encoder,
            decoder=self.decoder,
            attend_every=False,
        )
        out = out.astype(jnp.float32)
        return (out, {name: features[name] for name in taps}) if taps else out

    def _embedding(
        self, options: BlockOptions, time: Array, cond: Array | None
    ) -> Float[Array, "B E"]:
        """Time and class as every block is told of them."""
        width = self.channels * self.noise_multiplier
        emb = self._sinusoids(time, width)
        if self.num_classes:
            classes = class_vector(cond, time, self.num_classes)
            emb = emb + options.dense(width, "class")(classes * np.sqrt(self.num_classes))
        if self.augment_dim:
            labels = jnp.zeros((time.shape[0], self.augment_dim))
            emb = emb + options.dense(width, "augment", use_bias=False)(labels)
        wide = self.channels * self.embedding_multiplier
        emb = nn.silu(options.dense(wide, "time_0")(emb))
        return nn.silu(options.dense(wide, "time_1")(emb))

    def _sinusoids(self, time: Array, width: int) -> Float[Array, "B F"]:
        if self.embedding == "positional":
            return sinusoidal_embedding(time, width)
        normal = nn.initializers.normal(16.0)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", normal, (width // 2,)))
        angles = time.astype(jnp.float32)[:, None] * (2.0 * np.pi * frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def check_song(net: SongUNet) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work at any image size."""
    check_choice("embedding", net.embedding, EMBEDDINGS)
    check_choice("encoder", net.encoder, ENCODERS)
    check_choice("decoder", net.decoder, DECODERS)
    if net.resample_filter not in FILTERS:
        raise ConfigError(
            f"resample_filter={net.resample_filter} is not known. Allowed: "
            f"{', '.join(map(str, FILTERS))}."
        )
    check_at_least(net, 1, "noise_multiplier", "embedding_multiplier")
    check_at_least(net, 0, "augment_dim")
    check_common(net)
