"""The report: one page that needs nothing but itself, and pictures that show what was given."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import html5lib
import numpy as np
import pytest
from PIL import Image

from ddistill.evaluation.figures.animation import animate
from ddistill.evaluation.figures.distributions import (
    Distribution,
    Distributions,
    distributions_figure,
)
from ddistill.evaluation.figures.image_grids import (
    GAP,
    Grid,
    ImageRow,
    Strip,
    Trajectory,
    enlarge_factor,
    grid_image,
    row_image,
    strip_columns,
    strip_row,
    thumbnails,
)
from ddistill.evaluation.figures.plots import (
    ClassChart,
    Curve,
    ScorePlot,
    classes_figure,
    curves_figure,
    score_figure,
    smooth,
)
from ddistill.evaluation.figures.style import LIGHT, Line, apart, draw_line, new_figure
from ddistill.evaluation.figures.tables import Table, score_plot, score_table
from ddistill.evaluation.metrics.pixels import psnr
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.report.report import (
    Files,
    Highlight,
    Part,
    Picture,
    Report,
    flatten,
    write_report,
)
from ddistill.text import file_name

LABELS = ("teacher DDIM, 256 steps", "teacher DDIM, 4 steps", "student <4> steps & more")
HALF = GAP // 2


def _images(n=5, size=8, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, size, size, channels)).astype(np.float32)


def _trajectory(label, levels, samples=2):
    frames = np.stack([_images(samples, seed=int(level)) for level in levels])
    return Trajectory(label, frames, levels)


def _moving(size=8, channels=1, samples=2):
    frames = np.random.default_rng(0).uniform(-1, 1, (9, samples, size, size, channels))
    return Strip(
        "S",
        [
            Trajectory("long", frames, range(64, -1, -8)),
            Trajectory("short", frames[::4], (64, 32, 0)),
        ],
    )


def _png():
    file = io.BytesIO()
    Image.new("L", (30, 30)).save(file, "PNG")
    return file.getvalue()


def _row(method="ddim", nfe=4, metric="fd", value=1.0, seed=0, **changes):
    protocol = Protocol("net", "ab", "digits/train", 10, 20, "ddim", nfe, 0.9, 1.0, 0, True)
    row = Row(
        "exp", method, "digits", nfe, 0, 8, seed, metric, value, protocol.string(),
        0.0, 0, "python -m ddistill.main", "a machine",
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


@pytest.fixture(scope="module")
def report():
    rows = [_row(nfe=n, value=9.0 / n) for n in (1, 2, 4)] + [_row("sfddm", 4, students=1)]
    return Report(
        title="A <report> & more",
        subtitle="From many steps to few.",
        command="python -m ddistill.main --config=configs/a.py",
        highlights=[Highlight("4.2", "FD of the student")],
        grids=[
            Grid("Same noise", [ImageRow(label, _images(seed=i)) for i, label in enumerate(LABELS)])
        ],
        plot=score_plot(rows),
        tables=[score_table(rows)],
        strip=Strip(
            "Steps",
            [
                _trajectory("teacher strip", list(range(64, -1, -8))),
                _trajectory("student strip", [64, 32, 0]),
            ],
        ),
        classes=ClassChart(["a", "b"], [0.5, 0.5], {"student": [0.7, 0.3]}),
        curves=[Curve("teacher", range(5), [5, 4, 3, 2, 1])],
        parts=[
            Part("Faces", [Grid("Faces", [ImageRow("a row", _images())])], "faces.png"),
            Part("Numbers", Table(["a", "b"], [["1", "2"]], "Numbers")),
            Part("Moving", animate(_moving(), "Moving"), "moving.png"),
            Part("Drawn", Picture("Drawn", *[_png()] * 2, "a drawing"), "drawn.png"),
        ],
        meanings=[("FD", "A distance of <features>.")],
        files=Files(
            [("results.json", "rows", "all rows"), ("samples/a b.npz", "a b", ""), ("", "c", "")],
            [("Export", "first <line>\nsecond line")],
        ),
        config={"schedule": {"name": "cosine", "steps": 8}, "seed": 0},
        defaults={"schedule": {"name": "linear", "steps": 8}, "seed": 0},
        protocols=[("teacher", rows[0].protocol), ("student", rows[-1].protocol)],
        provenance={"machine": "a machine"},
        notes=["A note."],
        warnings=["The classifier is <weak>."],
    )


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert write_report(folder, report) == folder / "report.html"
    return folder


class _Page(HTMLParser):
    """Collects what the page loads and links to, its text, its ids and its nesting."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.words, self.open = [], [], [], []
        self.anchors, self.ids = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is given twice"
        self.links += [v for k, v in attrs if k in ("src", "srcset", "data", "action")]
        self.anchors += [v for k, v in attrs if k == "href"]
        self.ids += [v for k, v in attrs if k == "id"]
        assert tag != "img" or dict(attrs).get("alt"), "a picture without alternative text"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def valid_html(text):
    """Whether a parser of HTML 5 has nothing to complain about."""
    parser = html5lib.HTMLParser()
    parser.parse(text)
    return not parser.errors


