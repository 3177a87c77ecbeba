"""Scores of a run under a published protocol: FID and CLIP score of samples of its prompts.

Samples are drawn, resized and turned into features batch by batch, and only features are kept, in
`protocol/KEY_PART.npz`, so that 30,000 images of 512 pixels need little memory and a stopped
evaluation continues. Samples of the report are others: captions of the data.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ddistill.errors import ConfigError
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.metrics.clip_score import clip_detector, clip_score, text_embeddings
from ddistill.evaluation.metrics.detector import Detector, inception_detector
from ddistill.evaluation.metrics.features import extract
from ddistill.evaluation.metrics.frechet_estimates import Target, frechet_estimates
from ddistill.evaluation.metrics.image_sets import ImageSet
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.metrics.protocol_sets import (
    check_real,
    fitted,
    protocol_reference,
    real_set,
    sample_fit,
)
from ddistill.evaluation.metrics.protocols import (
    PROTOCOLS,
    ImageProtocol,
    PromptedParts,
    Prompts,
    prompted_parts,
    protocol_named,
    read_prompt_file,
)
from ddistill.evaluation.metrics.reference_sets import Extraction, ReferenceSet
from ddistill.evaluation.metrics.resampling import USUAL, Estimate
from ddistill.evaluation.prompts import texts_of
from ddistill.evaluation.sampling import picture_source, run_digest
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.evaluation.scored import ScoredRun, comparable
from ddistill.interop.clip import ClipFiles, check_digest, find_clip, load_clip
from ddistill.interop.inception import load_inception
from ddistill.interop.tensors import file_digest
from ddistill.interop.tokenizer import read_tokenizer
from ddistill.planning.plan import StagePlan
from ddistill.protocol_settings import ProtocolSettings
from ddistill.runtime.files import expand, read_arrays, write_arrays
from ddistill.settings import Settings

_KEY = "config.evaluation.protocol"
FID, CLIP = "fid", "clip"
# Samples whose features are in one file.
PART = 512


@dataclass(frozen=True, eq=False)
class OpenedProtocol:
    """The inputs of a protocol; made by `open_protocol`.

    Attributes:
      settings: of the protocol.
      protocol: the protocol.
      prompts: its prompts.
      real: its real images; None for statistics, or without a FID.
      inception: FID's network; None without a FID.
      clip: files of the CLIP model, and their hash; None without a CLIP score.
      parts: for protocol strings.
    """

    settings: ProtocolSettings
    protocol: ImageProtocol
    prompts: Prompts
    real: ImageSet | None
    inception: Detector | None
    clip: tuple[ClipFiles, str] | None
    parts: PromptedParts


def check_protocol(settings: Settings, plans: Sequence[StagePlan]) -> None:
    """Checks the settings of the protocol before training; no large file is read but FID's weights.

    Raises:
      ConfigError, DataError: a name, file or folder that cannot work.
    """
    s = settings.evaluation.protocol
    if not s.name:
        given = [f.name for f in dataclasses.fields(s) if getattr(s, f.name)]
        if given:
            raise ConfigError(
                f"{_KEY}.{given[0]}={getattr(s, given[0])!r} has no effect, because {_KEY}.name is "
                f"''. Allowed: {', '.join(sorted(PROTOCOLS))}."
            )
        return
    protocol = protocol_named(s.name, f"{_KEY}.name")
    if not any(p.tokenizer is not None for p in plans if p.name == settings.evaluation.teacher):
        raise ConfigError(
            f"{_KEY}.name={s.name!r} samples prompts, and the teacher of this run reads no texts."
        )
    read_prompt_file(s.prompts, f"{_KEY}.prompts", protocol.prompts)
    if not (s.real or s.clip):
        raise ConfigError(
            f"{_KEY}.real and {_KEY}.clip are empty: name real images for the FID, a CLIP model "
            "for the CLIP score, or both."
        )
    if s.real:
        check_real(s.real, protocol, f"{_KEY}.real")
        load_inception(s.inception)
    if s.clip:
        files = find_clip(s.clip)
        if s.clip_digest:
            check_digest(files.digest, s.clip_digest, s.clip, f"{_KEY}.clip_digest")
        read_tokenizer(files.folder, length=8)


def open_protocol(settings: ProtocolSettings, batch: int) -> OpenedProtocol | None:
    """Reads prompts and hashes the other files; None without a protocol.

    Args:
      settings: of the protocol.
      batch: images per batch of FID's network.

    Raises:
      ConfigError, DataError: a file is missing, damaged, or of another number or hash.
    """
    s = settings
    if not s.name:
        return None
    protocol = protocol_named(s.name, f"{_KEY}.name")
    prompts = read_prompt_file(s.prompts, f"{_KEY}.prompts", protocol.prompts)
    inception = real = clip = None
    described = model = ""
    if s.real:
        weights = load_inception(s.inception)
        inception = inception_detector(weights, batch, logits=False, resize=protocol.fid_resize)
        path = expand(s.real)
        if path.suffix == ".npz":
            described = f"{path.name}:{protocol.real}@{file_digest(path)[:8]}"
        else:
            real = real_set(path, protocol, f"{_KEY}.real")
            described = f"{real.name}:{len(real)}@{real.digest[:8]}"
    if s.clip:
        clip = (found := find_clip(s.clip)), found.digest
        check_digest(clip[1], s.clip_digest, s.clip, f"{_KEY}.clip_digest")
        model = f"{found.name}@{clip[1][:8]}"
    fid = inception.text if inception else ""
    parts = prompted_parts(protocol, prompts, described, fid, model)
    return OpenedProtocol(s, protocol, prompts, real, inception, clip, parts)


@dataclass(frozen=True, eq=False)
class Judges:
    """The networks of a protocol, and what samples are compared with.

    Attributes:
      detectors: by `FID` and `CLIP`, the feature networks.
      reference: statistics of the real images; None without a FID.
      texts: embeddings of the prompts; None without a CLIP score.
    """

    detectors: Mapping[str, Detector]
    reference: ReferenceSet | None
    texts: Float[np.ndarray, "N P"] | None


def make_judges(opened: OpenedProtocol, evaluation: Evaluation) -> Judges:
    """Reads the networks, and computes features of the real images unless they are on disk."""
    detectors: dict[str, Detector] = {}
    reference = texts = None
    batch, protocol = evaluation.settings.evaluation.batch_size, opened.protocol
    if opened.inception is not None:
        detectors[FID] = opened.inception
        folder = evaluation.workdir / "protocol" / "real"
        extraction = Extraction(opened.inception, folder, evaluation.reporter, evaluation.stop)
        source = opened.settings.real
        reference = protocol_reference(opened.real or source, protocol, extraction, f"{_KEY}.real")
    if opened.clip is not None:
        model = load_clip(*opened.clip)
        detectors[CLIP] = clip_detector(model, batch)
        texts = text_embeddings(model, opened.prompts.texts, protocol.prefix)
    return Judges(detectors, reference, texts)


def with_protocol(
    evaluation: Evaluation, opened: OpenedProtocol, scored: Sequence[ScoredRun]
) -> list[ScoredRun]:
    """Adds FID and CLIP score to the runs that a reader compares, if their networks read texts.

    Args:
      evaluation: the run.
      opened: the protocol.
      scored: all scored runs, the reference teacher first.

    Raises:
      Interrupted: a stop was requested; the features so far are kept.
    """
    judges = make_judges(opened, evaluation)
    chosen = {s.run.key for s in comparable(scored) if s.run.plan.tokenizer is not None}

    def added(s: ScoredRun) -> ScoredRun:
        if s.run.key not in chosen:
            return s
        features = sample_features(s.run, evaluation, opened, judges)
        return dataclasses.replace(s, scores={**s.scores, **scores_of(features, judges)})

    return [added(s) for s in scored]


def scores_of(
    features: Mapping[str, Float[np.ndarray, "N D"]], judges: Judges
) -> dict[str, Estimate]:
    """The metrics of features, with 95 % intervals over draws of the samples."""
    found = {}
    if judges.reference is not None:
        target = Target.of(judges.reference.mean, judges.reference.cov)
        resampling = dataclasses.replace(USUAL, splits=0)
        found["fid_protocol"] = frechet_estimates(target, features[FID], resampling)["fd"]
    if judges.texts is not None:
        found["clip_score"] = clip_score(features[CLIP], judges.texts)
    return found


def sample_features(
    run: SamplerRun, evaluation: Evaluation, opened: OpenedProtocol, judges: Judges
) -> dict[str, Float[np.ndarray, "N D"]]:
    """By network the features of samples of all prompts, except parts that are on disk already.

    Raises:
      Interrupted: a stop was requested; complete parts stay on disk.
    """
    e, networks, reporter = evaluation.settings.evaluation, evaluation.networks, evaluation.reporter
    texts = texts_of(run.plan, networks, networks.tokenize(run.plan, opened.prompts.texts))
    pictures = dataclasses.replace(picture_source(run, evaluation), texts=texts)
    fit, digest = sample_fit(opened.protocol), _digest(run, evaluation, opened, judges)
    count, found = len(opened.prompts.texts), []
    reporter.begin(f"{opened.protocol.name}: {run.label}", count)
    try:
        for start in range(0, count, PART):
            end = min(start + PART, count)
            path = evaluation.workdir / "protocol" / f"{run.key}_{start // PART:05d}.npz"
            part = _kept(path, digest, judges)
            if part is None:
                fits = []
                for first in range(start, end, e.batch_size):
                    evaluation.stop.check(f"the evaluation ({opened.protocol.name}, {run.label})")
                    made = pictures(range(first, first + e.batch_size))[: end - first]
                    fits.append(fitted(quantise(made), fit))
                    reporter.advance(min(first + e.batch_size, end), "")
                part = _features(np.concatenate(fits), judges)
                write_arrays(path, digest=digest, **part)
            found.append(part)
            reporter.advance(end, "")
    finally:
        reporter.end()
    return {name: np.concatenate([part[name] for part in found]) for name in judges.detectors}


def _features(pixels: np.ndarray, judges: Judges) -> dict[str, np.ndarray]:
    return {
        name: extract(detector.apply, pixels, detector.batch, pixels=True)[0]
        for name, detector in judges.detectors.items()
    }


def _digest(run: SamplerRun, evaluation: Evaluation, opened: OpenedProtocol, judges: Judges) -> str:
    """Digest of everything that the features of a run's samples depend on."""
    networks = [f"{name} {d.sha256} {d.text}" for name, d in judges.detectors.items()]
    content = [
        run_digest(run, evaluation.settings.evaluation),
        repr(opened.protocol),
        opened.prompts.digest,
        *networks,
    ]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _kept(path: Path, digest: str, judges: Judges) -> Mapping[str, np.ndarray] | None:
    """A part on disk; None where it is missing, damaged or of other settings."""
    found = read_arrays(path, ("digest", *judges.detectors))
    return None if found is None or str(found["digest"]) != digest else found


def protocol_lines(scored: Sequence[ScoredRun], opened: OpenedProtocol) -> list[str]:
    """A line for each run with scores of the protocol."""
    lines = []
    for s in scored:
        own = {name: s.scores[name] for name in ("fid_protocol", "clip_score") if name in s.scores}
        if own:
            forms = {"fid_protocol": ("FID", ".2f"), "clip_score": ("CLIP score", ".4f")}
            parts = [f"{forms[k][0]} {_text(score, forms[k][1])}" for k, score in own.items()]
            lines.append(f"{opened.protocol.name}, {s.run.label}: {', '.join(parts)}")
    return lines


def _text(score: Estimate, form: str) -> str:
    text = format(score.value, form)
    if score.low is None or score.high is None:
        return text
    return f"{text} ({format(score.low, form)} to {format(score.high, form)})"
