"""The licence of a model, from the metadata of its card."""

import re
from pathlib import Path

import yaml

# Characters of a model card that are searched for its metadata.
_LONGEST_METADATA = 1 << 20


def licence_of(folder: Path) -> str:
    """What the metadata of the card (README.md) of a folder say of the licence; "" for nothing."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8-sig", errors="replace")[:_LONGEST_METADATA]
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    # Damaged YAML, or dates and numbers that cannot be.
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    if not isinstance(metadata, dict):
        return ""
    licence = metadata.get("license") or ""
    if licence == "other":
        licence = metadata.get("license_name") or licence
    return "; ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
