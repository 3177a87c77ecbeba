"""What methods of distribution matching can be set to, and what they need of a stage."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from ddistill.diffusion import WEIGHTS
from ddistill.errors import ConfigError, check_choice
from ddistill.networks.discriminator import Discriminator
from ddistill.networks.weights import Weights
from ddistill.objectives.base import check_not_negative, check_unused, filled_in
from ddistill.objectives.distances import REGRESSIONS
from ddistill.objectives.matching.adversarial import DIVERGENCES
from ddistill.objectives.matching.alarms import matching_alarms
from ddistill.objectives.matching.generator import BACKWARD
from ddistill.objectives.mixing import MixedStates
from ddistill.objectives.parts import (
    DENOISER,
    Auxiliary,
    Diagnostics,
    ImageShape,
    NetworkForm,
    Requirements,
    StageFacts,
    Taps,
)

FEATURES_OF = ("fake", "teacher")


@dataclass(frozen=True)
class BoundDiscriminator:
    """The discriminator with its weights, a function of {tap: features}.

    Attributes:
      module, weights: of the network.
    """

    module: nn.Module
    weights: Weights

    def __call__(self, features: Mapping[str, Array]) -> Float[Array, "B N"]:
        """Logits."""
        return self.module.apply(self.weights.variables(), features)  # type: ignore[return-value]

    @property
    def ratio_mean(self) -> Float[Array, " M"]:
        """`[M]`, the running means of the density ratio by bin; needs `ratio_ema` above 0."""
        return self.weights.statistics["ratio_mean"]


def _discriminator_form(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> NetworkForm:
    """A discriminator of features of these shapes, by tap."""

    def features(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
        del image_shape, conditional
        return ({tap: jnp.zeros((1, *shape)) for tap, shape in shapes},)

    def bind(module: nn.Module, weights: Weights, prediction: str) -> BoundDiscriminator:
        del prediction
        return BoundDiscriminator(module, weights)

    return NetworkForm("classifier", features, bind)


@dataclass(frozen=True)
class MatchingSettings(MixedStates):
    """Hyperparameters of all methods of this family, whose losses `Matching` adds.

    With `backward="data"`, shares of the student's inputs can come from rollouts (`MixedStates`).

    The student's loss is the sum of `score_weight` times the score difference, `regression_weight`
    times the distance to the teacher's images from the same noise, and `gan_weight` times an
    adversarial loss. The first two are means over pixels and channels, and the third is one value
    per image: for another image size, keep gan_weight * H * W * C.

    Attributes:
      score_weight: of the score difference; 0 leaves the fake denoiser out.
      lowest, highest: range of the noise levels at which generated images are noised, for the score
        difference and for the discriminator, as shares of the teacher's T.
      floor: added to the normaliser of the score difference.
      fake_weight: weight of the fake denoiser's x0 error by noise level, as in
        `PredictionDistance`.
      regression_weight: of the regression on pairs; 0 leaves it out.
      regression: "l2", "pseudo_huber", or "classifier" features, in place of the paper's LPIPS.
      filter_pairs: whether a student of some classes is given the pairs of its classes alone; MSD
        found fewer modes and worse images with it (arXiv 2410.23274).
      gan_weight: of the adversarial loss on generated images; 0 leaves the discriminator out.
      discriminator_weight: of the discriminator's own loss.
      features_of: the network that gives the discriminator its features: "fake", the encoder of
        which then learns to discriminate too (DMD2), or "teacher", which stays fixed (LADD,
        FastGen).
      features: the feature taps.
      smooth_weight, smooth_step: weight of the approximate R1 penalty on real images, and standard
        deviation of the noise that it adds to them.
      divergence: the f-divergence that the student minimises. All but "rkl" weight the score
        difference by the density ratio of the discriminator (f-distill, arXiv 2502.15681).
      ratio_bins: number of bins of noise levels, see `noise_bins`. The density ratio is divided by
        its mean over the batch's examples in the same bin. 10 as in f-distill's release; 0 is off.
      ratio_ema: decay rate per step of running means of the ratio by bin, in [0, 1). 0 takes the
        means of the batch, as the release does on CIFAR-10; on ImageNet-64 it has 0.5.
      student_every: the student is updated at steps divisible by this, all other networks at every
        step.
      alternate: whether the other networks are left out at the student's steps.
      backward: source of the inputs of students of several steps, see `matching.generator`.
      fake, fake_prediction, shapes, top, steps: the teacher's network, what it predicts, the shapes
        of its features, its noisiest level, and the student's steps.
    """

    score_weight: float = 1.0
    lowest: float = 0.02
    highest: float = 0.98
    floor: float = 1e-6
    fake_weight: str = "edm"
    regression_weight: float = 0.0
    regression: str = "l2"
    filter_pairs: bool = False
    gan_weight: float = 0.0
    discriminator_weight: float = 1.0
    features_of: str = "teacher"
    features: tuple[str, ...] = ("mid",)
    smooth_weight: float = 0.0
    smooth_step: float = 0.1
    divergence: str = "rkl"
    ratio_bins: int = 10
    ratio_ema: float = 0.0
    student_every: int = 1
    alternate: bool = False
    backward: str = "none"
    fake: nn.Module | None = filled_in(None)  # noqa: RUF009
    fake_prediction: str = filled_in("")
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = filled_in(())
    top: int = filled_in(0)
    steps: int = filled_in(1)

    def __post_init__(self):
        names = (self.features,) if isinstance(self.features, str) else tuple(self.features)
        object.__setattr__(self, "features", names)  # hashable, also where a list was given
        _check(self)

    @property
    def requires(self) -> Requirements:
        """A teacher, and what the terms in use need."""
        return Requirements(
            teacher="its student follows the teacher's score",
            classifier="objective.regression is 'classifier'"
            if self.regression_weight and self.regression == "classifier"
            else "",
            pairs="objective.regression_weight is above 0" if self.regression_weight else "",
            own_pairs="objective.filter_pairs is True" if self.filter_pairs else "",
            whole_batch="the weights of a divergence are relative to the whole batch "
            "(objective.divergence='rkl' has none)"
            if self.divergence != "rkl"
            else "",
            every_class="the discriminator could tell a class without real images by its label "
            "alone "
            "(objective.gan_weight=0 leaves the discriminator out)"
            if self.gan_weight
            else "",
            all_levels="a student of this objective makes its images from noise by itself",
        )

    @property
    def sampler(self) -> str:
        """Students of several steps are trained on images that are noised again."""
        return "renoise" if self.steps > 1 else ""

    @property
    def diagnostics(self) -> Diagnostics:
        """Alarms of saturation, spread, collapse, and of a discriminator that has won.

        The best checkpoint is that of the lowest distance of means and spreads of features, see
        `matching.generator`.
        """
        return Diagnostics(quality_metric="diagonal_fd", alarms=matching_alarms)

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The fake denoiser, which starts as the teacher, and the discriminator, if in use."""
        found: dict[str, Auxiliary] = {}
        if self.score_weight or (self.gan_weight and self.features_of == "fake"):
            found["fake"] = Auxiliary(DENOISER, self.fake, self.fake_prediction, start="teacher")
        if self.gan_weight:
            bins = self.ratio_bins if self.ratio_ema else 0
            discriminator = Discriminator(self.features, ratio_bins=bins)
            found["discriminator"] = Auxiliary(_discriminator_form(self.shapes), discriminator)
        return found

    @property
    def taps(self) -> Taps:
        """The features that the discriminator sees; the fake denoiser has the same network."""
        return Taps(teacher=self.features if self.gan_weight else ())

    def inert_hparams(self) -> tuple[str, ...]:
        """The bins of the ratio, where the divergence's weights are 1."""
        bins = ("ratio_bins", "ratio_ema") if self.divergence == "rkl" else ()
        return (*super().inert_hparams(), *bins)

    def prepare(self, facts: StageFacts) -> Self:
        """Notes the student's steps, and the teacher's noisiest level, network and features.

        The fake denoiser has the teacher's network too.
        """
        steps, networks = facts.num_steps, facts.networks
        if steps > 1 and self.backward == "none":
            raise ConfigError(
                f"objective.backward='none' with a grid of {steps} steps: say where a student of "
                "several steps starts from below the noisiest level, 'rollout' or 'data', or set "
                "grid.steps=1."
            )
        if steps == 1 and self.backward != "none":
            raise ConfigError(
                f"objective.backward={self.backward!r} with a grid of one step: a student of one "
                "step has its noisiest level as its only input. Leave backward at 'none'."
            )
        # Only the student's own updates write the buffer of its states.
        updates = -(-facts.steps // self.student_every)
        return dataclasses.replace(
            super().prepare(dataclasses.replace(facts, steps=updates)),
            top=int(facts.grid[-1]),
            steps=steps,
            fake=networks.teacher,
            fake_prediction=networks.prediction,
            shapes=tuple(networks.teacher_features.items()),
        )

    def teacher_calls(self, each: int = 1) -> float:
        """One for the student's update, the passes for the teacher's features, and rollouts."""
        share = 1 / self.student_every
        seen = bool(self.gan_weight) and self.features_of == "teacher"
        judging = (2 + bool(self.smooth_weight)) * (1 - share * self.alternate) if seen else 0
        own = share * (each if self.score_weight else seen)
        return own + judging + self.rollout_calls(each)


# By weight, the hyperparameters without effect where it is 0.
_OF_A_TERM = {
    "regression_weight": ("regression", "filter_pairs"),
    "gan_weight": ("discriminator_weight", "features_of", "features", "smooth_weight"),
    "smooth_weight": ("smooth_step",),
    "score_weight": ("floor",),
}


def _check_idle(o: MatchingSettings) -> None:
    """Raises `ConfigError` for hyperparameters of a term that is off."""
    for weight, names in _OF_A_TERM.items():
        if not getattr(o, weight):
            check_unused(o, f"objective.{weight} is 0", *names)
    if o.divergence == "rkl":
        reason = "the weights of objective.divergence='rkl' are 1 whatever the ratio is"
        check_unused(o, reason, "ratio_bins", "ratio_ema")
    if o.ratio_ema and not o.ratio_bins:
        raise ConfigError(
            f"objective.ratio_ema={o.ratio_ema} has no effect: objective.ratio_bins is 0."
        )
    if "fake" not in o.auxiliaries:
        reason = (
            "no fake denoiser is trained where score_weight is 0 and the discriminator sees the "
            "teacher's features"
        )
        check_unused(o, reason, "fake_weight")


def _check_states(o: MatchingSettings) -> None:
    """Raises `ConfigError` for shares of rollouts that cannot work, or have no place."""
    o.check_states()
    if o.mixes and o.backward != "data":
        raise ConfigError(
            f"objective.teacher_states={o.teacher_states} and student_states={o.student_states} "
            f"with backward={o.backward!r}: they are shares beside noised images of the data. Set "
            "backward='data', or both to 0."
        )
    if not o.mixes:
        check_unused(o, "objective.teacher_states and student_states are 0", "clip_x0")


def _check(o: MatchingSettings) -> None:
    """Raises `ConfigError` for hyperparameters that cannot work."""
    weights = ("score_weight", "regression_weight", "gan_weight")
    check_not_negative(o, *weights, "discriminator_weight", "smooth_weight", "smooth_step", "floor")
    check_choice("objective.fake_weight", o.fake_weight, WEIGHTS)
    check_choice("objective.regression", o.regression, REGRESSIONS)
    check_choice("objective.features_of", o.features_of, FEATURES_OF)
    check_choice("objective.divergence", o.divergence, DIVERGENCES)
    check_choice("objective.backward", o.backward, BACKWARD)
    if not (o.score_weight or o.gan_weight):
        raise ConfigError(
            "objective: score_weight and gan_weight are both 0; set one above 0. Regression on "
            "pairs (regression_weight) is a term beside one of them and no method by itself."
        )
    if not 0.0 <= o.lowest <= o.highest <= 1.0:
        raise ConfigError(
            f"objective.lowest={o.lowest} and highest={o.highest} are shares of the noise levels: "
            "0 <= lowest <= highest <= 1."
        )
    if o.divergence != "rkl" and not (o.score_weight and o.gan_weight):
        raise ConfigError(
            f"objective.divergence={o.divergence!r} weighs the score difference by a "
            "discriminator's ratio: it needs score_weight and gan_weight above 0."
        )
    if isinstance(o.ratio_bins, bool) or o.ratio_bins != int(o.ratio_bins) or o.ratio_bins < 0:
        raise ConfigError(
            f"objective.ratio_bins={o.ratio_bins!r} must be an integer: 0 (off) or more."
        )
    if not 0.0 <= o.ratio_ema < 1.0:
        raise ConfigError(f"objective.ratio_ema={o.ratio_ema} must be in [0, 1).")
    _check_idle(o)
    _check_states(o)
    if o.gan_weight and not o.discriminator_weight:
        raise ConfigError(
            "objective.discriminator_weight=0 leaves the discriminator as it was drawn, and "
            f"objective.gan_weight={o.gan_weight} makes the student follow it. Set "
            "discriminator_weight above 0, or gan_weight=0 and leave discriminator_weight out."
        )
    if o.student_every < 1 or (o.alternate and o.student_every == 1):
        raise ConfigError(
            f"objective.student_every={o.student_every} with alternate={o.alternate}: 1 or more is "
            "needed, and 2 or more where the others pause at the student's steps."
        )
    if o.gan_weight and (not o.features or len(set(o.features)) < len(o.features)):
        raise ConfigError(
            f"objective.features={o.features!r} must name at least one feature tap, and each once, "
            "for example ('mid',)."
        )
