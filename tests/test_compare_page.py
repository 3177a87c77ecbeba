"""What a comparison writes: the page, Markdown, JSON, pictures, and the command."""

import base64
import io
import json
import math
import re
import subprocess
import sys

import pytest
from comparing import FULL, make_run
from PIL import Image
from test_report import valid_html

from ddistill.compare import compare, main
from ddistill.evaluation.figures.style import DARK, Line
from ddistill.evaluation.figures.subplots import (
    Subplot,
    SubplotFigure,
    subplots_alt,
    subplots_figure,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    runs = [make_run(folder / "runs" / f"a{s}", "sfddm_digits", s) for s in (0, 1)]
    runs.append(make_run(folder / "runs" / "b", "pd_digits", 0, {FULL: 1.0, ("pd", 2, ""): 2.0}))
    said = compare(runs, folder / "out", command="python -m ddistill.compare a <b>")
    assert said == f"{folder / 'out' / 'compare.html'}: 3 runs, 4 methods"
    return folder / "out"


def test_page_is_one_file_with_every_part(written):
    text = (written / "compare.html").read_text()
    assert valid_html(text)
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert len(links) == 2 + 4  # the plot in two themes, four rows of samples
    assert all(link.startswith("data:image/png;base64,") for link in links)
    for link in links:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            image.load()
    for bad in ("://", "url(", "@import", "<script", "<link"):
        assert bad not in text
    for part in (
        "Comparison: sfddm_digits, pd_digits", "a &lt;b&gt;", "FD by network evaluations",
        "Precision by", "Recall by", "Scores and cost", "Further scores", "Same noise",
        "Not all methods have the same seeds. PD: 0; all others: 0, 1.", "a machine",
        "reference=digits/train:10", "best student FD at NFE 2: PD", "run pd_digits",
    ):  # fmt: skip
        assert part in text, part
    assert "real test images: 0.5" in text  # in the words of the plot


def test_markdown_links_its_pictures(written):
    text = (written / "compare.md").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert pictures == ["scores_vs_nfe.png", "samples.png"]
    for name in pictures:
        with Image.open(written / name) as image:
            assert image.format == "PNG"
            assert image.width > 400
    assert "| SFDDM | 4 | 2 | 3.50 ± 0.71 |" in text
    assert "| teacher DDIM, NFE 16 (reference) | 1.50 ± 0.71 | 1.50 ± 0.71 |" in text
    for part in ("## Protocol", "run sfddm_digits", "- a machine: sfddm_digits, seed 0"):
        assert part in text
    assert str(written.parent) not in text  # no paths of a machine


def test_json_has_every_number(written):
    data = json.loads((written / "compare.json").read_text())
    scores = {(s["label"], s["nfe"], s["metric"]): s for s in data["scores"]}
    assert len(scores) == len(data["scores"]) == 4 * 4 + 3
    got = scores["SFDDM", 4, "fd"]
    assert (got["mean"], got["spread"], got["seeds"]) == (
        3.5,
        pytest.approx(math.sqrt(0.5)),
        [0, 1],
    )
    assert (got["method"], got["variant"], got["role"]) == ("sfddm", "", "student")
    assert scores["PD", 2, "fd"]["spread"] is None
    costs = {(c["method"], c["nfe"]): c for c in data["costs"]}
    assert costs["pd", 2]["updates"] == {
        "mean": 200.0, "spread": None, "low": None, "high": None,
    }  # fmt: skip

    assert costs["sfddm", 4]["seconds"]["mean"] == 42.0
    assert costs["ddim", 16]["teacher_calls"]["mean"] == 0.0
    assert [(s["run"], s["experiment"], s["seed"]) for s in data["sources"]] == [
        ("a0", "sfddm_digits", 0), ("a1", "sfddm_digits", 1), ("b", "pd_digits", 0),
    ]  # fmt: skip
    assert "noise_seed=7" in data["protocol"]["shared"]
    assert data["notes"]


def test_writing_again_gives_the_same_files(written):
    before = {p.name: p.read_bytes() for p in written.iterdir()}
    runs = [written.parent / "runs" / name for name in ("a0", "a1", "b")]
    compare(runs, written, command="python -m ddistill.compare a <b>")
    assert {p.name: p.read_bytes() for p in written.iterdir()} == before
    assert before.keys() == {
        "compare.html", "compare.md", "compare.json", "scores_vs_nfe.png", "samples.png",
    }  # fmt: skip


def test_command_line(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    main([str(run), "--out", str(tmp_path / "out"), "--nfe", "16, 4"])
    assert "1 run, 3 methods" in capsys.readouterr().out
    assert "| method | NFE 4 | NFE 16 |" in (tmp_path / "out" / "compare.md").read_text()
    for argument in ("0", "four", "4,,8", "-1"):
        with pytest.raises(SystemExit, match=r"error: --nfe='.*' must be whole numbers above 0"):
            main([str(run), f"--nfe={argument}"])
    with pytest.raises(SystemExit, match=r"error: .*nowhere is no folder"):
        main([str(tmp_path / "nowhere")])
    helped = subprocess.run(
        [sys.executable, "-m", "ddistill.compare", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--nfe" in helped.stdout


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "line",
    [
        Line("one", [1], [3.0]),
        Line("zeros", [1, 2], [0.0, 0.0], [(-0.1, 0.1), (0.0, 0.0)]),
        Line("nothing", [], []),
        Line("wide", [1, 1024], [1e-4, 1e4], [(-1.0, 1.0), (9e3, 2e4)], "teacher"),
    ],
)
def test_panels_take_hard_data(count, line):
    subplots = [
        Subplot("score", "lower", [line], floor=0.5, logarithmic=i == 0) for i in range(count)
    ]
    plot = SubplotFigure(subplots)
    with Image.open(io.BytesIO(subplots_figure(plot, DARK))) as image:
        assert image.width == 1472
    assert subplots_alt(plot).count("real test images: 0.5") == count


def test_panels_need_one_to_three():
    with pytest.raises(ValueError, match="0 subplots; one figure holds 1 to 3"):
        subplots_figure(SubplotFigure([]))
    subplot = Subplot("score", "lower", [Line("a", [1], [1.0])])
    with pytest.raises(ValueError, match="4 subplots"):
        subplots_figure(SubplotFigure([subplot] * 4))
