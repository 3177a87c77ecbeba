"""What a distillation method has to say, and nothing of how it is trained.

An objective is a frozen dataclass of hyperparameters. Its `updates` name which network learns from
which loss; a loss returns one value per example, and the train step does weighting, averaging,
differentiation and everything after it. Objectives know no optimiser, device or checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int, Key

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction, add_noise
from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.schedules import Level, Schedule, index_time, subsequence

Networks = Mapping[str, Any]
Metrics = dict[str, Array]


@struct.dataclass
class Batch:
    """A training batch.

    Attributes:
      image: `[B, H, W, C]` in [-1, 1].
      label: `[B]` class ids.
      cond: what a conditional network is given (`label`), or None for an unconditional one.
      keys: `[B]` random keys, one an example, so that what is drawn for an example depends neither
        on gradient accumulation nor on how the batch lies on devices.
    """

    image: Float[Array, "B H W C"]
    label: Int[Array, " B"]
    cond: Int[Array, " B"] | None
    keys: Key[Array, " B"]


@struct.dataclass
class Process:
    """The noise levels of a stage; make it with `make_process`.

    Tables are filled up to one length by repeating their last row, so that students of different N,
    and a chain of them, are one compiled program.

    Attributes:
      teacher: `[rows]`, the levels that the teacher knows, with the times that it is told.
      student: `[rows]`, the teacher's levels at `grid`, with the student's own times; rows 0 .. N
        count.
      grid: `[rows]` indices of `teacher`, 0 = phi_0 < ... < phi_N, then repeated.
      count: N, the student's steps.
      low, high: the student is trained on levels low .. high of 1 .. N.
      outside: the share of examples that are drawn from all of 1 .. N instead; None for none.
      values: by name, those hyperparameters of the objective that are numbers of the program and
        not parts of it: other values do not compile again.
    """

    teacher: Schedule
    student: Schedule
    grid: Int[Array, " T_1"]
    count: Int[Array, ""]
    low: Int[Array, ""]
    high: Int[Array, ""]
    outside: Float[Array, ""] | None = None
    values: Mapping[str, Array] = struct.field(default_factory=dict)


def student_levels(schedule: Schedule, grid: np.ndarray, time: str = "mapped") -> Schedule:
    """A student's `[N+1]` levels: the teacher's at a grid.

    Args:
      schedule: the teacher's, `[T+1]`.
      grid: `[N+1]` increasing indices of it, from 0.
      time: what the student is told: "mapped" (the teacher's time) or "index" (0 .. N-1).
    """
    levels = subsequence(schedule, grid)
    return index_time(levels) if time == "index" else levels


def make_process(
    schedule: Schedule,
    grid: np.ndarray,
    time: str = "mapped",
    rows: int = 0,
    *,
    low: int = 1,
    high: int = 0,
    outside: float | None = None,
    values: Mapping[str, float] | None = None,
) -> Process:
    """The levels of a stage as tables.

    Args:
      schedule, grid, time: as in `student_levels`.
      rows: length of the tables, at least T+1; 0 for T+1.
      low, high, outside, values: see `Process`; high 0 for N.
    """
    student = student_levels(schedule, grid, time)
    rows = rows or schedule.num_steps + 1
    count = len(grid) - 1

    def fill(row):
        return np.concatenate([row, np.repeat(row[-1:], rows - len(row))])

    # Unlike jnp.asarray, device_put compiles nothing: plans are made before anything may.
    return Process(
        teacher=jax.device_put(jax.tree.map(fill, schedule)),
        student=jax.device_put(jax.tree.map(fill, student)),
        grid=jax.device_put(fill(np.asarray(grid, np.int32))),
        count=jax.device_put(np.asarray(count, np.int32)),
        low=jax.device_put(np.asarray(low, np.int32)),
        high=jax.device_put(np.asarray(high or count, np.int32)),
        outside=None if outside is None else jax.device_put(np.float32(outside)),
        values={
            k: jax.device_put(np.asarray(v, np.int32 if isinstance(v, int) else np.float32))
            for k, v in (values or {}).items()
        },
    )


# By feature tap, the height, width and channels of what is tapped.
FeatureShapes = Mapping[str, tuple[int, ...]]
# A loss returns one value per example and scalar metrics; where networks with batch norm are
# trained, their new statistics as well.
Loss = Callable[[Networks, Batch, Process], tuple[Any, ...]]


@dataclass(frozen=True)
class Update:
    """One gradient step of a train step.

    Attributes:
      trains: the network that is changed, or several, each by its own optimiser; all others are
        constants. Unless it is the student, the first one's name ends those of the metrics `loss`
        and `grad_norm`.
      loss: `(networks, batch, process) -> ([B] values, scalar metrics)`, and a third value, the new
        batch statistics by name, where trained networks have such.
      every: the update runs at steps divisible by this.
    """

    trains: str | tuple[str, ...]
    loss: Loss
    every: int = 1

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the networks that are changed."""
        return (self.trains,) if isinstance(self.trains, str) else self.trains


@dataclass(frozen=True)
class Objective:
    """A method. Subclasses add hyperparameters as fields and return their `updates`.

    `needs_teacher` tells whether the stage must name a teacher, `trains_classifier` whether what it
    trains gives logits and features and not images.
    """

    needs_teacher: ClassVar[bool] = False
    trains_classifier: ClassVar[bool] = False

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

    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that are trained beside the student, by name; none for most methods.

        They belong to the training: a stage saves and resumes them and hands on the student alone.
        """
        return {}

    def prepare(self, grid: np.ndarray) -> "Objective":
        """Checks the hyperparameters against the stage's grid and fills in those that depend on it.

        Raises:
          ConfigError: a hyperparameter that cannot work on this grid.
        """
        del grid
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

    def value_of(self, name: str, process: Process) -> Any:
        """A hyperparameter: as the process gives it, or as it stands here."""
        return process.values.get(name, getattr(self, name))

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

    def teacher_calls(self) -> int:
        """Teacher forward passes per example of one train step."""
        return 0

    def replace(self, **changes: Any) -> "Objective":
        """Returns a copy with other hyperparameters."""
        return dataclasses.replace(self, **changes)


def filled_in(default: Any) -> Any:
    """A field of an objective that planning fills in; it is no hyperparameter and no setting."""
    return dataclasses.field(default=default, metadata={"filled_in": True})


def normal(keys: Key[Array, " B"], like: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Standard normal noise of the shape of `like`, each example from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], jnp.float32))(keys)


def uniform_index(keys: Key[Array, " B"], low: Any, high: Any) -> Int[Array, " B"]:
    """Integers uniform on low .. high (both included), each example from its own key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), low, high + 1))(keys)


