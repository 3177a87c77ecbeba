"""The default folder of a run: runs/NAME, or runs/NAME-HASH.

The hash covers the settings in which the run differs from its config file and which change the
training, and the content of data and of other projects' files. The same training with another log,
on other paths or with other workers has the same folder, and another training has another one.
"""

import dataclasses
import hashlib
import itertools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddistill import data
from ddistill.config_files import ConfigFileError, load_config
from ddistill.data import Dataset
from ddistill.errors import ConfigError, DataError
from ddistill.interop.sources import TEACHERS, is_there, read_noted, read_source
from ddistill.interop.tensors import file_digest
from ddistill.objectives import make_objective
from ddistill.parsing import parse, to_plain
from ddistill.planning.identity import Kind, kinds_of, learnt, normalised
from ddistill.planning.planner import SOURCES
from ddistill.runtime.files import expand
from ddistill.settings import Settings, StageSettings

ROOT = Path("runs")


def read_base(given: str) -> Any:
    """The config of a file as it is without flags.

    Args:
      given: "FILE" or "FILE:VARIANT". A variant that names another project's teacher changes what
        is learnt and is left out.

    Returns:
      None where there is no such config to compare with.
    """
    path, colon, variant = given.partition(":")
    named = colon and variant.partition(":")[0] not in TEACHERS
    try:
        return load_config(given if named else path)
    except ConfigFileError:
        return None


def file_settings(command: str) -> dict[str, Any]:
    """The settings of the config file that a command names, without its other flags.

    Args:
      command: the command of a run, with `--config=FILE[:VARIANT]`.

    Returns:
      The settings as nested dictionaries; empty if the command names no config file that can be
      read.
    """
    flag = "--config"
    try:
        words = shlex.split(command)
    except ValueError:  # not a command line
        return {}
    given = [w.removeprefix(f"{flag}=") for w in words if w.startswith(f"{flag}=")]
    given += [after for word, after in itertools.pairwise(words) if word == flag]
    try:
        base = read_base(given[-1]) if given else None
        return to_plain(dataclasses.asdict(parse(base, Settings))) if base is not None else {}
    except ConfigError:
        return {}


def default_workdir(config: Any, base: Any) -> tuple[Path, Dataset | None]:
    """The folder of a run, and its training images where these had to be opened for that.

    Args:
      config: the run's, as `ddistill.parsing.parse` takes it.
      base: that of its file without flags, or None.

    Raises:
      ConfigError, DataError: as `parse`, `data.load`.
    """
    settings = parse(config, Settings)
    usual = parse(base, Settings) if base is not None else None
    changes = _changes(_learnt(settings), _learnt(usual) if usual else {})
    changes |= _changed_files(settings, usual)
    dataset = None
    if usual is None or _read_differently(settings, usual):
        dataset = data.load(settings.data, "train")
        if usual is None or dict(dataset.identity) != _identity(usual):
            changes["data"] = dict(dataset.identity)
    if not changes:
        return ROOT / settings.name, dataset
    text = json.dumps(changes, sort_keys=True, default=str)
    return ROOT / f"{settings.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}", dataset


def _learnt(settings: Settings) -> dict[str, Any]:
    """By dotted name, the settings that change the stages of the pipeline."""
    found = learnt(settings)
    found.pop("data")
    found.pop("training", None)  # `normalised` adds its part to the stages
    stages = {n: s for n, s in settings.stages.items() if n in settings.pipeline}
    found["stages"] = {name: _stage(stage, settings) for name, stage in stages.items()}
    return _flat(found, "")


def _stage(stage: StageSettings, settings: Settings) -> dict[str, object]:
    try:
        return normalised(stage, make_objective(stage.objective), settings)
    except ConfigError:  # planning raises it again
        return learnt(stage)


def _flat(value: object, at: str) -> dict[str, object]:
    if not isinstance(value, dict):
        return {at: value}
    inner = [_flat(v, f"{at}.{k}" if at else k) for k, v in value.items()]
    return {key: value for found in inner for key, value in found.items()}


def _changes(ours: Mapping[str, object], usual: Mapping[str, object]) -> dict[str, object]:
    keys = ours.keys() | usual.keys()
    return {key: ours.get(key) for key in keys if ours.get(key) != usual.get(key)}


def _changed_files(settings: Settings, usual: Settings | None) -> dict[str, str]:
    """The content of the files that stages start from or are grouped by, where others are named."""
    found = {}
    for name in settings.pipeline:
        stage = settings.stages.get(name)
        before = usual.stages.get(name) if usual else None
        if stage is None:  # planning raises
            continue
        if stage.source and (before is None or stage.source != before.source):
            found[f"stages.{name}.source"] = _source_digest(settings, name, stage.source)
        table = stage.students.embeddings
        if table and (before is None or table != before.students.embeddings):
            path = expand(table)
            found[f"stages.{name}.students.embeddings"] = (
                file_digest(path) if path.is_file() else table
            )
    return found


def _source_digest(settings: Settings, name: str, source: str) -> str:
    """The hash of an imported network; a finished run notes it, should the files be gone."""
    if ":" in source and is_there(source):
        return read_source(source, f"config.stages.{name}.source").digest
    for folder in sorted(ROOT.glob(f"{settings.name}-*")):
        setting, imported = read_noted(folder / SOURCES).get(name, ("", None))
        if setting == source and imported is not None:
            return imported.digest
    return source


def _read_differently(settings: Settings, usual: Settings) -> bool:
    """Whether settings differ that may change the images that are read."""
    ours, theirs = data.read_settings(settings.data), data.read_settings(usual.data)
    if type(ours) is not type(theirs):
        return True
    kinds = kinds_of(type(ours))
    return any(
        getattr(ours, name) != getattr(theirs, name)
        for name, kind in kinds.items()
        if kind is not Kind.RUN
    )


def _identity(usual: Settings) -> dict[str, object] | None:
    """The identity of the config file's own data; None where this machine does not have them."""
    try:
        return dict(data.load(usual.data, "train").identity)
    except (ConfigError, DataError, OSError):
        return None
