"""The Python examples of README.md and of pages that say so run as they stand."""

import re
from pathlib import Path

import pytest

from ddistill.extensions import _ADDED
from ddistill.runtime.loggers import LOGGERS

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").glob("*.md")) if "tests/test_pages.py" in p.read_text()),
]


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, with the number of lines before each."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def test_the_pages_with_examples_are_found():
    names = {page.name for page in PAGES}
    assert names >= {"README.md", "python.md", "logging.md"}
    assert all(blocks(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(finished, page, monkeypatch):
    monkeypatch.chdir(finished.folder)
    space = {"__name__": "page"}
    try:
        for line, block in blocks(page):
            exec(compile("\n" * line + block, str(page), "exec"), space)
        if page.name == "python.md":
            assert space["again"].shape == (16, 8, 8, 1)
            assert [row[1] for row in space["losses"].found if row[0] == "student"] == [10, 17, 20]
        if page.name == "README.md":
            assert space["images"].shape == (16, 8, 8, 1)
    finally:
        for name in [n for n, kind in LOGGERS.items() if kind.open.__module__ == "page"]:
            del LOGGERS[name]
            _ADDED.pop(("logger", name), None)
