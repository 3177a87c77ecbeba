"""Where a stage's weights can come from: "diffusers:FOLDER", "edm:FILE"."""

from collections.abc import Callable
from pathlib import Path

from ddistill.errors import ConfigError, check_choice
from ddistill.interop import diffusers, edm
from ddistill.interop.imported import Imported

READERS: dict[str, Callable[[Path], Imported]] = {
    "diffusers": diffusers.read_teacher,
    "edm": edm.read_teacher,
}


def read_source(source: str, key: str) -> Imported:
    """The network that a setting names.

    Args:
      source: "KIND:PATH", KIND one of `READERS`.
      key: dotted name of the setting.

    Raises:
      ConfigError: the kind is not known, or what its reader says of the files.
    """
    kind, colon, path = source.partition(":")
    if not colon or not path:
        raise ConfigError(
            f"{key}={source!r} should be KIND:PATH, KIND one of {', '.join(READERS)}."
        )
    check_choice(f"{key}: kind", kind, READERS)
    try:
        return READERS[kind](Path(path))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
