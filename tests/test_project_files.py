"""CITATION.cff, CHANGELOG.md, CONTRIBUTING.md and docs/commands.md against the package."""

import contextlib
import re
import sys
from pathlib import Path

import pytest

import ddistill
from ddistill.commands.dispatch import COMMANDS, run

ROOT = Path(__file__).parent.parent
COMMANDS_MD = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "docs/commands.md"]
ALL = [[name] for name in COMMANDS if name != "data"] + [["data", "prepare"]]


def test_the_citation_has_what_its_format_requires():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["cff-version"] == "1.2.0"
    assert found["message"]
    assert found["title"].startswith("ddistill")
    assert all(set(a) in ({"name"}, {"given-names", "family-names"}) for a in found["authors"])
    assert found["type"] == "software"
    assert found["license"] == "Apache-2.0"
    allowed = {"cff-version", "message", "title", "authors", "type", "license", "abstract"}
    assert found.keys() <= allowed | {"keywords"}


def test_the_changelog_is_of_this_version_with_usual_headings():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    [first, *_] = re.findall(r"^## \[?([0-9.]+)\]?", text, re.M)
    assert first == ddistill.__version__
    headings = set(re.findall(r"^### (.+)$", text, re.M))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Not reproduced"}


def test_the_version_is_written_in_one_place():
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("pyproject.toml", "setup.py", "CITATION.cff"):
        assert ddistill.__version__ not in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.is_file(), target
        titles = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.M)
        assert not heading or heading in {t.lower().replace(" ", "-") for t in titles}, target


def section(words: list[str]) -> str:
    return COMMANDS_MD.split(f"## ddistill {' '.join(words)}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("words", ALL, ids=lambda words: words[-1])
def test_the_page_of_commands_has_every_flag_and_no_other(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ddistill"])
    if words == ["doctor"]:  # which refers to `train`
        assert "(#ddistill-train)" in section(words)
        return
    with contextlib.suppress(SystemExit):
        run([*words, "--help"])
    flags = r"(?<![\w-])--[a-z_]+"
    offered = set(re.findall(flags, capsys.readouterr().out)) - {"--help", "--config"}
    table = "".join(line for line in section(words).splitlines() if line.startswith("| `"))
    assert set(re.findall(flags, table)) - {"--config"} == offered
