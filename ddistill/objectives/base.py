"""What a distillation method has to say, and nothing of how it is trained.

An objective is a frozen dataclass of hyperparameters. Its `updates` name which network learns from
which loss; a loss returns one value per example, and the train step does weighting, averaging,
differentiation and everything after it. Objectives know no optimiser, device or checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, PyTree

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction
from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.schedules import Level

Networks = Mapping[str, Any]
Metrics = dict[str, Array]


# By feature tap, the height, width and channels of what is tapped.
FeatureShapes = Mapping[str, tuple[int, ...]]


@struct.dataclass
class LossAux:
    """The third value of a loss, for losses that have one.

    Attributes:
      statistics: by name, the new batch statistics of networks that keep such.
      shared: arrays `[B, ...]` for later updates of the same step, which find them in
        `Batch.shared`.
      memory: by name, the new values of the objective's memory.
    """

    statistics: Mapping[str, PyTree] = struct.field(default_factory=dict)
    shared: Mapping[str, Array] = struct.field(default_factory=dict)
    memory: Mapping[str, Array] = struct.field(default_factory=dict)


# A loss returns one value per example, scalar metrics and, where it has something, an `LossAux`.
Loss = Callable[[Networks, Batch, LevelTables], tuple[Any, ...]]


@dataclass(frozen=True)
class Update:
    """One gradient step of a train step.

    Attributes:
      trains: the network that is changed, or several, each by its own optimiser; all others are
        constants. Unless it is the student, the first one's name ends those of the metrics `loss`
        and `grad_norm`.
      loss: `(networks, batch, process) -> ([B] values, scalar metrics)`, and an `LossAux` if need be.
      every: the update runs at steps divisible by this.
      skip: it is left out at steps divisible by this; 0 for none.
      fallback: `(networks, batch, tables) -> shared`, what the loss would have shared, at steps at
        which the update does not run.
    """

    trains: str | tuple[str, ...]
    loss: Loss
    every: int = 1
    skip: int = 0
    fallback: Callable[[Networks, Batch, LevelTables], Mapping[str, Array]] | None = None

    @property
    def always(self) -> bool:
        """Whether it runs at every step."""
        return self.every == 1 and self.skip == 0

    def updates(self, steps: int) -> int:
        """How often it runs in so many steps."""
        return int(np.sum(self.due(np.arange(steps))))

    def due(self, step: Any) -> Any:
        """Whether it runs at a step; `step` may be traced."""
        due = step % self.every == 0
        return due & (step % self.skip != 0) if self.skip else due

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the networks that are changed."""
        return (self.trains,) if isinstance(self.trains, str) else self.trains


@dataclass(frozen=True)
class Alarm:
    """A sign that a training goes wrong.

    Attributes:
      name: of its kind.
      text: what is seen, with its number and threshold, and what it means.
      fatal: whether the stage stops where the sign stays.
      at_birth: whether a student may show it before it has learnt anything; such a sign is fatal
        only after it was absent once.
    """

    name: str
    text: str
    fatal: bool = False
    at_birth: bool = False


