"""Rotation: a feature network for images without classes.

A classifier learns by which of four quarter turns an image was rotated (arXiv 1803.07728). To tell,
it has to recognise shapes and their usual orientation, and its features can score samples where the
data have no labels. Images without an orientation, such as textures, teach it little: its accuracy
on the test images says how much.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ddistill.errors import ConfigError
from ddistill.objectives.classification import CLASSIFIER, Classification, View
from ddistill.objectives.inputs import Batch
from ddistill.objectives.parts import ImageShape, NetworkForm
from ddistill.typing import Images, Labels

TURNS = 4


def _inputs(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
    height, width, _ = image_shape
    if height != width:
        raise ConfigError(
            f"The objective 'rotation' needs square images; these are {width}x{height}. Set "
            f"config.data.image_size={min(height, width)}."
        )
    return CLASSIFIER.inputs(image_shape, conditional)


@dataclass(frozen=True)
class Rotation(Classification):
    """Cross-entropy with label smoothing on the number of quarter turns, 0 to 3.

    The hyperparameters are those of `Classification`; images are rotated before they are moved or
    painted over. The network has four classes, and the labels of the data are not used.
    """

    trains: ClassVar[NetworkForm] = dataclasses.replace(CLASSIFIER, inputs=_inputs, classes=TURNS)

    @property
    def views(self) -> tuple[View, ...]:
        """The test images in all four rotations."""
        return tuple(View(functools.partial(_turned, turns=k), k) for k in range(TURNS))

    def examples(self, batch: Batch) -> tuple[Images, Labels]:
        """The images, each rotated by a random number of quarter turns, and these numbers."""
        turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, TURNS))(batch.key("rotation"))
        rotated = jnp.stack([_turned(batch.image, k) for k in range(TURNS)])
        return rotated[turns, jnp.arange(len(turns))], turns


def _turned(images: Images, turns: int) -> Array:
    return jnp.rot90(images, turns, axes=(1, 2))
