"""Classifiers; their pooled features score samples and compare images.

Every one maps images in [-1, 1] to logits and to the features that the logits are linear in. Those
trained on inputs of another scale carry their `mean` and `std` as fields: they stand in the
checkpoint's settings and are applied here and nowhere else.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.convolution import Conv, glorot, traced_once
from ddistill.networks.layers import GroupNorm
from ddistill.typing import Features

# Logits `[B, K]` and pooled features `[B, D]`, and features by tap where taps are named.
Classified: TypeAlias = (
    tuple[Float[Array, "B K"], Float[Array, "B D"]]
    | tuple[Float[Array, "B K"], Float[Array, "B D"], Features]
)
# The tap of the feature map that classifiers pool: `[B, h, w, D]`.
FINAL_MAP = "final_map"
STEMS = ("small", "large")
kaiming_out = traced_once(nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
kaiming_in = traced_once(nn.initializers.variance_scaling(2.0, "fan_in", "normal"))


class DigitsClassifier(nn.Module):
    """Four convolutions and two dense layers; group norm, so there is no mutable state.

    Attributes:
      num_classes: number of classes.
      width: channels of the first level; the second has twice as many.
      feature_dim: width of the penultimate layer; its activations are the features.
      dropout: rate before each dense layer.
      norm_groups: groups of the norms; has to divide `width`.
    """

    num_classes: int = 10
    width: int = 32
    feature_dim: int = 64
    dropout: float = 0.25
    norm_groups: int = 8

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False, taps: tuple[str, ...] = ()
    ) -> Classified:
        """Classifies images in [-1, 1].

        Args:
          x: images; both sides even.
          train: whether dropout is on; then an rng named "dropout" is needed.
          taps: names of features to return too: "final_map", the last convolution's output.

        Returns:
          Logits `[B, num_classes]` and the features `[B, feature_dim]` that they are linear in.

        Raises:
          ConfigError: odd image sides, or groups that do not divide the channels.
        """
        if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
            raise ConfigError(f"DigitsClassifier takes [B, H, W, C], H and W even; got {x.shape}.")
        for i, (features, stride) in enumerate(
            [(self.width, 1), (self.width, 1), (2 * self.width, 2), (2 * self.width, 1)]
        ):
            x = Conv(features, stride=stride, name=f"conv_{i}")(x)
            x = GroupNorm(self.norm_groups, 1e-5, name=f"norm_{i}")(x, silu=True)
        final = x
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.silu(nn.Dense(self.feature_dim, kernel_init=glorot, name="features")(x))
        h = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, kernel_init=glorot, name="logits")(h)
        return with_taps((logits, x.astype(jnp.float32)), final, taps)


class ResNet(nn.Module):
    """A residual network of basic blocks (arXiv 1512.03385); the defaults are ResNet-18 for CIFAR.

    Attributes:
      num_classes: number of classes.
      width: channels of the first level; every further level has twice as many.
      blocks: blocks of each level; all but the first begin with stride 2.
      stem: "small", a 3x3 convolution, or "large", one of 7x7 and stride 2 and a max-pooling.
      mean, std: per channel or one for all, of pixels in [0, 1]; the default means [-1, 1].
    """

    num_classes: int = 10
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    stem: str = "small"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False, taps: tuple[str, ...] = ()
    ) -> Classified:
        """Classifies images in [-1, 1].

        Args:
          x: images of any size.
          train: whether batch norms use, and update, the batch's own statistics.
          taps: names of features to return too: "final_map", of which the features are averages.

        Returns:
          Logits `[B, num_classes]` and features `[B, width * 2 ** (levels - 1)]`, the averages over
          pixels of the last level after its ReLU.

        Raises:
          ConfigError: an unknown stem, or a mean or std that does not fit the channels.
        """
        x = normalise(x, self.mean, self.std)
        x = _stem(x, self.width, self.stem, kaiming_out, train)
        for level, count in enumerate(self.blocks):
            for i in range(count):
                x = BasicBlock(
                    self.width * 2**level,
                    stride=2 if level and not i else 1,
                    name=f"level_{level}_block_{i}",
                )(x, train)
        features = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(self.num_classes, name="logits")(features)
        return with_taps((logits, features), x, taps)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms beside a skip connection.

    Attributes:
      features: output channels.
      stride: of the first convolution; the skip is projected where shapes differ.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w D"]:
        """Returns the block's output."""
        h = _conv(self.features, 3, self.stride, kaiming_out, "conv_0")(x)
        h = nn.relu(_norm(train, "norm_0")(h))
        h = _conv(self.features, 3, 1, kaiming_out, "conv_1")(h)
        h = _norm(train, "norm_1")(h)
        if h.shape != x.shape:
            x = _conv(self.features, 1, self.stride, kaiming_out, "conv_skip")(x)
            x = _norm(train, "norm_skip")(x)
        return nn.relu(h + x)


