"""Distribution matching: a student whose images, noised, have the teacher's score everywhere.

DMD (arXiv 2311.18828), DMD2 (arXiv 2405.14867), f-distill's weights and LADD are this with other
parts switched on; each has a file of its own. The generator follows the difference between the
score of its own images, which a "fake" denoiser learns as they change, and the teacher's.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ddistill.conditions import Condition
from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction, add_noise
from ddistill.objectives.base import predict
from ddistill.objectives.distances import PredictionDistance, mean_per_example, regression_distance
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.matching.adversarial import (
    density_ratio,
    discriminator_loss,
    divergence_weights,
    generator_loss,
    mean_of_bins,
    noise_bins,
    smoothness,
)
from ddistill.objectives.matching.generator import (
    GeneratorInput,
    data_state,
    generate,
    generator_input,
    image_health,
    initial_input,
    root_mean_square,
    with_gradient,
)
from ddistill.objectives.matching.settings import MatchingSettings
from ddistill.objectives.parts import (
    Diagnostics,
    LossAux,
    Networks,
    Panels,
    Update,
)
from ddistill.objectives.sampling import normal, uniform_index
from ddistill.runtime.rng import named_keys
from ddistill.schedules import Level
from ddistill.typing import Images, Metrics
from ddistill.wrapped_denoiser import GuidedDenoiser


@dataclass(frozen=True)
class Matching(MatchingSettings):
    """The losses of the family; `MatchingSettings` says what its hyperparameters mean."""

    @property
    def updates(self) -> tuple[Update, ...]:
        """The student's, and one of everything that judges it, on the same images."""
        student = Update(
            "student", self.student_loss, every=self.student_every, fallback=self.generate
        )
        pause = self.student_every if self.alternate else 0
        return student, Update(tuple(self.auxiliaries), self.guidance_loss, skip=pause)

    def generate(self, networks: Networks, batch: Batch, tables: LevelTables) -> dict[str, Array]:
        """Images of the student, constants, and their classes, if any."""
        given, _ = self._input(networks, batch, tables)
        return _shared(jax.lax.stop_gradient(generate(networks["student"], given)), given)

    def _input(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[GeneratorInput, Mapping[str, Array]]:
        """The student's inputs in this step, the same for every update, and the new memory."""
        student, keys = networks["student"], batch.key("generator")
        if not self.mixes:
            return generator_input(student, batch, keys, tables, self.backward, self.steps), {}
        state = self.mixed(data_state(batch, keys, tables), networks, batch, tables)
        return GeneratorInput(state.z, state.level, state.cond), state.memory

    def student_loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics, LossAux]:
        """The three terms, whose gradients at the images go through the student at once."""
        student = networks["student"]
        given, memory = self._input(networks, batch, tables)
        if self.regression_weight:
            image, regressed = _generate_both(student, given, batch, tables)
        else:
            image = generate(student, given)
        fixed = jax.lax.stop_gradient(image)
        values = jnp.zeros(image.shape[:1])
        metrics = dict(image_health(fixed, batch.image, networks.get("classifier")))
        terms, statistics = self._judgements(networks, fixed, given, batch, tables)
        for value, gradient, found in terms:
            values = values + with_gradient(value, image, gradient)
            metrics |= found
        if self.regression_weight:
            pairs: Any = batch.pairs
            classifier = networks.get("classifier")
            distance, pullback = jax.vjp(
                lambda x: regression_distance(self.regression, x, pairs.image, classifier),
                jax.lax.stop_gradient(regressed),
            )
            (gradient,) = pullback(jnp.full_like(distance, self.regression_weight))
            values = values + with_gradient(self.regression_weight * distance, regressed, gradient)
            metrics |= {
                "regression": jnp.mean(distance),
                "image_grad_regression": root_mean_square(gradient),
            }
        kept = {"discriminator": statistics} if statistics else {}
        aux = LossAux(statistics=kept, shared=_shared(fixed, given), memory=memory)
        return values, metrics, aux

    def _judgements(
        self,
        networks: Networks,
        image: Array,
        given: GeneratorInput,
        batch: Batch,
        tables: LevelTables,
    ) -> tuple[list[tuple[Array, Array, dict[str, Array]]], dict[str, Array]]:
        """(value per example, gradient at the image, metrics) of the judges of generated images.

        Also the discriminator's new statistics, where it keeps such.

        Teacher and fake denoiser see the same noisy images, each once.
        """
        index = uniform_index(batch.key("judged level"), *self._compared())
        level = tables.teacher.at(index)
        noise = normal(batch.key("judged noise"), image)
        terms, answers, logits = [], {}, None
        statistics: dict[str, Array] = {}
        if self.gan_weight:

            def verdict(x):
                z = add_noise(x, noise, level)
                judge = networks[self.features_of] if self.score_weight else self._seen(networks)
                prediction, features = predict(judge, self.features, z, level, given.cond)
                found = networks["discriminator"](features)
                return self.gan_weight * generator_loss(found), (prediction, found)

            value, pullback, (answer, logits) = jax.vjp(verdict, image, has_aux=True)
            (gradient,) = pullback(jnp.ones_like(value))
            answers[self.features_of] = answer
            metrics = {
                "gan": jnp.mean(value) / self.gan_weight,
                "image_grad_gan": root_mean_square(gradient),
            }
            terms.append((value, gradient, metrics))
        if self.score_weight:
            z = add_noise(image, noise, level)
            for name in ("teacher", "fake"):
                if name not in answers:
                    answers[name] = networks[name](z, level, given.cond)
            gradient = score_difference(
                image, answers["fake"].x0, answers["teacher"].x0, self.floor
            )
            if logits is not None:
                h, statistics = self._divergence_weights(networks, logits, index, tables)
                gradient = gradient * h.reshape(-1, *(1,) * (image.ndim - 1))
            value = 0.5 * self.score_weight * mean_per_example(jnp.square(gradient))
            gradient = self.score_weight * gradient / gradient[0].size
            metrics = {
                "score": jnp.mean(value) / self.score_weight,
                "image_grad_score": root_mean_square(gradient),
            }
            terms.append((value, gradient, metrics))
        return terms, statistics

    def _divergence_weights(
        self, networks: Networks, logits: Array, index: Array, tables: LevelTables
    ) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """The weights h of the score difference, of ratios that are compared per noise level.

        Also the discriminator's new statistics, where it keeps such.
        """
        if self.divergence == "rkl" or not self.ratio_bins:
            return divergence_weights(self.divergence, logits), {}
        bins = noise_bins(index, tables.teacher, self.top, self.ratio_bins)
        ones = jnp.ones(self.ratio_bins)
        before = networks["discriminator"].ratio_mean if self.ratio_ema else ones
        means = mean_of_bins(density_ratio(logits), bins, before, self.ratio_ema)
        h = divergence_weights(self.divergence, logits, means[bins])
        return h, {"ratio_mean": means} if self.ratio_ema else {}

    def _compared(self) -> tuple[int, int]:
        """The first and the last level at which scores are compared."""
        low = max(1, round(self.lowest * self.top))
        return low, max(low, min(self.top, round(self.highest * self.top)))

    def guidance_loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics]:
        """The fake denoiser's error on generated images, and the discriminator's loss."""
        fake_keys, real_keys = batch.key("fake"), batch.key("real")
        image, cond = batch.shared["image"], batch.shared.get("cond")
        level, noise, z = self._noised(image, fake_keys, tables)
        values, metrics = jnp.zeros(image.shape[:1]), {}
        features: Mapping[str, Array] = {}
        if "fake" in networks:
            taps = self.features if self.gan_weight and self.features_of == "fake" else ()
            prediction, features = predict(networks["fake"], taps, z, level, cond)
            target = Prediction(x0=image, eps=noise)
            error = PredictionDistance("x0", self.fake_weight)(prediction, target, z, level)
            values = values + error
            metrics["fake_error"] = jnp.mean(error)
        if self.gan_weight:
            discriminator = networks["discriminator"]
            if not features:
                _, features = predict(self._seen(networks), self.features, z, level, cond)
            fake = discriminator(features)
            real = self._judge(networks, batch.image, batch.cond, real_keys, tables)
            value = discriminator_loss(fake, real)
            metrics |= {
                "discriminator": jnp.mean(value),
                "logit_fake": jnp.mean(fake),
                "logit_real": jnp.mean(real),
            }
            if self.smooth_weight:
                moved = batch.image + self.smooth_step * normal(batch.key("smoothness"), image)
                moved = self._judge(networks, moved, batch.cond, real_keys, tables)
                penalty = smoothness(real, moved)
                metrics["smoothness"] = jnp.mean(penalty)
                value = value + self.smooth_weight * penalty
            values = values + self.discriminator_weight * value
        return values, metrics

    # -------------------------------------------------------------------------------- pictures

    @property
    def diagnostics(self) -> Diagnostics:
        """Also what the two denoisers predict from a student's images."""
        if "fake" not in self.auxiliaries:
            return super().diagnostics
        panels = Panels(
            names=("images", "noised, by the teacher", "by the fake denoiser", "driven to"),
            caption="What both denoisers predict from a student's images at the middle noise "
            "level, and the difference that the student follows.",
            draw=self.draw_panels,
        )
        return dataclasses.replace(super().diagnostics, panels=panels)

    def draw_panels(
        self, networks: Networks, noise: Images, tables: LevelTables, cond: Condition | None
    ) -> tuple[Images, ...]:
        """The student's images, both denoisers' answers, and the direction of descent.

        Noise in the last one means that there is little left to learn, one pattern in all of its
        images a shift that is not being followed.
        """
        image = generate(networks["student"], initial_input(noise, tables, cond))
        level = tables.teacher.at(jnp.full(len(noise), max(1, self.top // 2), jnp.int32))
        z = add_noise(image, jnp.roll(noise, 1, axis=0), level)
        teacher, fake = (networks[n](z, level, cond).x0 for n in ("teacher", "fake"))
        driven = -score_difference(image, fake, teacher, self.floor)
        return image, teacher, fake, driven / jnp.maximum(jnp.max(jnp.abs(driven)), 1e-6)

    # --------------------------------------------------------------------------------- helpers

    def _noised(
        self, image: Array, keys: Key[Array, " B"], tables: LevelTables
    ) -> tuple[Level, Array, Array]:
        level = tables.teacher.at(uniform_index(named_keys(keys, "level"), 1, self.top))
        noise = normal(named_keys(keys, "noise"), image)
        return level, noise, add_noise(image, noise, level)

    def _judge(
        self,
        networks: Networks,
        image: Array,
        cond: Any,
        keys: Key[Array, " B"],
        tables: LevelTables,
    ) -> Float[Array, "B N"]:
        """The discriminator's logits of images, each at a level of its own."""
        level, _, z = self._noised(image, keys, tables)
        _, features = predict(self._seen(networks), self.features, z, level, cond)
        return networks["discriminator"](features)

    def _seen(self, networks: Networks) -> Any:
        """The network of the discriminator's features; a guided teacher without its guidance."""
        network = networks[self.features_of]
        return network.denoiser if isinstance(network, GuidedDenoiser) else network


def score_difference(
    image: Float[Array, "B H W C"],
    fake: Float[Array, "B H W C"],
    teacher: Float[Array, "B H W C"],
    floor: float,
) -> Float[Array, "B H W C"]:
    """DMD's direction (arXiv 2311.18828 eq. 7 and 8): the student descends it.

    (fake - teacher) / mean |image - teacher|, both denoisers at the same noised image, the mean
    over pixels and channels, in float32.

    Args:
      image: generated images.
      fake, teacher: what the two denoisers say of them.
      floor: added to the mean.
    """
    image, fake, teacher = (x.astype(jnp.float32) for x in (image, fake, teacher))
    scale = mean_per_example(jnp.abs(image - teacher)) + floor
    return (fake - teacher) / scale.reshape(-1, *(1,) * (image.ndim - 1))


def _shared(image: Array, given: GeneratorInput) -> dict[str, PyTree]:
    return {"image": image} | ({} if given.cond is None else {"cond": given.cond})


def _generate_both(
    student: Denoiser, given: GeneratorInput, batch: Batch, tables: LevelTables
) -> tuple[Array, Array]:
    """The student's images from its inputs and from the noise of the pairs.

    Two calls: one of twice the batch takes a CPU longer (docs/benchmarks.md).
    """
    pairs: Any = batch.pairs
    noise_of_pairs = initial_input(pairs.noise, tables, None if given.cond is None else pairs.cond)
    return generate(student, given), generate(student, noise_of_pairs)
