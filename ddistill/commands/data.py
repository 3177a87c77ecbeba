"""`ddistill data latents SOURCE OUT`: captioned images as latents and token ids.

Reads captioned images, encodes them with the autoencoder of a pipeline, tokenizes the captions,
and writes a folder that data.name='latents' reads. The same command continues a stopped one.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from ddistill.command_line import Parser, one_line_ending
from ddistill.data.captions.choices import MARKUPS, PER_IMAGE, PLACES, Choices
from ddistill.data.captions.rows import CaptionSource
from ddistill.data.captions.sources import FORMS, open_source
from ddistill.data.latents.openers import PIPELINES, open_pipeline
from ddistill.data.latents.writer import SPLITS_KEPT, SetOptions, make_set
from ddistill.data.listing import check_fraction
from ddistill.errors import ConfigError
from ddistill.runtime.files import expand
from ddistill.text import printable
from ddistill.trained_pipeline import open_trained

# Pipelines by name; a run is opened by modules above those of the data.
_KINDS = {**PIPELINES, "run": open_trained}
# Problems that are printed before the file with all of them is named.
_SHOWN = 5


@one_line_ending()
def main(argv: Sequence[str] | None = None, program: str = "ddistill data latents") -> None:
    """Entry point of the command line; exit status 1 with a message where the set is not made."""
    options = _parser(program).parse_all(argv)
    choices = Choices(
        options.captions,
        options.column,
        options.template,
        options.per_image,
        options.markup,
        options.seed,
    )
    sources = open_splits(options.source, options.test, options.test_fraction, choices)
    for source in sources.values():
        _print_problems(source)
    pipeline = open_pipeline(
        options.pipeline, [row.caption for row in sources["train"].rows], _KINDS
    )
    begun, out = time.perf_counter(), expand(options.out)
    wanted = SetOptions(
        image_size=options.image_size,
        sampled=options.sampled,
        flip=options.flip,
        states=options.states,
        pixels=options.pixels,
        seed=options.seed,
        shard_mb=options.shard_mb,
        batch_size=options.batch_size,
        workers=options.workers,
        licence=options.licence,
    )
    record = make_set(sources, pipeline, out, wanted, lambda line: print(printable(line)))
    assert record.splits is not None
    rows = {split: sum(s.rows for s in shards) for split, shards in record.splits.items()}
    listed = " and ".join(f"{n} {split} rows" for split, n in rows.items())
    print(printable(f"{out}: {listed} in {time.perf_counter() - begun:.1f} s"))
    print(printable(f"Use it with data.name='latents', data.path='{out}'."))


def open_splits(
    source: str, test: str, test_fraction: float, choices: Choices
) -> dict[str, CaptionSource]:
    """The sources of a set by split.

    Args:
      source: of the training images, see `open_source`.
      test: of the test images; "" holds out a share of the training images.
      test_fraction: that share, by the hash of each name.
      choices: where captions are, and which of several an image gets.

    Raises:
      ConfigError: both, or a share that cannot be; or as `open_source`.
      DataError: as `open_source`.
    """
    check_fraction(test_fraction)
    if test and test_fraction:
        raise ConfigError("--test and --test-fraction exclude each other: give one of them.")
    if test:
        return {"train": open_source(source, choices), "test": open_source(test, choices)}
    return open_source(source, choices).parts(test_fraction)


def _parser(program: str) -> Parser:
    parser = Parser(program, "Makes a set of latents and token ids of captioned images.")
    parser.add_argument("source", metavar="SOURCE", help=FORMS)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the set")
    add = parser.add_argument
    add(
        "--pipeline",
        required=True,
        help=f"networks, KIND or KIND:PATH. Kinds: {', '.join(_KINDS)}",
    )
    add("--image-size", type=int, required=True, help="side of the square images in pixels")
    add("--test", default="", metavar="SOURCE", help="captioned images for testing")
    add("--test-fraction", type=float, default=0.0, help="share to hold out for testing")
    add("--captions", default="auto", choices=PLACES, help="where a folder has its captions")
    add("--column", default="", help="of the captions in a table, or key in the JSON of a tar")
    add("--template", default="", help="caption of class folders, such as 'a photo of a {}'")
    add("--per-image", default="one", choices=PER_IMAGE, help="captions of an image that are used")
    add("--markup", default="keep", choices=MARKUPS, help="HTML in captions: keep or strip it")
    add("--sampled", action="store_true", help="store one draw of each image instead of moments")
    add("--flip", action="store_true", help="store mirrored images too")
    add("--states", action="store_true", help="store the states of the text encoder")
    add("--pixels", default="test", choices=SPLITS_KEPT, help="splits that keep the images too")
    add("--licence", default="", help="of images and captions, in words, for the record")
    add("--seed", type=int, default=0, help="of --per-image=one and --sampled")
    add("--shard-mb", type=float, default=512.0, help="MiB of a shard")
    add("--batch-size", type=int, default=16, help="images that are encoded together")
    add("--workers", type=int, default=0, help="threads that decode; 0: cores + 2")
    return parser


def _print_problems(source: CaptionSource) -> None:
    for problem in source.problems[:_SHOWN]:
        print(problem.line)
    if len(source.problems) > _SHOWN:
        print(f"... and {len(source.problems) - _SHOWN} more")