def draw_index(keys: Key[Array, " B"], process: Process) -> Int[Array, " B"]:
    """A level for every example, uniform on those that the student is trained on."""
    index = uniform_index(keys, process.low, process.high)
    outside = process.outside
    if outside is None:
        return index
    leave_keys, index_keys = streams(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), 2)
    leave = jax.vmap(lambda key: jax.random.bernoulli(key, outside))(leave_keys)
    return jnp.where(leave, uniform_index(index_keys, 1, process.count), index)


def noisy(
    batch: Batch, process: Process
) -> tuple[Int[Array, " B"], Level, Float[Array, "B H W C"]]:
    """A student level for every example, as `draw_index` draws it, and the image brought to it.

    Returns:
      The levels' numbers, the levels, and z at them.
    """
    index_keys, noise_keys = streams(batch.keys, 2)
    index = draw_index(index_keys, process)
    level = process.student.at(index)
    return index, level, add_noise(batch.image, normal(noise_keys, batch.image), level)


def streams(keys: Key[Array, " B"], count: int) -> list[Key[Array, " B"]]:
    """Splits the keys of every example into `count` independent sets."""
    split = jax.vmap(lambda key: jax.random.split(key, count))(keys)
    return [split[:, i] for i in range(count)]


def mean_per_example(values: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Mean over all axes but the first."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


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
