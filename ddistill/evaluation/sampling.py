"""What a run samples: every sampler from the same noise bank, kept on disk, timed.

Samples lie in `samples/NAME.npz` with the digest of everything that they depend on, so that an
evaluation that was stopped goes on, and one that is repeated samples nothing.
"""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.denoiser import with_guidance
from ddistill.evaluation.sampling_plan import Call
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import read_arrays, write_arrays
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import data_mesh, over_data, replicate
from ddistill.samplers import get_sampler
from ddistill.settings import EvaluationSettings
from ddistill.students import in_groups
from ddistill.training.trained import Networks


@dataclass(frozen=True)
class Samples:
    """Images `[N, H, W, C]` in about [-1, 1] and the sampler's milliseconds an image."""

    images: np.ndarray
    ms_per_image: float


def noise_bank(settings: EvaluationSettings, shape: tuple[int, int, int], start: int, count: int):
    """Noise `[count, H, W, C]` number `start` and after of the bank that all samplers share.

    Every image has its own key, so that the bank depends on neither the batch size nor the number
    of samples.
    """
    key = stream_key(settings.noise_seed, "noise bank")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(start, start + count))
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)


def conditions(call: Call, start: int, count: int) -> np.ndarray | None:
    """Labels of the bank's images: all classes in turn; None for an unconditional network."""
    known = call.student_plan.tables.classes
    if known is None:
        return None
    return np.arange(start, start + count, dtype=np.int32) % len(known)


def draw(
    call: Call,
    network: Any,
    settings: EvaluationSettings,
    start: int,
    count: int,
    trajectory: bool = False,
) -> jax.Array:
    """Runs the sampler on images `start` .. `start + count` of the bank, over all devices.

    Where students share out the classes, each makes the images of its own.

    Returns:
      `[count, H, W, C]`, or with `trajectory` all states, `[N+1, count, H, W, C]`.
    """
    noise = noise_bank(settings, call.plan.image_shape, start, count)
    key = jax.random.fold_in(stream_key(settings.noise_seed, "sampler"), start)
    cond = conditions(call, start, count)
    return run_call(call, network, noise, cond, key, settings.clip, trajectory)


def run_call(
    call: Call,
    network: Any,
    noise: jax.Array,
    cond: np.ndarray | None,
    key: jax.Array,
    clip: float,
    trajectory: bool = False,
) -> jax.Array:
    """Runs the sampler of a call from given noise, over all devices.

    Args:
      call: the sampler and its levels.
      network: the call's denoiser.
      noise: `[B, H, W, C]`.
      cond: `[B]` classes on the host, or None.
      key: random key of samplers that draw noise.
      clip: bound of x0 predictions; 0 for none.
      trajectory: return all states instead of the images.
    """
    count = noise.shape[0]

    def sample(denoiser: Any, rows: np.ndarray) -> jax.Array:
        mesh = data_mesh(len(rows))
        place = over_data(mesh)
        made = get_sampler(call.sampler)(
            replicate(mesh, with_guidance(denoiser, call.guidance, _null_class(call))),
            call.levels,
            jax.device_put(noise[rows], place),
            key if rows[0] == 0 else jax.random.fold_in(key, int(rows[0])),
            cond=None if cond is None else jax.device_put(cond[rows], place),
            clip=clip or None,
            trajectory=trajectory,
        )
        return jnp.swapaxes(made[1], 0, 1) if trajectory else made

    made = in_groups(network, cond, count, sample)
    return jnp.swapaxes(made, 0, 1) if trajectory else made


def _null_class(call: Call) -> int:
    return int(getattr(call.plan.module, "num_classes", 0))


def call_digest(call: Call, settings: EvaluationSettings) -> str:
    """Digest of everything that the samples of a call depend on."""
    content = {
        "stage": call.plan.digest,
        "sampler": call.sampler,
        "grid": call.grid.tolist(),
        "ema": call.plan.ema_key(),
        "samples": settings.samples,
        "batch": settings.batch_size,
        "seed": settings.noise_seed,
        "clip": settings.clip,
    }
    if call.student is not None:
        content["student"] = call.student
    if call.spacing != "trailing":
        content["sigma"] = [float(x) for x in call.levels.sigma]
    if call.guidance != 1.0:
        content["guidance"] = call.guidance
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def collect(
    call: Call,
    networks: Networks,
    settings: EvaluationSettings,
    folder: Path,
    reporter: Reporter,
    stop: StopRequest,
) -> Samples:
    """The samples of a call, from disk if they are there.

    Raises:
      Interrupted: a stop was asked for; finished calls stay on disk.
    """
    path = folder / f"{call.key}.npz"
    found = _read(path, call_digest(call, settings))
    if found is not None:
        return found
    network = networks(call.plan, call.student)
    images, seconds = [], []
    reporter.begin(f"sampling {call.label}", settings.samples)
    try:
        for start in range(0, settings.samples, settings.batch_size):
            stop.check(f"the evaluation ({call.label})")
            begun = time.perf_counter()
            batch = np.asarray(draw(call, network, settings, start, settings.batch_size))
            seconds.append(time.perf_counter() - begun)
            images.append(batch)
            done = min(start + settings.batch_size, settings.samples)
            first = f"the first batch in {seconds[0]:.1f} s, compiling included"
            rate = f"{settings.batch_size / seconds[-1]:.0f} images/s"
            reporter.advance(done, rate if seconds[1:] else first)
    finally:
        reporter.end()
    # The first batch compiles; the fastest of the others is the sampler's own speed.
    best = min(seconds[1:] or seconds)
    samples = Samples(np.concatenate(images)[: settings.samples], 1e3 * best / settings.batch_size)
    _write(path, samples, call_digest(call, settings))
    return samples


def _write(path: Path, samples: Samples, digest: str) -> None:
    write_arrays(path, digest=digest, **dataclasses.asdict(samples))


def _read(path: Path, digest: str) -> Samples | None:
    found = read_arrays(path, ("digest", "images", "ms_per_image"))
    if found is None or str(found["digest"]) != digest:
        return None  # not there, damaged or of other settings: it is drawn again
    return Samples(found["images"], float(found["ms_per_image"]))
