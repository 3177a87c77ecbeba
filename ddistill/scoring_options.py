"""The options of `python -m ddistill.evaluate`, and their checks."""

from dataclasses import dataclass, field
from pathlib import Path

from ddistill.data.dataset import SPLITS
from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.metrics.inception_metrics import MetricSettings
from ddistill.evaluation.metrics.protocols import PROTOCOLS, ImageProtocol, protocol_named
from ddistill.runtime.files import expand


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes:
      path: folder or npz file of images, or folder of a run.
      reference: images or statistics to score against; "" to only write the statistics of `path`.
      save_reference: npz file for the statistics of the reference, or of `path` without one.
      out: folder for scores and features; "" for a folder beside `path`, or inside a run.
      metrics: some of `SET_METRICS`; empty for all that the reference allows.
      settings: settings of the metrics.
      image_size: side to which images of folders are resized; 0 keeps their size.
      protocol: one of `PROTOCOLS`; "" for none.
      prompts: file of the prompts of the images in `path`; "" for none.
      range, reference_range: range of values of arrays in `path` and `reference` that are not
        uint8, one of `pixel_ranges.RANGES`; "" derives it from the values.
    """

    path: str
    reference: str = ""
    save_reference: str = ""
    out: str = ""
    metrics: tuple[str, ...] = ()
    settings: MetricSettings = field(default_factory=MetricSettings)
    image_size: int = 0
    range: str = ""
    reference_range: str = ""
    protocol: str = ""
    prompts: str = ""

    @property
    def published(self) -> ImageProtocol | None:
        """The protocol; raises `ConfigError` for an unknown name."""
        return protocol_named(self.protocol, "--protocol") if self.protocol else None


def check(options: Options, clip: bool = False) -> None:
    """Raises `ConfigError` or `DataError` for options that cannot work; `clip`: whether --clip."""
    path = expand(options.path)
    if not path.exists():
        raise DataError(f"{path} does not exist. Give a folder of images, an npz file, or a run.")
    _check_prompted(options, clip)
    if not options.reference and not options.save_reference and not clip:
        raise ConfigError(
            "--reference is missing: a folder or npz file of real images, or an npz file of "
            "statistics. Give --save_reference=FILE.npz alone to write the statistics of PATH."
        )
    if options.save_reference and not options.save_reference.endswith(".npz"):
        raise ConfigError(f"--save_reference={options.save_reference} must end in .npz.")
    if is_run(path):
        if not options.reference:
            raise ConfigError(f"{path} is a run: give the --reference for its samples.")
        if options.range:
            raise ConfigError(f"--range={options.range}: samples of a run are in [-1, 1]; omit it.")
    elif options.reference in SPLITS and not Path(options.reference).exists():
        raise ConfigError(
            f"--reference={options.reference} means the data set of a run, and {path} is no "
            "finished run: it has no evaluation.json. Give a folder or an npz file."
        )


def _check_prompted(options: Options, clip: bool) -> None:
    """Raises `ConfigError` for flags of prompts that do not fit together."""
    protocol = options.published
    if not (protocol or options.prompts or clip):
        return
    if is_run(expand(options.path)):
        raise ConfigError(
            "--protocol, --prompts and --clip are for a folder or file of images; a run is scored "
            "under a protocol by config.evaluation.protocol."
        )
    if options.prompts and not (protocol or clip):
        raise ConfigError(
            f"--prompts={options.prompts} has no effect: give --clip=FOLDER for a CLIP score, or "
            f"--protocol, one of {', '.join(sorted(PROTOCOLS))}."
        )
    if (clip or options.reference) and not options.prompts:
        raise ConfigError(
            "--prompts is missing: the file of the prompts of the images, one a line, or a .csv "
            "table with the columns file_name and text."
        )
    if options.image_size:
        raise ConfigError(f"--image_size={options.image_size}: a protocol has its own; omit it.")
    if options.reference and not protocol:
        raise ConfigError(
            "--reference with --prompts needs --protocol, which says how images are resized: one "
            f"of {', '.join(sorted(PROTOCOLS))}. Or score without --prompts and --clip."
        )


def is_run(path: Path) -> bool:
    """Whether a folder belongs to a run with a finished evaluation.

    Raises:
      DataError: the evaluation of the run is not finished.
    """
    if (path / "evaluation.json").is_file():
        return True
    if (path / "config.json").is_file() and (path / "stages").is_dir():
        raise DataError(
            f"the evaluation of the run {path} is not finished: it has no evaluation.json. Give "
            "the run's command again; it makes what is missing."
        )
    return False
