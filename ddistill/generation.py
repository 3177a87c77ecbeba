"""Images from the networks of a finished run: batches, progress, paths of noises, inversion."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from ddistill.conditions import TextCondition
from ddistill.errors import ConfigError
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.prompts import Texts
from ddistill.evaluation.sampling import (
    Network,
    SamplerInputs,
    Walk,
    as_pictures,
    conditions,
    noise_bank,
    run_walk,
)
from ddistill.evaluation.sampling_plan import SamplerRun, with_inputs
from ddistill.interop.pipeline_parts import Decoder
from ddistill.parsing import kind_of
from ddistill.planning.plan import StagePlan
from ddistill.runtime.rng import stream_key
from ddistill.samplers import get_sampler
from ddistill.samplers.inversion import ddim_inversion, noising, unit_noise
from ddistill.schedules import Schedule
from ddistill.settings import EvaluationSettings
from ddistill.training.trained import Networks

Labels = int | Sequence[int] | np.ndarray
# Receives the number of sampler steps done and their total, over all batches.
Progress = Callable[[int, int], None]
# The rows of a batch -> `[B, H, W, C]`, noise or images.
Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Trajectory:
    """Images, and the states on the way to them.

    Attributes:
      images: `[n, H, W, C]` uint8.
      states: `[N+1, n, H, W, C]` float32, the state z at every level: first the starting noise,
        times the largest sigma where that is above 1, last the images before rounding, or their
        latents. They are states of the sampler and not predictions of the clean image.
      levels: `[N+1]` noise levels, in the order of a schedule: `levels.at(N - i)` is that of
        `states[i]`.
    """

    images: UInt8[np.ndarray, "n H W C"]
    states: Float[np.ndarray, "N_1 n H W C"]
    levels: Schedule


@dataclass(frozen=True)
class Source:
    """A network, ready to be sampled.

    Attributes:
      run: the sampler and its levels.
      network: the network.
      settings: of the run's evaluation, which gives the bound on x0.
      seed: of the noise, and of the noise that the sampler draws in its steps.
      batch_size: images per batch.
      texts: what the images show, for networks that read texts.
      decode: latents to pictures; None for networks that see pixels.
    """

    run: SamplerRun
    network: Network
    settings: EvaluationSettings
    seed: int = 0
    batch_size: int = 256
    texts: Texts | None = None
    decode: Decoder | None = None

    def noise(self, rows: np.ndarray) -> Float[np.ndarray, "B H W C"]:
        """Consecutive entries of the noise bank of the seed, from that of the first row on."""
        settings = replace(self.settings, noise_seed=self.seed)
        shape = self.run.plan.image_shape
        return np.asarray(noise_bank(settings, shape, int(rows[0]), len(rows)))

    def batches(self, n: int) -> Iterator[tuple[int, np.ndarray]]:
        """First image and rows of every batch; the last one is padded with the last image.

        All batches have one size, so that the sampler is compiled once.
        """
        size = min(n, self.batch_size)
        for start in range(0, n, size):
            yield start, np.minimum(np.arange(start, start + size), n - 1)

    def walk(
        self,
        walk: Walk,
        n: int,
        start_at: Rows,
        labels: np.ndarray | None,
        progress: Progress | None,
    ) -> np.ndarray:
        """Calls a sampler batch by batch.

        Args:
          walk: the sampler.
          n: number of images.
          start_at: returns what a batch starts from, noise or images.
          labels: `[n]` or None.
          progress: receives steps done and steps in all.

        Returns:
          `[n, H, W, C]`, or with `walk.trajectory` `[N+1, n, H, W, C]`, float32.
        """
        batches, steps, made = list(self.batches(n)), walk.levels.num_steps, []
        grouped = getattr(getattr(self.network, "partition", None), "groups", 1) > 1
        for i, (start, rows) in enumerate(batches):
            inputs = SamplerInputs(
                jnp.asarray(start_at(rows)),
                self._conditions(labels, rows),
                jax.random.fold_in(stream_key(self.seed, "sampler"), start),
                self.texts.null if self.texts else None,
            )
            report = progress and _report(progress, i * steps, len(batches) * steps)
            callback = None if grouped else report  # groups of classes are sampled one by one
            made.append(np.asarray(run_walk(*self._of(inputs), replace(walk, callback=callback))))
            if progress is not None and grouped:
                progress((i + 1) * steps, len(batches) * steps)
        axis = 1 if walk.trajectory else 0
        return np.concatenate(made, axis).take(range(n), axis)

    def _conditions(
        self, labels: np.ndarray | None, rows: np.ndarray
    ) -> Int[np.ndarray, " B"] | TextCondition | None:
        if self.texts is not None:
            return self.texts.conditions(rows)
        return None if labels is None else labels[rows]

    def _pictures(self, made: np.ndarray) -> UInt8[np.ndarray, "n H W C"]:
        """Images as uint8, those of latents decoded."""
        return quantise(as_pictures(made, self.decode))

    def _of(self, inputs: SamplerInputs) -> tuple[SamplerRun, Network, SamplerInputs, float]:
        return self.run, self.network, inputs, self.settings.clip

    def generate(
        self, n: int, noise: Rows, labels: np.ndarray | None, progress: Progress | None = None
    ) -> UInt8[np.ndarray, "n H W C"]:
        """Images from noise."""
        walk = Walk(get_sampler(self.run.sampler), self.run.levels)
        return self._pictures(self.walk(walk, n, noise, labels, progress))

    def trajectory(
        self, n: int, noise: Rows, labels: np.ndarray | None, progress: Progress | None = None
    ) -> Trajectory:
        """Images from noise, with all states."""
        walk = Walk(get_sampler(self.run.sampler), self.run.levels, trajectory=True)
        states = self.walk(walk, n, noise, labels, progress)
        return Trajectory(self._pictures(states[-1]), states, self.run.levels)

    def invert(
        self, images: np.ndarray, labels: np.ndarray | None, iterations: int
    ) -> Float[np.ndarray, "n H W C"]:
        """Noise from images in [-1, 1], by DDIM inversion on the levels of the run.

        Pictures of networks that see latents are encoded first.
        """
        options = {"iterations": iterations}
        walk = Walk(ddim_inversion, noising(self.run.levels), options=options)
        if self.decode is not None:
            images = self.decode.encode(images)
        found = self.walk(walk, len(images), images.__getitem__, labels, None)
        return np.asarray(unit_noise(jnp.asarray(found), self.run.levels))

    def check_deterministic(self, call: str) -> None:
        """Raises `ConfigError` unless the noise alone determines the images."""
        sampler = get_sampler(self.run.sampler)
        if sampler.draws_noise(self.run.steps):
            raise ConfigError(
                f"{call} needs a deterministic sampler, and stage '{self.run.plan.name}' is "
                f"sampled with {sampler.name}, which draws noise in its steps. Choose another "
                "stage, for example ddistill.load(FOLDER, stage='teacher') if its sampler is ddim."
            )

    def check_invertible(self) -> None:
        """Raises `ConfigError` unless the network is one of the ODE at every level of the run."""
        sampler = get_sampler(self.run.sampler)
        if sampler.rows is not None or sampler.first is not None:
            raise ConfigError(
                f"invert follows the ODE from level to level, and stage '{self.run.plan.name}' is "
                f"sampled with {sampler.name}, for which the network does not answer at all of "
                "them. Choose another stage, for example ddistill.load(FOLDER, stage='teacher')."
            )


def _report(progress: Progress, before: int, total: int) -> Callable[..., None]:
    return lambda i, z, level, prediction: progress(before + i + 1, total)


def check_noise(
    noise: object, shape: tuple[int, ...], name: str = "noise"
) -> Float[np.ndarray, "..."]:
    """Checks noise of a caller.

    Args:
      noise: the value.
      shape: the shape that it needs.
      name: of the argument.

    Returns:
      The same as float32 array.

    Raises:
      ConfigError: it has another shape or type, or values that are not finite.
    """
    given = np.asarray(noise)
    if given.shape != shape or given.dtype.kind != "f":
        raise ConfigError(
            f"{name} of shape {given.shape} and type {given.dtype}; standard normal floats of "
            f"shape {shape} are needed."
        )
    if not np.isfinite(given).all():
        raise ConfigError(f"{name} has values that are not finite.")
    return given.astype(np.float32)


def check_images(images: object, shape: tuple[int, int, int]) -> Float[np.ndarray, "n H W C"]:
    """Checks images of a caller and returns them as floats in [-1, 1].

    Args:
      images: `[n, H, W, C]` uint8, or floats in [-1, 1].
      shape: `(H, W, C)`.

    Raises:
      ConfigError: they have another shape or type, or values out of range.
    """
    given = np.asarray(images)
    floats = given.dtype.kind == "f"
    if given.ndim != 4 or given.shape[1:] != shape or not (floats or given.dtype == np.uint8):
        raise ConfigError(
            f"images of shape {given.shape} and type {given.dtype}; uint8, or floats in [-1, 1], "
            f"of shape (n, {', '.join(map(str, shape))}) are needed."
        )
    if not len(given):
        raise ConfigError("images are none; at least one is needed.")
    if not floats:
        return given.astype(np.float32) / 127.5 - 1.0
    if not (np.abs(given) <= 1.0).all():  # false for NaN, too
        raise ConfigError("images have values outside of [-1, 1]; scale them, or give uint8.")
    return given.astype(np.float32)


def at_guidance(run: SamplerRun, guidance: float | None) -> SamplerRun:
    """The run with another scale of guidance; None keeps it as it is.

    A network with the input "guidance" is given the scale. Another network that reads texts is
    sampled with classifier-free guidance.

    Raises:
      ConfigError: the network has no such input and reads no texts, or the value is out of range.
    """
    if guidance is None:
        return run
    if isinstance(guidance, bool) or not isinstance(guidance, int | float | np.number):
        raise ConfigError(
            f"guidance={guidance!r} is {kind_of(type(guidance))}; a number is needed."
        )
    if "guidance" in run.inputs:
        return with_inputs(run, float(guidance))
    if run.plan.tokenizer is None:
        raise ConfigError(
            f"guidance={guidance:g}: stage '{run.plan.name}' does not take guidance as an input. "
            "Leave it out; config.evaluation.guidance is that of a teacher, and sample_guidance of "
            "a stage that of its students."
        )
    if not (np.isfinite(guidance) and guidance >= 0):
        raise ConfigError(f"guidance={guidance:g} must be 0 or above; 1 is none.")
    return replace(run, guidance=float(guidance))


def whole_number(name: str, value: object, lowest: int = 0) -> int:
    """Checks that `value` is a whole number from `lowest` to 2**32 - 1, of Python or NumPy.

    Raises:
      ConfigError: the value has another type or is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name}={value!r} is {kind_of(type(value))}; a whole number is needed.")
    if not lowest <= value < 2**32:
        bound = f"{lowest} or more" if value < lowest else "less than 2**32"
        raise ConfigError(f"{name}={value} must be {bound}.")
    return int(value)


