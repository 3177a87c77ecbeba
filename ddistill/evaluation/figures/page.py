"""HTML of the parts of a page. Functions return HTML, or "" if there is nothing to show.

The page has no scripts and no fonts, and its content policy forbids loading anything. Its links
lead to files beside it. Plots have a light and a dark version; the browser selects one.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import numpy as np
from PIL import Image

from ddistill.evaluation.figures.animation import Animation
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
from ddistill.evaluation.figures.stylesheet import STYLE
from ddistill.evaluation.figures.tables import Table
from ddistill.text import printable

# Rows of pictures or of a table that fit on a page of paper with their heading.
_MOST_ROWS = 16


def escape(text: object) -> str:
    """Escapes text for HTML content and attributes."""
    return html.escape(printable(text))


def escape_lines(text: str) -> str:
    """`escape` for text of several lines."""
    return "\n".join(escape(line) for line in text.split("\n"))


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


def with_contents(parts: Sequence[str]) -> list[str]:
    """Gives every section with a heading an id, and adds links to them before the first one."""
    found: list[str] = []
    links: list[str] = []
    for part in parts:
        heading = re.match(r'<section(?: class="\w+")?><h2>(.*?)</h2>', part)
        if heading:
            name = f"part{len(links) + 1}"
            links.append(f'<a href="#{name}">{heading[1]}</a>')
            part = part.replace("<section", f'<section id="{name}"', 1)
        found.append(part)
    if len(links) < 3:
        return list(parts)
    first = next(i for i, part in enumerate(found) if part.startswith("<section id"))
    contents = f'<nav class="contents" aria-label="Contents">{" ".join(links)}</nav>'
    return [*found[:first], contents, *found[first:]]


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
        cells.append(_image(row_image(row.images, block.factor), f"samples of {row.label}"))
    if block.texts:
        width = np.asarray(block.rows[0].images).shape[2] * block.factor + GAP
        texts = "".join(
            f'<span style="width:{width}px">{escape(text)}</span>' for text in block.texts
        )
        cells.append(f'<div class="label"></div><div class="texts">{texts}</div>')
    body = f'<div class="scroll"><div class="rows">{"".join(cells)}</div></div>'
    return _section(block.title, block.caption, body, _length(len(block.rows)))


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
    rows = frames.shape[1] * len(block.trajectories)
    return _section(block.title, block.caption, body, _length(rows))


def animation(block: Animation) -> str:
    """An animated picture with a label for each of its rows; still where motion is not wanted."""
    count = len(block.labels)
    cells = "".join(
        f'<div class="label" style="height:{block.height // count}px;grid-row:{i + 1}">'
        f"{escape(label)}</div>"
        for i, label in enumerate(block.labels)
    )
    picture = (
        f'<picture style="grid-row:1/span {count}">'
        f'<source media="(prefers-reduced-motion: reduce)" srcset="{_data(block.still)}">'
        f'<img src="{_data(block.png)}" width="{block.width}" height="{block.height}"'
        f' alt="{escape("Denoising by " + ", ".join(block.labels))}"></picture>'
    )
    body = f'<div class="scroll"><div class="animation">{cells}{picture}</div></div>'
    return _section(block.title, block.caption, body, "screen")  # on paper there are the strips


def figure(title: str, caption: str, light: bytes, dark: bytes, alt: str) -> str:
    """A plot in two themes."""
    pictures = "".join(
        f'<img class="{theme}" src="{_data(png)}" alt="{escape(alt)}">'
        for theme, png in (("light", light), ("dark", dark))
    )
    return _section(title, caption, f"<figure>{pictures}</figure>")


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
    return _section(block.title, block.caption, body, _length(len(block.rows)))


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


def meanings(items: Sequence[tuple[str, str]], note: str = "") -> str:
    """What every metric measures: (label, sentence)."""
    if not items:
        return ""
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items)
    return _section("What the numbers mean", note, f"<dl>{pairs}</dl>")


def files(items: Sequence[tuple[str, str, str]], commands: Sequence[tuple[str, str]]) -> str:
    """Links to files and commands to use them.

    Args:
      items: (path relative to the page or "" for no link, name, what is there).
      commands: (heading, commands).
    """
    if not items and not commands:
        return ""
    lines = "".join(
        "<li>"
        + (f'<a href="{escape(quote(path))}">{escape(name)}</a>' if path else escape(name))
        + f": {escape(text)}</li>"
        for path, name, text in items
    )
    blocks = "".join(f"<h3>{escape(h)}</h3><pre>{escape_lines(c)}</pre>" for h, c in commands)
    return _section(
        "Files and commands", "", (f'<ul class="files">{lines}</ul>' if lines else "") + blocks
    )


def configuration(items: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    """All settings, folded; settings that differ from `defaults` are marked and listed before.

    Args:
      items: settings by dotted name.
      defaults: settings of the config file without flags; empty if they are not known.
    """
    if not items:
        return ""
    nothing = "(none)"
    changed = {
        key: defaults.get(key, nothing)
        for key in dict.fromkeys([*items, *defaults])
        if defaults and items.get(key) != defaults.get(key)
    }
    listed = "".join(
        f"<dt><mark>{escape(key)}</mark></dt><dd>{escape(items.get(key, nothing))} "
        f'<span class="pm">(config file: {escape(before)})</span></dd>'
        for key, before in changed.items()
    )
    pairs = "".join(
        f"<dt>{f'<mark>{escape(k)}</mark>' if k in changed else escape(k)}</dt><dd>{escape(v)}</dd>"
        for k, v in items.items()
    )
    if not defaults:
        note = ""
    elif changed:
        note = f'<p class="caption">Changed against the config file:</p><dl>{listed}</dl>'
    else:
        note = '<p class="caption">No setting differs from the config file.</p>'
    folded = f"<details><summary>All {len(items)} settings</summary><dl>{pairs}</dl></details>"
    return _section("Configuration", "", note + folded, "long")


def facts(title: str, items: Mapping[str, str]) -> str:
    """A list of keys and values."""
    if not items:
        return ""
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items())
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


def _section(title: str, caption: str, body: str, kind: str = "") -> str:
    """A section; `kind` is "long" if it may go over several pages of paper, or "screen" if it is
    not printed.
    """
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    text = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    of_kind = f' class="{kind}"' if kind else ""
    return f"<section{of_kind}>{heading}{text}{body}</section>"


def _length(rows: int) -> str:
    """Kind of a section with that many rows of pictures or of a table."""
    return "long" if rows > _MOST_ROWS else ""


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
    image.save(buffer, "PNG")
    return (
        f'<img src="{_data(buffer.getvalue())}" width="{image.width}" height="{image.height}"'
        f' alt="{escape(alt)}">'
    )


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
