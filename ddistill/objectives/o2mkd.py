"""O2MKD: a teacher's output, learnt by students that each answer for a range of noise levels.

Source: arXiv 2410.04191. The objective is the distillation of one output at one noise level. That
there are many students, and which levels each one is shown, is the stage's `students` setting,
which every other objective can be given too; with one student this is plain knowledge distillation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.diffusion import Prediction, add_noise
from ddistill.errors import ConfigError, check_choice
from ddistill.networks.projection import Projection
from ddistill.networks.weights import Weights
from ddistill.objectives.base import (
    FeatureShapes,
    Metrics,
    Networks,
    Update,
    check_feature_shapes,
    check_not_negative,
    filled_in,
    predict,
)
from ddistill.objectives.classifier_terms import ClassifierTerms
from ddistill.objectives.denoising import ERRORS, WEIGHTS, weighted_error
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.sampling import draw_index, mean_per_example, normal, streams


@dataclass(frozen=True)
class O2MKD(ClassifierTerms):
    """Output distillation at single noise levels.

    With `classifier_weight` above 0 the two predicted clean images are compared in a classifier's
    feature space too.

    With `feature_weight` above 0 hidden features of the two networks are compared, as in earlier
    distillation (FitNets, arXiv 1412.6550). Features of unlike widths are compared through 1x1
    convolutions of the student's, the network "projection", which every student learns for itself,
    beside it and at its rate; a stage does not hand them on. Features of equal widths are compared
    as they are.

    Attributes:
      error: quantity whose squared error is taken: "x0", "eps" (the paper's) or "v".
      weight: of a level, as in `weighted_error`.
      output_weight: weight of the distance to the teacher's prediction.
      task_weight: weight of the distance to the data, the teacher's own loss. 0 by default: the
        teacher's prediction is the mean of what it varies around.
      feature_weight: weight of the distance between features; 0.1 is our choice where it is on.
      features: taps of both networks whose features are compared: by default the U-Net's middle and
        what its last up block gives to the last convolution.
      projected: (tap, the student's channels, the teacher's) of the features that are projected.
    """

    needs_teacher: ClassVar[bool] = True

    error: str = "eps"
    weight: str = "uniform"
    output_weight: float = 1.0
    task_weight: float = 0.0
    feature_weight: float = 0.0
    features: tuple[str, ...] = ("mid", "last")
    projected: tuple[tuple[str, int, int], ...] = filled_in(())

    def __post_init__(self):
        super().__post_init__()
        names = (self.features,) if isinstance(self.features, str) else tuple(self.features)
        object.__setattr__(self, "features", names)  # hashable, also where a list was given
        check_choice("objective.error", self.error, ERRORS)
        check_choice("objective.weight", self.weight, WEIGHTS)
        weights = ("output_weight", "task_weight", "feature_weight", "classifier_weight")
        check_not_negative(self, *weights)
        if not any(getattr(self, name) for name in weights):
            raise ConfigError(f"objective: {', '.join(weights)} are all 0; set one above 0.")
        if self.feature_weight and (not names or len(set(names)) < len(names)):
            raise ConfigError(
                f"objective.features={names!r} must name at least one feature tap, and each once, "
                "for example ('mid', 'last')."
            )

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student and its projections."""
        return (Update(("student", *self.networks()), self.loss),)

    def networks(self) -> Mapping[str, nn.Module]:
        """The projections of unlike features."""
        if not self.projected:
            return {}
        return {"projection": Projection(tuple((tap, theirs) for tap, _, theirs in self.projected))}

    def prepare_features(self, student: FeatureShapes, teacher: FeatureShapes) -> "O2MKD":
        """Finds the features to be projected; refuses those that differ in more than channels."""
        advice = (
            "Only channels may differ: name other taps in objective.features, or use networks that "
            "halve the image equally often."
        )
        check_feature_shapes(student, teacher, advice, channels=False)
        widths = [(tap, student[tap][-1], teacher[tap][-1]) for tap in self.features]
        unlike = tuple(x for x in widths if x[1] != x[2])
        return self.replace(projected=unlike)  # type: ignore[return-value]

    def bind(self, name: str, module: nn.Module, weights: Weights, prediction: str) -> Any:
        """Joins module and weights; projections are a function of {tap: features}."""
        if name == "projection":
            return partial(module.apply, weights.variables())
        return super().bind(name, module, weights, prediction)

    def init_inputs(
        self, name: str, image_shape: tuple[int, int, int], conditional: bool
    ) -> tuple[Any, ...]:
        """One pixel of each feature for the projections."""
        if name == "projection":
            return ({tap: jnp.zeros((1, 1, 1, ours)) for tap, ours, _ in self.projected},)
        return super().init_inputs(name, image_shape, conditional)

    def without_effect(self) -> tuple[str, ...]:
        """What belongs to the features, where none are compared."""
        return () if self.feature_weight else ("feature_weight", "features")

    def taps(self) -> tuple[str, ...]:
        """The taps of the features that are compared."""
        return self.features if self.feature_weight else ()

    def teacher_calls(self, each: int = 1) -> int:
        """One, unless nothing is asked of the teacher."""
        return each * any((self.output_weight, self.feature_weight, self.classifier_weight))

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics]:
        """The weighted sum of the distances at a level that the student is trained on."""
        index_keys, noise_keys = streams(batch.keys, 2)
        index = draw_index(index_keys, tables)
        level, teacher_level = tables.student.at(index), tables.teacher.at(tables.grid[index])
        noise = normal(noise_keys, batch.image)
        z = add_noise(batch.image, noise, level)
        taps = self.taps()
        student, ours = predict(networks["student"], taps, z, level, batch.cond, batch.keys[0])
        terms: list[Array] = []
        metrics: Metrics = {}
        if self.teacher_calls():
            teacher, theirs = jax.lax.stop_gradient(
                predict(networks["teacher"], taps, z, teacher_level, batch.cond)
            )
        if self.output_weight:
            distance = weighted_error(student, teacher, z, level, self.error, self.weight)
            metrics["output_distance"] = jnp.mean(distance)
            terms.append(self.output_weight * distance)
        if self.task_weight:
            data = Prediction(x0=batch.image, eps=noise)
            distance = weighted_error(student, data, z, level, self.error, self.weight)
            metrics["task_distance"] = jnp.mean(distance)
            terms.append(self.task_weight * distance)
        if self.feature_weight:
            if self.projected:
                ours = networks["projection"](ours)
            distance = feature_distance(ours, theirs)
            metrics["feature_distance"] = jnp.mean(distance)
            terms.append(self.feature_weight * distance)
        if self.classifier_weight:
            distance, found = self.classifier_distance(
                networks["classifier"], student.x0, teacher.x0
            )
            metrics |= found
            terms.append(self.classifier_weight * distance)
        x0_error = mean_per_example(jnp.square(student.x0 - batch.image))
        return jnp.sum(jnp.stack(terms), axis=0), {**metrics, "x0_mse": jnp.mean(x0_error)}


def feature_distance(
    student: Mapping[str, Float[Array, "B H W C"]], teacher: Mapping[str, Float[Array, "B H W C"]]
) -> Float[Array, " B"]:
    """Mean squared error of each feature, summed over taps."""

    def error(tap: str) -> Float[Array, " B"]:
        # Features may be bfloat16; a loss is not.
        difference = student[tap].astype(jnp.float32) - teacher[tap].astype(jnp.float32)
        return mean_per_example(jnp.square(difference))

    return jnp.sum(jnp.stack([error(tap) for tap in teacher]), axis=0)
