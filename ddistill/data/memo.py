"""What took long to find out about files, remembered in the user's cache folder."""

import contextlib
import hashlib
import json

from ddistill.runtime.files import DamagedFile, cache_home, read_object, write_text


class Memo:
    """A list of whole numbers that belongs to `key`; losing it costs time and nothing else.

    It lies in $XDG_CACHE_HOME/ddistill, or ~/.cache/ddistill; a user without a home has none.
    """

    def __init__(self, key: str):
        home = cache_home()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        self.path = home / "ddistill" / f"{digest[:32]}.json" if home else None

    def recall(self) -> list[int] | None:
        """The numbers, or None when they are not known."""
        if self.path is None:
            return None
        try:
            numbers = read_object(self.path)["numbers"]
        except (OSError, DamagedFile, KeyError):
            return None
        whole = isinstance(numbers, list) and all(type(n) is int for n in numbers)
        return numbers if whole else None

    def remember(self, numbers: list[int]) -> None:
        """Writes the numbers; a folder that cannot be written is no reason to stop."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            write_text(self.path, json.dumps({"numbers": numbers}))
