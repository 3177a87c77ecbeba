"""The protocol of a distillation method: what it says of itself, and nothing of how it is trained.

An objective is a frozen dataclass of hyperparameters. Its `updates` name the networks that learn
from each loss; a loss returns one value per example, and the train step averages, differentiates
and optimises. Objectives know no optimiser, device or checkpoint. Every member but `updates` has a
default, so that a method defines what it needs alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, PyTree

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction
from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.schedules import Level
from ddistill.typing import AnyArray, Features, Images, Labels, Metrics, RandomKey, Scalar

# Networks by name, as losses call them: denoisers, classifiers, discriminators.
Networks: TypeAlias = Mapping[str, "Bound"]
# A network and its weights. Its arguments and its result depend on its kind.
Bound: TypeAlias = Any
ImageShape: TypeAlias = tuple[int, int, int]
# By feature tap, the height, width and channels of the features.
FeatureShapes: TypeAlias = Mapping[str, tuple[int, ...]]


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


class Loss(Protocol):
    """`(networks, batch, tables) -> ([B] values, scalar metrics)`, and a `LossAux` if need be."""

    def __call__(
        self, networks: Networks, batch: Batch, tables: LevelTables, /
    ) -> tuple[Array, Metrics] | tuple[Array, Metrics, LossAux]:
        """Returns one value per example, scalar metrics and, for some losses, a `LossAux`."""
        ...


Fallback = Callable[[Networks, Batch, LevelTables], Mapping[str, Array]]


@dataclass(frozen=True)
class Update:
    """One gradient step of a train step.

    Attributes:
      trains: the network that is changed, or several, each by its own optimiser; all others are
        constants. Unless it is the student, the first one's name ends those of the metrics `loss`
        and `grad_norm`.
      loss: see `Loss`.
      every: the update runs at steps divisible by this.
      skip: it is left out at steps divisible by this; 0 for none.
      fallback: `(networks, batch, tables) -> shared`, what the loss would have shared, at steps at
        which the update does not run.
    """

    trains: str | tuple[str, ...]
    loss: Loss
    every: int = 1
    skip: int = 0
    fallback: Fallback | None = None

    @property
    def always(self) -> bool:
        """Whether it runs at every step."""
        return self.every == 1 and self.skip == 0

    def updates(self, steps: int) -> int:
        """How often it runs in so many steps."""
        return int(np.sum(self.due(np.arange(steps))))

    def due(self, step: AnyArray) -> Bool[AnyArray, "..."]:
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
      text: the measured number, its threshold, and what it means.
      fatal: whether the stage stops where the sign persists.
      at_birth: whether an untrained student may show it; such a sign is fatal only after it was
        absent once.
    """

    name: str
    text: str
    fatal: bool = False
    at_birth: bool = False


@dataclass(frozen=True)
class Requirements:
    """What an objective needs of its stage.

    Each field is the reason, which error messages quote; "" where nothing is needed.

    Attributes:
      teacher: an earlier stage whose predictions the losses use.
      classifier: `networks["classifier"]`, images -> (logits, features).
      pairs: `Batch.pairs`.
      own_pairs: pairs of the student's classes alone, where it has some classes.
      images: the images of the data; without them a batch has classes and keys alone.
      whole_batch: the loss of an example depends on the others, so that no micro-batches may be
        accumulated. The reason names the setting that lifts this.
      every_class: images of every class that a student is trained on.
      all_levels: a student has to answer for all of its levels, because it walks them in training.
    """

    teacher: str = ""
    classifier: str = ""
    pairs: str = ""
    own_pairs: str = ""
    images: str = "its losses compare with the images of the data, or add noise to them"
    whole_batch: str = ""
    every_class: str = ""
    all_levels: str = ""


