"""The regression loss: draw a state, predict, and sum weighted distances to targets.

A method of regression says what its target is (`target`) and which distances are taken
(`distances`). Everything else is here: the noise level and the noisy image, the student's
prediction and its hidden features, the teacher's prediction at the same image, the distances in a
classifier's feature space (CFD and RCFD, arXiv 2211.12039), weights and metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from ddistill.conditions import Condition
from ddistill.diffusion import Prediction
from ddistill.errors import ConfigError
from ddistill.objectives.base import (
    check_feature_shapes,
    check_not_negative,
    hparam,
    predict,
    trained_auxiliaries,
)
from ddistill.objectives.distances import (
    ClassifierLike,
    PredictionDistance,
    class_terms,
    feature_distance,
    feature_divergence,
    mean_per_example,
)
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.mixing import MixedStates
from ddistill.objectives.parts import (
    FeatureShapes,
    LossAux,
    Networks,
    Requirements,
    StageFacts,
    Update,
)
from ddistill.objectives.sampling import Law
from ddistill.objectives.states import State, forward_state
from ddistill.typing import Features, Images, Metrics, PerExample
from ddistill.wrapped_denoiser import ClippedDenoiser


@struct.dataclass
class Compared:
    """What the distances of one loss are taken between.

    Attributes:
      student: the student's prediction.
      features: its hidden features by tap.
      targets: predictions by name: "data" (the clean image and its noise), "teacher" (the teacher's
        prediction at the same image) and "target" (the method's own); only the targets in use.
      teacher_features: the teacher's hidden features by tap.
    """

    student: Prediction
    features: Features
    targets: Mapping[str, Prediction]
    teacher_features: Features


@dataclass(frozen=True)
class Distillation(MixedStates):
    """A student that regresses onto targets; a method of it is a `target` and defaults.

    Attributes:
      classifier_weight: weight of the distances in a classifier's feature space; 0 leaves the
        classifier out.
      tau: temperature of the target's features alone. Below 1 it sharpens them, and the optimum is
        then at features / tau and no longer at the target.
      beta: weight of the terms on the predicted classes, relative to the features' (RCFD; the
        released code calls it alpha).
      gamma: share of the entropy among them; the rest is diversity (released code: beta).
    """

    # The target of the classifier's distance, and the norm of hidden features.
    classifier_target: ClassVar[str] = "target"
    feature_norm: ClassVar[str] = "l2"
    # Whether metrics have the error of x0 against the data, for methods that see no other measure.
    reports_data_error: ClassVar[bool] = False
    # Why the stage needs a teacher; "" where it needs none.
    teacher_reason: ClassVar[str] = ""

    classifier_weight: float = 0.0
    tau: float = 0.9
    beta: float = 0.0
    gamma: float = 0.75

    def __post_init__(self):
        check_not_negative(self, "classifier_weight", "beta")
        if not self.tau > 0:
            raise ConfigError(f"objective.tau={self.tau!r} must be above 0.")
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"objective.gamma={self.gamma!r} is a share; allowed: 0 to 1.")
        self.check_states()
        self._check_weights()
        self._check_rollouts()

    def prepare(self, facts: StageFacts) -> Self:
        """Refuses features that cannot be compared, see `check_features`."""
        if self.taps.teacher:
            self.check_features(facts.networks.student_features, facts.networks.teacher_features)
        return super().prepare(facts)

    def check_features(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        """Raises `ConfigError` where student and teacher have features of unlike shapes."""
        advice = "Name a tap where both shapes are equal, or give both networks the same width."
        check_feature_shapes(student, teacher, advice)

    def _check_rollouts(self) -> None:
        of_data = [name for name in self.terms() if self._target_of(name) == "data"]
        if of_data and self.mixes:
            raise ConfigError(
                f"objective: the distance '{of_data[0]}' compares with the data, but the images of "
                "rollouts (teacher_states, student_states) belong to no image of the data. Leave "
                "the distance out, or set both shares to 0."
            )

        if self.clip_x0 and not self.mixes and self.targets_in_use() <= {"data"}:
            raise ConfigError(
                "objective.clip_x0=True has no effect: all distances compare with the data, and no "
                "state comes from a rollout. Leave it out."
            )

    def _target_of(self, name: str) -> str:
        """The target of a term."""
        if name == "classifier":
            return self.classifier_target
        return "teacher" if name == "feature" else self.distances()[name][0]

    def _check_weights(self) -> None:
        names = [f"{name}_weight" for name in self.all_terms() if hasattr(self, f"{name}_weight")]
        check_not_negative(self, *names)
        if len(names) == len(self.all_terms()) and not any(getattr(self, name) for name in names):
            raise ConfigError(f"objective: {', '.join(names)} are all 0; set one above 0.")

    # ------------------------------------------------------------------- what a method says

    def distances(self) -> Mapping[str, tuple[str, PredictionDistance]]:
        """The distances of predictions, by term: (name of the target, the distance).

        The hyperparameter TERM_weight weighs a term, and its metric is TERM_distance.
        """
        raise TypeError(f"{type(self).__name__} does not define its distances.")

    def target(self, networks: Networks, state: State, tables: LevelTables) -> Prediction:
        """The method's own target at `state.z`; no gradient is taken through it."""
        raise TypeError(f"{type(self).__name__} does not define its target.")

    @property
    def level_law(self) -> Law:
        """How noise levels are drawn."""
        return Law()

    def condition(self, batch: Batch) -> Condition | None:
        """The conditions that the networks are given."""
        return batch.cond

    def projected_features(self, networks: Networks, features: Features) -> Features:
        """The student's features in the shapes of the teacher's."""
        del networks
        return features

    def example_weights(self, state: State, tables: LevelTables) -> PerExample | None:
        """Weights of the examples, for weights that depend on more than their noise level."""
        del state, tables
        return None

    # -------------------------------------------------------------------------------- the loss

    def all_terms(self) -> tuple[str, ...]:
        """Names of all terms, in use or not."""
        feature = ("feature",) if hasattr(self, "feature_weight") else ()
        return (*self.distances(), *feature, "classifier")

    def terms(self) -> tuple[str, ...]:
        """Names of the terms in use."""
        return tuple(name for name in self.all_terms() if getattr(self, f"{name}_weight", 1.0))

    def targets_in_use(self) -> frozenset[str]:
        """Names of the targets that the terms in use need."""
        return frozenset(self._target_of(name) for name in self.terms())

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student, and of the networks beside it."""
        loss = self.loss_and_memory if self.memory else self.regression_loss
        return (Update(("student", *trained_auxiliaries(self)), loss),)

    def regression_loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The weighted sum of the distances at a level that the student is trained on."""
        values, metrics, _ = self.loss_and_memory(networks, batch, tables)
        return values, metrics

    def loss_and_memory(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics, LossAux]:
        """`regression_loss`, with the new memory of methods that have one."""
        networks = self._clipped(networks)
        state = self.state(networks, batch, tables)
        found = self.compared(networks, state, batch, tables)
        terms: dict[str, PerExample] = {}
        metrics: dict[str, jax.Array] = {}
        for name, (target, distance) in self.distances().items():
            if name in self.terms():
                wanted = found.targets[target]
                terms[name] = distance(found.student, wanted, state.z, state.level)
        if "feature" in self.terms():
            terms["feature"] = feature_distance(
                self.projected_features(networks, found.features),
                found.teacher_features,
                self.feature_norm,
            )
        metrics |= {f"{name}_distance": jnp.mean(term) for name, term in terms.items()}
        judged, own, aux = self.classifier_terms(networks, found, batch)
        terms |= judged
        metrics |= own
        if self.reports_data_error and not self.mixes:
            error = mean_per_example(jnp.square(found.student.x0 - batch.image))
            metrics["x0_mse"] = jnp.mean(error)
        weighted = [self._weight_of(name, tables) * term for name, term in terms.items()]
        values = jnp.sum(jnp.stack(weighted), axis=0)
        weights = self.example_weights(state, tables)
        aux = aux.replace(memory={**aux.memory, **state.memory})  # type: ignore[attr-defined]
        return values if weights is None else values * weights, metrics, aux

    def _clipped(self, networks: Networks) -> Networks:
        """The networks, with x0 clipped where targets are taken from, if that is set."""
        if not self.clip_x0:
            return networks
        averages = [name for name, own in self.auxiliaries.items() if own.start == "average"]
        names = [n for n in ("teacher", *averages) if networks.get(n) is not None]
        return {**networks, **{name: ClippedDenoiser(networks[name]) for name in names}}

    def state(self, networks: Networks, batch: Batch, tables: LevelTables) -> State:
        """The noisy images of a batch."""
        state = forward_state(batch, tables, self.level_law, self.condition(batch))
        return self.mixed(state, networks, batch, tables)

    def compared(
        self, networks: Networks, state: State, batch: Batch, tables: LevelTables
    ) -> Compared:
        """The student's prediction and the targets in use at a state."""
        z, cond, taps = state.z, state.cond, self.taps.student
        student, ours = predict(networks["student"], taps, z, state.level, cond, batch.dropout_key)
        needed, targets = self.targets_in_use(), {"data": state.data}
        theirs: Features = {}
        if "teacher" in needed:
            teacher, theirs = jax.lax.stop_gradient(
                predict(networks["teacher"], taps, z, state.teacher_level, cond)
            )
            targets["teacher"] = teacher
            state = state.replace(teacher=teacher)  # type: ignore[attr-defined]
        if "target" in needed:
            target = self.target(networks, state, tables)
            targets["target"] = jax.lax.stop_gradient(target)
        return Compared(student, ours, targets, theirs)

    def _weight_of(self, name: str, tables: LevelTables) -> float | jax.Array:
        key = f"{name}_weight"
        return hparam(self, key, tables) if hasattr(self, key) else 1.0

    def classifier_terms(
        self, networks: Networks, found: Compared, batch: Batch
    ) -> tuple[dict[str, PerExample], Metrics, LossAux]:
        """The terms in use that a classifier is needed for, their metrics, and what they keep."""
        del batch
        if not self.classifier_weight:
            return {}, {}, LossAux()
        wanted = found.targets[self.classifier_target]
        values, metrics = self.classifier_distance(
            networks["classifier"], found.student.x0, wanted.x0
        )
        return {"classifier": values}, metrics, LossAux()

    def classifier_distance(
        self, classifier: ClassifierLike, student: Images, target: Images
    ) -> tuple[PerExample, Metrics]:
        """The classifier's terms per example, without `classifier_weight`, and their means.

        A student's clean image and its target go through the same classifier; their pooled
        features, read as the logits of a distribution over channels, are compared by a
        Kullback-Leibler divergence. Two terms keep the student on the classes of the data: each
        image's prediction confident (entropy), their batch mean spread out (diversity).

        Args:
          classifier: images in [-1, 1] -> (logits `[B, K]`, features `[B, D]`).
          student: the student's clean images, not clipped.
          target: the clean images that it should predict; constants.
        """
        _, wanted = jax.lax.stop_gradient(classifier(target))
        return self.divergence_of_features(*classifier(student), wanted)

    def divergence_of_features(
        self,
        logits: Float[Array, "B K"],
        features: Float[Array, "B D"],
        wanted: Float[Array, "B D"],
    ) -> tuple[PerExample, Metrics]:
        """`classifier_distance` for what the classifier has returned.

        Args:
          logits, features: for the student's images.
          wanted: the features of the target, constants.
        """
        values = feature_divergence(features, wanted, self.tau)
        metrics = {"classifier_distance": jnp.mean(values)}
        if self.beta:
            entropy, diversity = class_terms(logits)
            values = values + self.beta * (self.gamma * entropy + (1.0 - self.gamma) * diversity)
            metrics |= {"entropy": jnp.mean(entropy), "diversity": jnp.mean(diversity)}
        return values, metrics

    # ------------------------------------------------------------------ what the stage provides

    @property
    def requires(self) -> Requirements:
        """The teacher, the classifier and the whole batch, where the terms in use need them."""
        diversity = self.classifier_weight > 0 and self.beta > 0 and self.gamma < 1
        rollouts = "objective.teacher_states is above 0" if self.teacher_states else ""
        return Requirements(
            teacher=self.teacher_reason or rollouts,
            all_levels="objective.student_states above 0 walks all levels in training"
            if self.student_states
            else "",
            classifier="objective.classifier_weight is above 0" if self.classifier_weight else "",
            whole_batch="the classifier's diversity is a function of the mean over the whole batch "
            "(objective.gamma=1 drops it)"
            if diversity
            else "",
        )
