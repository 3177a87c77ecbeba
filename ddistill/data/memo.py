"""What took long to find out about files, remembered in the user's cache folder."""

import hashlib
import json
import os
from pathlib import Path


class Memo:
    """A list of whole numbers that belongs to `key`; losing it costs time and nothing else.

    It lies in $XDG_CACHE_HOME/ddistill, or ~/.cache/ddistill.
    """

    def __init__(self, key: str):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        self.path = Path(home) / "ddistill" / f"{digest[:32]}.json"

    def recall(self) -> list[int] | None:
        """The numbers, or None when they are not known."""
        try:
            return json.loads(self.path.read_text())["numbers"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, numbers: list[int]) -> None:
        """Writes the numbers; a folder that cannot be written is no reason to stop."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"numbers": numbers}))
            partial.replace(self.path)
        except OSError:
            return
