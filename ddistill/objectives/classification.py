"""Classification: cross-entropy on labels, for the networks whose features score images."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from ddistill.errors import ConfigError
from ddistill.objectives.base import Batch, Metrics, Networks, Objective, Process, Update


@struct.dataclass
class Classifier:
    """A classifier and its parameters.

    Calling it with images `[B, H, W, C]` in [-1, 1] returns logits `[B, K]` and pooled features
    `[B, D]`.
    """

    params: Any
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(self, images: Float[Array, "B H W C"], *, key: Array | None = None):
        """Returns (logits, features); a `key` switches to training mode."""
        return self.module.apply(
            {"params": self.params},
            images,
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
        )


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy with label smoothing.

    Attributes:
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
      shift: images are moved by up to this many pixels in both directions, filled with -1.
    """

    trains_classifier: ClassVar[bool] = True

    label_smoothing: float = 0.0
    shift: int = 0

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"objective.label_smoothing={self.label_smoothing} is not in [0, 1).")
        if self.shift < 0:
            raise ConfigError(f"objective.shift={self.shift} must be 0 or more pixels.")

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the classifier, which every stage calls its student."""
        return (Update("student", self.loss),)

    def bind(self, module: nn.Module, params: Any, prediction: str) -> Classifier:
        """Joins module and parameters into a `Classifier`; there is no prediction type."""
        del prediction
        return Classifier(params, module)

    def init_inputs(self, image_shape: tuple[int, int, int], conditional: bool) -> tuple[Any, ...]:
        """A classifier takes images only."""
        del conditional
        return (jnp.zeros((1, *image_shape)),)

    def loss(
        self, networks: Networks, batch: Batch, process: Process
    ) -> tuple[Float[Array, " B"], Metrics]:
        """Cross-entropy per example and the batch's accuracy."""
        del process
        images = jax.vmap(self._shift)(batch.keys, batch.image) if self.shift else batch.image
        logits, _ = networks["student"](images, key=batch.keys[0])
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch.label, logits.shape[-1]), self.label_smoothing
        )
        correct = jnp.argmax(logits, axis=-1) == batch.label
        return optax.softmax_cross_entropy(logits, targets), {"accuracy": jnp.mean(correct)}

    def _shift(self, key: Array, image: Array) -> Array:
        pad = self.shift
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=-1.0)
        offset = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)
