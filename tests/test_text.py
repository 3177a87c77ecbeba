"""Text of users in consoles, pages, markdown, pictures, records and file names."""

import html
import io
import json
import os
import re
import sys
import unicodedata
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from hostile import FOLDERS, LATIN, NAMES, make_folder
from rich.console import Console

from ddistill import data, record
from ddistill.data.facts import DataFacts
from ddistill.data.names import in_order, text_of
from ddistill.errors import ConfigError
from ddistill.evaluation.figures import page
from ddistill.evaluation.figures.image_grids import Grid, ImageRow, drawable, grid_image, row_image
from ddistill.evaluation.figures.plots import (
    ClassChart,
    Curve,
    ScorePlot,
    classes_figure,
    curves_figure,
    score_figure,
)
from ddistill.evaluation.figures.style import LIGHT, Line, new_figure, styled, wrapped
from ddistill.evaluation.figures.subplots import Subplot, SubplotFigure, subplots_figure
from ddistill.evaluation.figures.tables import Table
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import RowFacts, read_rows, rows_from_scores, write_rows
from ddistill.evaluation.report.report import Report, write_report
from ddistill.evaluation.report.results_md import markdown as markdown_table
from ddistill.evaluation.report.results_md import picture_names
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import write_text
from ddistill.runtime.metrics_log import MetricsLog
from ddistill.text import (
    code_span,
    distinct,
    file_name,
    file_names,
    make_streams_safe,
    markdown,
    name_of,
    one_line,
    printable,
    shortened,
)

SHOWN = {
    LATIN: r"caf\xe9", "\ud800": r"\ud800", "two\nlines": r"two\nlines",
    "\x1b[31mred": r"\x1b[31mred",
    "\u202egnp": r"\u202egnp", "\u2028": r"\u2028", "\ufeff": r"\ufeff", "\x00": r"\x00",
    "tab\there": r"tab\there", "\xe9": "\xe9", "\u732b": "\u732b", "\U0001f600": "\U0001f600",
    "$x^$": "$x^$", "": "",
}  # fmt: skip
PROTOCOL = Protocol("net", "ab", "x/train", 10, 20, "ddim", 4, 0.9, 1.0, 0, True).string()


@pytest.mark.parametrize("name", NAMES)
def test_printable_text_can_be_written_and_printed_anywhere(name):
    shown = printable(name)
    shown.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert printable(shown) == shown
    assert shown == SHOWN.get(name, name if name.isascii() and name.isprintable() else shown)


def test_other_forms_of_text():
    assert printable("a\nb\t", keep="\n") == "a\nb\\t"
    assert one_line(" a\n  b\n\n") == "a b"
    assert [name_of(x) for x in ("", " \t", "  a ")] == ["unnamed", r"\t", "a"]
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    assert distinct(["\xe9", "e\u0301", "a", ""]) == ["\xe9 #0", "e\u0301 #1", "a", "#3"]


def test_markdown_shows_text_as_it_is():
    assert markdown("a | b") == r"a \| b"
    assert markdown("`x` *y* <b> [z](u) &amp; $m$") == (r"\`x\` \*y\* \<b\> \[z\](u) \&amp; \$m\$")
    assert markdown("sfddm_digits, ~20") == r"sfddm_digits, \~20"
    assert markdown("__init__ _a_") == r"\_\_init\_\_ \_a\_"
    assert markdown("two\nlines") == r"two\\nlines"
    assert code_span("a b") == "`a b`"
    assert code_span("a `b` ``c``") == "``` a `b` ``c`` ```"


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_stays_one_cell(name):
    text = markdown_table(Table(["method", "x"], [[name, "1"]]))
    lines = text.split("\n")
    assert len(lines) == 3
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in lines)


