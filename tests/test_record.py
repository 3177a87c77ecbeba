"""docs/results.json, docs/results.md and its pages from the results of runs."""

import dataclasses
import json
import subprocess
import sys

import pytest

from ddistill.evaluation.records.names import METHODS
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.published import PUBLISHED, published
from ddistill.evaluation.records.rows import Row, read_rows, write_rows
from ddistill.evaluation.report.results_md import BEGIN, END, merge_text, render
from ddistill.record import main, merge, record


def _row(method="sfddm", nfe=4, value=2.0, seed=0, metric="fd", **changes):
    student = METHODS[method].role == "student"
    protocol = Protocol("net", "ab", "digits/train", 10, 20, "ddim", nfe, 0.9, 1.0, 0, True)
    row = Row(
        experiment="exp",
        method=method,
        data="digits",
        nfe=nfe,
        students=int(student),
        width=8,
        seed=seed,
        metric=metric,
        value=value,
        protocol=protocol.string(),
        train_seconds=60.0 if student else 0.0,
        teacher_calls=1000 if student else 0,
        command="python -m ddistill.main --config=configs/a.py",
        machine="a machine",
    )
    return dataclasses.replace(row, **changes)


ROWS = [
    _row("real", 0, 0.5),
    *(_row(value=v, seed=s) for s, v in enumerate((1.0, 2.0, 3.0))),
    _row(nfe=8, value=1.25),
    _row("ddim", 4, 9.0),
    _row(metric="recall", value=0.75),
]


def _run(folder, rows):
    write_rows(folder / "results.json", rows)
    return folder