@dataclass(frozen=True)
class NetworkForm:
    """A kind of network: how it is initialised and called.

    Attributes:
      kind: "denoiser", "classifier" or "pairs" (no network: the stage makes pairs).
      inputs: `(image_shape, conditional) -> arguments` after the random key of `module.init`.
      bind: `(module, weights, prediction) -> network`, as losses and samplers call it.
    """

    kind: Literal["denoiser", "classifier", "pairs"]
    inputs: Callable[[ImageShape, bool], tuple[PyTree, ...]]
    bind: Callable[[nn.Module, Weights, str], Bound]


def _denoiser_inputs(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
    cond = jnp.zeros((1,), jnp.int32) if conditional else None
    return jnp.zeros((1, *image_shape)), jnp.zeros((1,)), cond


def _bind_denoiser(module: nn.Module, weights: Weights, prediction: str) -> Denoiser:
    return Denoiser.from_module(module, weights.params, prediction)


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
    """Names of the hidden features that the losses read of the student and of the teacher."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkFacts:
    """The networks of a stage, for `Objective.prepare_networks`.

    Attributes:
      teacher: the teacher's module; None without one.
      prediction: what the teacher predicts.
      student_features, teacher_features: shapes (H, W, C) of the features at `Objective.taps`.
      num_classes: classes that a conditional student knows; 0 for an unconditional one.
    """

    teacher: nn.Module | None = None
    prediction: str = ""
    student_features: FeatureShapes = dataclasses.field(default_factory=dict)
    teacher_features: FeatureShapes = dataclasses.field(default_factory=dict)
    num_classes: int = 0


@dataclass(frozen=True)
class Panels:
    """Pictures of a student for the report.

    Attributes:
      names: one for each picture.
      caption: what they show.
      draw: `(networks, noise, tables, cond) -> images`, `[B, H, W, C]` in [-1, 1] for each name,
        from standard normal noise `[B, H, W, C]` and `[B]` classes or None.
    """

    names: tuple[str, ...]
    caption: str
    draw: Callable[[Networks, Images, LevelTables, Labels | None], tuple[Images, ...]]


@dataclass(frozen=True)
class Objective:
    """A method. Subclasses add hyperparameters as fields and return their `updates`."""

    trains: ClassVar[NetworkForm] = DENOISER

    @property
    def updates(self) -> tuple[Update, ...]:
        """The gradient steps of one train step, in order."""
        raise TypeError(f"{type(self).__name__} does not define its updates.")

    @property
    def requires(self) -> Requirements:
        """What the stage must provide."""
        return Requirements()

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The networks beside the student, by name."""
        return {}

    @property
    def memory(self) -> Mapping[str, Memory]:
        """Arrays that are carried from step to step; losses read `Batch.memory`."""
        return {}

    @property
    def taps(self) -> Taps:
        """Feature taps that the losses read."""
        return Taps()

    @property
    def sampler(self) -> str:
        """The sampler that a student is trained for; "" for the one of the evaluation."""
        return ""

    @property
    def quality_metric(self) -> str:
        """The metric that selects the best checkpoint, lower is better; "" for the loss."""
        return ""

    @property
    def null_class_share(self) -> float | None:
        """Share of examples without a class that the student is trained on; None if not known."""
        return None

    @property
    def panels(self) -> Panels | None:
        """Pictures of a student for the report."""
        return None

    def prepare(self, grid: np.ndarray) -> "Objective":
        """Checks the hyperparameters against a student's grid and fills in what depends on it.

        Args:
          grid: `[N+1]` increasing indices of the teacher's levels.

        Raises:
          ConfigError: a hyperparameter that cannot work on this grid.
        """
        del grid
        return self

    def prepare_networks(self, facts: NetworkFacts) -> "Objective":
        """Checks the hyperparameters against the networks and fills in what depends on them.

        Raises:
          ConfigError: features that cannot be compared, or classes that do not fit.
        """
        advice = "Name a tap where both shapes are equal, or give both networks the same width."
        if self.taps.student:
            check_feature_shapes(facts.student_features, facts.teacher_features, advice)
        return self

    def dynamic_hparams(self) -> Mapping[str, int | float]:
        """Hyperparameters that are arguments of the compiled program; losses read them by `hparam`.

        Students of a sweep may differ in them, and other values do not compile again.
        """
        return {}

    def inert_hparams(self) -> tuple[str, ...]:
        """Hyperparameters without effect as the others are set; they do not enter the digest.

        So stages stay in the cache when an objective gains a hyperparameter that is off.
        """
        return ()

    def teacher_calls(self, each: int = 1) -> float:
        """Mean number of teacher forward passes per example of one train step.

        Args:
          each: cost of one prediction: 2 with guidance. Reading features costs 1.
        """
        del each
        return 0

    def alarms(self, means: Mapping[str, float]) -> tuple[Alarm, ...]:
        """The alarms that the mean metrics of a log interval raise."""
        del means
        return ()


Method = TypeVar("Method", bound=Objective)


def filled_in(default: object = None) -> PyTree:
    """A field that planning fills in; it is no hyperparameter and no setting."""
    return dataclasses.field(default=default, metadata={"filled_in": True})


def hparam(objective: Objective, name: str, tables: LevelTables) -> Array | float:
    """A hyperparameter: the program's argument where it is one, else the objective's value."""
    return tables.values.get(name, getattr(objective, name))


def static_part(objective: Method) -> Method:
    """The objective with its `dynamic_hparams` set to 1: equal programs are equal values."""
    dynamic = objective.dynamic_hparams()
    return dataclasses.replace(objective, **{k: type(v)(1) for k, v in dynamic.items()})


def student_updates(objective: Objective, steps: int) -> int:
    """Updates of the student in so many steps."""
    return sum(u.updates(steps) for u in objective.updates if "student" in u.trained)


def trained_auxiliaries(objective: Objective) -> dict[str, nn.Module]:
    """The modules beside the student that an optimiser changes, by name."""
    found = {name: own.module for name, own in objective.auxiliaries.items() if own.trained}
    return {name: module for name, module in found.items() if module is not None}


def init_inputs(
    objective: Objective, name: str, image_shape: ImageShape, conditional: bool
) -> tuple[PyTree, ...]:
    """Arguments, after the random key, that initialise the network `name`.

    Args:
      objective: the method.
      name: "student", or one of its auxiliaries.
      image_shape: (H, W, C) of the data.
      conditional: whether denoisers are given classes.
    """
    form = objective.trains if name == "student" else objective.auxiliaries[name].form
    return form.inputs(image_shape, conditional)


def bind(
    objective: Objective, name: str, module: nn.Module, weights: Weights, prediction: str
) -> Bound:
    """Joins a network's module and its weights into the network that losses and samplers call.

    Args:
      objective: the method.
      name: "student", or one of its auxiliaries.
      module, weights: of that network.
      prediction: what the stage's student predicts.
    """
    own = objective.auxiliaries.get(name) if name != "student" else None
    if own is None or own.start == "average":
        return objective.trains.bind(module, weights, prediction)
    return own.form.bind(module, weights, own.prediction or prediction)


def predict(
    network: Bound,
    taps: tuple[str, ...],
    z: Images,
    level: Level,
    cond: Labels | None,
    key: RandomKey | None = None,
) -> tuple[Prediction, Features]:
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
    """Raises `ConfigError` if one of the named hyperparameters is below zero or not finite."""
    for name in names:
        value = getattr(objective, name)
        if not np.isfinite(value) or value < 0:
            raise ConfigError(f"objective.{name}={value!r} must be a number >= 0.")


def target_rate(auxiliary: Auxiliary, progress: Scalar) -> Scalar | float:
    """The rate of an average at a training progress."""
    return auxiliary.rate(progress) if callable(auxiliary.rate) else auxiliary.rate


def start_memory(objective: Objective, key: RandomKey) -> dict[str, Array]:
    """The objective's memory before the first step."""
    found = {}
    for i, (name, own) in enumerate(sorted(objective.memory.items())):
        if own.start is None:
            found[name] = jnp.zeros(own.shape, own.dtype)
        else:
            found[name] = own.start(jax.random.fold_in(key, i), own.shape, own.dtype)
    return found
