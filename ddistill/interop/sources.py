"""The sources of a stage's weights: networks of other projects by "KIND:PATH"."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ddistill.errors import ConfigError, check_choice
from ddistill.interop import diffusers, edm, efficientnet_lite, hub
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


def is_there(source: str, revision: str = "") -> bool:
    """Whether the files of a setting `source` exist, or can be fetched.

    Args:
      source: the setting.
      revision: see `read_source`.
    """
    kind, _, path = source.partition(":")
    if not path and kind in _WITHOUT_PATH:
        return _WITHOUT_PATH[kind]() is not None
    if not path.startswith(hub.PREFIX):
        return expand(path).exists()
    try:
        hub.fetch(_pinned(path, revision))
    except ConfigError:
        return False
    return True


def read_source(source: str, key: str, revision: str = "") -> Imported:
    """The network that a setting names.

    Args:
      source: "KIND:PATH", KIND one of `READERS`; "diffusers:hf://ORG/NAME[@REVISION][/FOLDER]",
        which is fetched from the Hugging Face hub; or "efficientnet_lite0:", the weights of the
        installed package.
      key: dotted name of the setting.
      revision: the commit to read of a repository of which `source` names no revision.

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
        if path.startswith(hub.PREFIX):
            return _of_hub(kind, path, revision)
        return READERS[kind](Path(path))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}{_perhaps_hub(kind, path)}") from None


def _of_hub(kind: str, path: str, revision: str) -> Imported:
    if kind != "diffusers":
        raise ConfigError(f"{kind}:{path}: models of the hub are read as diffusers:{path} alone.")
    address = _pinned(path, revision)
    snapshot = hub.fetch(address)
    named = str(dataclasses.replace(address, revision=snapshot.commit))
    found = diffusers.read_teacher(snapshot.folder, named)
    return dataclasses.replace(found, hub_id=address.repo, revision=snapshot.commit)


def _pinned(path: str, revision: str) -> hub.Address:
    address = hub.parse_address(path)
    return dataclasses.replace(address, revision=address.revision or revision)


def _perhaps_hub(kind: str, path: str) -> str:
    """Advice for the id of a model in place of a folder."""
    if kind == "diffusers" and re.fullmatch(r"[\w-]+/[\w.-]+", path) and not expand(path).exists():
        return f" To fetch it from the Hugging Face hub write {kind}:{hub.PREFIX}{path}."
    return ""