def picture_shape(plan: StagePlan) -> tuple[int, int, int]:
    """(H, W, C) of the pictures of a stage, which are not its latents."""
    height, width, channels = plan.image_shape
    if plan.latent_source is not None:
        return plan.latent_source.image_shape
    if plan.encoder is None or not plan.encoder.digest:
        return height, width, channels
    return height * plan.encoder.factor, width * plan.encoder.factor, plan.encoder.image_channels


def check_prompts(
    plan: StagePlan, prompts: str | Sequence[str] | None, networks: Networks
) -> Int[np.ndarray, "P L"] | None:
    """Token ids of a caller's prompts; None for a network that reads no texts.

    Args:
      plan: the sampled stage.
      prompts: one text or several.
      networks: of the run.

    Raises:
      ConfigError: there are prompts and the network reads none, or the other way round.
      CheckpointError: the tokenizer is not in the folder of its stage.
    """
    if plan.tokenizer is None:
        if prompts is not None:
            raise ConfigError(
                f"prompts were given, but stage '{plan.name}' reads no texts; leave them out."
            )
        return None
    texts = [prompts] if isinstance(prompts, str) else list(prompts or ())
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"stage '{plan.name}' makes images of texts: give prompts=['a text', ...]."
        )
    return networks.tokenize(plan, texts)


