"""The sources of a stage's weights: "diffusers:FOLDER", "edm:FILE", "efficientnet_lite0:"."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ddistill.errors import ConfigError, check_choice
from ddistill.interop import diffusers, edm, efficientnet_lite
from ddistill.interop.imported import FACTS, Imported, from_facts
from ddistill.runtime.files import expand, read_object_or_none, write_json
from ddistill.runtime.schemas import TEXT, Schema, map_of, object_of

_NOTED = object_of(Schema({"setting": TEXT, "facts": object_of(FACTS)}))
# Readers of diffusion models; a variant of a config may name one of these.
TEACHERS: dict[str, Callable[[Path], Imported]] = {
    "diffusers": diffusers.read_teacher,
    "edm": edm.read_teacher,
}
READERS: dict[str, Callable[[Path], Imported]] = {
    **TEACHERS,
    "efficientnet_lite0": efficientnet_lite.read_classifier,
}
# Kinds that need no path, with the file that is read then; None where it is not installed.
_WITHOUT_PATH: dict[str, Callable[[], Path | None]] = {
    "efficientnet_lite0": efficientnet_lite.installed,
}


def write_noted(path: Path, sources: Mapping[str, tuple[str, Imported]]) -> None:
    """Writes the facts of the networks that stages start from.

    Args:
      path: JSON file.
      sources: by stage, the setting `source` and its network.
    """
    noted = {stage: {"setting": s, "facts": found.facts()} for stage, (s, found) in sources.items()}
    write_json(path, noted)


def read_noted(path: Path) -> dict[str, tuple[str, Imported]]:
    """Reads the file of `write_noted`; empty where it is missing or damaged."""
    noted = read_object_or_none(path) or {}
    if not map_of(_NOTED).fits(noted):
        return {}
    try:
        return {stage: (n["setting"], from_facts(n["facts"])) for stage, n in noted.items()}
    except TypeError:  # noted by a version with other fields
        return {}


def is_there(source: str) -> bool:
    """Whether the files of a setting `source` exist."""
    kind, _, path = source.partition(":")
    if not path and kind in _WITHOUT_PATH:
        return _WITHOUT_PATH[kind]() is not None
    return expand(path).exists()


def read_source(source: str, key: str) -> Imported:
    """The network that a setting names.

    Args:
      source: "KIND:PATH", KIND one of `READERS`; "efficientnet_lite0:" without a path names the
        weights of the installed package.
      key: dotted name of the setting.

    Raises:
      ConfigError: the kind is not known, or an error of its reader.
    """
    kind, colon, path = source.partition(":")
    if not colon or (not path and kind not in _WITHOUT_PATH):
        raise ConfigError(
            f"{key}={source!r} should be KIND:PATH, KIND one of {', '.join(READERS)}."
        )
    check_choice(f"{key}: kind", kind, READERS)
    try:
        return READERS[kind](Path(path))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