def _table(text, first):
    """Cells of the first table whose header starts with `first`, by first cell."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} "))
    rows = []
    for line in [lines[start], *lines[start + 2 :]]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows[0], {row[0]: row[1:] for row in rows[1:]}


def test_first_record_makes_both_files(tmp_path):
    docs = tmp_path / "docs"
    said = record([_run(tmp_path / "run", ROWS)], docs)
    assert "7 rows (7 new, 0 replaced)" in said
    assert sorted(read_rows(docs / "results.json"), key=repr) == sorted(ROWS, key=repr)
    index = (docs / "results.md").read_text()
    _, found = _table(index, "experiment")
    assert found == {
        "[exp](results/exp.md)": [
            "digits",
            "0, 1, 2",
            "FD",
            "1.25 (NFE 8)",
            "9.00 (NFE 4)",
            "0.500",
        ]
    }
    text = (docs / "results" / "exp.md").read_text()
    assert text.startswith("# exp\n")
    head, cells = _table(text, "method")
    assert head == ["method", "4", "8", "paper (NFE: FID)"]
    dash = "\N{EN DASH}"
    assert cells == {
        "teacher DDIM": ["9.00 (1)", dash, dash],
        "SFDDM": ["2.00 ± 1.00 (3)", "1.25 (1)", dash],
        "real data (floor)": ["0.500 (1)", "0.500 (1)", dash],
    }
    for part in (
        "`python -m ddistill.main --config=configs/a.py`",
        "machine: a machine",
        "reference=digits/train:10",
        "](exp_digits.png)",
    ):
        assert part in text
    assert (docs / "results" / "exp_digits.png").read_bytes().startswith(b"\x89PNG")


def test_details_hold_the_other_metrics_and_costs():
    _, cells = _table(render(ROWS), "sampler")
    assert cells["SFDDM"][:2] == ["8", "1.25"]  # the last line of this name
    assert "0.750" in render(ROWS)
    assert "| 60 | 1,000 |" in render(ROWS)


def test_recording_again_changes_nothing(tmp_path):
    docs, run = tmp_path / "docs", _run(tmp_path / "run", ROWS)
    record([run], docs)
    before = {p.name: p.read_bytes() for p in docs.rglob("*") if p.is_file()}
    assert "(0 new, 7 replaced)" in record([run], docs)
    assert "(0 new, 0 replaced)" in record([], docs)
    assert {p.name: p.read_bytes() for p in docs.rglob("*") if p.is_file()} == before


def test_order_of_runs_does_not_matter_unless_they_measure_the_same(tmp_path):
    a, b = _run(tmp_path / "a", ROWS[:3]), _run(tmp_path / "b", ROWS[3:])
    record([a, b], tmp_path / "ab")
    record([b], tmp_path / "ba")
    record([a / "results.json"], tmp_path / "ba")  # the file itself will do
    for name in ("results.json", "results.md", "results/exp.md"):
        assert (tmp_path / "ab" / name).read_bytes() == (tmp_path / "ba" / name).read_bytes()


def test_the_same_measurement_replaces_and_others_stay():
    old = [_row(value=1.0), _row(value=2.0, seed=1)]
    newer = _row(value=5.0, protocol=old[0].protocol.replace("@ab", "@cd"), machine="new")
    variant = _row(value=7.0, protocol=old[0].protocol.replace("ema=0.9", "ema=none"))
    rows, added, replaced = merge(old, [newer, variant])
    assert (added, replaced) == (1, 1)
    assert sorted(r.value for r in rows) == [2.0, 5.0, 7.0]
    assert merge(rows, [])[0] == rows
    assert merge(rows[::-1], [])[0] == rows


def _scored_anew(row, **changes):
    protocol = dataclasses.replace(
        Protocol.parse(row.protocol), floor=5, count=5, subsets=9, splits=2, subset_seed=0
    )
    return dataclasses.replace(row, protocol=protocol.string(), **changes)


def test_scoring_a_run_again_replaces_what_the_earlier_version_measured():
    old = [_row("real", 0, 0.5), _row(value=1.0), _row(value=2.0, seed=1)]
    new = [_scored_anew(_row(value=1.0), low=0.9, high=1.2)]
    rows, added, replaced = merge(old, new)
    # The floor of seed 0 is of another count; seed 1 is another run.
    assert sorted(rows, key=lambda r: r.seed) == [*new, old[2]]
    assert (added, replaced) == (0, 1)
    assert merge(rows, new)[0] == rows


def test_tables_show_fresh_seeds_and_say_so(tmp_path):
    rows = [
        dataclasses.replace(r, tuned_on=(0,))
        for r in [*(_row(value=v, seed=s) for s, v in enumerate((1.0, 2.0, 4.0))), _row(nfe=8)]
    ]
    text = render(rows)
    assert _table(text, "method")[1]["SFDDM"][0] == "3.00 ± 1.41 (2)"
    assert "These seeds: 1, 2. Left out: seed 0, on which settings were tuned" in text
    only = render([r for r in rows if r.seed == 0])
    assert _table(only, "method")[1]["SFDDM"][0] == "1.00 (1)"
    assert "exp: settings tuned on seed 0; these seeds: 0." in only
    chosen = render(rows, seeds=(0, 1))
    assert _table(chosen, "method")[1]["SFDDM"][0] == "1.50 ± 0.71 (2)"
    assert "Left out: seed 2 (rows" in chosen
    run, docs = _run(tmp_path / "run", rows), str(tmp_path / "docs")
    main([str(run), "--docs", docs, "--seeds", "2"])
    assert "4.00 (1)" in (tmp_path / "docs" / "results" / "exp.md").read_text()
    assert len(read_rows(tmp_path / "docs" / "results.json")) == 4  # the record keeps all
    for seeds, message in (
        ("7", "the record has no such seed. Seeds: 0, 1, 2"),
        ("x", "must be seeds"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["--docs", docs, "--seeds", seeds])


def test_a_floor_of_another_count_is_left_out_of_what_an_earlier_version_scored(tmp_path):
    floor = _row("real", 0, 0.5)
    far = dataclasses.replace(floor, protocol=floor.protocol.replace("samples=20", "samples=7"))
    text = render([*ROWS[1:], far])
    assert "real data" not in text
    assert "its floor has another number of images and is left out" in text
    assert "real data" in render([*ROWS[1:], floor])
    new = [_scored_anew(row) for row in [*ROWS[1:], far]]
    assert "real data" in render(new)  # taken at the count of the samples
    assert "earlier version" not in render(new)


def test_warnings_stand_above_the_tables_of_their_runs():
    text = render([*ROWS, _row("pd", value=1.0, seed=2, warnings="The classifier is weak.")])
    assert "Warning, exp, seed 2: The classifier is weak." in text
    assert text.index("Warning") < text.index("| method")


def test_intervals_of_one_seed_and_ties_in_the_table():
    near = [_row("pd", value=2.0, low=1.8, high=2.2), _row("cfd", value=2.1, low=1.9, high=2.3)]
    _, cells = _table(render(near), "method")
    assert cells["PD"][0] == "2.00 [1.80, 2.20] (1)"
    far = [near[0], _row("cfd", value=3.0, low=2.8, high=3.2)]
    assert _table(render(far), "method")[1]["PD"][0] == "**2.00 [1.80, 2.20] (1)**"


def test_prose_is_kept(tmp_path):
    docs = tmp_path
    pages = {docs / "results.md": "[exp](results/exp.md)", docs / "results" / "exp.md": "SFDDM"}
    (docs / "results").mkdir()
    for page in pages:
        page.write_text(
            f"# Mine\n\nBefore.\n\n{BEGIN}\nold table\n{END}\n\nAfter: a <!-- comment -->.\n"
        )
    record([_run(tmp_path / "run", ROWS)], docs)
    for page, part in pages.items():
        text = page.read_text()
        assert text.startswith("# Mine\n\nBefore.\n\n<!-- generated:begin")
        assert text.endswith("<!-- generated:end -->\n\nAfter: a <!-- comment -->.\n")
        assert "old table" not in text
        assert part in text


def test_every_experiment_has_a_page_and_other_pages_stay(tmp_path):
    others = [_row(experiment="exp/fresh"), _row(experiment="other"), _row(data="cifar10", seed=7)]
    record([_run(tmp_path / "run", [*ROWS, *others])], tmp_path)
    text = (tmp_path / "results" / "exp.md").read_text()
    assert text.count("\n## exp, ") == 2  # of digits and of cifar10
    assert "SFDDM, fresh" in text
    assert "## other" not in text
    assert "## other, digits" in (tmp_path / "results" / "other.md").read_text()
    (tmp_path / "results" / "by_hand.md").write_text("mine")
    record([], tmp_path, seeds=[7])
    assert (tmp_path / "results" / "by_hand.md").read_text() == "mine"
    assert "No rows of the seeds 7" in (tmp_path / "results" / "other.md").read_text()
    assert "other" not in (tmp_path / "results.md").read_text()


def test_the_record_groups_rows_and_reads_them_back(tmp_path):
    rows = [*ROWS, _row(metric="precision", value=0.5, low=0.25, high=0.75)]
    record([_run(tmp_path / "run", rows)], tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    (grouped,) = [item for item in stored if len(item["scores"]) == 3]
    assert grouped["scores"] == {"fd": 1.0, "precision": [0.5, 0.25, 0.75], "recall": 0.75}
    assert sorted(read_rows(tmp_path / "results.json"), key=repr) == sorted(rows, key=repr)
    assert len((tmp_path / "results.json").read_text().splitlines()) == len(stored) + 2
    grouped["scores"]["fd"] = [1.0, 0.9, 1.1, 5]
    (tmp_path / "results.json").write_text(json.dumps([grouped]))
    with pytest.raises(ValueError, match="results.json: row 0: key '3' is not known"):
        read_rows(tmp_path / "results.json")


def test_a_page_without_markers_gets_them_at_its_end():
    text = merge_text("# Mine\n\nProse.\n", "TABLE", "results.md")
    assert text == f"# Mine\n\nProse.\n\n{BEGIN}\n\nTABLE\n\n{END}\n"
    assert merge_text(text, "OTHER", "results.md") == text.replace("TABLE", "OTHER")
    assert merge_text("", "TABLE", "x").startswith("# Results\n\n<!-- generated:begin")


@pytest.mark.parametrize(
    "text", [f"{BEGIN}\n", f"{END}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"]
)
def test_damaged_markers_stop_before_anything_is_written(tmp_path, text):
    run = _run(tmp_path / "run", ROWS)
    (tmp_path / "results").mkdir()
    for name in ("results.md", "results/exp.md"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}: found \d '<!-- generated:begin"):
            record([run], tmp_path)
        assert (tmp_path / name).read_text() == text
        assert not (tmp_path / "results.json").exists()
        (tmp_path / name).unlink()


def test_a_bad_file_is_named_and_nothing_is_written(tmp_path):
    good = _run(tmp_path / "good", ROWS)
    bad = tmp_path / "bad"
    bad.mkdir()
    content = [dataclasses.asdict(row) for row in ROWS]
    content[2]["sede"] = content[2].pop("seed")
    (bad / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad.results\.json: row 2: key 'seed' is missing"):
        record([good, bad], tmp_path / "docs")
    with pytest.raises(ValueError, match=r"nowhere: cannot be read"):
        record([good, tmp_path / "nowhere"], tmp_path / "docs")
    empty = tmp_path / "unfinished"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"unfinished.results\.json: cannot be read"):
        record([empty], tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_command_line(tmp_path, capsys):
    run = _run(tmp_path / "run", ROWS)
    main([str(run), "--docs", str(tmp_path / "docs")])
    assert "7 new" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        main([str(tmp_path / "nowhere"), "--docs", str(tmp_path / "docs")])
    helped = subprocess.run(
        [sys.executable, "-m", "ddistill.record", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "results.json" in helped.stdout


def test_published_numbers_stand_beside_ours_with_their_source():
    rows = [_row("pd", n, 5.0, data="cifar10") for n in (1, 4, 16)]
    rows += [_row("pd", 4, 6.0, data="cifar10", experiment="exp/other_recipe")]
    rows += [_row("pd", 4, 6.0, data="digits"), _row("sfddm", 4, 6.0, data="cifar10")]
    text = render(rows)
    cifar, digits = text.split("## exp, digits")
    dash = "\N{EN DASH}"
    _, cells = _table(cifar, "method")
    assert cells["PD"][-1] == "1: 9.12, 4: 3.00"
    assert cells["PD, other recipe"][-1] == dash
    assert cells["SFDDM"][-1] == dash
    assert "2202.00512" in cifar
    assert _table(digits, "method")[1]["PD"][-1] == dash
    assert "Published" not in digits


def test_published_table_is_sound():
    keys = {(p.method, p.data, p.nfe, p.students) for p in PUBLISHED}
    assert len(keys) == len(PUBLISHED)
    assert all(p.method in METHODS and p.value > 0 and p.source for p in PUBLISHED)
    assert published("pd", "cifar10", 2, 1).value == 4.51
    assert published("pd", "digits", 2, 1) is None
    assert not any(p.method.startswith("sfddm") or p.method == "o2mkd" for p in PUBLISHED)


def test_no_rows():
    assert "No results yet" in render([])


def test_a_folder_that_is_no_record_stays_as_it_is(tmp_path, monkeypatch, capsys):
    """Neither an empty record is made nor one in a folder that happens to be called docs."""
    monkeypatch.chdir(tmp_path)
    run = _run(tmp_path / "run", ROWS)
    for arguments in ([], [str(run)]):
        with pytest.raises(SystemExit, match=r"docs is not a record: .* --docs=FOLDER"):
            main(arguments)
    assert not (tmp_path / "docs").exists()
    with pytest.raises(SystemExit, match=r"new has no results.json yet; name a RUN"):
        main(["--docs", "new"])
    assert not (tmp_path / "new").exists()
    main([str(run), "--docs", "docs"])
    main([])
    assert "(0 new, 0 replaced)" in capsys.readouterr().out
