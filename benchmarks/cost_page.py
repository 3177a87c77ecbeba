"""The page docs/cost.md from the record docs/cost.json."""

from typing import Any


def page(record: dict[str, Any]) -> str:
    return ""
