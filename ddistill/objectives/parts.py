"""The values in which an objective says what it consists of and what it needs."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, PyTree

from ddistill.conditions import Condition, Leaf
from ddistill.denoiser import Denoiser
from ddistill.networks.weights import Weights
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.typing import AnyArray, Images, Metrics, RandomKey, Scalar

# Networks by name, as losses call them: denoisers, classifiers, discriminators.
Networks: TypeAlias = Mapping[str, "Bound"]
# A network and its weights. Its arguments and its result depend on its kind.
Bound: TypeAlias = Any
ImageShape: TypeAlias = tuple[int, int, int]
# The measured number of a stage that makes latents by which they are multiplied.
SCALING = "scaling"
# By feature tap, the height, width and channels of the features.
FeatureShapes: TypeAlias = Mapping[str, tuple[int, ...]]


@struct.dataclass
class LossAux:
    """The third value of a loss, for losses that have one.

    Attributes:
      statistics: by name, the new batch statistics of networks that keep such.
      shared: arrays `[B, ...]`, or trees of them, for later updates of the same step, which find
        them in `Batch.shared`.
      memory: by name, the new values of the objective's memory.
    """

    statistics: Mapping[str, PyTree] = struct.field(default_factory=dict)
    shared: Mapping[str, PyTree] = struct.field(default_factory=dict)
    memory: Mapping[str, Array] = struct.field(default_factory=dict)


class Loss(Protocol):
    """`(networks, batch, tables) -> ([B] values, scalar metrics)`, and a `LossAux` if need be."""

    def __call__(
        self, networks: Networks, batch: Batch, tables: LevelTables, /
    ) -> tuple[Array, Metrics] | tuple[Array, Metrics, LossAux]:
        """Returns one value per example, scalar metrics and, for some losses, a `LossAux`."""
        ...


Fallback = Callable[[Networks, Batch, LevelTables], Mapping[str, PyTree]]


@dataclass(frozen=True)
class Update:
    """One gradient step of a train step.

    Attributes:
      trains: the network that is changed, or several, each by its own optimiser; all others are
        constants. Unless it is the student, the metrics `loss` and `grad_norm` end in the first
        one's name.
      loss: see `Loss`.
      every: the update runs at steps divisible by this, or with one of the remainders `at`.
      skip: it is left out at steps divisible by this; 0 for none.
      fallback: `(networks, batch, tables) -> shared`, what the loss would have shared, at steps at
        which the update does not run.
      at: remainders of the steps divided by `every`.
      first: the first step at which it may run.
    """

    trains: str | tuple[str, ...]
    loss: Loss
    every: int = 1
    skip: int = 0
    fallback: Fallback | None = None
    at: tuple[int, ...] = (0,)
    first: int = 0

    @property
    def always(self) -> bool:
        """Whether it runs at every step."""
        return self.every == 1 and self.skip == 0 and self.first == 0

    def updates(self, steps: int) -> int:
        """How often it runs in so many steps."""
        return int(np.sum(self.due(np.arange(steps))))

    def due(self, step: AnyArray) -> Bool[AnyArray, "..."]:
        """Whether it runs at a step; `step` may be traced."""
        due = functools.reduce(operator.or_, [step % self.every == rest for rest in self.at])
        due = due & (step % self.skip != 0) if self.skip else due
        return due & (step >= self.first) if self.first else due

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the networks that are changed."""
        return (self.trains,) if isinstance(self.trains, str) else self.trains


@dataclass(frozen=True)
class Alarm:
    """A sign that a training goes wrong.

    Attributes:
      name: of its kind.
      text: the measured number, its threshold, and what it means.
      fatal: whether the stage stops where the sign persists.
      at_birth: whether an untrained student may show it; such a sign is fatal only after it was
        absent once.
    """

    name: str
    text: str
    fatal: bool = False
    at_birth: bool = False


