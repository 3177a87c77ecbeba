"""python -m ddistill.evaluate PATH --reference=REFERENCE: Frechet distances, precision, recall.

PATH is a folder of images, an npz file of images (arr_0, or images), an npy file of images, or the
folder of a finished run; then the samples of every sampler run are scored. REFERENCE is a folder or
file of images, a file of statistics (written by EDM, EDM2, ADM, or by --save_reference), or for a
run `train` or `test`, a split of its data set.

With --features=inception, the default, the scores are FID, inception score, KID and precision; the
weights of FID's network are read from --weights, and nothing is downloaded. With
--features=efficientnet_lite0 the distances are in the features of EfficientNet-Lite0, with the
weights that the extra `features` installs; they are no FID.

With --prompts=FILE and --clip=FOLDER, images of prompts get a CLIP score. --protocol=NAME scores
them as a published protocol says (docs/evaluation.md).

Scores are written to OUT/scores.json and features to OUT/features, so that the same command
continues after a stop.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from ddistill import data
from ddistill.command_line import Parser, one_line_ending
from ddistill.data.dataset import SPLITS
from ddistill.errors import ConfigError, DataError, check_choice
from ddistill.evaluation.metrics.clip_score import clip_detector
from ddistill.evaluation.metrics.detector import (
    FEATURES,
    INCEPTION,
    LITE0,
    NETWORKS,
    Detector,
    inception_detector,
    lite0_detector,
)
from ddistill.evaluation.metrics.image_sets import ImageSet, dataset_images, open_image_set
from ddistill.evaluation.metrics.inception_metrics import SET_METRICS, MetricSettings
from ddistill.evaluation.metrics.pixel_ranges import RANGES, check_range
from ddistill.evaluation.metrics.prompted_set import PromptedScoring
from ddistill.evaluation.metrics.protocol_sets import protocol_reference
from ddistill.evaluation.metrics.protocols import (
    PROTOCOLS,
    read_prompt_file,
)
from ddistill.evaluation.metrics.reference_sets import (
    Extraction,
    ReferenceSet,
    open_reference,
    reference_of_images,
    write_reference,
)
from ddistill.evaluation.metrics.score_set import SampleSet, SetScores, chosen_metrics, score_set
from ddistill.evaluation.records.environment import command_string, machine_string
from ddistill.evaluation.records.sampler_runs import SamplerRunRecord, read_sampler_runs
from ddistill.interop.clip import ClipModel, check_digest, find_clip, load_clip
from ddistill.interop.efficientnet_lite import load_lite0
from ddistill.interop.inception import load_inception
from ddistill.runtime.console import Reporter
from ddistill.runtime.ending import tell
from ddistill.runtime.files import DamagedFile, expand, read_object, write_text
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.leftovers import remove_leftovers
from ddistill.runtime.schemas import OBJECT, Schema
from ddistill.scoring_options import Options, check, is_run

# Parts of the protocol of a sampler run that say how the samples were made.
_ORIGIN = ("sampler", "nfe", "ema", "clip", "noise_seed", "guidance")


@one_line_ending(RuntimeError)
def main(argv: Sequence[str] | None = None, program: str = "python -m ddistill.evaluate") -> None:
    """Entry point of the command line.

    The exit status is 0, or 1 with a message for input that cannot be scored. After a stop it is
    130 (SIGINT) or 143 (another signal).
    """
    given = _parser(program).parse_all(argv)
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = command_string(["evaluate", *arguments], program)
    stop = StopRequest()
    try:
        options = _options(given)
        clip = _clip(given)
        check(options, clip is not None)
        detector = _detector(given, options, clip)
        with stop:
            evaluate(options, detector, Reporter(), stop, command, clip)
    except Interrupted as where:
        by = stop.name or "request"
        tell(f"Stopped by {by} in {where}; features so far are kept. To go on:\n  {command}")
        sys.exit(stop.status)


def evaluate(
    options: Options,
    detector: Detector,
    reporter: Reporter,
    stop: StopRequest,
    command: str = "",
    clip: ClipModel | None = None,
) -> list[SetScores]:
    """Scores the samples and writes OUT/scores.json after each set of samples.

    Args:
      options: the options of the command line.
      detector: the feature network; that of `clip` for a CLIP score alone.
      reporter: receives progress and scores.
      stop: the request to stop, checked between batches.
      command: the command, written to scores.json.
      clip: the CLIP model; None without a CLIP score.

    Raises:
      ConfigError, DataError: see the functions that open images and references.
      Interrupted: a stop was requested; the features so far are kept.
    """
    check(options, clip is not None)
    path = expand(options.path)
    out = expand(options.out) if options.out else default_out(path, detector)
    remove_leftovers(out)
    extraction = Extraction(detector, out / "features", reporter, stop)
    reference = _reference(options, path, extraction)
    if options.save_reference and reference is not None:
        target = expand(options.save_reference)
        write_reference(target, reference, detector)
        reporter.say(f"statistics of {reference.text} in {detector.text}: {target}")
    found: list[SetScores] = []
    for made in _scores(options, path, extraction, reference, clip):
        found.append(made)
        for line in made.lines():
            reporter.say(line)
        _write(out / "scores.json", found, command)
    if found:
        reporter.say(f"scores: {out / 'scores.json'}")
    return found


def _scores(
    options: Options,
    path: Path,
    extraction: Extraction,
    reference: ReferenceSet | None,
    clip: ClipModel | None,
) -> Iterator[SetScores]:
    """Yields the scores of each set of samples."""
    if options.prompts:
        protocol = options.published
        prompts = read_prompt_file(
            options.prompts, "--prompts", protocol.prompts if protocol else 0
        )
        scoring = PromptedScoring(prompts, protocol, clip, extraction.detector.batch)
        against = reference if options.reference else None
        images = scoring.images(path)
        yield scoring.scores(images, against, extraction, options.metrics, options.settings)
        return
    for images, sampler_run in _samples(options, path):
        assert reference is not None
        samples = SampleSet(images, extraction(images))
        if sampler_run is not None:
            samples = dataclasses.replace(
                samples,
                label=sampler_run.label,
                origin=_origin(sampler_run),
                classes=sampler_run.classes,
            )
        yield score_set(samples, reference, extraction.detector, options.settings, options.metrics)


def default_out(path: Path, detector: Detector) -> Path:
    """The default of --out: RUN/NETWORK, or beside images PATH.scores or PATH.NETWORK."""
    if is_run(path):
        return path / detector.network
    path = path.resolve()
    own = "scores" if detector.network == INCEPTION else detector.network
    return path.with_name(f"{path.name}.{own}")


def _clip(given: argparse.Namespace) -> ClipModel | None:
    """The CLIP model of --clip, if it is given."""
    if not given.clip:
        if given.clip_digest:
            raise ConfigError(f"--clip_digest={given.clip_digest} is of --clip=FOLDER; name it.")
        return None
    files = find_clip(given.clip)
    digest = files.digest
    check_digest(digest, given.clip_digest, given.clip, "--clip_digest")
    return load_clip(files, digest)


def _detector(given: argparse.Namespace, options: Options, clip: ClipModel | None) -> Detector:
    check_choice("--features", given.features, NETWORKS)
    protocol = options.published
    if clip is not None and not options.reference and not options.save_reference:
        return clip_detector(clip, given.batch)
    if given.features == LITE0:
        for flag, usual in (("feature", "2048"), ("other_weights", False), ("protocol", "")):
            if getattr(given, flag) != usual:
                raise ConfigError(f"--{flag} is of --features={INCEPTION} alone; leave it out.")
        return lite0_detector(load_lite0(given.weights), given.batch)
    weights = load_inception(given.weights, other=given.other_weights)
    return inception_detector(
        weights,
        given.batch,
        given.feature,
        logits=_wants_logits(options),
        resize=protocol.fid_resize if protocol else "tf1",
    )


def _reference(options: Options, path: Path, extraction: Extraction) -> ReferenceSet | None:
    """The reference, or without one PATH itself for --save_reference; None without both."""
    name, protocol = options.reference, options.published
    single = not options.metrics or bool({"kid", "prc"} & set(options.metrics))
    if not name and not options.save_reference:
        return None
    if protocol is not None:
        key = "--reference" if name else "PATH"
        return protocol_reference(name or path, protocol, extraction, key)
    if not name:
        images = open_image_set(path, options.image_size, options.range)
        return reference_of_images(images, extraction, single)
    if name in SPLITS and is_run(path):
        dataset = data.load(_config(path)["data"], name)
        return reference_of_images(dataset_images(dataset, name), extraction, single)
    return open_reference(name, extraction, single, options.image_size, options.reference_range)


def _samples(options: Options, path: Path) -> Iterator[tuple[ImageSet, SamplerRunRecord | None]]:
    """Yields images with the sampler run that made them; nothing without a reference."""
    if not options.reference:
        return
    if not is_run(path):
        yield open_image_set(path, options.image_size, options.range), None
        return
    for sampler_run in read_sampler_runs(path / "evaluation.json"):
        images = open_image_set(path / "samples" / f"{sampler_run.key}.npz")
        yield dataclasses.replace(images, name=sampler_run.key), sampler_run


def _origin(sampler_run: SamplerRunRecord) -> str:
    parts = [part for part in sampler_run.protocol.split() if part.partition("=")[0] in _ORIGIN]
    return " ".join(parts)


def _config(run: Path) -> dict:
    try:
        return read_object(run / "config.json", Schema({"data": OBJECT}))
    except (OSError, DamagedFile) as error:
        raise DataError(
            f"{run / 'config.json'} cannot be read: {error}. Give the run's command again."
        ) from error


def _write(path: Path, found: Sequence[SetScores], command: str) -> None:
    content = {
        "command": command,
        "machine": machine_string(),
        "scores": [dataclasses.asdict(made) for made in found],
    }
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _wants_logits(options: Options) -> bool:
    if options.protocol:  # its usual metric is the FID
        return "is" in options.metrics
    return bool(options.reference) and (not options.metrics or "is" in options.metrics)


def _options(given: argparse.Namespace) -> Options:
    if given.batch < 1:
        raise ConfigError(f"--batch={given.batch} must be 1 or more.")
    names = [field.name for field in fields(MetricSettings)]
    return Options(
        path=given.path,
        reference=given.reference,
        save_reference=given.save_reference,
        out=given.out,
        metrics=chosen_metrics(given.metrics),
        settings=MetricSettings(**{name: getattr(given, name) for name in names}),
        image_size=given.image_size,
        range=check_range("--range", given.range),
        reference_range=check_range("--reference_range", given.reference_range),
        protocol=given.protocol,
        prompts=given.prompts,
    )


def _parser(program: str) -> Parser:
    parser = Parser(
        program,
        "Frechet distance, KID, precision and recall of images or of a run.",
    )
    add = parser.add_argument
    add("path", metavar="PATH", help="folder or npz file of images, or folder of a finished run")
    add("--reference", default="", help="images or statistics; for a run also: train, test")
    add(
        "--features",
        default=INCEPTION,
        help=f"network of the features: {' | '.join(NETWORKS)} (default: {INCEPTION})",
    )
    add(
        "--weights",
        default="",
        help="weight file (default: of FID's network $DDISTILL_INCEPTION, then ~/.cache; of "
        f"{LITE0} the file of the extra 'features')",
    )
    add("--other_weights", action="store_true", help="accept a weight file of another hash")
    add("--save_reference", default="", metavar="FILE.npz", help="write the reference's statistics")
    add("--out", default="", help="folder to write (default: PATH.scores, or RUN/FEATURES)")
    add(
        "--metrics",
        default="",
        help=f"of {','.join(SET_METRICS)} (default: all that the reference allows)",
    )
    add("--feature", default="2048", choices=FEATURES, help="features of the network")
    add("--batch", type=int, default=64, help="images per batch, over all devices (default: 64)")
    add("--image_size", type=int, default=0, help="resize images of folders to this side")
    add("--protocol", default="", help=f"published protocol: {' | '.join(PROTOCOLS)}")
    add("--prompts", default="", metavar="FILE", help="prompts of PATH's images: .txt or .csv")
    add("--clip", default="", metavar="FOLDER", help="CLIP model for a CLIP score of the prompts")
    add("--clip_digest", default="", help="first digits of the SHA-256 of its weights")
    ranges = f"one of {' | '.join(RANGES)} (default: from the values)"
    add("--range", default="", help=f"range of arrays in PATH that are not uint8: {ranges}")
    add("--reference_range", default="", help="range of arrays in REFERENCE")
    for field in fields(MetricSettings):
        add(f"--{field.name}", type=int, default=field.default, help=f"default: {field.default}")
    return parser


if __name__ == "__main__":
    main()
