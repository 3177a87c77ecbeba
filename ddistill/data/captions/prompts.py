"""Prompts alone: a text file with one prompt a line."""

from pathlib import Path

from ddistill.data.captions.choices import Choices
from ddistill.data.captions.rows import ENCODING, CaptionSource, Collector, Row
from ddistill.data.captions.texts import decode_text
from ddistill.data.names import text_of
from ddistill.errors import DataError


def read_prompts(path: Path, choices: Choices) -> CaptionSource:
    """The prompts of a text file in their order; equal ones stay, and empty lines are left out.

    Raises:
      DataError: the file cannot be read or holds no prompt.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    # By line, so that one line in another encoding costs no other; text of 16 bits is read whole.
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            raw = decode_text(raw).encode("utf-8", "surrogatepass")
        except ValueError as error:
            raise DataError(f"{path} {error}.") from None
    collector = Collector(choices.markup)
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n"), 1):
        where = f"{path}, line {number}"
        try:
            text = decode_text(line)
        except ValueError as error:
            collector.note(ENCODING, where, str(error))
            continue
        collector.add(where, Row(f"{text_of(path.name)}:{number}", text))
    return collector.source("prompts", f"the prompts {path}", None)