class Range(NamedTuple):
    """The values of an extra input that a student is trained on.

    Attributes:
      low, high: the range, both included.
      values: the only values of the range, if it is not all of it.
    """

    low: float
    high: float
    values: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the student is trained on a value."""
        return self.low <= value <= self.high and (not self.values or value in self.values)

    def __str__(self) -> str:
        if self.values:
            return ", ".join(f"{v:g}" for v in self.values)
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Requirements:
    """What an objective needs of its stage.

    Each field is the reason, which error messages quote; "" where nothing is needed.

    Attributes:
      teacher: an earlier stage whose predictions the losses use.
      guided_teacher: a teacher that the losses guide, so that it must know a null condition and one
        prediction is two forward passes.
      classifier: `networks["classifier"]`, images -> (logits, features).
      pairs: `Batch.pairs`.
      own_pairs: pairs of the student's classes alone, where it has some classes.
      images: the images of the data; without them a batch has classes and keys alone.
      whole_batch: the loss of an example depends on the others, so that no micro-batches may be
        accumulated. The reason names the setting that lifts this.
      every_class: images of every class that a student is trained on.
      all_levels: a student has to answer for all of its levels, because it walks them in training.
      last_image: an image is left in the noisiest level, where alpha is above 0.
    """

    teacher: str = ""
    guided_teacher: str = ""
    classifier: str = ""
    pairs: str = ""
    own_pairs: str = ""
    images: str = "its losses compare with the images of the data, or add noise to them"
    whole_batch: str = ""
    every_class: str = ""
    all_levels: str = ""
    last_image: str = ""


@dataclass(frozen=True)
class NetworkForm:
    """A kind of network: how it is initialised and called.

    Attributes:
      kind: "denoiser", "classifier", "autoencoder" or "pairs" (no network: the stage makes pairs).
      inputs: `(image_shape, conditional) -> arguments` after the random key of `module.init`.
      bind: `(module, weights, prediction) -> network`, as losses and samplers call it.
      classes: number of classes that a classifier tells apart; 0 for the classes of the data.
    """

    kind: Literal["denoiser", "classifier", "autoencoder", "pairs"]
    inputs: Callable[[ImageShape, bool], tuple[PyTree, ...]]
    bind: Callable[[nn.Module, Weights, str], Bound]
    classes: int = 0

    def inputs_of(
        self, module: nn.Module | None, image_shape: ImageShape, conditional: bool
    ) -> tuple[PyTree, ...]:
        """`inputs` for a module; one that reads texts gets an example of its conditions."""
        found = self.inputs(image_shape, conditional)
        if not (self.on_levels and getattr(module, "reads_text", False)):
            return found
        return (*found[:2], module.example_condition())  # type: ignore[union-attr]

    def shapes_of(
        self, module: nn.Module | None, image_shape: ImageShape, conditional: bool
    ) -> tuple[PyTree, ...]:
        """Shapes and dtypes of `inputs_of`; nothing is computed."""
        found: tuple[PyTree, ...] = jax.eval_shape(
            lambda: self.inputs_of(module, image_shape, conditional)
        )
        return found

    @property
    def makes_latents(self) -> bool:
        """Whether the networks of a stage make latents that other stages can be trained on."""
        return self.kind == "autoencoder"

    @property
    def on_levels(self) -> bool:
        """Whether the networks of a stage are called at noise levels."""
        return self.kind in ("denoiser", "pairs")

    @property
    def called(self) -> str:
        """The kind with its article, for messages."""
        return f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"


def _denoiser_inputs(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
    cond = jnp.zeros((1,), jnp.int32) if conditional else None
    return jnp.zeros((1, *image_shape)), jnp.zeros((1,)), cond


def _bind_denoiser(module: nn.Module, weights: Weights, prediction: str) -> Denoiser:
    return Denoiser.from_module(module, weights.params, prediction, base=weights.base)


DENOISER = NetworkForm("denoiser", _denoiser_inputs, _bind_denoiser)


@dataclass(frozen=True)
class Auxiliary:
    """A network beside the student. A stage saves and resumes it, and hands on the student alone.

    Attributes:
      form: how it is initialised and called.
      module: the network; None for an average, which has the student's.
      prediction: what it predicts, for denoisers.
      start: "fresh", "teacher" (a copy of the teacher's weights), or "average": a moving average of
        the student's weights, which no optimiser changes (the target network of consistency
        models).
      rate: of the average, in [0, 1): the share that remains in a step, or a function of the
        training progress in [0, 1). 0 is the student itself as a constant, without a copy.
    """

    form: NetworkForm
    module: nn.Module | None = None
    prediction: str = ""
    start: Literal["fresh", "teacher", "average"] = "fresh"
    rate: float | Callable[[Scalar], Scalar] = 0.0

    @property
    def trained(self) -> bool:
        """Whether an optimiser changes it."""
        return self.start != "average"


@dataclass(frozen=True)
class Memory:
    """An array that an objective carries from step to step: a queue, a replay buffer.

    Attributes:
      shape: its shape.
      dtype: its type.
      start: `(key, shape, dtype) -> array`, its value before the first step; None for zeros.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    start: Callable[[RandomKey, tuple[int, ...], str], Array] | None = None