class DenseNet(nn.Module):
    """A densely connected network with bottlenecks (arXiv 1608.06993); defaults: DenseNet-201.

    Attributes:
      num_classes: number of classes.
      growth: channels that a layer adds; the stem has twice as many, a bottleneck four times.
      blocks: layers of each dense block; between two blocks channels and sides are halved.
      stem: "small", a 3x3 convolution, or "large", one of 7x7 and stride 2 and a max-pooling.
      mean, std: per channel or one for all, of pixels in [0, 1]; the default means [-1, 1].
    """

    num_classes: int = 10
    growth: int = 32
    blocks: tuple[int, ...] = (6, 12, 48, 32)
    stem: str = "small"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False, taps: tuple[str, ...] = ()
    ) -> Classified:
        """Classifies images in [-1, 1].

        Args:
          x: images whose sides halve as often as there are transitions.
          train: whether batch norms use, and update, the batch's own statistics.
          taps: names of features to return too: "final_map", of which the features are averages.

        Returns:
          Logits `[B, num_classes]` and features `[B, D]` (1920 for the defaults), the averages over
          pixels after the last norm and its ReLU.

        Raises:
          ConfigError: an unknown stem, sides that do not halve, or a mean or std that does not fit.
        """
        halvings = len(self.blocks) - 1 + (2 if self.stem == "large" else 0)
        if x.shape[1] % 2**halvings or x.shape[2] % 2**halvings:
            raise ConfigError(
                f"DenseNet with {len(self.blocks)} blocks and the {self.stem} stem halves both "
                f"sides {halvings} times; images of {x.shape[1]}x{x.shape[2]} do not divide."
            )
        x = normalise(x, self.mean, self.std)
        x = _stem(x, 2 * self.growth, self.stem, kaiming_in, train)
        for block, count in enumerate(self.blocks):
            for i in range(count):
                x = self._layer(x, train, f"block_{block}_layer_{i}")
            if block < len(self.blocks) - 1:
                x = nn.relu(_norm(train, f"transition_{block}_norm")(x))
                channels = x.shape[-1] // 2
                x = _conv(channels, 1, 1, kaiming_in, f"transition_{block}_conv")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(_norm(train, "norm")(x))
        features = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(self.num_classes, name="logits")(features)
        return with_taps((logits, features), x, taps)

    def _layer(self, x: Array, train: bool, name: str) -> Array:
        h = nn.relu(_norm(train, f"{name}_norm_0")(x))
        h = _conv(4 * self.growth, 1, 1, kaiming_in, f"{name}_conv_0")(h)
        h = nn.relu(_norm(train, f"{name}_norm_1")(h))
        h = _conv(self.growth, 3, 1, kaiming_in, f"{name}_conv_1")(h)
        return jnp.concatenate([x, h], axis=-1)


def with_taps(
    answer: tuple[Array, Array], final: Float[Array, "B h w D"], taps: tuple[str, ...]
) -> Classified:
    """A classifier's answer with the features of the named taps; the answer alone without taps.

    Raises:
      ConfigError: a tap of another name than "final_map".
    """
    for tap in taps:
        check_choice("classifier: feature tap", tap, (FINAL_MAP,))
    return (*answer, {FINAL_MAP: final.astype(jnp.float32)}) if taps else answer


def normalise(
    x: Float[Array, "B H W C"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "B H W C"]:
    """Images in [-1, 1] as ((x + 1) / 2 - mean) / std.

    Raises:
      ConfigError: a mean or std of neither one value nor one a channel, or a std that is not
        above 0.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, x.shape[-1]):
            raise ConfigError(
                f"network.{name}={tuple(values)} has {len(values)} values; one is needed, or one "
                f"for each of the {x.shape[-1]} channels."
            )
    if min(std) <= 0:
        raise ConfigError(f"network.std={tuple(std)} must be above 0.")
    if tuple(mean) == tuple(std) == (0.5,):
        return x
    return ((x + 1.0) / 2.0 - jnp.asarray(mean)) / jnp.asarray(std)


def _stem(x: Array, features: int, stem: str, init: nn.initializers.Initializer, train: bool):
    if stem not in STEMS:
        raise ConfigError(f"network.stem={stem!r} is not known. Allowed: {', '.join(STEMS)}.")
    large = stem == "large"
    x = _conv(features, 7 if large else 3, 2 if large else 1, init, "stem_conv")(x)
    x = nn.relu(_norm(train, "stem_norm")(x))
    if large:
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    return x


def _conv(features: int, size: int, stride: int, init: nn.initializers.Initializer, name: str):
    # Padded alike on both sides, as torch does; "SAME" with stride 2 pads at one side only.
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=init,
        name=name,
    )


def _norm(train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        # E[x^2] - E[x]^2 cancels in float32 where a channel's mean is large.
        use_fast_variance=False,
        name=name,
    )