def test_page_is_self_contained_and_well_formed(folder):
    text = (folder / "report.html").read_text()
    page = _Page(text)
    assert not page.open
    assert valid_html(text)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "base"} & set(page.tags)
    assert len(set(page.ids)) == len(page.ids)
    inside = [a.removeprefix("#") for a in page.anchors if a.startswith("#")]
    assert inside == page.ids  # the contents name every section once, in order
    outside = [a for a in page.anchors if not a.startswith("#")]
    assert outside == ["results.json", "samples/a%20b.npz"]
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    for link in page.links:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            image.load()
            assert min(image.size) > 20


def test_page_shows_every_part(folder):
    words = " ".join(_Page((folder / "report.html").read_text()).words)
    expected = [*LABELS, "A <report> & more", "From many steps to few.", "A note.", "4.2"]
    expected += ["python -m ddistill.main --config=configs/a.py", "teacher strip", "student strip"]
    expected += ["schedule.name", "cosine", "a machine", "Training", "Classes of the samples"]
    expected += ["reference=digits/train:10", "FD of the student", "teacher DDIM", "SFDDM"]
    for text in expected:
        assert text in words, text
    assert "<report>" not in (folder / "report.html").read_text()


def test_pictures_lie_beside_the_page(folder):
    with Image.open(folder / "faces.png") as image:
        assert image.height > 48
    for name in ("samples", "fd_vs_nfe", "strip", "curves", "classes"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.width >= 400, name
            assert image.height >= 150, name
            assert image.format == "PNG"


def test_settings_that_differ_from_the_config_file_are_marked(folder, tmp_path):
    text = (folder / "report.html").read_text()
    assert re.findall("<mark>(.*?)</mark>", text) == ["schedule.name"] * 2
    assert "(config file: linear)" in text
    same = Report("Same", config={"seed": 0}, defaults={"seed": 0})
    assert "No setting differs" in write_report(tmp_path, same).read_text()
    unknown = write_report(tmp_path, Report("Unknown", config={"seed": 0})).read_text()
    assert "<mark>" not in unknown
    assert "differs" not in unknown


def test_commands_keep_their_lines(folder):
    text = (folder / "report.html").read_text()
    assert "<pre>first &lt;line&gt;\nsecond line</pre>" in text
    assert "A distance of &lt;features&gt;." in text


def test_an_animation_goes_from_noise_to_image_with_a_row_for_each_sampler():
    strip = _moving()
    made = animate(strip, "Moving")
    assert made.labels == ["long", "short"]
    with Image.open(io.BytesIO(made.png)) as image:
        assert image.n_frames == 9
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("L")))
    with Image.open(io.BytesIO(made.still)) as image:
        np.testing.assert_array_equal(frames[-1], np.asarray(image))
    assert frames[0].shape == (made.height, made.width) == (2 * 52, 2 * 52)

    def row(frame, which):
        return frames[frame][which * 52 : which * 52 + 52]

    # Of "short" the states at 64, 32 and 0 are states 0, 4 and 8 of "long"; it rests between.
    for i, state in enumerate([0, 0, 0, 0, 4, 4, 4, 4, 8]):
        np.testing.assert_array_equal(row(i, 1), row(state, 0))


