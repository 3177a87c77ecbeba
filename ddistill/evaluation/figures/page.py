"""HTML of the parts of a page. Functions return HTML, or "" if there is nothing to show.

The page has no scripts, fonts or links, and its content policy forbids loading anything. Plots have
a light and a dark version; the browser selects one.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from ddistill.evaluation.figures.image_grids import (
    GAP,
    Grid,
    Strip,
    check_grid,
    enlarge_factor,
    row_image,
    strip_columns,
    strip_row,
)
from ddistill.evaluation.figures.plots import ScorePlot
from ddistill.evaluation.figures.tables import Table
from ddistill.text import printable

STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #ffffff; --ink: #1f2430;
  --muted: #667085; --rule: #e4e7ed; --accent: #d1495b; --tint: #fbf1f2; --code: #f0f2f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1218; --card: #161a22; --ink: #e8ebf1;
  --muted: #9aa4b5; --rule: #2b313d; --accent: #ff7a8a; --tint: #241d25; --code: #1e242e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin: 0 4px 28px; }
.eyebrow { margin: 0; color: var(--accent); font-size: 13px; font-weight: 650;
  letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 4px 0 10px; font-size: 34px; line-height: 1.15; letter-spacing: -.015em; }
h2 { margin: 0 0 4px; font-size: 19px; line-height: 1.3; letter-spacing: -.005em; }
header p { max-width: 72ch; margin: 0 0 10px; }
.lead { font-size: 18px; color: var(--muted); }
pre { margin: 14px 0 0; padding: 10px 14px; overflow-x: auto; border-radius: 8px;
  background: var(--code); }
code, pre { font: 13.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.caption { max-width: 78ch; margin: 0 0 14px; color: var(--muted); font-size: 14.5px; }
section { margin: 0 0 18px; padding: 22px 24px; border: 1px solid var(--rule);
  border-radius: 12px; background: var(--card); }
.warning { border-color: var(--accent); border-left-width: 5px; background: var(--tint); }
.warning ul { margin: 6px 0 0; padding-left: 20px; max-width: 84ch; }
.tiles { display: grid; gap: 14px; margin: 0 0 18px;
  grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.tile { padding: 16px 20px; border: 1px solid var(--rule); border-radius: 12px;
  background: var(--card); }
.tile b { display: block; font-size: 30px; line-height: 1.2; font-weight: 650;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 14.5px; }
.tile small { color: var(--muted); font-size: 13.5px; }
.scroll { overflow-x: auto; }
.rows { display: grid; grid-template-columns: max-content max-content; align-items: center;
  gap: 0 16px; width: max-content; }
.rows .label { position: sticky; left: 0; padding: 2px 6px 2px 0; text-align: right;
  background: var(--card); font-size: 14.5px; line-height: 1.3; min-width: 150px;
  max-width: 240px; }
.rows .label small { display: block; color: var(--muted); font-size: 12.5px; }
.rows img { display: block; image-rendering: pixelated; }
.rows .space { grid-column: 1 / -1; height: 10px; }
.levels { display: flex; color: var(--muted); font-size: 12.5px; text-align: center;
  font-variant-numeric: tabular-nums; }
.rows .label.head { color: var(--muted); font-size: 12.5px; }
figure { margin: 0; } figure img { display: block; width: 100%; max-width: 1040px; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 7px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th { color: var(--muted); font-weight: 550; font-size: 12.5px; vertical-align: bottom;
  white-space: normal; line-height: 1.25; }
th:first-child, td:first-child { position: sticky; left: 0; text-align: left;
  background: var(--card); }
tbody tr:last-child td { border-bottom: 0; }
tr.student td { background: var(--tint); }
tr.student td:first-child { box-shadow: inset 3px 0 var(--accent); }
tr.more td:first-child { color: transparent; }
tr.more:hover td:first-child { color: inherit; }
tr.real td { color: var(--muted); font-style: italic; }
td b { font-weight: 700; } .pm { color: var(--muted); font-size: 12px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px;
  margin: 8px 0 0; font-size: 14px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
dd code { font-size: 13px; }
summary { cursor: pointer; } summary h2 { display: inline; }
@media (max-width: 640px) { main { padding: 24px 10px 40px; } section { padding: 16px 14px; }
  h1 { font-size: 27px; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  .rows .label { min-width: 0; max-width: 110px; font-size: 12.5px; } .rows { gap: 0 8px; } }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""


def escape(text: object) -> str:
    """Escapes text for HTML content and attributes."""
    return html.escape(printable(text))


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def header(title: str, subtitle: str, notes: Sequence[str], command: str) -> str:
    """Title, lead, paragraphs and the command."""
    parts = ['<header><p class="eyebrow">ddistill</p>', f"<h1>{escape(title)}</h1>"]
    if subtitle:
        parts.append(f'<p class="lead">{escape(subtitle)}</p>')
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    if command:
        parts.append(f"<pre>{escape(command)}</pre>")
    return "\n".join(parts) + "\n</header>"


def warnings(texts: Sequence[str]) -> str:
    """A box with warnings about the scores."""
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return (
        '<section class="warning" role="alert"><h2>Read these scores with care</h2>'
        f"<ul>{items}</ul></section>"
    )


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Tiles with large numbers: (value, label, note)."""
    if not items:
        return ""
    cells = [
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span>'
        f"<small>{escape(note)}</small></div>"
        for value, label, note in items
    ]
    return '<div class="tiles">' + "".join(cells) + "</div>"