@dataclass(frozen=True)
class Objective:
    """A method. Subclasses add hyperparameters as fields and return their `updates`.

    `needs_teacher` tells whether the stage must name a teacher, `trains_classifier` whether what it
    trains gives logits and features and not images, `makes_pairs` whether it trains nothing and
    makes pairs of noise and images.
    """

    needs_teacher: ClassVar[bool] = False
    trains_classifier: ClassVar[bool] = False
    makes_pairs: ClassVar[bool] = False

    @property
    def needs_classifier(self) -> bool:
        """Whether the losses read networks["classifier"]: images -> (logits, features)."""
        return False

    @property
    def needs_whole_batch(self) -> bool:
        """Whether an example's loss depends on the others, which forbids gradient accumulation."""
        return False

    @property
    def updates(self) -> tuple[Update, ...]:
        """The gradient steps of one train step, in order."""
        raise TypeError(f"{type(self).__name__} does not define its updates.")

    @property
    def all_levels(self) -> bool:
        """Whether a student has to answer for all of its levels, and those of a sweep for as many.

        Where a student walks its own levels in training, nobody else can have a share of them.
        """
        return False

    @property
    def sampler(self) -> str:
        """The sampler that a student is trained for; "" for whichever the evaluation uses."""
        return ""

    @property
    def needs_every_class(self) -> bool:
        """Whether a class that is asked for and has no real images would spoil the training."""
        return False

    @property
    def needs_pairs(self) -> bool:
        """Whether the losses read `Batch.pairs`."""
        return False

    @property
    def filters_pairs(self) -> bool:
        """Whether a student of some classes is shown pairs of these alone."""
        return False

    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that are trained beside the student, by name; none for most methods.

        They belong to the training: a stage saves and resumes them and hands on the student alone.
        """
        return {}

    def starts(self) -> tuple[str, ...]:
        """Those of `networks` that start as copies of the teacher and not fresh."""
        return ()

    def prepare(self, grid: np.ndarray) -> "Objective":
        """Checks the hyperparameters against the stage's grid and fills in those that depend on it.

        Raises:
          ConfigError: a hyperparameter that cannot work on this grid.
        """
        del grid
        return self

    def prepare_networks(self, teacher: nn.Module, prediction: str) -> "Objective":
        """Fills in what depends on the teacher's network.

        Args:
          teacher: its module.
          prediction: what it predicts.
        """
        del teacher, prediction
        return self

    def prepare_features(self, student: FeatureShapes, teacher: FeatureShapes) -> "Objective":
        """Checks the features at `taps` against each other and fills in what depends on them.

        Args:
          student, teacher: shapes (H, W, C) by tap.

        Raises:
          ConfigError: features that the losses cannot compare; here, those of unlike shapes.
        """
        advice = "Name a tap where both shapes are equal, or give both networks the same width."
        check_feature_shapes(student, teacher, advice)
        return self

    def numbers(self) -> Mapping[str, int | float]:
        """Hyperparameters that the program is given as numbers; students may differ in them.

        The losses read them with `value_of`.
        """
        return {}

    def program(self) -> "Objective":
        """This objective with its `numbers` blanked: equal programs are equal values."""
        return self

    def without_effect(self) -> tuple[str, ...]:
        """Hyperparameters that change nothing as the others are set; none by default.

        They are no part of a stage's digest: what is added to an objective, and off, leaves the
        stages that were trained before where they are.
        """
        return ()

    def value_of(self, name: str, tables: LevelTables) -> Any:
        """A hyperparameter: as the process gives it, or as it stands here."""
        return tables.values.get(name, getattr(self, name))

    def check_classes(self, num_classes: int) -> None:
        """Checks hyperparameters against the classes that a conditional network knows.

        Raises:
          ConfigError: they do not fit.
        """

    def bind(self, name: str, module: nn.Module, weights: Weights, prediction: str) -> Any:
        """Joins a network's module and its weights into what losses and samplers call.

        Args:
          name: "student", or one of `networks`.
          module, weights: of that network.
          prediction: what the stage's denoisers predict.
        """
        del name
        return Denoiser.from_module(module, weights.params, prediction)

    def init_inputs(
        self, name: str, image_shape: tuple[int, int, int], conditional: bool
    ) -> tuple[Any, ...]:
        """Arguments, after the random key, that initialise the network `name`.

        Args:
          name: "student", or one of `networks`.
          image_shape: (H, W, C) of the data.
          conditional: whether denoisers are given labels.
        """
        del name
        cond = jnp.zeros((1,), jnp.int32) if conditional else None
        return jnp.zeros((1, *image_shape)), jnp.zeros((1,)), cond

    def taps(self) -> tuple[str, ...]:
        """Feature taps that the losses read, of the student and of the teacher."""
        return ()

    def student_updates(self, steps: int) -> int:
        """Updates of the student in so many steps."""
        return sum(u.updates(steps) for u in self.updates if "student" in u.trained)

    def teacher_taps(self) -> tuple[str, ...]:
        """Feature taps that the losses read of the teacher; by default those of `taps`."""
        return self.taps()

    def teacher_calls(self, each: int = 1) -> float:
        """Teacher forward passes per example of one train step, on the average.

        Args:
          each: what asking the teacher costs: 2 with guidance. What its features are read for is
            asked without, and costs one.
        """
        del each
        return 0

    def alarms(self, means: Mapping[str, float]) -> tuple["Alarm", ...]:
        """What is wrong with a training, read off the mean metrics of a log interval."""
        del means
        return ()

    @property
    def panels(self) -> tuple[str, ...]:
        """Names of the pictures that `draw_panels` makes of a student; none for most methods."""
        return ()

    @property
    def panels_caption(self) -> str:
        """What to see in them."""
        return ""

    def draw_panels(
        self, networks: Networks, noise: Array, tables: LevelTables, cond: Array | None
    ) -> tuple[Array, ...]:
        """Images `[B, H, W, C]` in [-1, 1], one array for each of `panels`.

        Args:
          networks: as losses get them.
          noise: `[B, H, W, C]` standard normal.
          tables: the student's.
          cond: `[B]` classes of the student, or None.
        """
        del networks, noise, tables, cond
        return ()

    def replace(self, **changes: Any) -> "Objective":
        """Returns a copy with other hyperparameters."""
        return dataclasses.replace(self, **changes)


def filled_in(default: Any) -> Any:
    """A field of an objective that planning fills in; it is no hyperparameter and no setting."""
    return dataclasses.field(default=default, metadata={"filled_in": True})


def predict(
    network: Any, taps: tuple[str, ...], z: Array, level: Level, cond: Any, key: Any = None
) -> tuple[Prediction, dict[str, Array]]:
    """A denoiser's prediction, and its features by tap.

    Where no tap is named, the denoiser need not have features.
    """
    if taps:
        return network.with_features(taps)(z, level, cond, key=key)
    return network(z, level, cond, **({} if key is None else {"key": key})), {}


def check_feature_shapes(
    student: FeatureShapes, teacher: FeatureShapes, advice: str, channels: bool = True
) -> None:
    """Raises `ConfigError`, ending in `advice`, where features at a tap are of unlike shapes.

    Args:
      student, teacher: shapes (H, W, C) by tap.
      advice: what to do.
      channels: whether unlike channels are refused too, and not only unlike heights and widths.
    """
    for tap, ours in student.items():
        theirs = teacher[tap]
        if ours[:-1] != theirs[:-1] or (channels and ours != theirs):
            raise ConfigError(
                f"objective: the features at tap '{tap}' have shape {ours} in the student and "
                f"{theirs} in the teacher (height, width, channels). {advice}"
            )


def check_not_negative(objective: Objective, *names: str) -> None:
    """Raises `ConfigError` if one of the named hyperparameters is below zero."""
    for name in names:
        value = getattr(objective, name)
        if not np.isfinite(value) or value < 0:
            raise ConfigError(f"objective.{name}={value!r} must be a number >= 0.")
