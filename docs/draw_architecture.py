"""Draws docs/images/architecture.png from the imports of the package.

    python docs/draw_architecture.py

Beside the picture, architecture.json holds the number of imports between every two rooms;
tests/test_architecture.py compares it with the package. The picture needs matplotlib, the numbers
need the standard library alone.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.append(str(DOCS.parent / "tests"))

from test_imports import graph  # noqa: E402

PICTURE = DOCS / "images" / "architecture.png"
EDGES = DOCS / "images" / "architecture.json"


@dataclass(frozen=True)
class Room:
    """A box of the picture.

    Attributes:
      modules: the top-level modules and packages of `ddistill` in it.
      text: what is in it, at most two lines.
      left, right: its ends, in units of a hundredth of the width.
      row: its row, 0 at the bottom.
      title: what stands in bold; "" for its name.
    """

    modules: tuple[str, ...]
    text: str
    left: float
    right: float
    row: int
    title: str = ""


ROOMS = {
    "commands": Room(
        (
            *("commands", "main", "evaluate", "export", "compare", "record", "doctor"),
            *("scoring_options", "system_info", "__main__"),
        ),
        "commands/, main, evaluate, export/, compare, record, doctor, system_info",
        2,
        98,
        7,
        "programs",
    ),
    "runs": Room(
        (
            *(
                "experiment",
                "run_training",
                "run_files",
                "trained_run",
                "trained_pipeline",
                "generation",
            ),
            *("workdir", "config_files", "config_names", "register"),
        ),
        "experiment, run_training, trained_run, trained_pipeline,\ngeneration, workdir, "
        "config_files, config_names, register",
        2,
        98,
        6,
        "whole runs",
    ),
    "evaluation": Room(
        ("evaluation",),
        "samples, scores, records,\nfigures, report, comparison",
        2,
        32,
        5,
    ),
    "training": Room(
        ("training",), "step, loop, checkpoints,\nstages one after another", 40, 66, 4
    ),
    "planning": Room(("planning",), "checks, plans and identities\nof stages", 36, 70, 3),
    "recipes": Room(("recipes",), "stages and settings\nfor configs", 78, 98, 4),
    "samplers": Room(("samplers",), "update rules,\none loop", 2, 18, 2),
    "objectives": Room(("objectives",), "the methods:\ntargets, distances, losses", 26, 50, 2),
    "data": Room(("data",), "images, captions,\nlatent sets", 58, 74, 2),
    "interop": Room(("interop",), "diffusers, EDM,\nInception weights", 80, 98, 2),
    "diffusion": Room(
        (
            "schedules",
            "diffusion",
            "low_rank",
            "denoiser",
            "wrapped_denoiser",
            "partitions",
            "students",
            "mapping",
            "optimizers",
        ),
        "schedules/, diffusion, low_rank, denoiser,\npartitions, students, mapping, optimizers",
        2,
        40,
        1,
        "diffusion and students",
    ),
    "runtime": Room(
        ("runtime", "command_line"),
        "devices, hosts, files,\nsignals, command_line",
        48,
        70,
        1,
    ),
    "networks": Room(("networks",), "Flax modules", 78, 98, 1),
    "basics": Room(
        (
            *("errors", "extensions", "typing", "conditions", "text"),
            *("checkpoint_names", "protocol_settings", "settings", "parsing"),
        ),
        "errors, extensions, typing, conditions, text, settings, parsing",
        2,
        98,
        0,
    ),
}
# Rooms that most others import: no arrows lead there, and every box says how many imports do.
EVERYWHERE = ("runtime", "basics")


def room_of(module: str) -> str:
    """The room of a module, by its dotted name below `ddistill`.

    Raises:
      KeyError: the module is in no room.
    """
    top = module.split(".")[0]
    for name, room in ROOMS.items():
        if top in room.modules:
            return name
    raise KeyError(f"'{module}' is in no room: add '{top}' to ROOMS in {Path(__file__).name}")


def edges() -> dict[str, int]:
    """By "IMPORTING ROOM -> IMPORTED ROOM", the number of imports of modules.

    Modules of one room that import one another are left out, as is the package's own
    `__init__`, which has no room.
    """
    found = Counter(
        (room_of(module), room_of(other))
        for module, others in graph().items()
        for other in others
        if module and other and room_of(module) != room_of(other)
    )
    order = list(ROOMS)
    pairs = sorted(found, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    return {f"{a} -> {b}": found[a, b] for a, b in pairs}


COLOURS = {
    "commands": "#5b4fa0",
    "runs": "#b0478f",
    "evaluation": "#c1504b",
    "training": "#d9822b",
    "planning": "#2f7f86",
    "recipes": "#8a7a5c",
    "samplers": "#3d6fb4",
    "objectives": "#3a8a4d",
    "data": "#6d7f33",
    "interop": "#5b6b7a",
    "diffusion": "#33507a",
    "networks": "#6a5acd",
    "runtime": "#777777",
    "basics": "#777777",
}
ROW, HEIGHT = 13.6, 8.4


def draw(found: dict[str, int], path: Path) -> None:
    """Draws the rooms and, by width, the imports between them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(12, 11.8))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(0, 100), ylim=(-4.5, 8 * ROW - 4))
    axes.axis("off")
    arrows = {tuple(key.split(" -> ")): n for key, n in found.items()}
    drawn = {pair: n for pair, n in arrows.items() if pair[1] not in EVERYWHERE}
    level = {pair for pair in drawn if ROOMS[pair[0]].row == ROOMS[pair[1]].row}
    starts, ends = _ports(set(drawn) - level)
    for pair, count in sorted(drawn.items(), key=lambda item: _reach(item[0]), reverse=True):
        if pair in level:
            _sideways(axes, pair, count)
        else:
            _arrow(axes, pair, count, starts[pair], ends[pair])
    for name, room in ROOMS.items():
        _box(axes, name, room, {b: n for (a, b), n in arrows.items() if a == name})
    caption = "Arrows lead from a room to the rooms that it imports; width: number of imports. "
    caption += "Imports of runtime and basics are counted in the boxes (+)."
    axes.text(50, -2.6, caption, ha="center", va="center", fontsize=9.5, color="#444444")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _reach(pair: tuple[str, str]) -> int:
    return ROOMS[pair[0]].row - ROOMS[pair[1]].row