@dataclass(frozen=True)
class Taps:
    """Names of the hidden features that the losses read of the three networks."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkFacts:
    """The networks of a stage.

    Attributes:
      teacher: the teacher's module; None without one.
      prediction: what the teacher predicts.
      student_features, teacher_features, classifier_features: shapes (H, W, C) of the features at
        `Objective.taps`.
      num_classes: classes that a conditional student knows; 0 for an unconditional one.
      student_prediction: what the student predicts.
    """

    teacher: nn.Module | None = None
    prediction: str = ""
    student_features: FeatureShapes = dataclasses.field(default_factory=dict)
    teacher_features: FeatureShapes = dataclasses.field(default_factory=dict)
    classifier_features: FeatureShapes = dataclasses.field(default_factory=dict)
    num_classes: int = 0
    student_prediction: str = ""


@dataclass(frozen=True, eq=False)
class StageFacts:
    """What `Objective.prepare` is told of a stage.

    Attributes:
      grid: `[N+1]` increasing indices of the teacher's levels, those of the student.
      networks: of the stage.
      steps: its train steps; 0 where the sizes are not known.
      batch_size: examples of a step, of one student.
      image_shape: (H, W, C) of the data.
      conditional: whether networks are given classes or texts.
      condition: the arrays of a text; () for classes.
    """

    grid: np.ndarray
    networks: NetworkFacts = NetworkFacts()
    steps: int = 0
    batch_size: int = 0
    image_shape: ImageShape = (0, 0, 0)
    conditional: bool = False
    condition: tuple[Leaf, ...] = ()

    @property
    def num_steps(self) -> int:
        """N, the steps of the student's grid."""
        return len(self.grid) - 1


@dataclass(frozen=True)
class Panels:
    """Pictures of a student for the report.

    Attributes:
      names: one for each picture.
      caption: what they show.
      draw: `(networks, noise, tables, cond) -> images`, `[B, H, W, C]` in [-1, 1] for each name,
        from standard normal noise `[B, H, W, C]` and `[B]` conditions or None.
    """

    names: tuple[str, ...]
    caption: str
    draw: Callable[[Networks, Images, LevelTables, Condition | None], tuple[Images, ...]]


@dataclass(frozen=True)
class Measures:
    """Numbers of a trained student that are stored with its stage.

    Attributes:
      of_images: `(network, images) -> numbers`, `[B]` by name, from images `[B, H, W, C]` in
        [-1, 1]; an image's numbers do not depend on the rest of the batch.
      stored: the stored numbers from the means of these over the training images.
    """

    of_images: Callable[[Bound, Images], Mapping[str, Array]]
    stored: Callable[[Mapping[str, float]], Mapping[str, float]]


def no_alarms(means: Mapping[str, float]) -> tuple[Alarm, ...]:
    """Raises no alarm, whatever the metrics."""
    del means
    return ()


@dataclass(frozen=True)
class Diagnostics:
    """What is watched while students train, and measured and drawn of trained ones.

    Attributes:
      quality_metric: the metric that selects the best checkpoint, lower is better; "" for the loss.
      alarms: the alarms that the mean metrics of a log interval raise.
      panels: pictures of a student for the report.
      measures: numbers of the trained student that are stored with the stage.
    """

    quality_metric: str = ""
    alarms: Callable[[Mapping[str, float]], tuple[Alarm, ...]] = no_alarms
    panels: Panels | None = None
    measures: Measures | None = None
