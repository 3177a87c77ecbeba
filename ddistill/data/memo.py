"""What took long to find out about files, remembered in the user's cache folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

# Of what is remembered; goes up when images are decoded otherwise.
VERSION = 2


class Memo:
    """Facts that belong to `key`; losing them costs time and nothing else.

    They lie in $XDG_CACHE_HOME/ddistill, or ~/.cache/ddistill. `key` has to name everything that
    the facts depend on: of files their paths, sizes and both times of change, because tools that
    copy files give them the first of these times too.
    """

    def __init__(self, key: str):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        text = f"{VERSION} {key}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self.path = Path(home) / "ddistill" / f"{digest[:32]}.json"

    def recall(self) -> dict[str, Any] | None:
        """The facts, or None when they are not known."""
        try:
            facts = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return facts if isinstance(facts, dict) else None

    def remember(self, facts: dict[str, Any]) -> None:
        """Writes the facts; a folder that cannot be written is no reason to stop."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(facts))
            partial.replace(self.path)
        except OSError:
            return
