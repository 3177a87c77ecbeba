"""Files that are not what their names say: git-lfs pointers, web pages, empty files."""

from pathlib import Path

GIT_LFS = b"version https://git-lfs"
_SPACE = b"\xef\xbb\xbf \t\r\n"
_PAGES = (b"<!doctype html", b"<html", b"<head")


def why_unusable(path: Path) -> str:
    """Why a file holds no weights, arrays or settings, whatever its format is meant to be.

    Args:
      path: a file that exists.

    Returns:
      A predicate to follow the file's name and an advice, without a full stop; "" where the file
      may be what its name says.

    Raises:
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty (0 bytes): a copy or download did not finish; get the file again"
    if start.startswith(GIT_LFS):
        return (
            "is a git-lfs pointer and not the file itself; run 'git lfs pull' in the repository "
            "that it is from"
        )
    text = start.lstrip(_SPACE).lower()
    if text.startswith(_PAGES):
        return (
            "is a web page (HTML) saved under this name, of an error, a login or a file viewer; "
            "download the file itself"
        )
    if text.startswith(b"<?xml"):
        return "is an XML message of a server saved under this name; download the file itself"
    return ""
