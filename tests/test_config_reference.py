"""docs/config.md lists every setting with its meaning."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from ddistill.planning.identity import FIELDS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("ref", DOCS / "make_config_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ref"] = module  # which dataclasses look up for their annotations
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_settings_of_today(reference):
    written = (DOCS / "config.md").read_text(encoding="utf-8")
    assert written == reference.page(), "write it again: python docs/make_config_reference.py"


def test_every_setting_with_a_kind_is_listed(reference):
    """As `planning.identity` knows them all."""
    listed = {*reference.GROUPS.values(), *(s.settings for s in reference.SOURCES.values())}
    assert set(FIELDS) <= listed
    for cls, kinds in FIELDS.items():
        assert {row[0] for row in reference.rows(cls)} == set(kinds)


def test_rows_have_type_default_and_the_meaning_of_the_nearest_class(reference):
    @dataclasses.dataclass
    class Base:
        """Of a base.

        Attributes:
          first, second: both of
            these | those.
          third: of the base.
        """

        first: int = 3
        second: tuple[float, ...] = (0.5,)
        third: str | None = None

    @dataclasses.dataclass
    class Own(Base):
        """Of its own.

        Attributes:
          third: another one.

        Not a meaning: of anything.
        """

        third: str | None = "x"

    assert reference.rows(Own) == [
        ("first", "int", "`3`", "both of these | those."),
        ("second", "list of float", "`(0.5,)`", "both of these | those."),
        ("third", "text or None", "`'x'`", "another one."),
    ]
    assert "these \\| those" in reference.table(Own)


def test_a_setting_without_a_meaning_is_an_error(reference):
    @dataclasses.dataclass
    class Mute:
        """Says nothing of its second field.

        Attributes:
          first: something.
        """

        first: int = 0
        second: int = 0

    with pytest.raises(reference.NoMeaning, match=r"Mute.second has no meaning: add 'second: ...'"):
        reference.rows(Mute)
    Mute.__doc__ = Mute.__doc__.replace("first: something", "first, second, thrid: something")
    with pytest.raises(reference.NoMeaning, match="names thrid, which is no field"):
        reference.rows(Mute)


def test_links_between_pages_lead_to_files_and_headings():
    """In all documentation, this page's among them."""
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    headings = {page.resolve(): _anchors(page.read_text(encoding="utf-8")) for page in pages}
    for page in pages:
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page.resolve()
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                assert anchor in headings[target], f"{page.name}: {link}"


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}
