"""Names that a user can give to a class, a folder, a run or a stage, and that are hard to show."""

import os
from pathlib import Path

from PIL import Image

# As Python gives the name of a folder of the bytes "caf\xe9", which are not UTF-8.
LATIN = os.fsdecode(b"caf\xe9")
NAMES = [
    "$x^$", r"\frac{1}{0}", LATIN, "\ud800", "<script>alert(1)</script>", "a & b", "\"'><b>", "]]>",
    "a | b", "`code`", "two\nlines", "tab\there", "[red]loud[/red]", "[/]", ":dog:", "\x1b[31mred",
    "\x00", "\x7f", "\u202egnp", "\u2028", "\ufeff", "\U0001f600", "\u732b", "\xe9", "e\u0301",
    "Cat", "cat", "_under", "__init__", ".", "..", "", " ", "x" * 3000, "{task}", "%s %d", "--flag",
]  # fmt: skip
# What a file system takes as the name of a folder, without hidden ones.
FOLDERS = [n for n in NAMES if n.strip(". ") and "/" not in n and "\0" not in n and len(n) < 200]
FOLDERS = [n for n in FOLDERS if n != "\ud800"]


def make_folder(root: Path, names: list[str], size: int = 8) -> Path:
    """A data set of two grey images a class, in a folder of bytes that are not UTF-8."""
    folder = root / f"images {LATIN}"
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (size, size), 40 * i + k).save(folder / name / f"{i}.png")
    return folder