@pytest.mark.parametrize(("size", "channels", "samples"), [(32, 3, 6), (128, 3, 3), (64, 1, 2)])
def test_animations_are_small_files(size, channels, samples):
    made = animate(_moving(size, channels, samples), "Moving")
    assert made is not None
    assert len(made.png) <= 300_000
    assert animate(_moving(), "Moving", limit=10) is None


def test_thumbnails_are_means_of_blocks():
    images = np.arange(2 * 8 * 8 * 3, dtype=np.float32).reshape(2, 8, 8, 3)
    small = thumbnails(images, 4)
    assert small.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(small[1, 2, 3], images[1, 4:6, 6:8].mean((0, 1)))
    np.testing.assert_array_equal(thumbnails(images, 8), images)
    assert thumbnails(np.zeros((1, 9, 30, 1), np.uint8), 10).shape == (1, 3, 10, 1)


def test_distributions_take_one_value_and_many_lines():
    lines = [Distribution(f"line {i}", np.arange(i + 1.0)) for i in range(10)]
    lines.append(Distribution("real", np.ones(3), "real"))
    assert _size(distributions_figure([Distributions("d", lines)] * 2))[0] > 800
    with pytest.raises(ValueError, match="No distributions"):
        distributions_figure([])


def test_writing_again_gives_the_same_page(folder, report):
    before = (folder / "report.html").read_bytes()
    write_report(folder, report)
    assert (folder / "report.html").read_bytes() == before


def test_an_empty_report_is_a_page(tmp_path):
    path = write_report(tmp_path / "new", Report("Nothing yet"))
    assert "Nothing yet" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("size, factor", [(8, 6), (16, 3), (28, 2), (32, 2), (64, 1), (256, 1)])
def test_small_images_are_enlarged_by_whole_factors(size, factor):
    assert enlarge_factor(size) == factor


@pytest.mark.parametrize("channels", [1, 3])
def test_row_shows_each_pixel_as_a_block_apart_from_its_neighbours(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels)).astype(np.uint8)
    pixels = np.asarray(row_image(images))
    side = 48 + GAP
    assert pixels.shape == (side, 3 * side, 4)
    want = np.broadcast_to(images, (3, 8, 8, 3)).repeat(6, 1).repeat(6, 2)
    for i in range(3):
        left = i * side
        cell = pixels[HALF : HALF + 48, left + HALF : left + HALF + 48]
        np.testing.assert_array_equal(cell[..., :3], want[i])
        assert (cell[..., 3] == 255).all()
        frame = pixels[:, left : left + side].copy()
        frame[HALF:-HALF, HALF:-HALF] = 0
        assert set(np.unique(frame[..., 3])) == {0, frame[0, 0, 3]}  # a gap on all four sides


def test_grid_image_holds_the_rows_it_was_given():
    rows = [ImageRow("one", _images(4, seed=1)), ImageRow("two", _images(4, seed=2), "FD 3")]
    grid = np.asarray(grid_image([Grid("Title", rows)]).convert("RGB")).astype(int)
    for row in rows:
        strip = row_image(row.images)
        paper = Image.new("RGB", strip.size, "white")
        paper.paste(strip, (0, 0), strip)
        needle = np.asarray(paper).astype(int)
        width = grid.shape[1] - needle.shape[1] + 1
        places = [
            (y, x)
            for y in range(grid.shape[0] - needle.shape[0] + 1)
            for x in range(width)
            if (grid[y, x : x + 60] == needle[0, :60]).all()
            and (grid[y : y + needle.shape[0], x : x + needle.shape[1]] == needle).all()
        ]
        assert len(places) == 1


