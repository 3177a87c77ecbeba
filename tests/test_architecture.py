"""docs/architecture.md and its picture show the modules and the imports of today."""

import json
import re
import sys
from pathlib import Path

from test_imports import ORDER, ROOT, modules

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "architecture.md").read_text(encoding="utf-8")
sys.path.append(str(DOCS))

from draw_architecture import EDGES, ROOMS, edges, room_of  # noqa: E402


def test_the_picture_shows_the_imports_of_today():
    stored = json.loads(EDGES.read_text(encoding="utf-8"))
    assert stored == edges(), "draw it again: python docs/draw_architecture.py"


def test_the_numbers_of_the_picture_need_no_matplotlib():
    assert not re.search(
        r"^(import|from) matplotlib", (DOCS / "draw_architecture.py").read_text(), re.M
    )


def test_arrows_lead_down_or_sideways_and_never_up():
    up = [key for key in edges() for a, b in [key.split(" -> ")] if ROOMS[a].row < ROOMS[b].row]
    assert not up


def test_every_module_is_in_one_room():
    assert {room_of(name) for name in modules() if name} == set(ROOMS)
    inside = [module for room in ROOMS.values() for module in room.modules]
    assert len(inside) == len(set(inside))


def tree(depth: int) -> dict[str, int]:
    """The names in the tree with their lines; `depth` 0 for those that are not indented."""
    block = TEXT.split("## Rooms and modules")[1].split("```")[1]
    lines = block.splitlines()
    return {
        name: i
        for i, line in enumerate(lines)
        if line and len(line) - len(line.lstrip()) <= 2 * depth
        for name in re.findall(r"[a-z_0-9]+", re.split(r"\s{2,}", line.strip())[0])
    }


def test_the_tree_names_every_top_level_module_and_every_package():
    tops = {name.split(".")[0] for name in modules() if name}
    assert tops == tree(0).keys()
    assert {path.parent.name for path in ROOT.glob("*/*/__init__.py")} <= tree(1).keys()


def test_the_tree_names_only_what_there_is():
    known = {part for name in modules() for part in name.split(".")}
    assert tree(1).keys() <= known


def test_the_tree_stands_in_the_order_of_imports():
    places = [tree(0)[name.split(".")[0]] for name in ORDER]
    assert places == sorted(places)


def test_the_files_that_the_text_names_are_there():
    files = set(re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`", TEXT.split("## Renamed")[0]))
    assert len(files) > 20
    root = ROOT.parent
    missing = [name for name in files if not any((at / name).exists() for at in (root, ROOT, DOCS))]
    assert not missing