def grid(block: Grid) -> str:
    """Labelled rows of images."""
    cells = []
    for row in check_grid(block).rows:
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        cells.append(f'<div class="label">{escape(row.label)}{note}</div>')
        cells.append(_image(row_image(row.images), f"samples of {row.label}"))
    body = f'<div class="scroll"><div class="rows">{"".join(cells)}</div></div>'
    return _section(block.title, block.caption, body)


def strip(block: Strip) -> str:
    """Denoising strips below a line of noise levels."""
    columns = strip_columns(block)
    frames = np.asarray(block.trajectories[0].frames)
    cell = enlarge_factor(frames.shape[2]) * frames.shape[3] + GAP
    heads = "".join(f'<span style="width:{cell}px">{c:g}</span>' for c in columns)
    cells = [f'<div class="label head">noise level</div><div class="levels">{heads}</div>']
    for sample in range(frames.shape[1]):
        if sample:
            cells.append('<div class="space"></div>')
        for trajectory in block.trajectories:
            cells.append(f'<div class="label">{escape(trajectory.label)}</div>')
            picture = strip_row(trajectory, sample, columns)
            cells.append(_image(picture, f"sample {sample + 1}, {trajectory.label}"))
    body = f'<div class="scroll"><div class="rows">{"".join(cells)}</div></div>'
    return _section(block.title, block.caption, body)


def figure(title: str, caption: str, light: bytes, dark: bytes, alt: str) -> str:
    """A plot in two themes."""
    body = (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img src="{_data(light)}" alt="{escape(alt)}"></picture></figure>'
    )
    return _section(title, caption, body)


def table(block: Table) -> str:
    """A table; students are highlighted, and the best values of a column are bold."""
    heads = "".join(f'<th scope="col">{escape(c)}</th>' for c in block.columns)
    lines = []
    for i, row in enumerate(block.rows):
        role = block.roles[i] if i < len(block.roles) else ""
        if i and row and row[0] == block.rows[i - 1][0]:
            role += " more"  # a repeated name shows only on hover
        cells = "".join(_cell(text, (i, j) in block.best) for j, text in enumerate(row))
        lines.append(f'<tr class="{escape(role.strip())}">{cells}</tr>')
    body = (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    return _section(block.title, block.caption, body)


def protocol(shared: str, own: Sequence[tuple[str, str]]) -> str:
    """The protocol of the numbers: common parts, then parts of single samplers."""
    if not shared and not own:
        return ""
    lines = [("all", shared)] if shared else []
    items = "".join(
        f"<dt>{escape(label)}</dt><dd><code>{escape(text)}</code></dd>"
        for label, text in [*lines, *own]
    )
    caption = "Numbers are comparable only under one protocol; every row of results.json has it."
    return _section("Protocol", caption, f"<dl>{items}</dl>")


def facts(title: str, items: Mapping[str, str], folded: bool = False) -> str:
    """A list of keys and values; `folded` hides it until the reader opens it."""
    if not items:
        return ""
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items())
    if folded:
        return (
            f"<section><details><summary><h2>{escape(title)}</h2></summary>"
            f"<dl>{pairs}</dl></details></section>"
        )
    return _section(title, "", f"<dl>{pairs}</dl>")


def failure(title: str, text: str) -> str:
    """A box with the error of a part that failed."""
    return _section(title, "", f"<p>Not drawn: {escape(text)}</p>")


def plot_alt(plot: ScorePlot) -> str:
    """Alternative text of the plot."""
    lines = "; ".join(
        f"{line.label}: "
        + ", ".join(f"{v:.3g} at {n:g}" for n, v in zip(line.nfe, line.value, strict=True))
        for line in plot.lines
    )
    floor = "" if plot.floor is None else f"; {plot.floor_label}: {plot.floor:.3g}"
    return f"{plot.ylabel} against network evaluations. {lines}{floor}"


def _section(title: str, caption: str, body: str) -> str:
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    text = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section>{heading}{text}{body}</section>"


def _cell(text: str, best: bool) -> str:
    value, sign, rest = text.partition(" ")
    spread = rest if sign and rest.startswith(("± ", "[")) else ""
    value = value if spread else text
    cell = f"<b>{escape(value)}</b>" if best else escape(value)
    if spread:
        cell += f' <span class="pm">{escape(spread)}</span>'
    return f"<td>{cell}</td>"


def _image(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return (
        f'<img src="{_data(buffer.getvalue())}" width="{image.width}" height="{image.height}"'
        f' alt="{escape(alt)}">'
    )


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