def test_grids_name_the_row_that_does_not_fit():
    with pytest.raises(ValueError, match="Row 'short' of grid 'G'"):
        grid_image([Grid("G", [ImageRow("full", _images(4)), ImageRow("short", _images(3))])])
    with pytest.raises(ValueError, match="Grid 'G' has no rows"):
        grid_image([Grid("G", [])])
    with pytest.raises(ValueError, match="not finite"):
        row_image(np.full((1, 8, 8, 1), np.nan))
    with pytest.raises(ValueError, match=r"1 or 3\]; got \(2, 8, 8, 2\)"):
        row_image(np.zeros((2, 8, 8, 2)))


def test_strip_aligns_frames_at_equal_noise():
    teacher = _trajectory("teacher", list(range(64, -1, -1)))
    student = _trajectory("student", [64, 32, 0])
    strip = Strip("S", [teacher, student])
    columns = strip_columns(strip)
    assert columns == [64, 56, 48, 40, 32, 24, 16, 8, 0]
    side = 48 + GAP
    rows = [np.asarray(strip_row(t, 1, columns)) for t in (teacher, student)]
    for i, level in enumerate(columns):
        cells = [row[:, i * side : (i + 1) * side] for row in rows]
        frame = np.asarray(row_image(teacher.frames[64 - int(level)][1:]))
        np.testing.assert_array_equal(cells[0], frame)
        if level in (64, 32, 0):  # both were made from the level, so they agree
            np.testing.assert_array_equal(cells[1], frame)
        else:  # nothing but the line
            assert (cells[1][: side // 2 - 4] == 0).all()
            assert cells[1][..., 3].any()


def test_strip_columns_come_from_the_coarser_sampler_that_has_enough():
    teacher, student = (
        _trajectory("t", list(range(64, -1, -1))),
        _trajectory("s", range(64, -1, -8)),
    )
    assert strip_columns(Strip("S", [teacher, student])) == list(range(64, -1, -8))
    few = strip_columns(Strip("S", [_trajectory("s", [64, 0])]))
    assert few == [64, 0]
    assert strip_columns(Strip("S", [teacher], columns=[3, 1])) == [3, 1]


def test_strip_errors():
    with pytest.raises(ValueError, match="at least one trajectory"):
        strip_columns(Strip("S", []))
    with pytest.raises(ValueError, match="'t' needs frames"):
        strip_columns(Strip("S", [Trajectory("t", np.zeros((3, 1, 8, 8, 1)), [1, 0])]))
    two = [_trajectory("a", [1, 0], 1), _trajectory("b", [1, 0], 2)]
    with pytest.raises(ValueError, match="different numbers"):
        strip_columns(Strip("S", two))


def _size(png):
    with Image.open(io.BytesIO(png)) as image:
        return image.size


@pytest.mark.parametrize(
    "plot",
    [
        ScorePlot([Line("one point", [1], [3.0])]),
        ScorePlot([Line("zero is left out", [1, 2], [0.0, 3.0])], floor=0.0),
        ScorePlot([Line("flat", [1, 2, 4], [2.0, 2.0, 2.0], role="teacher")], floor=1.9),
        ScorePlot([Line("wide", [1, 1024], [1e-4, 1e4], [(-1.0, 1.0), (9e3, 2e4)])], floor=1e-5),
        ScorePlot([Line("floor below", [1, 2], [5.0, 3.0])], floor=-0.1, floor_range=(-0.3, 0.1)),
        ScorePlot([Line("nothing", [], [])]),
    ],
)
def test_score_figure_takes_hard_data(plot):
    assert _size(score_figure(plot)) == (1472, 784)


def test_other_figures_take_hard_data():
    curves = [Curve(f"stage {i}", [1], [float("nan")]) for i in range(5)]
    assert _size(curves_figure(curves))[0] > 800
    assert _size(curves_figure([Curve("a", [0, 20_000], [1, 1e-9], "x")]))[0] > 800
    chart = ClassChart([f"a long class name {i}" for i in range(12)], [1 / 12] * 12)
    assert _size(classes_figure(chart))[0] > 800
    with pytest.raises(ValueError, match="No curves"):
        curves_figure([])
    with pytest.raises(ValueError, match="'s' has 1 shares for 2"):
        classes_figure(ClassChart(["a", "b"], [0.5, 0.5], {"s": [1.0]}))
    with pytest.raises(ValueError, match="'a ' has 2 steps, 1 losses"):
        curves_figure([Curve("a", [0, 1], [1])])


def test_smooth_is_a_running_mean_that_skips_gaps():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 1.5, 3.0, 4.5, 4.5])
    np.testing.assert_array_equal(smooth(values, 1), values)
    assert np.isnan(smooth(np.array([np.nan]), 5)).all()


