"""A cache of facts about files that take long to compute, in the user's cache folder."""

import contextlib
import hashlib
import json

from ddistill.errors import CheckpointError
from ddistill.runtime.files import cache_home, read_object_or_none, write_text
from ddistill.runtime.leftovers import remove_leftovers
from ddistill.runtime.schemas import ANY, Schema
from ddistill.typing import JsonObject, JsonRecord

# Version of the facts; goes up when the decoding of images changes.
VERSION = 3


class Memo:
    """Cached facts of `key`; they can always be computed again.

    They are in $XDG_CACHE_HOME/ddistill or ~/.cache/ddistill; users without a home have no cache.
    `key` has to contain everything that the facts depend on: for files their paths, sizes, mtimes
    and ctimes, because tools that copy files also copy mtimes.
    """

    def __init__(self, key: str):
        home = cache_home()
        text = f"{VERSION} {key}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self.path = home / "ddistill" / f"{digest[:32]}.json" if home else None

    def recall(self, schema: Schema = ANY) -> JsonRecord | None:
        """The facts, or None if they are missing or do not fit `schema`."""
        with contextlib.suppress(OSError, CheckpointError):
            return read_object_or_none(self.path, schema) if self.path is not None else None
        return None

    def remember(self, facts: JsonObject) -> None:
        """Writes the facts; errors of writing are ignored."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                remove_leftovers(self.path.parent)
                write_text(self.path, json.dumps(facts))
