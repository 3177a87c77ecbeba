"""Sampling: every sampler starts from the same noise bank, is timed, and keeps its images on disk.

The samples of a run lie in `samples/KEY.npz` with a digest of everything that they depend on. An
evaluation that was stopped therefore continues, and a repeated evaluation samples nothing.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddistill.conditions import TextCondition
from ddistill.denoiser import Denoiser, NetworkDenoiser
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.prompts import Texts, caption_rows, texts_of
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.extensions import added
from ddistill.interop.pipeline_parts import Decoder
from ddistill.runtime.files import read_arrays, write_arrays
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import data_mesh, over_data, replicate
from ddistill.samplers import Sampler, get_sampler
from ddistill.samplers.loops import Callback
from ddistill.schedules import Schedule
from ddistill.settings import EvaluationSettings
from ddistill.students import RoutedDenoiser, in_groups
from ddistill.typing import HostImages
from ddistill.wrapped_denoiser import with_guidance

Network = Denoiser | RoutedDenoiser


@dataclass(frozen=True)
class Samples:
    """Samples of one run.

    Attributes:
      images: `[N, H, W, C]` float32, approximately in [-1, 1]; latents are decoded.
      ms_per_image: milliseconds per image in the fastest batch, without compilation.
    """

    images: np.ndarray
    ms_per_image: float


@dataclass(frozen=True)
class SamplerInputs:
    """The inputs of a sampler for one batch.

    Attributes:
      noise: `[B, H, W, C]` standard normal.
      cond: `[B]` classes on the host, or texts; None for an unconditional network.
      key: random key for samplers that draw noise in their steps.
      null: for texts, the condition of the empty text.
    """

    noise: Float[Array, "B H W C"]
    cond: Int[np.ndarray, " B"] | TextCondition | None
    key: Key[Array, ""]
    null: TextCondition | None = None


def noise_bank(
    settings: EvaluationSettings, shape: tuple[int, int, int], start: int, count: int
) -> Float[Array, "B H W C"]:
    """Returns entries `start` to `start + count - 1` of the noise bank that all samplers share.

    Every image has its own key, so that the bank depends on neither the batch size nor the number
    of samples.

    Args:
      settings: gives the seed of the bank.
      shape: `(H, W, C)` of an image.
      start: index of the first entry.
      count: number of entries.

    Returns:
      `[count, H, W, C]` float32, standard normal.
    """
    key = stream_key(settings.noise_seed, "noise bank")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(start, start + count))
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)


def conditions(run: SamplerRun, start: int, count: int) -> Int[np.ndarray, " B"] | None:
    """Labels of entries of the bank: they cycle through the classes; None if unconditional."""
    known = run.student_plan.tables.classes
    if known is None:
        return None
    return np.arange(start, start + count, dtype=np.int32) % len(known)


def draw(
    run: SamplerRun,
    network: Network,
    settings: EvaluationSettings,
    start: int,
    count: int,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Samples entries `start` to `start + count - 1` of the noise bank on all devices.

    Each student of a partition by class or text samples the images of its classes or texts.

    Returns:
      `[count, H, W, C]`, or with `trajectory` all states, `[N+1, count, H, W, C]`.
    """
    inputs = SamplerInputs(
        noise_bank(settings, run.plan.image_shape, start, count),
        conditions(run, start, count),
        jax.random.fold_in(stream_key(settings.noise_seed, "sampler"), start),
    )
    return run_sampler(run, network, inputs, settings.clip, trajectory)


