"""Files that diffusers reads: configs, schedulers, networks, and the index of a pipeline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ddistill.interop.diffusers_folders import CONFIG, INDEX, SCHEDULER
from ddistill.interop.diffusers_weights import STEM
from ddistill.interop.pipeline_folders import FoundPart
from ddistill.interop.tensors import write_tensors
from ddistill.runtime.files import write_files, write_text

# The oldest release of diffusers that reads exported files.
DIFFUSERS = "0.31.0"
WEIGHTS = f"{STEM}.safetensors"
# By ending, the names under which diffusers looks for weights.
NAMES = {".safetensors": WEIGHTS, ".bin": f"{STEM}.bin"}


def write_config(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file with its keys in order; folders that are missing are made."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_network(
    folder: Path,
    options: Mapping[str, object],
    tensors: Mapping[str, np.ndarray],
    file: str = WEIGHTS,
) -> None:
    """Writes config.json and the weights of a network.

    Args:
      folder: of the network.
      options: of its config.json.
      tensors: by diffusers' name.
      file: name of the file of weights.
    """
    write_config(folder / CONFIG, {**options, **_version()})
    write_tensors(folder / file, tensors)


def copy_network(part: FoundPart, folder: Path, names: Mapping[str, str] = NAMES) -> None:
    """Copies a network byte for byte; a file such as model.fp16.safetensors gets the usual name.

    Args:
      part: its files.
      folder: the new folder.
      names: by ending, the usual name of a file of weights.
    """
    copies = {CONFIG: part.config_path}
    usual = names[part.weights.files[0].suffix]
    if part.weights.index is None:
        copies[usual] = part.weights.files[0]
    else:
        copies |= {file.name: file for file in part.weights.files}
        copies[f"{usual}.index.json"] = part.weights.named
    write_files(folder, copies)


def write_scheduler_config(folder: Path, config: Mapping[str, object]) -> None:
    """Writes scheduler_config.json into a folder."""
    write_config(folder / SCHEDULER, {**config, **_version()})


def write_index(
    folder: Path, pipeline: str, parts: Mapping[str, Sequence[str | None] | bool]
) -> None:
    """Writes model_index.json.

    Args:
      folder: of the pipeline.
      pipeline: its class.
      parts: by name, library and class of a part; or an option of the pipeline.
    """
    write_config(folder / INDEX, {"_class_name": pipeline, **_version(), **parts})


def _version() -> dict[str, str]:
    """The entry of config files that names a release of diffusers."""
    return {"_diffusers_version": DIFFUSERS}