def test_score_plot_means_spreads_and_floor():
    rows = [_row("sfddm", 4, value=v, seed=s, students=1) for s, v in enumerate((1.0, 2.0, 3.0))]
    rows += [_row(nfe=n, value=float(n)) for n in (8, 2)]
    rows += [_row("real", 0, value=0.5), _row(metric="recall", value=0.1)]
    plot = score_plot(rows)
    assert plot.floor == 0.5
    assert plot.ylabel == "FD (net)"
    teacher, student = plot.lines
    assert (teacher.label, teacher.role, list(teacher.nfe)) == ("teacher DDIM", "teacher", [2, 8])
    assert list(student.value) == [2.0]
    assert student.ranges == [(1.0, 3.0)]  # 1 is the sample standard deviation of 1, 2, 3
    assert teacher.ranges == ()
    intervals = [_row(value=2.0, low=1.5, high=2.75), _row("real", 0, value=0.5, low=0.25, high=1)]
    plot = score_plot(intervals)
    assert plot.lines[0].ranges == [(1.5, 2.75)]
    assert plot.floor_range == (0.25, 1)
    both = [*intervals, _row(metric="fd_infinity", value=1.0)]
    assert (score_plot(both).ylabel, score_plot(both).floor) == ("FD\N{INFINITY} (net)", None)
    with pytest.raises(ValueError, match="No row has metric 'fid'"):
        score_plot(rows, "fid")


def test_score_table_marks_the_best_and_names_variants_apart():
    rows = [_row(nfe=4, value=3.0), _row(nfe=4, metric="recall", value=0.9)]
    rows += [_row("sfddm", 4, value=2.0, seed=s, students=1, teacher_calls=5) for s in (0, 1)]
    rows += [_row("sfddm", 4, value=2.5, students=1, experiment="exp/random_init")]
    rows += [_row("o2mkd", 4, value=2.5, students=4), _row("real", 0, value=0.1)]
    rows = [
        r if r.seed else dataclasses.replace(r, low=r.value - 0.2, high=r.value + 0.2) for r in rows
    ]
    table = score_table(rows)
    assert list(table.columns) == ["sampler", "NFE", "FD", "recall", "training, s", "teacher calls"]
    cells = {row[0]: list(row[1:]) for row in table.rows}
    dash = "\N{EN DASH}"
    assert cells == {
        "teacher DDIM": ["4", "3.00 [2.80, 3.20]", "0.900", dash, dash],
        "SFDDM": ["4", "2.00 ± 0.00", dash, dash, "5"],
        "SFDDM, random init": ["4", "2.50 [2.30, 2.70]", dash, dash, dash],
        "O2MKD, 4 students": ["4", "2.50 [2.30, 2.70]", dash, dash, dash],
        "real data (floor)": [dash, "0.10 [-0.10, 0.30]", dash, dash, dash],
    }
    assert {(table.rows[i][0], table.columns[j]) for i, j in table.best} == {("SFDDM", "FD")}
    assert table.roles == ["teacher", "student", "student", "student", "real"]


def test_warnings_stand_before_all_scores(folder):
    page = (folder / "report.html").read_text()
    assert page.index("The classifier is &lt;weak&gt;.") < page.index("FD of the student")


def _best(*lines, metric="fd"):
    """Methods that are bold, of (method, [(seed, value, half-width or None)])."""
    rows = [
        _row(method, metric=metric, value=v, seed=s, low=w and v - w, high=w and v + w)
        for method, found in lines
        for s, v, w in found
    ]
    table = score_table(rows)
    column = list(table.columns).index(METRICS[metric].label)
    return [table.rows[i][0] for i, j in table.best if j == column]