def draw_of_texts(
    run: SamplerRun,
    network: Network,
    settings: EvaluationSettings,
    rows: range,
    texts: Texts,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Samples entries of the noise bank as `draw` does, each of its text."""
    inputs = SamplerInputs(
        noise_bank(settings, run.plan.image_shape, rows.start, len(rows)),
        texts.conditions(np.asarray(rows)),
        jax.random.fold_in(stream_key(settings.noise_seed, "sampler"), rows.start),
        texts.null,
    )
    return run_sampler(run, network, inputs, settings.clip, trajectory)


@dataclass(frozen=True, eq=False)
class PictureSource:
    """The pictures of a sampler run in an evaluation.

    Attributes:
      run: the sampler run.
      network: its network.
      settings: of the evaluation.
      texts: what the pictures show, for networks that read texts.
      decode: latents to pictures; None for networks that see pixels.
    """

    run: SamplerRun
    network: Network
    settings: EvaluationSettings
    texts: Texts | None
    decode: Decoder | None

    def __call__(self, rows: range, trajectory: bool = False) -> HostImages:
        """The pictures of entries of the noise bank.

        Returns:
          `[count, H, W, C]`, or with `trajectory` all states, `[N+1, count, H, W, C]`; latents are
          decoded.
        """
        run, network, settings, texts = self.run, self.network, self.settings, self.texts
        if texts is None:
            made = draw(run, network, settings, rows.start, len(rows), trajectory)
        else:
            made = draw_of_texts(run, network, settings, rows, texts, trajectory)
        return as_pictures(np.asarray(made), self.decode)


def picture_source(run: SamplerRun, evaluation: Evaluation) -> PictureSource:
    """The pictures of a sampler run; errors as of `texts_of` and `Networks.decoder`."""
    networks, settings = evaluation.networks, evaluation.settings.evaluation
    texts, decode = evaluated_texts(run, evaluation), networks.decoder(run.plan)
    return PictureSource(run, networks(run.plan, run.student), settings, texts, decode)


def as_pictures(made: HostImages, decode: Decoder | None) -> HostImages:
    """Samples `[..., h, w, c]`, those of latents decoded."""
    if decode is None:
        return made
    flat = decode(made.reshape(-1, *made.shape[-3:]))
    return flat.reshape(*made.shape[:-3], *flat.shape[1:])


def evaluated_texts(run: SamplerRun, evaluation: Evaluation) -> Texts | None:
    """The texts of an evaluation: captions of the data at even distances; None without texts."""
    tokens = evaluation.dataset.tokens
    if run.plan.tokenizer is None or tokens is None:
        return None
    rows = caption_rows(evaluation.settings.evaluation, len(tokens))
    return texts_of(run.plan, evaluation.networks, tokens[rows])


@dataclass(frozen=True)
class Walk:
    """How a sampler is called for one batch.

    Attributes:
      sampler: the sampler.
      levels: `[N+1]` levels that it visits.
      trajectory: return all states instead of the images.
      callback: see `Sampler.__call__`; steps are then dispatched one at a time.
      options: of the update rule.
    """

    sampler: Sampler
    levels: Schedule
    trajectory: bool = False
    callback: Callback | None = None
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


def run_sampler(
    run: SamplerRun,
    network: Network,
    inputs: SamplerInputs,
    clip: float,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Runs the sampler of `run` on given noise, on all devices; arguments as of `run_walk`."""
    walk = Walk(get_sampler(run.sampler), run.levels, trajectory)
    return run_walk(run, network, inputs, clip, walk)


def run_walk(
    run: SamplerRun, network: Network, inputs: SamplerInputs, clip: float, walk: Walk
) -> Float[Array, "..."]:
    """Calls a sampler on given noise, on all devices.

    Args:
      run: the sampler run of the network, which gives its guidance.
      network: the denoiser to sample.
      inputs: noise, classes and random key of the batch.
      clip: bound on x0 predictions; 0 for no clipping.
      walk: the sampler and its levels.

    Returns:
      `[B, H, W, C]`, or with `walk.trajectory` all states, `[N+1, B, H, W, C]`.
    """
    noise, cond, key = inputs.noise, inputs.cond, inputs.key

    def sample(denoiser: Network, rows: np.ndarray) -> Array:
        mesh = data_mesh(len(rows))
        batch = over_data(mesh)
        made = walk.sampler(
            replicate(mesh, as_sampled(denoiser, run, inputs.null)),
            walk.levels,
            jax.device_put(noise[rows], batch),
            key if rows[0] == 0 else jax.random.fold_in(key, int(rows[0])),
            cond=jax.device_put(jax.tree.map(lambda x: x[rows], cond), batch),
            clip=clip or None,
            trajectory=walk.trajectory,
            callback=walk.callback,
            loop="auto" if walk.callback is None else "dispatch",
            **walk.options,
        )
        return jnp.swapaxes(made[1], 0, 1) if walk.trajectory else made

    made = in_groups(network, cond, noise.shape[0], sample)
    return jnp.swapaxes(made, 0, 1) if walk.trajectory else made


def as_sampled(
    network: Network, run: SamplerRun, null: TextCondition | None = None
) -> NetworkDenoiser:
    """The network of a sampler run with its extra inputs, or with its guidance.

    Args:
      network: the network.
      run: the sampler run.
      null: for texts, the condition of the empty text.
    """
    null_class = int(getattr(run.plan.module, "num_classes", 0))
    told = network.given(**run.inputs) if run.inputs else network
    return with_guidance(told, run.guidance, null_class if null is None else null)


def run_digest(run: SamplerRun, settings: EvaluationSettings) -> str:
    """Digest of everything that the samples of a run depend on."""
    content = {
        "stage": run.plan.digest,
        "sampler": run.sampler,
        "grid": run.grid.tolist(),
        "ema": run.plan.ema_key(),
        "samples": settings.samples,
        "batch": settings.batch_size,
        "seed": settings.noise_seed,
        "clip": settings.clip,
    }
    extension = added("sampler", run.sampler)
    if extension is not None:
        content["version"] = extension.version
    if run.student is not None:
        content["student"] = run.student
    if run.spacing != "trailing":
        content["sigma"] = [float(x) for x in run.levels.sigma]
    if run.guidance != 1.0:
        content["guidance"] = run.guidance
    if run.inputs:
        content["inputs"] = dict(run.inputs)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def kept_samples(run: SamplerRun, workdir: Path, settings: EvaluationSettings) -> Samples | None:
    """The samples of a run on disk; None if they are missing, damaged or of other settings.

    Args:
      run: the sampler run.
      workdir: the folder of the experiment's run.
      settings: of the evaluation.

    Raises:
      OSError: the file is there and cannot be read.
    """
    return _read(workdir / "samples" / f"{run.key}.npz", run_digest(run, settings))


def collect(run: SamplerRun, evaluation: Evaluation) -> Samples:
    """Returns the samples of a run, read from disk if they exist there.

    Raises:
      Interrupted: a stop was requested; the samples of finished runs stay on disk.
    """
    settings, reporter = evaluation.settings.evaluation, evaluation.reporter
    path = evaluation.workdir / "samples" / f"{run.key}.npz"
    found = kept_samples(run, evaluation.workdir, settings)
    if found is not None:
        return found
    pictures = picture_source(run, evaluation)
    images, seconds = [], []
    reporter.begin(f"sampling {run.label}", settings.samples)
    try:
        for start in range(0, settings.samples, settings.batch_size):
            evaluation.stop.check(f"the evaluation ({run.label})")
            begun = time.perf_counter()
            batch = pictures(range(start, start + settings.batch_size))
            seconds.append(time.perf_counter() - begun)
            images.append(batch)
            done = min(start + settings.batch_size, settings.samples)
            first = f"the first batch in {seconds[0]:.1f} s with compilation"
            rate = f"{settings.batch_size / seconds[-1]:.0f} images/s"
            reporter.advance(done, rate if seconds[1:] else first)
    finally:
        reporter.end()
    # The first batch compiles; the fastest of the others gives the speed of the sampler alone.
    best = min(seconds[1:] or seconds)
    samples = Samples(np.concatenate(images)[: settings.samples], 1e3 * best / settings.batch_size)
    _write(path, samples, run_digest(run, settings))
    return samples


def _write(path: Path, samples: Samples, digest: str) -> None:
    write_arrays(path, digest=digest, **dataclasses.asdict(samples))


def _read(path: Path, digest: str) -> Samples | None:
    """The samples in a file; None if it is missing, damaged or made with other settings."""
    found = read_arrays(path, ("digest", "images", "ms_per_image"))
    if found is None or str(found["digest"]) != digest:
        return None
    return Samples(found["images"], float(found["ms_per_image"]))
