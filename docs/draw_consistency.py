"""Writes the table of docs/consistency.md and its pictures from finished runs of sfddm_digits.

    python docs/draw_consistency.py RUN...

The table holds mean and standard deviation over the runs, which are to differ in their seed alone;
the pictures are those of the first run.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ddistill.evaluation.figures.tables import stat_text
from ddistill.evaluation.records.aggregate import Scores, aggregate
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.records.rows import Row, read_rows

DOCS = Path(__file__).parent
PAGE = DOCS / "consistency.md"
BEGIN = "<!-- table:begin (python docs/draw_consistency.py RUN...) -->"
END = "<!-- table:end -->"
PICTURES = ("difference", "interpolation", "nearest_distances")
COLUMNS = (
    "psnr_to_teacher",
    "relative_distance_to_teacher",
    "path_length",
    "path_largest_step",
    "copying",
    "fd_infinity",
)
# Lines of the table: the method of the rows, and its network evaluations.
LINES = (("ddim", 256), *((method, n) for n in (4, 2, 1) for method in ("ddim", "sfddm")))


def table(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    scores: Scores = aggregate(rows)
    by_method = {entry.method: cells for entry, cells in scores.items()}
    lines = [
        "| sampler | NFE | " + " | ".join(METRICS[c].label for c in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for method, nfe in LINES:
        stats = [by_method[method].get((nfe, column)) for column in COLUMNS]
        cells = [stat_text(column, stat) for column, stat in zip(COLUMNS, stats)]
        name = "teacher, DDIM" if method == "ddim" else "SFDDM student"
        lines.append(f"| {name} | {nfe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(folders: Sequence[str]) -> None:
    """Writes table and pictures."""
    rows = [row for folder in folders for row in read_rows(Path(folder) / "results.json")]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}", encoding="utf-8")
    for name in PICTURES:
        picture = Path(folders[0]) / f"{name}.png"
        shutil.copy(picture, DOCS / "images" / f"consistency_{name}.png")
    print(f"{PAGE}: {len(folders)} runs, seeds {sorted({row.seed for row in rows})}")


if __name__ == "__main__":
    main(sys.argv[1:])
