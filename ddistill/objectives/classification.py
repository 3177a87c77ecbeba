"""Classification: cross-entropy on labels. Features of these networks score images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, PyTree

from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives.base import Objective
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import ImageShape, LossAux, NetworkForm, Networks, Update
from ddistill.typing import Features, Images, Labels, Metrics, PerExample


@struct.dataclass
class Classifier:
    """A classifier and its weights.

    Calling it with images `[B, H, W, C]` in [-1, 1] returns logits `[B, K]` and pooled features
    `[B, D]`; batch norms use their running statistics.
    """

    weights: Weights
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(
        self, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B K"], Float[Array, "B D"]]:
        """Returns (logits, features)."""
        return cast(Any, self.module.apply(self.weights.variables(), images))

    def with_features(
        self, images: Float[Array, "B H W C"], taps: tuple[str, ...]
    ) -> tuple[Float[Array, "B K"], Float[Array, "B D"], Features]:
        """(logits, pooled features, features `[B, h, w, D]` by tap)."""
        return cast(Any, self.module.apply(self.weights.variables(), images, taps=taps))

    def train(self, images: Float[Array, "B H W C"], key: Array) -> tuple[Float[Array, "B K"], Any]:
        """Logits in training mode, and the new statistics of batch norms; None without batch norms.

        Args:
          images: a whole batch; batch norms use its statistics.
          key: for dropout.
        """
        (logits, _), new = self.module.apply(
            self.weights.variables(),
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return logits, new.get("batch_stats")


def _inputs(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
    del conditional
    return (jnp.zeros((1, *image_shape)),)


def _bind(module: nn.Module, weights: Weights, prediction: str) -> Classifier:
    del prediction
    return Classifier(weights, module)


CLASSIFIER = NetworkForm("classifier", _inputs, _bind)


class View(NamedTuple):
    """A form of the test images in which a classifier is evaluated.

    Attributes:
      of: `[B, H, W, C]` images -> images of the same shape.
      label: the class of all of them; None for the labels of the data.
    """

    of: Callable[[Images], Images] = lambda images: images
    label: int | None = None


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy with label smoothing.

    Attributes:
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
      shift: images are moved by up to this many pixels in both directions (a random crop of the
        padded image).
      cutout: side of a square at a random place that is painted over (arXiv 1708.04552), 0 for
        none; its centre is uniform over the image, so that it may lie partly outside.
      fill: value of the pixels that `shift` brings in and `cutout` paints, in [-1, 1].
    """

    trains: ClassVar[NetworkForm] = CLASSIFIER

    label_smoothing: float = 0.0
    shift: int = 0
    cutout: int = 0
    fill: float = -1.0

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"objective.label_smoothing={self.label_smoothing} is not in [0, 1).")
        for name in ("shift", "cutout"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"objective.{name}={getattr(self, name)} must be 0 or more pixels."
                )
        if not -1.0 <= self.fill <= 1.0:
            raise ConfigError(f"objective.fill={self.fill} is not a pixel value in [-1, 1].")

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the classifier, which every stage calls its student."""
        return (Update("student", self.loss),)

    @property
    def views(self) -> tuple[View, ...]:
        """The views of the test images; the classifier's accuracy is the mean over them."""
        return (View(),)

    def examples(self, batch: Batch) -> tuple[Images, Labels]:
        """The images `[B, H, W, C]` to classify and their classes `[B]`."""
        return batch.image, batch.label

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics, LossAux]:
        """Cross-entropy per example, the batch's accuracy, and new batch statistics, if any."""
        del tables
        images, labels = self.examples(batch)
        if self.shift:
            images = jax.vmap(self._shift)(batch.key("shift"), images)
        if self.cutout:
            images = jax.vmap(self._cut)(batch.key("cutout"), images)
        logits, statistics = networks["student"].train(images, batch.dropout_key)
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, logits.shape[-1]), self.label_smoothing
        )
        correct = jnp.argmax(logits, axis=-1) == labels
        values = optax.softmax_cross_entropy(logits, targets)
        seen = {} if statistics is None else {"student": statistics}
        return values, {"accuracy": jnp.mean(correct)}, LossAux(statistics=seen)

    def _shift(self, key: Array, image: Array) -> Array:
        pad = self.shift
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=self.fill)
        offset = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)

    def _cut(self, key: Array, image: Array) -> Array:
        centre = jax.random.randint(key, (2,), 0, jnp.asarray(image.shape[:2]))
        low = centre - self.cutout // 2

        def inside(axis):
            at = jnp.arange(image.shape[axis])
            return (at >= low[axis]) & (at < low[axis] + self.cutout)

        square = inside(0)[:, None, None] & inside(1)[None, :, None]
        return jnp.where(square, self.fill, image)
