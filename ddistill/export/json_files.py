"""JSON files of an export, with keys in the order in which they are written."""

import json
from collections.abc import Mapping
from pathlib import Path

from ddistill.runtime.files import write_text

# The oldest release of diffusers that reads exported files.
DIFFUSERS = "0.31.0"


def write_config(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file; folders that are missing are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")


def diffusers_version() -> dict[str, str]:
    """The entry of config files that names a release of diffusers."""
    return {"_diffusers_version": DIFFUSERS}