def _ports(pairs: set[tuple[str, str]]) -> tuple[dict, dict]:
    """By arrow, where it leaves its box and where it arrives: spread out, in the others' order."""
    places: tuple[dict, dict] = ({}, {})
    for end in (0, 1):
        for name, room in ROOMS.items():
            own = [pair for pair in pairs if pair[end] == name]
            own.sort(key=lambda pair: (_middle(ROOMS[pair[1 - end]]), pair))
            width = room.right - room.left
            for i, pair in enumerate(own):
                places[end][pair] = room.left + width * (i + 1) / (len(own) + 1)
    return places


def _middle(room: Room) -> float:
    return (room.left + room.right) / 2


def _width(count: int) -> float:
    return 0.9 + 0.42 * count


def _arrow(axes, pair: tuple[str, str], count: int, start: float, end: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    top, bottom = ROOMS[pair[0]].row * ROW, ROOMS[pair[1]].row * ROW + HEIGHT + 0.1
    shaft = bottom + _head(count)
    bend = 0.5 * (top - shaft)
    points = [(start, top), (start, top - bend), (end, shaft + bend), (end, shaft)]
    curve = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])
    alpha = 0.7 if _reach(pair) == 1 else 0.42
    colour, width = COLOURS[pair[0]], _width(count)
    line = {"facecolor": "none", "edgecolor": colour, "linewidth": width, "capstyle": "butt"}
    axes.add_patch(PathPatch(curve, alpha=alpha, zorder=1, **line))
    half = 0.45 + 0.085 * width
    head = [(end - half, shaft), (end + half, shaft), (end, bottom)]
    axes.fill(*zip(*head), facecolor=colour, edgecolor="none", alpha=alpha, zorder=1)


def _head(count: int) -> float:
    return 0.9 + 0.09 * _width(count)


def _sideways(axes, pair: tuple[str, str], count: int) -> None:
    from matplotlib.patches import FancyArrowPatch

    a, b = ROOMS[pair[0]], ROOMS[pair[1]]
    y = a.row * ROW + HEIGHT / 2
    ends = (a.left, b.right) if a.left > b.left else (a.right, b.left)
    axes.add_patch(
        FancyArrowPatch(
            (ends[0], y),
            (ends[1], y),
            arrowstyle="-|>",
            mutation_scale=8 + 0.5 * count,
            linewidth=_width(count),
            color=COLOURS[pair[0]],
            alpha=0.6,
            zorder=1,
        )
    )


def _box(axes, name: str, room: Room, imports: dict[str, int]) -> None:
    from matplotlib.patches import FancyBboxPatch

    y, x = room.row * ROW, _middle(room)
    axes.add_patch(
        FancyBboxPatch(
            (room.left + 0.6, y + 0.6),
            room.right - room.left - 1.2,
            HEIGHT - 1.2,
            boxstyle="round,pad=0.6,rounding_size=0.9",
            # Arrows that pass behind a box stay visible.
            facecolor=(1, 1, 1, 0.8),
            edgecolor=COLOURS[name],
            linewidth=2.0,
            zorder=2,
        )
    )
    title = room.title or (f"{name}/" if name in room.modules else name)
    common = [f"{other} {imports[other]}" for other in EVERYWHERE if imports.get(other)]
    foot = "+ " + ", ".join(common) if common else "imported by every room"
    text = {"ha": "center", "va": "center", "zorder": 3}
    axes.text(x, y + HEIGHT - 1.35, title, size=12.5, weight="bold", color=COLOURS[name], **text)
    axes.text(x, y + HEIGHT / 2 - 0.15, room.text, size=9.5, color="#222222", **text)
    axes.text(x, y + 1.05, foot, size=8.5, color="#666666", **text)


if __name__ == "__main__":
    counted = edges()
    EDGES.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
    draw(counted, PICTURE)