def test_ties_are_not_bold():
    one = ("pd", [(0, 2.0, 0.3)])
    assert _best(one, ("cfd", [(0, 2.5, 0.3)])) == ["PD"]
    assert _best(one, ("cfd", [(0, 2.4, 0.3)])) == []  # 0.42 is half of the difference's interval
    assert _best(one, ("cfd", [(0, 2.5, None)])) == []  # of an earlier version: nobody can say
    assert _best(one, ("cfd", [(0, 2.0, 0.3)])) == []
    assert _best(one, ("cfd", [(0, 3.0, 0.3)]), ("sfddm", [(0, 2.1, 0.3)])) == []
    assert _best(one) == []
    exact = [("pd", [(0, 2.0, None)]), ("cfd", [(0, 2.01, None)])]
    assert _best(*exact, metric="psnr_to_teacher") == []  # there is no interval
    assert _best(*exact, metric="ms_per_image") == []


def test_over_the_same_seeds_differences_are_compared():
    pd = ("pd", [(3, 1.0, 0.5), (4, 2.0, 0.5), (5, 3.0, 0.5)])
    shifted = ("cfd", [(3, 1.21, 0.5), (4, 2.2, 0.5), (5, 3.19, 0.5)])
    assert _best(pd, shifted) == ["PD"]  # 0.2 in every seed, whatever the spread between them
    assert _best(pd, ("cfd", [(3, 1.0, 0.5), (4, 2.7, 0.5), (5, 2.9, 0.5)])) == []
    # Of other seeds the spreads decide: t(2) * 1 / sqrt(3) is 2.48 for each.
    assert _best(pd, ("cfd", [(0, 4.0, 0.5), (1, 5.0, 0.5), (2, 6.0, 0.5)])) == []
    assert _best(pd, ("cfd", [(0, 5.0, 0.5), (1, 6.0, 0.5), (2, 7.0, 0.5)])) == ["PD"]


def test_table_rows_must_fit():
    with pytest.raises(ValueError, match="Row 0 of table 'T' has 1 cells for 2"):
        Table(["a", "b"], [["1"]], "T")


def test_psnr_uses_the_peak_of_the_range():
    x = np.zeros((2, 4, 4, 1))
    assert psnr(x, x + 0.2) == pytest.approx(20.0)  # 10 log10(4 / 0.04)
    assert psnr(x, x) == 100.0
    assert psnr(x, x + np.array([0.2, 0.02])[:, None, None, None]) == pytest.approx(30.0)
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(x, x[:1])


def test_flatten_and_file_name():
    assert flatten({"a": {"b": 1, "c": {"d": (2, 3)}}, "e": None}) == {
        "a.b": "1", "a.c.d": "(2, 3)", "e": "None",
    }  # fmt: skip
    assert file_name("Teacher DDIM, 4 steps!") == "teacher_ddim_4_steps"
    assert file_name("../..") == "untitled"


@pytest.mark.parametrize("students", [1, 2, 8, 16])
def test_students_of_one_nfe_stand_apart_and_look_different(students):
    lines = [Line(str(i), [4.0], [1.0]) for i in range(students)]
    lines += [Line("alone", [8.0], [1.0]), Line("teacher", [4.0, 8.0], [1.0, 1.0], role="teacher")]
    *same, alone, teacher = apart(lines)
    at = np.log2([line.nfe[0] for line in same])
    assert len(set(at)) == students
    assert np.mean(at) == pytest.approx(2.0)
    assert np.ptp(at) <= 0.5 + 1e-9
    assert alone.nfe == [8.0]
    assert teacher == lines[-1]
    axes = new_figure(4, 4, LIGHT).add_subplot()
    handles = [draw_line(axes, line, i, LIGHT) for i, line in enumerate(same)]
    looks = {(h.get_color(), h.get_marker(), h.get_markerfacecolor()) for h in handles}
    assert len(looks) == students
