"""The files that describe a finished run, read or refused in one line."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddistill.errors import CheckpointError, ConfigError
from ddistill.parsing import kind_of, parse
from ddistill.runtime.files import DamagedFile, expand, read_object
from ddistill.runtime.schemas import ANY, Schema
from ddistill.settings import Settings

_AGAIN = "Give the run's command again: it writes the file again and trains nothing."


def given_path(name: str, given: object) -> Path:
    """A path that a caller has given, with "~" expanded; `ConfigError` for anything else."""
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{name}={given!r} is {kind_of(type(given))}; a path is needed.")
    return expand(given)


def read_run_settings(path: Path) -> Settings:
    """The settings in a run's config.json.

    Raises:
      CheckpointError: the file is missing or damaged.
      ConfigError: another version wrote it.
    """
    try:
        return parse(read_run_file(path), Settings)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error} If another version of ddistill trained the run, train it again in "
            "another --workdir, or open it with that version."
        ) from None


def read_run_file(path: Path, schema: Schema = ANY) -> Mapping[str, Any]:
    """A JSON file of a run; `CheckpointError` if it is missing, damaged or not as `schema` says."""
    if not path.is_file():
        there = "has no" if path.parent.is_dir() else "does not exist; it should hold"
        raise CheckpointError(
            f"{path.parent} {there} {path.name}. Give the folder of a run (--workdir of "
            "ddistill.main). A run of this version writes the file when its command is given "
            "again, without training anew; train a run of another version again."
        )
    try:
        return read_object(path, schema)
    except DamagedFile as error:
        raise CheckpointError(f"{error}. {_AGAIN}") from None
