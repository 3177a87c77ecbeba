"""The protocol of a distillation method; how it is trained is not a part of it.

An objective is a frozen dataclass of hyperparameters. Its `updates` name the networks that learn
from each loss; a loss returns one value per example, and the train step averages, differentiates
and optimises. Objectives know no optimiser, device or checkpoint. Every member but `updates` has a
default, so that a method defines only what it needs.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree

from ddistill.conditions import Condition
from ddistill.diffusion import Prediction
from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives.inputs import LevelTables
from ddistill.objectives.parts import (
    DENOISER,
    Auxiliary,
    Bound,
    Diagnostics,
    FeatureShapes,
    ImageShape,
    Memory,
    NetworkForm,
    Range,
    Requirements,
    StageFacts,
    Taps,
    Update,
)
from ddistill.schedules import Level
from ddistill.typing import Features, Images, RandomKey, Scalar


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
    def extra_inputs(self) -> Mapping[str, Range]:
        """By name in `networks.extras.EXTRAS`, the scalars that the losses give the student."""
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
    def any_steps(self) -> bool:
        """Whether a student can be sampled in any number of steps on its levels."""
        return False

    @property
    def null_class_share(self) -> float | None:
        """Share of examples without a class that the student is trained on; None if not known."""
        return None

    @property
    def diagnostics(self) -> Diagnostics:
        """What is watched while students train, and measured and drawn of trained ones."""
        return Diagnostics()

    def prepare(self, facts: StageFacts) -> Self:
        """Checks the hyperparameters against the stage and fills in what depends on it.

        Args:
          facts: the student's grid, the networks and the sizes of the stage. When a finished run is
            opened, the networks and sizes are not known.

        Raises:
          ConfigError: a hyperparameter that cannot work on the grid or with the networks, or a
            memory that the stage cannot fill.
        """
        del facts
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


Method = TypeVar("Method", bound=Objective)


def filled_in(default: object = None, *, in_program: bool = True) -> PyTree:
    """A field that planning fills in; it is no hyperparameter and no setting.

    Args:
      default: before planning.
      in_program: whether the losses read it. If not, objectives that differ in it are equal, and
        share a compiled program.
    """
    return dataclasses.field(default=default, compare=in_program, metadata={"filled_in": True})


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
    objective: Objective,
    name: str,
    image_shape: ImageShape,
    conditional: bool,
    module: nn.Module | None = None,
) -> tuple[PyTree, ...]:
    """Arguments, after the random key, that initialise the network `name`.

    Args:
      objective: the method.
      name: "student", or one of its auxiliaries.
      image_shape: (H, W, C) of the data.
      conditional: whether denoisers are given classes.
      module: the network; a denoiser that reads texts is given one.
    """
    form = objective.trains if name == "student" else objective.auxiliaries[name].form
    return form.inputs_of(module, image_shape, conditional)


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
    cond: Condition | None,
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


def check_unused(objective: Objective, reason: str, *names: str) -> None:
    """Raises `ConfigError` where hyperparameters without effect differ from their defaults."""
    usual = {f.name: f.default for f in dataclasses.fields(objective)}
    for name in names:
        if getattr(objective, name) != usual[name]:
            raise ConfigError(
                f"objective.{name}={getattr(objective, name)!r} has no effect: {reason}."
            )


def check_dropout(objective: Objective, facts: StageFacts) -> None:
    """Raises `ConfigError` where conditions are to be dropped that the student does not have."""
    if facts.steps and not facts.conditional:
        check_unused(
            objective, "the student has no conditions (conditional=False)", "label_dropout"
        )


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