def test_file_names_are_safe_short_and_of_one_text_each():
    found = file_names([*NAMES, "a", "A", "猫", "犬"])
    assert len(set(found.values())) == len(found)
    for name in found.values():
        assert re.fullmatch("[a-z0-9_]{1,120}", name)
    assert file_name("Teacher DDIM, 4 steps!") == "teacher_ddim_4_steps"
    assert file_name("x" * 3000) != file_name("x" * 3001)
    # Pictures that are in the record keep their names.
    keys = [("sfddm_digits", "digits"), ("a b", "c"), ("a", "b c")]
    names = picture_names(keys)
    assert names[keys[0]] == "sfddm_digits_digits.png"
    assert len(set(names.values())) == 3


class _Text(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.alts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.alts += [v for k, v in attrs if k == "alt"]

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_names_as_text_and_in_attributes(name):
    assert page.escape(name) == html.escape(printable(name))
    made = page.document(
        name, [page.figure(name, name, b"", b"", name), page.facts(name, {name: name})]
    )
    found = _Text(made)
    assert found.alts == [printable(name)] * 2  # of the light and of the dark plot
    assert {"script", "b"}.isdisjoint(found.tags)
    assert printable(name) in "".join(found.words)
    made.encode()


# ----------------------------------------------------------------------------------- pictures


@pytest.fixture(autouse=True)
def _no_warnings():
    """A glyph that the font lacks is a warning of matplotlib."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_is_in_the_font(name):
    shown = drawable(name)
    assert len(shown) <= 80
    with styled(LIGHT):
        figure = new_figure(1, 1, LIGHT)
        figure.text(0, 0, shown)
        figure.canvas.draw()
    assert not wrapped(name).startswith("_")


def test_all_names_in_every_figure_at_once():
    share = [1 / len(NAMES)] * len(NAMES)
    samplers = {name: share for name in NAMES}
    lines = [Line(name, [i + 1], [i + 1.0]) for i, name in enumerate(NAMES)]
    curves = [Curve("a\n$x^$", [0, 1], [1, 2], name) for name in NAMES[:8]]
    for picture in (
        classes_figure(ClassChart(NAMES, share, samplers)),
        score_figure(ScorePlot(lines, floor=1.0, floor_label="$x^$", ylabel=LATIN)),
        curves_figure(curves),
        subplots_figure(SubplotFigure([Subplot("$^$", "lower", lines)], floor_label=LATIN)),
    ):
        assert picture.startswith(b"\x89PNG")
    rows = [ImageRow(name, np.zeros((1, 8, 8, 1)), name) for name in NAMES]
    assert grid_image([Grid(LATIN, rows, "two\nlines")]).height > 8 * len(NAMES)
    assert row_image(rows[0].images).width < grid_image([Grid("", rows[:1])]).width


def test_a_legend_names_samplers_that_begin_with_an_underscore(monkeypatch):
    """matplotlib leaves such labels out where it collects them itself."""
    seen = []
    from matplotlib.axes import Axes

    legend = Axes.legend
    monkeypatch.setattr(Axes, "legend", lambda *a, **k: seen.append(legend(*a, **k)) or seen[-1])
    classes_figure(ClassChart(["a"], [1.0], {"_x": [1.0]}))
    curves_figure([Curve("s", [0], [1], "_y")])
    texts = [[t.get_text().strip() for t in made.get_texts()] for made in seen]
    assert texts == [["real images", "_x"], ["_y"]]


def test_a_logarithmic_axis_shows_plain_numbers_without_formulas(monkeypatch):
    from ddistill.evaluation.figures import plots

    texts = []
    png = plots.png

    def look(figure):
        made = png(figure)
        texts.extend(t.get_text() for axes in figure.axes for t in axes.get_xticklabels())
        return made

    monkeypatch.setattr(plots, "png", look)
    score_figure(ScorePlot([Line("nothing", [], [])]))
    score_figure(ScorePlot([Line("one", [4], [3.0])]))
    assert texts
    assert not any("$" in text for text in texts)


# ------------------------------------------------------------------------ pictures that fail


def test_a_picture_that_fails_is_replaced_by_the_reason(tmp_path):
    chart = ClassChart(["a", "b"], [0.5, 0.5], {"s": [1.0]})  # a share is missing
    bad = Grid(
        "odd", [ImageRow("a", np.zeros((1, 8, 8, 1))), ImageRow("b", np.zeros((2, 8, 8, 1)))]
    )
    rows = [["teacher", "3.1"]]
    report = Report(
        title="run", grids=[bad], classes=chart, tables=[Table(["method", "FD"], rows)],
        curves=[Curve("s", [0, 1], [1, 2])], failed=[("Strip", "ValueError: no strip")],
    )  # fmt: skip
    (tmp_path / "classes.png").write_bytes(b"of an earlier report")
    said = []
    text = write_report(tmp_path, report, say=said.append).read_text()
    assert "3.1" in text
    assert (tmp_path / "curves.png").exists()
    assert not (tmp_path / "classes.png").exists()
    assert "Not drawn: ValueError: &#x27;s&#x27; has 1 shares for 2 classes." in text
    assert "Row &#x27;b&#x27; of grid &#x27;odd&#x27; has images (2, 8, 8, 1)" in text
    assert "Not drawn: ValueError: no strip" in text
    assert [line.split("'")[1] for line in said] == ["Strip", "Samples", "Classes of the samples"]


def test_a_full_disk_is_no_failing_picture(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, Report("run", curves=[Curve("s", [0, 1], [1, 2])]))


# ------------------------------------------------------------------------------- records


def test_rows_of_any_names_are_written_and_read(tmp_path):
    common = {
        "method": "ddim", "nfe": 4, "students": 0, "width": 8, "seed": 0, "protocol": PROTOCOL,
        "train_seconds": 0.0, "teacher_calls": 0, "machine": "a machine",
    }  # fmt: skip
    names = [n for n in NAMES if n.strip()]
    rows = [
        row
        for i, name in enumerate(names)
        for row in rows_from_scores(
            {"fd": 1.0},
            RowFacts(experiment=f"{i} {name}", data=name, command=f"run {name}", **common),
        )
    ]
    write_rows(tmp_path / "results.json", rows)
    assert read_rows(tmp_path / "results.json") == rows
    record.record([tmp_path], tmp_path / "docs")
    pages = [tmp_path / "docs" / "results.md", *(tmp_path / "docs" / "results").glob("*.md")]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert len(texts) == 1 + len(rows)
    assert sum(text.count("\n## ") for text in texts) == len(rows)
    for text in texts:
        assert not re.search("[\x00-\x09\x0b-\x1f\ud800-\udfff\u202e]", text)
        assert "<script>" not in re.sub("`[^`]*`", "", text)


def test_a_record_is_kept_where_a_picture_fails(tmp_path, monkeypatch):
    def broken(plot):
        raise ValueError("no picture")

    common = {
        "method": "ddim", "students": 0, "width": 8, "seed": 0, "protocol": PROTOCOL, "data": "d",
        "train_seconds": 0.0, "teacher_calls": 0, "machine": "m", "experiment": "e", "command": "c",
    }  # fmt: skip
    rows = [r for n in (1, 2) for r in rows_from_scores({"fd": 1.0}, RowFacts(nfe=n, **common))]
    write_rows(tmp_path / "results.json", rows)
    monkeypatch.setattr(record, "score_figure", broken)
    said = record.record([tmp_path], tmp_path / "docs")
    assert "e_d.png is not drawn (ValueError: no picture)" in said
    assert read_rows(tmp_path / "docs" / "results.json") == rows
    assert "e_d.png" not in (tmp_path / "docs" / "results" / "e.md").read_text()


def test_files_hold_bytes_that_are_not_utf8_visibly(tmp_path):
    write_text(tmp_path / "a.html", f"a {LATIN} b")
    assert (tmp_path / "a.html").read_bytes() == rb"a caf\udce9 b"
    write_text(tmp_path / "a.json", json.dumps([LATIN], ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [LATIN]


@pytest.mark.parametrize("name", ["results.json", "docs/results.md"])
def test_a_record_that_is_not_utf8_is_named(tmp_path, name):
    (tmp_path / "docs").mkdir()
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{name}: not UTF-8 text"):
        record.record([tmp_path], tmp_path / "docs")


# ------------------------------------------------------------------------------- data sets


def test_a_folder_of_such_classes_is_opened_and_its_names_can_be_shown(tmp_path):
    folder = make_folder(tmp_path, FOLDERS)
    settings = {"name": "folder", "path": str(folder), "channels": 1, "test_fraction": 0.0}
    found = data.load(settings, "train")
    # Two spellings of one text are one class.
    names = in_order({text_of(name) for name in FOLDERS})
    assert found.num_classes == len(names) == len(FOLDERS) - 1
    assert found.name == r"images caf\xe9"
    assert found.class_names == tuple(map(printable, names))
    counts = dict(zip(names, map(int, np.bincount(found.labels))))
    assert counts == {name: 4 if name == "\xe9" else 2 for name in names}
    json.dumps(DataFacts.of(found).to_json(), ensure_ascii=False).encode()
    found.provenance.encode()
    printable(data.describe(settings)).encode()


# --------------------------------------------------------------------------------- consoles


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_console_shows_names_and_takes_none_for_markup(monkeypatch, terminal, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    make_streams_safe()
    console = Console(force_terminal=terminal, soft_wrap=True, highlight=False, width=200)
    reporter = Reporter(console)
    for name in NAMES:
        reporter.say(f"({name})")
        reporter.begin(name, 2)
        reporter.advance(1, name)
        reporter.end()
    text = raw.getvalue().decode(encoding)
    for name in ("[red]loud[/red]", "[/]", ":dog:", "$x^$"):
        assert f"({name})" in text
    assert r"(caf\xe9)" in text
    assert r"(\x1b[31mred)" in text
    assert "\x1b[31mred" not in text


def test_metrics_and_events_of_a_stage_of_any_name(tmp_path):
    for i, name in enumerate(NAMES[:20]):
        (tmp_path / str(i)).mkdir()
        log = MetricsLog(tmp_path / str(i), name, 0)
        log.write(1, {"loss": 0.5})
        log.close()
        row = json.loads((tmp_path / str(i) / "metrics.jsonl").read_text())
        assert row == {"stage": name, "step": 1, "loss": 0.5}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"name": ""}, "config.name: the name '' is blank"),
        ({"name": "a\nb"}, r"config.name: the name 'a\nb' is blank, begins or ends"),
        ({"name": LATIN}, "has characters that cannot be shown"),
        ({"name": ".."}, "config.name: the name '..' is no name of a folder"),
        ({"name": "x" * 151}, "is longer than 150 bytes"),
        ({"pipeline": ("a/b",), "stages": "a/b"}, "the name 'a/b' is no name of a folder"),
        ({"pipeline": (".",), "stages": "."}, "the name '.' is no name of a folder"),
        ({"pipeline": ("",), "stages": ""}, "the name '' is blank"),
    ],
)
def test_names_that_records_and_folders_cannot_hold_are_refused(tmp_path, changes, part):
    from runs import config

    from ddistill.parsing import parse
    from ddistill.planning.planner import plan_stages
    from ddistill.settings import Settings

    plain = config()
    if "stages" in changes:
        changes = {**changes, "stages": {changes["stages"]: plain["stages"]["teacher"]}}
    settings = parse({**plain, **changes}, Settings)
    facts = DataFacts.of(data.load({"name": "digits"}, "train"))
    with pytest.raises(ConfigError, match="the name") as caught:
        plan_stages(settings, facts, tmp_path, tmp_path)
    assert part in str(caught.value)
