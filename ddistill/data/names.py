"""What the names of files and folders mean: order, splits, and folders that are no classes."""

import os
import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction

# The words of Hugging Face's imagefolder, which reads them in the same way.
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLIT_WORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}

# Words are also split by case: "trainA", "TestImages".
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
_FIRST_WORD = re.compile(f"[^A-Za-z]*({_WORD.pattern})")
# "trainset", "testdata"; not "contest", nor "trains", which may be a class.
_COMPOUND = re.compile(f"({'|'.join(_SPLIT_OF)})(sets?|data|images?|imgs?)")
# In the digits of any script.
_NUMBER = re.compile(r"[+-]?\d+([.]\d+)?")

# Thumbnails, bins and snapshots that file servers and desktops put among a user's files, in lower
# case. Names that begin with a dot (.thumbnails, .Trash-1000, .AppleDouble) are hidden anyway.
_SYSTEM = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharesnap"),
        *("#recycle", "#snapshot", "~snapshot"),
        *("@__thumb", "@sharebin", "$recycle.bin", "recycler", "recycled", "$extend"),
        *("system volume information", "dfsrprivate", "network trash folder", "temporary items"),
        *("thedbcache", "thevolumesettingsfolder", "thefindbycontentfolder"),
        *("lost+found", "__pycache__"),
    )
)
_SYSTEM_FORM = re.compile(r"found\.\d{3}|__macosx.*|@gmt-.*")


def text_of(path: str) -> str:
    """A path as text that is the same on every host.

    macOS hands out accents as letters of their own, and bytes that are no text in the host's
    encoding are read as UTF-8.
    """
    if path.isascii():
        return path
    return unicodedata.normalize("NFC", os.fsencode(path).decode("utf-8", "surrogateescape"))


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sorts "2" before "10", and "class_2" before "class_10"; other text by its code points."""
    parts = re.split(r"(\d+)", name.strip())
    # Text and digits alternate, so that numbers are compared with numbers alone.
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in their order: by value if all are numbers, else by `natural_key`."""
    listed = sorted(names, key=natural_key)
    if all(_NUMBER.fullmatch(name) for name in listed):
        listed.sort(key=Fraction)
    return tuple(listed)


def split_of(name: str) -> str:
    """The split of a folder that is called like one, in any case: a key of `SPLIT_WORDS`, or ""."""
    return _SPLIT_OF.get(name.lower(), "")


def split_in(name: str) -> str:
    """The split that one word of a name means ("train2017", "seg_test", "my-Val"), or ""."""
    found = [split for word in _WORD.findall(name) if (split := _split_of_word(word))]
    # In "DevTrain" and "DevTest" the first word is the name of the set.
    return next((s for s in found if s != VALIDATION), found[0] if found else "")


def split_before(name: str) -> str:
    """The split that the first word of a name means ("test_0001.png"), or ""."""
    # Of every file of a set, so that the rest of a name is not looked at.
    first = _FIRST_WORD.match(name)
    return _split_of_word(first[1]) if first else ""


def _split_of_word(word: str) -> str:
    low = word.lower()
    compound = _COMPOUND.fullmatch(low)
    return _SPLIT_OF.get(compound[1] if compound else low, "")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name."""
    return name.startswith(".")


def is_system(name: str) -> bool:
    """Whether a folder belongs to a file server or desktop and holds no images of the user's."""
    return name.lower() in _SYSTEM or bool(_SYSTEM_FORM.fullmatch(name.lower()))
