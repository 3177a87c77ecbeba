"""Images along paths between two noises, sampled by a teacher and its students.

The ends of a path are two entries of the noise bank, so their images are samples that exist
already. The images between them lie in `samples/KEY.paths.npz`, with a digest like the samples.
Samples of texts have different ones: a path is of the text of its first end, and its last image is
sampled with those between.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.metrics.paths import slerp
from ddistill.evaluation.sampling import (
    Network,
    SamplerInputs,
    Samples,
    Texts,
    as_pictures,
    conditions,
    evaluated_texts,
    noise_bank,
    run_digest,
    run_sampler,
)
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.runtime.files import read_arrays, write_arrays
from ddistill.runtime.rng import stream_key
from ddistill.samplers import get_sampler

# Images between the two ends of a path.
INNER = 8


def collect_paths(
    run: SamplerRun, samples: Samples, evaluation: Evaluation
) -> Float[np.ndarray, "P F H W C"] | None:
    """Returns the images of the paths of a run, read from disk if they exist there.

    Args:
      run: the sampler run.
      samples: its samples, which hold the ends of the paths.
      evaluation: the run; `interpolations` of its settings is the number of paths.

    Returns:
      Paths of `INNER + 2` images; None if the sampler draws noise in its steps, which makes a path
      jump, or if no two samples have the same class. Latents are decoded.

    Raises:
      Interrupted: a stop was requested.
    """
    settings = evaluation.settings.evaluation
    texts = evaluated_texts(run, evaluation)
    labels = conditions(run, 0, settings.samples)
    ends = path_ends(settings.samples, _cycle(labels), settings.interpolations)
    if get_sampler(run.sampler).draws_noise(run.steps) or not len(ends):
        return None
    path = evaluation.workdir / "samples" / f"{run.key}.paths.npz"
    digest = _digest(run_digest(run, settings), ends)
    found = read_arrays(path, ("digest", "images"))
    if found is not None and str(found["digest"]) == digest:
        inner = found["images"]
    else:
        network = evaluation.networks(run.plan, run.student)
        inner = _sample(run, network, ends, texts or labels, evaluation)
        write_arrays(path, digest=digest, images=inner)
    first, last = (samples.images[ends[:, i]][:, None] for i in (0, 1))
    return np.concatenate([first, inner, *([last] if texts is None else [])], axis=1)


def path_ends(samples: int, classes: int, count: int) -> Int[np.ndarray, "P 2"]:
    """Indices in the noise bank of the two ends of at most `count` paths.

    No entry is an end of two paths. With labels, which cycle through `classes`, both ends have the
    same class, and the paths go through the classes in turn.

    Args:
      samples: number of samples, of which the ends are a part.
      classes: number of classes; 1 without labels.
      count: largest number of paths.
    """
    index = np.arange(samples)
    starts = index[(index % (2 * classes) < classes) & (index + classes < samples)][:count]
    return np.stack([starts, starts + classes], axis=1)


def _cycle(labels: Int[np.ndarray, " N"] | None) -> int:
    return 1 if labels is None else int(labels.max()) + 1


def _digest(samples: str, ends: Int[np.ndarray, "P 2"]) -> str:
    content = json.dumps([samples, ends.tolist(), INNER])
    return hashlib.sha256(content.encode()).hexdigest()


def _sample(
    run: SamplerRun,
    network: Network,
    ends: Int[np.ndarray, "P 2"],
    told: Int[np.ndarray, " N"] | Texts | None,
    evaluation: Evaluation,
) -> Float[np.ndarray, "P F H W C"]:
    """Samples the images between the ends, in batches of one shape.

    Args:
      run: the sampler run.
      network: its network.
      ends: of the paths, indices in the noise bank.
      told: the classes of the samples, or their texts, with which the last ends are sampled too.
      evaluation: the run.
    """
    settings = evaluation.settings.evaluation
    texts, labels = (told, None) if isinstance(told, Texts) else (None, told)
    frames = INNER if texts is None else INNER + 1
    positions = np.arange(1, frames + 1) / (INNER + 1)
    bank = np.asarray(noise_bank(settings, run.plan.image_shape, 0, int(ends.max()) + 1))
    noise = np.concatenate([slerp(bank[a], bank[b], positions) for a, b in ends])
    first = np.repeat(ends[:, 0], frames)  # by image the sample with its class or text
    # With as many images as a batch of samples, the compiled sampler is that of the samples.
    batch = min(settings.batch_size, len(noise))
    key = stream_key(settings.noise_seed, "interpolation")
    images, decode = [], evaluation.networks.decoder(run.plan)
    for start in range(0, len(noise), batch):
        evaluation.stop.check(f"the interpolation ({run.label})")
        rows = np.minimum(np.arange(start, start + batch), len(noise) - 1)
        inputs = SamplerInputs(
            jnp.asarray(noise[rows]),
            texts.conditions(first[rows]) if texts else _of_rows(labels, first[rows]),
            jax.random.fold_in(key, start),
            texts.null if texts else None,
        )
        made = np.asarray(run_sampler(run, network, inputs, settings.clip))
        images.append(as_pictures(made, decode))
    found = np.concatenate(images)[: len(noise)]
    return found.reshape(len(ends), frames, *found.shape[1:])


def _of_rows(
    labels: Int[np.ndarray, " N"] | None, rows: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " B"] | None:
    return None if labels is None else labels[rows]
