"""Text of users made safe to show: names of classes, runs and files can hold any character or byte.

`printable` is for consoles and pages, `markdown` and `code_span` are for markdown, `file_name` is
for files that are named after a title, and `drawable` of `ddistill.evaluation.figures.image_grids`
is for pictures.
"""

import contextlib
import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable

# Lone surrogates (bytes of file names that are not UTF-8), control characters, line separators,
# characters that turn the direction of text, invisible spaces and non-characters.
_UNSAFE = re.compile(
    "[\ud800-\udfff\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2069\ufeff\ufff0-\uffff]"
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Characters with a meaning inside a line of GitHub's markdown; "_" and "~" only at word edges.
_MARKUP = re.compile(r"[\\`*\[\]<>&|$]|(?<![^\W_])[_~]+|[_~]+(?![^\W_])")
_LONGEST_FILE_NAME = 100


def printable(text: object, keep: str = "") -> str:
    r"""Text that every console, page and file can hold, with everything else escaped visibly.

    A byte that is not UTF-8 becomes `\xe9`, a line break `\n`, an escape character `\x1b`, a
    character that reverses the direction of text `\u202e`. Any other character stays as it is.

    Args:
      text: anything; its `str` is shown.
      keep: characters that are left alone, for example "\n".
    """

    def escaped(match: re.Match[str]) -> str:
        character = match.group()
        if character in keep:
            return character
        number = ord(character)
        if 0xDC80 <= number <= 0xDCFF:  # the byte that Python's file names stand for
            number -= 0xDC00
        return _SHORT.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")

    return _UNSAFE.sub(escaped, str(text))


def name_of(text: object) -> str:
    """`printable` text as a name: without spaces at its ends, "unnamed" where nothing is left."""
    return printable(text).strip() or "unnamed"


def one_line(text: object) -> str:
    """`printable` text of several lines on one line, the lines separated by spaces."""
    return printable(" ".join(line.strip() for line in str(text).split("\n") if line.strip()))


def shortened(text: str, most: int) -> str:
    """`text` of at most `most` characters: an ellipsis replaces the middle of longer text."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def distinct(names: Iterable[str]) -> list[str]:
    """`names`, with their indices appended where they look alike: `["é", "é"]` -> "é #0", "é #1".

    Two spellings of one text in Unicode look alike, and so do texts that were shortened.
    """
    names = list(names)
    looks = [unicodedata.normalize("NFKC", name).strip() for name in names]
    return [
        f"{name} #{i}".strip() if looks.count(looks[i]) > 1 or not looks[i] else name
        for i, name in enumerate(names)
    ]


def markdown(text: object) -> str:
    """`printable` text that markdown shows as it is, in a table's cell too."""
    return _MARKUP.sub(lambda m: "".join(f"\\{c}" for c in m.group()), printable(text))


def code_span(text: object) -> str:
    """`printable` text in backticks, in as many as it takes where it holds some itself."""
    shown = printable(text)
    runs = {len(run) for run in re.findall("`+", shown)}
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{edge}{shown}{edge}{fence}"


def file_name(text: str) -> str:
    """`text` as a file name: lower case letters, digits and single underscores.

    Text with characters beyond ASCII or of great length ends in a hash, so that no two of them
    share a file.
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if text.isascii() and len(name) <= _LONGEST_FILE_NAME:
        return name or "untitled"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "_".join(filter(None, (name[: _LONGEST_FILE_NAME - 9].rstrip("_"), digest)))


def file_names(texts: Iterable[str]) -> dict[str, str]:
    """The `file_name` of every text; a hash is appended where two texts would share one."""
    texts = list(dict.fromkeys(texts))
    names = [file_name(text) for text in texts]
    found = {}
    for text, name in zip(texts, names):
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        found[text] = name if names.count(name) == 1 else f"{name}_{digest}"
    return found


def is_utf8(path: object) -> bool:
    """Whether the text of a path is UTF-8; paths of other bytes are no names for checkpoints."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def make_streams_safe() -> None:
    """Lets stdout and stderr escape what their encoding cannot hold instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
