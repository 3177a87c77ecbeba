"""Pairs of noise and a teacher's images, made once and read by every student.

They lie in the stage's folder as shards of some batches each, `pairs/00000.npz`, all float32, with
the hash of each in the manifest. Pairs of texts have the captions of the data in turn, as token
ids. A shard is written whole or not at all, so that a stage that was stopped goes on behind the
last one.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ddistill.conditions import Tokens
from ddistill.denoiser import Denoiser
from ddistill.errors import CheckpointError, TrainingError
from ddistill.networks.text_encoding import TextEncoder, encode_texts
from ddistill.objectives.inputs import Pairs
from ddistill.objectives.pairs import MakePairs
from ddistill.planning.manifests import PairsManifest
from ddistill.planning.plan import StagePlan, incomplete
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import read_arrays, read_object_or_none, write_arrays, write_json
from ddistill.runtime.hosts import from_first, is_first
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.rng import stream_key
from ddistill.runtime.schemas import NUMBER, Schema
from ddistill.samplers import get_sampler, nfe
from ddistill.students import RoutedDenoiser, in_groups

# Arrays of a shard, and of one with texts.
_NAMES, _TOKENS = ("noise", "label", "image"), "tokens"


@dataclass(frozen=True, eq=False)
class PairMaker:
    """What makes pairs.

    Attributes:
      teacher: the denoiser, with guidance where the stage asks for it.
      captions: token ids int32 of the captions of the data; None for classes.
      encoder: of the captions; None for classes.
    """

    teacher: Denoiser | RoutedDenoiser
    captions: Int[np.ndarray, "N L"] | None = None
    encoder: TextEncoder | None = None


def make_pairs(
    plan: StagePlan,
    maker: PairMaker,
    reporter: Reporter,
    stop: StopRequest,
    title: str = "",
) -> PairsManifest:
    """Makes the pairs that are not there yet and returns the stage's manifest.

    Args:
      plan: the stage; its objective is `MakePairs`.
      maker: the teacher, with the captions of the data where it reads texts.
      reporter, stop: progress and polite stopping.
      title: of the progress; "" for the stage's name.

    Raises:
      Interrupted: a stop was requested; finished shards stay.
      TrainingError: the teacher's images are not finite.
    """
    stopped = from_first(lambda: _try_shards(plan, maker, reporter, stop, title))
    if stopped:
        raise Interrupted(stopped)
    manifest = from_first(lambda: _manifest(plan).to_json())
    if is_first():
        write_json(plan.manifest_path, manifest)
    return PairsManifest.from_json(manifest)


def read_pairs(plan: StagePlan) -> Pairs:
    """All pairs of a complete stage, strictly loaded.

    Raises:
      CheckpointError: the stage is not complete, or a shard is missing, damaged, or of another
        teacher.
    """
    manifest = plan.manifest()
    if not isinstance(manifest, PairsManifest):
        raise incomplete(plan)
    shards = []
    for name, digest in manifest.shards.items():
        path = _folder(plan) / name
        if not path.exists() or _hash(path) != digest:
            raise CheckpointError(
                f"{path} is not the file that stage '{plan.name}' has written. Delete "
                f"{plan.manifest_path} and run again to make it anew."
            )
        shards.append(_read(path, plan))
    if any(shard is None for shard in shards):
        raise CheckpointError(
            f"The pairs in {_folder(plan)} were made by another teacher. Delete the folder "
            f"{plan.folder} and run again."
        )
    return jax.tree.map(lambda *x: np.concatenate(x), *shards)


def _try_shards(
    plan: StagePlan, maker: PairMaker, reporter: Reporter, stop: StopRequest, title: str
) -> str:
    """Makes the shards; returns where it was interrupted, for all processes, or ""."""
    try:
        _make_shards(plan, maker, reporter, stop, title)
    except Interrupted as where:
        return str(where)
    return ""


def _make_shards(
    plan: StagePlan, maker: PairMaker, reporter: Reporter, stop: StopRequest, title: str
) -> None:
    reporter.begin(title or plan.name, plan.settings.steps)
    try:
        for path, steps in _shards(plan):
            # A stage that was stopped may have shards of another length, see `MakePairs`.
            rows = steps.start * plan.settings.batch_size, len(steps) * plan.settings.batch_size
            if _read(path, plan, rows) is None:
                batches, begun = [], time.perf_counter()
                for step in steps:
                    stop.check(f"stage '{plan.name}' at batch {step}")
                    batches.append(_batch(plan, maker, step))
                    reporter.advance(step + 1, "")
                whole = jax.tree.map(lambda *x: np.concatenate(x), *batches)
                _write(path, whole, plan.digest, rows[0], time.perf_counter() - begun)
    finally:
        reporter.end()


def _shards(plan: StagePlan) -> Iterator[tuple[Path, range]]:
    objective = cast(MakePairs, plan.objective)
    for first in range(0, plan.settings.steps, objective.shard):
        last = min(first + objective.shard, plan.settings.steps)
        yield _folder(plan) / f"{first // objective.shard:05d}.npz", range(first, last)


def _batch(plan: StagePlan, maker: PairMaker, step: int) -> Pairs:
    """Batch number `step`; every pair has a key of its own, and classes or captions go round."""
    objective = cast(MakePairs, plan.objective)
    count = plan.settings.batch_size
    numbers = np.arange(step * count, (step + 1) * count)
    key = stream_key(plan.seed, f"{plan.name}/pairs")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    noise = jax.vmap(lambda k: jax.random.normal(k, plan.image_shape, jnp.float32))(keys)
    known = plan.students[0].tables.classes
    label = np.zeros(count, np.int32) if known is None else (numbers % len(known)).astype(np.int32)
    told, text = None if known is None else jnp.asarray(label), None
    if maker.encoder is not None and maker.captions is not None:
        total = plan.settings.steps * count
        text = Tokens(maker.captions[caption_of_pair(numbers, total, len(maker.captions))])
        told = encode_texts(maker.encoder, text.ids)

    def sample(denoiser, rows):
        return get_sampler(objective.sampler)(
            denoiser,
            plan.levels,
            noise[rows],
            cond=jax.tree.map(lambda x: x[rows], told),
            clip=objective.clip or None,
        )

    image = np.asarray(in_groups(maker.teacher, told, count, sample))
    if not np.isfinite(image).all():
        raise TrainingError(
            f"Stage '{plan.name}', batch {step}: the teacher's images are not finite. Set "
            "objective.clip=1, or more steps in its grid."
        )
    return Pairs(np.asarray(noise), label, image, text)


def caption_of_pair(
    numbers: Int[np.ndarray, " B"], pairs: int, captions: int
) -> Int[np.ndarray, " B"]:
    """Rows of the captions of pairs: all in turn, or as many as there are pairs, evenly spaced.

    Args:
      numbers: of the pairs.
      pairs: number of pairs of the stage.
      captions: number of captions of the data.
    """
    used = min(pairs, captions)
    return numbers % used * captions // used


def _manifest(plan: StagePlan) -> PairsManifest:
    objective = cast(MakePairs, plan.objective)
    s = plan.settings
    calls = nfe(objective.sampler, plan.levels.num_steps) * (1 if s.guidance == 1.0 else 2)
    return PairsManifest(
        stage=plan.name,
        digest=plan.digest,
        steps=s.steps,
        updates=0,
        batch_size=s.batch_size,
        students=0,
        parameters=0,
        teacher_calls=s.steps * s.batch_size * calls,
        # Of all shards, also those of an earlier process; includes compile time.
        train_seconds=sum(_seconds(path) for path, _ in _shards(plan)),
        compile_seconds=0.0,
        pairs=s.steps * s.batch_size,
        provenance={
            "teacher": s.teacher,
            "guidance": s.guidance,
            "sampler": objective.sampler,
            "levels": plan.indices.tolist(),
            "sigma": [float(x) for x in plan.levels.sigma],
            "seed": plan.seed,
        },
        shards={path.name: _hash(path) for path, _ in _shards(plan)},
    )


def _folder(plan: StagePlan) -> Path:
    return plan.folder / "pairs"


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, pairs: Pairs, digest: str, first: int, seconds: float) -> None:
    # Beside the shard, which is the same file whenever and wherever it is made.
    write_json(path.with_suffix(".json"), {"seconds": seconds})
    write_arrays(path, digest=_seal(first, pairs, digest), first=first, **_arrays(pairs))


def _arrays(pairs: Pairs) -> dict[str, np.ndarray]:
    """The arrays of a shard by name."""
    found = {name: np.asarray(getattr(pairs, name)) for name in _NAMES}
    if isinstance(pairs.text, Tokens):
        found[_TOKENS] = np.asarray(pairs.text.ids)
    return found


def _seconds(path: Path) -> float:
    """Seconds that making a shard took; 0 where they were not noted."""
    noted = read_object_or_none(path.with_suffix(".json"), Schema({"seconds": NUMBER}))
    return float(noted["seconds"]) if noted else 0.0


def _read(path: Path, plan: StagePlan, rows: tuple[int, int] | None = None) -> Pairs | None:
    """A shard, or None where it is missing, damaged or of another stage.

    Args:
      path: the file.
      plan: the stage.
      rows: the number of its first pair and how many there have to be; None for any.
    """
    tokens = () if plan.tokenizer is None else (_TOKENS,)
    found = read_arrays(path, (*_NAMES, *tokens, "digest", "first"))
    if found is None:
        return None
    text = Tokens(found[_TOKENS]) if tokens else None
    pairs = Pairs(found["noise"], found["label"], found["image"], text)
    first = int(found["first"])
    if rows is not None and (first, len(pairs.label)) != rows:
        return None
    return pairs if str(found["digest"]) == _seal(first, pairs, plan.digest) else None


def _seal(first: int, pairs: Pairs, digest: str) -> str:
    """Hash of a shard's content, its stage and its place there; np.load checks nothing."""
    seal = hashlib.sha256(f"{digest}/{first}".encode())
    for values in _arrays(pairs).values():
        seal.update(np.ascontiguousarray(values).tobytes())
    return seal.hexdigest()