def end_of_path(name: str, given: object, source: Source) -> Float[np.ndarray, "H W C"]:
    """An end of an interpolation: noise `[H, W, C]`, or the first noise of a seed."""
    shape = source.run.plan.image_shape
    if isinstance(given, int | np.integer):
        return replace(source, seed=whole_number(name, given)).noise(np.arange(1))[0]
    return check_noise(given, shape, name)


def class_labels(run: SamplerRun, labels: Labels | None, n: int) -> Int[np.ndarray, " n"] | None:
    """Checks `labels` and returns `[n]` classes; None for an unconditional network."""
    every, known = conditions(run, 0, n), run.student_plan.tables.classes
    if every is None or known is None:
        if labels is not None:
            raise ConfigError(
                f"labels were given, but stage '{run.plan.name}' is unconditional; leave them out."
            )
        return None
    if labels is None:
        return every
    try:
        given = np.asarray(labels)
    except ValueError:
        raise ConfigError(f"labels={labels!r}: {n} integers or one are needed.") from None
    if given.dtype.kind not in "iu" or given.shape not in ((), (n,)):
        raise ConfigError(
            f"labels of shape {given.shape} and type {given.dtype}; {n} integers or one are needed."
        )
    if given.min() < 0 or given.max() >= len(known):
        raise ConfigError(
            f"labels go from {given.min()} to {given.max()}; classes are 0 to {len(known) - 1}."
        )
    return np.broadcast_to(given, (n,)).astype(np.int32)


def image_count(n: int | None, noise: object) -> int:
    """The number of images, from the noise where n is left out."""
    given = np.asarray(noise)
    return whole_number("n", (len(given) if given.ndim else 1) if n is None else n, 1)
