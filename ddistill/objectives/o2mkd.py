"""O2MKD: a teacher's output, learnt by students that each answer for a range of noise levels.

Source: arXiv 2410.04191. The objective is the distillation of one output at one noise level. That
there are many students, and which levels each one is shown, is the stage's `students` setting,
which every other objective can be given too; with one student this is plain knowledge distillation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree

from ddistill.diffusion import WEIGHTS
from ddistill.errors import ConfigError, check_choice
from ddistill.networks.projection import Projection
from ddistill.networks.weights import Weights
from ddistill.objectives.base import check_feature_shapes, filled_in
from ddistill.objectives.distances import ERRORS, PredictionDistance
from ddistill.objectives.label_dropout import LabelDropout
from ddistill.objectives.parts import (
    Auxiliary,
    FeatureShapes,
    ImageShape,
    NetworkForm,
    Networks,
    StageFacts,
    Taps,
)
from ddistill.objectives.sampling import LAWS, Law
from ddistill.typing import Features


@dataclass(frozen=True)
class O2MKD(LabelDropout):
    """O2MKD (arXiv 2410.04191): the teacher's output at single noise levels.

    With `classifier_weight` above 0 the two predicted clean images are compared in a classifier's
    feature space too. With `label_dropout` teacher and student are given the null condition for a
    share of the examples, so that the student can be guided (`sample_guidance` of the stage).

    With `feature_weight` above 0 hidden features of the two networks are compared, as in earlier
    distillation (FitNets, arXiv 1412.6550). Features of unlike widths are compared through 1x1
    convolutions of the student's, the network "projection", which every student learns for itself,
    beside it and at its rate; a stage does not hand them on. Features of equal widths are compared
    as they are.

    Attributes:
      error: quantity whose squared error is taken: "x0", "eps" (the paper's) or "v".
      weight: of a noise level, as in `PredictionDistance`.
      levels: how noise levels are drawn: "uniform" over the table, or "lognormal" (EDM).
      output_weight: weight of the distance to the teacher's prediction.
      task_weight: weight of the distance to the data, the teacher's own loss. 0 by default, because
        the teacher's prediction is an estimate of the mean of this target, without its variance.
      feature_weight: weight of the distance between features; 0.1 is our choice where it is on.
      features: taps of both networks whose features are compared: by default the U-Net's middle and
        what its last up block gives to the last convolution.
      projected: (tap, the student's channels, the teacher's) of the features that are projected.
    """

    teacher_reason: ClassVar[str] = "it learns the teacher's predictions"
    classifier_target: ClassVar[str] = "teacher"
    reports_data_error: ClassVar[bool] = True

    error: str = "eps"
    weight: str = "uniform"
    levels: str = "uniform"
    output_weight: float = 1.0
    task_weight: float = 0.0
    feature_weight: float = 0.0
    features: tuple[str, ...] = ("mid", "last")
    projected: tuple[tuple[str, int, int], ...] = filled_in(())

    def __post_init__(self):
        names = (self.features,) if isinstance(self.features, str) else tuple(self.features)
        object.__setattr__(self, "features", names)  # hashable, also where a list was given
        check_choice("objective.error", self.error, ERRORS)
        check_choice("objective.weight", self.weight, WEIGHTS)
        check_choice("objective.levels", self.levels, LAWS)
        super().__post_init__()
        if self.feature_weight and (not names or len(set(names)) < len(names)):
            raise ConfigError(
                f"objective.features={names!r} must name at least one feature tap, and each once, "
                "for example ('mid', 'last')."
            )

    def distances(self) -> Mapping[str, tuple[str, PredictionDistance]]:
        """The distances to the teacher's prediction and to the data."""
        distance = PredictionDistance(self.error, self.weight)
        return {"output": ("teacher", distance), "task": ("data", distance)}

    @property
    def level_law(self) -> Law:
        """As set."""
        return Law(self.levels)

    def projected_features(self, networks: Networks, features: Features) -> Features:
        """The student's features, projected where their widths differ from the teacher's."""
        return networks["projection"](features) if self.projected else features

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The projections of unlike features."""
        if not self.projected:
            return {}
        widths = tuple((tap, theirs) for tap, _, theirs in self.projected)
        inputs = {tap: ours for tap, ours, _ in self.projected}
        return {"projection": Auxiliary(_projection_form(inputs), Projection(widths))}

    @property
    def taps(self) -> Taps:
        """The taps of the features that are compared."""
        used = self.features if self.feature_weight else ()
        return Taps(used, used)

    def prepare(self, facts: StageFacts) -> Self:
        """Finds the features to be projected; refuses differences in more than channels."""
        own = super().prepare(facts)
        student, teacher = facts.networks.student_features, facts.networks.teacher_features
        if not (self.feature_weight and student):
            return own
        widths = [(tap, student[tap][-1], teacher[tap][-1]) for tap in self.features]
        return dataclasses.replace(own, projected=tuple(x for x in widths if x[1] != x[2]))

    def check_features(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        """Refuses features that differ in more than channels, which projections join."""
        advice = (
            "Only channels may differ: name other taps in objective.features, or use networks that "
            "halve the image equally often."
        )
        check_feature_shapes(student, teacher, advice, channels=False)

    def inert_hparams(self) -> tuple[str, ...]:
        """The hyperparameters of features and of label dropout, where they are off."""
        features = () if self.feature_weight else ("feature_weight", "features")
        dropout = () if self.label_dropout else ("label_dropout", "null_class")
        return (*super().inert_hparams(), *features, *dropout)

    @property
    def null_class_share(self) -> float | None:
        """The share of dropped labels; without dropout the teacher's examples are not known."""
        return self.label_dropout or None

    def teacher_calls(self, each: int = 1) -> int:
        """One, unless all distances are to the data."""
        return each * ("teacher" in self.targets_in_use()) + self.rollout_calls(each)


def _projection_form(inputs: Mapping[str, int]) -> NetworkForm:
    """Projections as a function of {tap: features}; `inputs` are the student's channels by tap."""

    def features(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
        del image_shape, conditional
        return ({tap: jnp.zeros((1, 1, 1, channels)) for tap, channels in inputs.items()},)

    def bind(module: nn.Module, weights: Weights, prediction: str) -> Callable[..., PyTree]:
        del prediction
        return partial(module.apply, weights.variables())

    return NetworkForm("denoiser", features, bind)


@dataclass(frozen=True)
class TSM(O2MKD):
    """TSM, the first stage of MSD (arXiv 2410.23274): the teacher's prediction for a small student.

    Without teacher score matching small students of
    distribution matching do not converge. It is the output distance in x0, with EDM's weights and
    EDM's distribution of noise levels (arXiv 2206.00364 table 1).
    """

    error: str = "x0"
    weight: str = "edm"
    levels: str = "lognormal"
