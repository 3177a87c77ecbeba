"""Writes the picture and the table of README.md from finished runs of `configs/sfddm_digits.py`.

    python docs/draw_front_page.py runs/sfddm_digits-A runs/sfddm_digits-B runs/sfddm_digits-C

The runs differ in their seeds. The picture is a copy of the first run's samples.png. FD-infinity
is the mean over the runs, with the standard deviation; times are measured by this script on this
machine, all networks in turn, so that the load of the machine changes all of them alike.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ddistill

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "samples.png"
BEGIN, END = "<!-- docs/draw_front_page.py: begin -->", "<!-- end -->"
IMAGES, ROUNDS = 256, 3


@dataclass(frozen=True)
class Row:
    """A line of the table: a method of results.json with a number of steps."""

    label: str
    method: str
    nfe: int


ROWS = (
    Row("teacher, DDIM", "ddim", 256),
    Row("teacher, DDIM", "ddim", 4),
    Row("SFDDM student", "sfddm", 4),
    Row("SFDDM student", "sfddm", 2),
    Row("SFDDM student", "sfddm", 1),
)


def distances(run: Path) -> dict[tuple[str, int], float]:
    """FD-infinity of a run by (method, number of steps)."""
    rows = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {(r["method"], r["nfe"]): r["value"] for r in rows if r["metric"] == "fd_infinity"}


def milliseconds(run: Path) -> dict[tuple[str, int], float]:
    """Milliseconds an image by (method, number of steps): the median of `ROUNDS` rounds."""
    students, teacher = ddistill.load(run), ddistill.load(run, stage="teacher")
    found: dict[tuple[str, int], list[float]] = {(r.method, r.nfe): [] for r in ROWS}
    for i in range(ROUNDS + 1):
        for row in ROWS:
            network = teacher if row.method == "ddim" else students
            begun = time.perf_counter()
            network.sample(IMAGES, seed=i, nfe=row.nfe)
            if i:  # the first round compiles
                taken = 1000 * (time.perf_counter() - begun) / IMAGES
                found[row.method, row.nfe].append(taken)
    return {key: statistics.median(values) for key, values in found.items()}


def table(runs: Sequence[Path]) -> str:
    """The table in Markdown."""
    scores, times = [distances(run) for run in runs], milliseconds(runs[0])
    lines = ["| network | steps | FD∞ | ms an image |", "|:--|--:|--:|--:|"]
    for row in ROWS:
        key = row.method, row.nfe
        values = [one[key] for one in scores]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        score = f"{statistics.mean(values):.2f}{spread}"
        taken = f"{times[key]:.0f}" if times[key] >= 10 else f"{times[key]:.2g}"
        lines.append(f"| {row.label} | {row.nfe} | {score} | {taken} |")
    return "\n".join(lines)


def main() -> None:
    """Writes both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(runs)}\n{END}{after}", encoding="utf-8")
    shutil.copy(runs[0] / "samples.png", PICTURE)


if __name__ == "__main__":
    main()
