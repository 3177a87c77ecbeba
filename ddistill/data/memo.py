"""What took long to find out about files, remembered in the user's cache folder."""

import contextlib
import hashlib
import json

from ddistill.errors import CheckpointError
from ddistill.runtime.files import cache_home, read_object_or_none, write_text
from ddistill.runtime.leftovers import remove_leftovers
from ddistill.runtime.schemas import ANY, Schema
from ddistill.typing import JsonObject, JsonRecord

# Of what is remembered; goes up when images are decoded otherwise.
VERSION = 3


class Memo:
    """Facts that belong to `key`; losing them costs time and nothing else.

    They lie in $XDG_CACHE_HOME/ddistill, or ~/.cache/ddistill; a user without a home has none.
    `key` has to name everything that the facts depend on: of files their paths, sizes and both
    times of change, because tools that copy files give them the first of these times too.
    """

    def __init__(self, key: str):
        home = cache_home()
        text = f"{VERSION} {key}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self.path = home / "ddistill" / f"{digest[:32]}.json" if home else None

    def recall(self, schema: Schema = ANY) -> JsonRecord | None:
        """The facts, or None when they are not known or not as `schema` has them."""
        with contextlib.suppress(OSError, CheckpointError):
            return read_object_or_none(self.path, schema) if self.path is not None else None
        return None

    def remember(self, facts: JsonObject) -> None:
        """Writes the facts; a folder that cannot be written is no reason to stop."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                remove_leftovers(self.path.parent)
                write_text(self.path, json.dumps(facts))
