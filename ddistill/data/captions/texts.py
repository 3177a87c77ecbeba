"""Captions as text: encodings, white space and markup."""

import codecs
import html
import re
import unicodedata

# How text files of Windows programs begin; UTF-32 first, because UTF-16 begins alike.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A tag, a comment or a character reference of HTML; "<3" and "a < b" are none.
_TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>", re.DOTALL)
_REFERENCE = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]+|#[0-9]+|#[xX][0-9A-Fa-f]+);")


def decode_text(raw: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 where the file begins with a byte order mark.

    Raises:
      ValueError: it is in another encoding, which is not guessed.
    """
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        called = encoding.removesuffix("-sig").upper()
        raise ValueError(f"is not {called} text, at byte {error.start}") from None


def normalise(text: str) -> str:
    """A caption on one line: white space and control characters become single spaces.

    Accents are composed (NFC), so that one caption has one spelling on every host.

    Raises:
      ValueError: the text holds half of a surrogate pair, which no encoding can store.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair, which is no character")
    spaced = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return unicodedata.normalize("NFC", " ".join(spaced.split()))


def has_markup(text: str) -> bool:
    """Whether a caption holds tags or character references of HTML."""
    return bool(_TAG.search(text) or _REFERENCE.search(text))


def without_markup(text: str) -> str:
    """The text that a browser would show of a caption."""
    return normalise(html.unescape(_TAG.sub(" ", text)))
