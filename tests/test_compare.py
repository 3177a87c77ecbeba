"""Runs side by side: which are refused, what is counted, and what is written."""

import base64
import dataclasses
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddistill.compare import compare, load_images, load_run, main
from ddistill.errors import ConfigError
from ddistill.evaluation import comparison, comparison_tables
from ddistill.evaluation.calls import CallRecord, read_calls, write_calls
from ddistill.evaluation.comparable import check_runs
from ddistill.evaluation.drawing import DARK, Line
from ddistill.evaluation.panels import Panel, PanelPlot, panels_alt, panels_figure
from ddistill.evaluation.protocol import Protocol, Row, write_rows

COUNT, SHAPE = 18, (8, 8, 1)
FULL = ("ddim", 16, "")
FEW = ("ddim", 4, "")
DASH = "\N{EN DASH}"


def _config(name, seed, **changes):
    stages = {"teacher": {"steps": 10}, "student": {"steps": 3, "method": name}}
    config = {"name": name, "seed": seed, "stages": stages, "schedule": {"name": "cosine"}}
    return {**config, "evaluation": {"teacher": "teacher"}, **changes}


def _run(folder, name="exp", seed=0, fds=None, config=None, protocol=None, times=1.0, **changes):
    """Writes a finished run: `fds` has the FD of every (method, nfe, variant)."""
    fds = fds or {FULL: 1.0 + seed, FEW: 8.0 + seed, ("sfddm", 4, ""): 3.0 + seed}
    base = Protocol("net", f"h{seed}", "digits/train", 10, COUNT, "ddim", 0, 0.9, 1.0, 7, True)
    base = dataclasses.replace(base, **(protocol or {}))
    floor = dataclasses.replace(base, samples=5, sampler="none", ema=None, clip=None)
    common = {"data": "digits", "seed": seed, "command": f"run {name}", "machine": "a machine"}
    common |= {k: v for k, v in changes.items() if k in common}
    rows = [
        Row(name, "real", common["data"], 0, 0, 0, seed, metric, value, floor.string(), 0.0, 0,
            common["command"], common["machine"])
        for metric, value in (("fd", 0.5), ("precision", 0.9), ("recall", 0.8))
    ]  # fmt: skip
    calls = []
    (folder / "samples").mkdir(parents=True)
    for i, ((method, nfe, variant), fd) in enumerate(fds.items()):
        student = method not in ("ddim", "dpm_solver_pp")
        key = f"{method}_{nfe}{variant}"
        text = dataclasses.replace(base, nfe=nfe).string()
        scores = {"fd": fd, "precision": 1 / (1 + fd), "recall": 0.5, "ms_per_image": times * nfe}
        for metric, value in scores.items():
            rows.append(
                Row(
                    experiment=f"{name}/{variant}" if variant else name,
                    method=method,
                    nfe=nfe,
                    students=int(student),
                    width=8,
                    metric=metric,
                    value=value,
                    protocol=text,
                    train_seconds=0.0,
                    teacher_calls=0,
                    **common,
                )
            )
        role = "student" if student else "full" if nfe == 16 else "teacher"
        cost = (640 * nfe, 100 * nfe, (10.0 + seed) * nfe) if student else (0, 0, 0.0)
        calls.append(
            CallRecord(key, key, method, variant, nfe, 8, role, text, changes.get("classes", 0),
                       1234, *cost)
        )  # fmt: skip
        images = np.full((COUNT, *SHAPE), -2.0 + 0.5 * i, np.float32)
        np.savez(folder / "samples" / f"{key}.npz", images=images, digest="d")
    write_rows(folder / "results.json", rows)
    write_calls(folder / "evaluation.json", "d", calls)
    (folder / "config.json").write_text(json.dumps(config or _config(name, seed)))
    return folder


def _compare(*folders):
    runs = [load_run(folder) for folder in folders]
    check_runs(runs)
    return comparison.compare(runs)


def _stat(made, name, nfe, metric="fd"):
    entry = next(e for e in made.names if made.names[e] == name)
    return made.scores[entry][nfe, metric]


def _fds(made):
    """(label, nfe) -> mean FD and number of seeds."""
    return {
        (made.names[e], nfe): (stat.mean, stat.seeds)
        for e, cells in made.scores.items()
        for (nfe, metric), stat in cells.items()
        if metric == "fd"
    }


@pytest.fixture
def seeds(tmp_path):
    """Two seeds of one experiment."""
    return [_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1)]


def test_mean_and_spread_over_seeds(seeds):
    made = _compare(*seeds)
    stat = _stat(made, "SFDDM", 4)
    assert (stat.mean, stat.spread, stat.seeds) == (3.5, pytest.approx(math.sqrt(0.5)), 2)
    assert _stat(made, "teacher DDIM", 16).mean == 1.5
    assert _stat(made, "real data (floor)", 0).spread == 0.0
    entry = next(e for e in made.names if e.method == "sfddm")
    assert made.seeds[entry, 4, "fd"] == (0, 1)
    assert made.notes == (
        "Every seed has a feature network of its own, so the spread between seeds of a score is "
        "that of trainings and of what scores them.",
    )


def test_costs_are_those_of_the_calls(seeds):
    made = _compare(*seeds)
    (cost,) = [c for (entry, _), c in made.costs.items() if entry.role == "student"]
    assert {k: (s.mean, s.spread) for k, s in cost.items()} == {
        "parameters": (1234.0, 0.0),
        "teacher_calls": (2560.0, 0.0),
        "updates": (400.0, 0.0),
        "seconds": (42.0, pytest.approx(math.sqrt(8.0))),
    }
    teachers = [c for (entry, _), c in made.costs.items() if entry.role == "teacher"]
    assert [c["updates"].mean for c in teachers] == [0.0, 0.0]


def test_a_shared_teacher_counts_once_and_students_stand_beside_each_other(tmp_path):
    a = _run(tmp_path / "a", "sfddm_digits", times=1.0)
    b = _run(tmp_path / "b", "pd_digits", fds={FULL: 1.0, ("pd", 4, ""): 5.0}, times=3.0)
    made = _compare(a, b)
    assert _fds(made) == {
        ("teacher DDIM", 4): (8.0, 1),
        ("teacher DDIM", 16): (1.0, 1),
        ("SFDDM", 4): (3.0, 1),
        ("PD", 4): (5.0, 1),
        ("real data (floor)", 0): (0.5, 1),
    }
    assert _stat(made, "teacher DDIM", 16, "ms_per_image").mean == 32.0  # of 16 and 48
    assert _stat(made, "teacher DDIM", 16).spread is None
    assert made.notes == ()
    keys = [(r.method, r.nfe, r.metric) for r in made.rows]
    assert len(keys) == len(set(keys))


def test_teachers_that_differ_are_told_apart(tmp_path):
    a = _run(tmp_path / "a", "sfddm_digits", fds={FULL: 1.0, FEW: 8.0, ("sfddm", 4, ""): 3.0})
    b = _run(tmp_path / "b", "pd_digits", fds={FULL: 1.0, FEW: 8.5, ("pd", 4, ""): 5.0})
    made = _compare(a, b)
    assert _fds(made).keys() == {
        ("teacher DDIM, sfddm digits", 4),
        ("teacher DDIM, sfddm digits", 16),
        ("teacher DDIM, pd digits", 4),
        ("teacher DDIM, pd digits", 16),
        ("SFDDM", 4),
        ("PD", 4),
        ("real data (floor)", 0),
    }
    assert len(made.full) == 2
    assert "do not share one teacher" in made.notes[0]
    sheet = comparison_tables.sample_grid(made, [4], load_images)
    assert [row.label for row in sheet.rows][:2] == [
        "teacher DDIM, pd digits, NFE 16", "teacher DDIM, sfddm digits, NFE 16",
    ]  # fmt: skip


@pytest.mark.parametrize("steps, merged", [(10, True), (11, False)])
def test_teachers_of_other_seeds_are_one_if_their_settings_are(tmp_path, steps, merged):
    other = _config("pd_digits", 1)
    other["stages"]["teacher"] = {"steps": steps}
    a = _run(tmp_path / "a", "sfddm_digits")
    b = _run(tmp_path / "b", "pd_digits", 1, {FULL: 2.0, ("pd", 4, ""): 5.0}, config=other)
    made = _compare(a, b)
    names = {name for name in made.names.values() if "teacher" in name}
    separate = {"teacher DDIM, sfddm digits", "teacher DDIM, pd digits"}
    assert names == ({"teacher DDIM"} if merged else separate)
    if merged:
        assert _fds(made)["teacher DDIM", 16] == (1.5, 2)


def test_the_same_student_of_two_experiments_counts_once_and_another_does_not(tmp_path):
    a = _run(tmp_path / "a", "sfddm_digits", fds={FULL: 1.0, ("sfddm", 4, ""): 3.0})
    both = {FULL: 1.0, ("sfddm", 4, ""): 3.0, ("sfddm", 8, ""): 2.0}
    b = _run(tmp_path / "b", "compare_digits", fds=both)
    assert _fds(_compare(a, b)).keys() >= {("SFDDM", 4), ("SFDDM", 8)}
    c = _run(tmp_path / "c", "ablation", fds={FULL: 1.0, ("sfddm", 4, ""): 3.1})
    found = _fds(_compare(a, b, c))
    assert found["SFDDM, sfddm digits", 4] == (3.0, 1)
    assert found["SFDDM, sfddm digits", 8] == (2.0, 1)
    assert found["SFDDM, ablation", 4] == (3.1, 1)
    assert found["teacher DDIM", 16] == (1.0, 1)


def test_variants_keep_their_rows_and_costs_apart(tmp_path):
    fds = {FULL: 1.0, ("sfddm", 4, ""): 3.0, ("sfddm", 4, "k=2: no past"): 4.0}
    made = _compare(_run(tmp_path / "a", fds=fds))
    assert _fds(made)["SFDDM, k=2: no past", 4] == (4.0, 1)
    sources = {made.names[e]: found[0].call.key for (e, _), found in made.sources.items()}
    assert sources["SFDDM, k=2: no past"] == "sfddm_4k=2: no past"
    assert sources["SFDDM"] == "sfddm_4"


def test_seeds_that_differ_are_said(tmp_path):
    a = [_run(tmp_path / f"a{seed}", "sfddm_digits", seed) for seed in (0, 1)]
    b = _run(tmp_path / "b", "pd_digits", 1, {FULL: 2.0, ("pd", 4, ""): 5.0, ("pd", 8, ""): 4.0})
    (seeds, _) = _compare(*a, b).notes
    assert seeds == "Seeds are not the same for all methods. PD: 1; all others: 0, 1."


@pytest.mark.parametrize(
    "key, first, second, change",
    [
        ("protocol.samples", 18, 20, {"protocol": {"samples": 20}}),
        ("protocol.noise_seed", 7, 8, {"protocol": {"noise_seed": 8}}),
        ("protocol.clip", 1.0, None, {"protocol": {"clip": None}}),
        ("protocol.features", "net", "other", {"protocol": {"features": "other"}}),
        ("protocol.reference", "digits/train", "x/train", {"protocol": {"reference": "x/train"}}),
        ("protocol.reference_n", 10, 11, {"protocol": {"reference_n": 11}}),
        ("protocol.quantised", True, False, {"protocol": {"quantised": False}}),
        ("data", "digits", "cifar10", {"data": "cifar10"}),
        ("classes", 0, 10, {"classes": 10}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_runs_that_do_not_compare_are_refused(tmp_path, key, first, second, change, seed):
    a = _run(tmp_path / "a", "one")
    b = _run(tmp_path / "b", "two", seed, **change)
    with pytest.raises(ConfigError) as caught:
        compare([a, b], tmp_path / "out")
    text = str(caught.value)
    assert f"{a} (one, seed 0) and {b} (two, seed {seed})" in text
    assert f"{key} is {first!r} in the first and {second!r} in the second" in text
    assert not (tmp_path / "out").exists()


def test_runs_of_one_seed_need_one_feature_network(tmp_path):
    a, b = (
        _run(tmp_path / "a", "one"),
        _run(tmp_path / "b", "two", protocol={"features_hash": "zz"}),
    )
    with pytest.raises(ConfigError, match="features_hash is 'h0' in the first and 'zz'.*--cache"):
        _compare(a, b)
    c = _run(tmp_path / "c", "two", 1, protocol={"features_hash": "zz"})
    assert _compare(a, c).names


def test_runs_of_one_experiment_differ_in_their_seed_alone(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"a and .*b are both experiment 'exp' .*seed=0"):
        _compare(a, b)
    with pytest.raises(ConfigError, match="measure the same"):
        _compare(a, a)
    config = _config("exp", 1)
    config["stages"]["student"]["steps"] = 4
    c = _run(tmp_path / "c", seed=1, config=config)
    with pytest.raises(
        ConfigError, match=r"config\.stages\.student\.steps is '3' .* '4' .*--config.name"
    ):
        _compare(a, c)


def test_a_run_that_is_not_finished_is_named_with_what_to_do(tmp_path):
    good = _run(tmp_path / "good")
    for name in ("config.json", "results.json", "evaluation.json"):
        run = _run(tmp_path / f"no_{name}", "other")
        (run / name).unlink()
        with pytest.raises(
            ConfigError, match=rf"no_{name} is not finished: it has no {name}\. Give"
        ):
            compare([good, run], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"goood is no folder of a run\. Did you mean 'good'\?"):
        compare([tmp_path / "goood"], tmp_path / "out")
    (good / "evaluation.json").write_text('{"digest": "d"}')
    with pytest.raises(
        ConfigError, match=r"evaluation.json: key 'calls' .* missing\. Give the run"
    ):
        compare([good], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_scores_is_refused(tmp_path):
    run = _run(tmp_path / "a")
    rows = [
        r for r in json.loads((run / "results.json").read_text()) if r["metric"] == "ms_per_image"
    ]
    write_rows(run / "results.json", [Row(**row) for row in rows])
    with pytest.raises(ConfigError, match=r"a has no scores: .*evaluation\.classifier"):
        compare([run], tmp_path / "out")


def test_damaged_files_are_named(tmp_path):
    run = _run(tmp_path / "a")
    (run / "samples" / "sfddm_4.npz").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"sfddm_4\.npz cannot be read .*Delete evaluation\.json"):
        compare([run], tmp_path / "out")
    calls = read_calls(run / "evaluation.json")
    write_calls(run / "evaluation.json", "d", calls[:-1])
    with pytest.raises(ValueError, match="no call for sfddm at NFE 4"):
        compare([run], tmp_path / "out")
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        compare([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_calls_are_read_strictly(tmp_path):
    path = _run(tmp_path / "a") / "evaluation.json"
    calls = read_calls(path)
    write_calls(tmp_path / "again.json", "d", calls)
    assert read_calls(tmp_path / "again.json") == calls
    content = json.loads(path.read_text())
    assert content["digest"] == "d"
    for change, message in (
        ({"rolle": "full"}, "call 0: key 'rolle' is not known. Did you mean 'role'?"),
        ({"role": "judge"}, "call 0: role='judge' must be one of full, teacher, student"),
        ({"updates": 1.5}, "call 0: updates=1.5 must be of type int"),
    ):
        broken = {**content, "calls": [{**content["calls"][0], **change}]}
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=re.escape(message)):
            read_calls(path)
    del content["calls"][0]["seconds"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"call 0: key 'seconds' is missing"):
        read_calls(path)


def test_nfe_chooses_the_columns_and_the_full_teacher_stays(tmp_path):
    fds = {FULL: 1.0, FEW: 8.0, ("ddim", 2, ""): 9.0, ("sfddm", 2, ""): 4.0, ("pd", 8, ""): 3.0}
    made = _compare(_run(tmp_path / "a", fds=fds))
    counts = comparison_tables.chosen_nfe(made, [4, 2, 1])
    assert counts == [2, 4]
    table = comparison_tables.matrix(made, "fd", counts)
    assert list(table.columns) == ["method", "NFE 2", "NFE 4"]
    assert [list(row) for row in table.rows] == [
        ["teacher DDIM", "9.00", "8.00"],
        ["SFDDM", "4.00", DASH],
        ["teacher DDIM, NFE 16 (reference)", "1.00", "1.00"],
        ["real data (floor)", "0.500", "0.500"],
    ]
    assert table.best == {(1, 1)}  # nothing is best alone
    full = comparison_tables.matrix(made, "fd", [8, 16])
    assert [row[0] for row in full.rows] == ["teacher DDIM", "PD", "real data (floor)"]
    with pytest.raises(ConfigError, match=r"--nfe=1,32: .* Measured: 2, 4, 8, 16\."):
        comparison_tables.chosen_nfe(made, [1, 32])


def test_score_tables_hold_every_number(seeds):
    first, second = comparison_tables.score_tables(_compare(*seeds))
    assert list(first.columns) == [
        "method", "NFE", "seeds", "FD", "precision", "recall",
        "teacher calls", "student updates", "training, s",
    ]  # fmt: skip
    cells = {tuple(row[:2]): list(row[2:]) for row in first.rows}
    assert cells["SFDDM", "4"] == [
        "2", "3.50 ± 0.71", "0.225 ± 0.035", "0.500 ± 0.000", "2,560", "400", "42 ± 3",
    ]  # fmt: skip
    assert cells["teacher DDIM", "16"][-3:] == [DASH] * 3
    assert cells["real data (floor)", DASH][:2] == ["2", "0.500 ± 0.000"]
    assert list(second.columns) == ["method", "NFE", "ms/image", "parameters"]
    assert {tuple(row) for row in second.rows} >= {("SFDDM", "4", "4.00 ± 0.00", "1,234")}


def test_sample_rows_come_from_the_first_seed_most_evaluations_first(tmp_path):
    a = [_run(tmp_path / f"a{s}", "sfddm_digits", s) for s in (2, 1)]
    b = _run(tmp_path / "b", "pd_digits", 1, {FULL: 2.0, ("pd", 8, ""): 4.0, ("pd", 4, ""): 5.0})
    c = _run(tmp_path / "c", "cfd_digits", 2, {FULL: 3.0, ("cfd", 4, ""): 5.5})
    grid = comparison_tables.sample_grid(_compare(*a, b), [4, 8], load_images)
    assert [(row.label, row.note) for row in grid.rows] == [
        ("teacher DDIM, NFE 16", "FD 2.00"),
        ("PD, NFE 8", "FD 4.00"),
        ("teacher DDIM, NFE 4", "FD 9.00"),
        ("SFDDM, NFE 4", "FD 4.00"),
        ("PD, NFE 4", "FD 5.00"),
    ]
    assert "Training seed 1." in grid.caption
    assert {row.images.shape for row in grid.rows} == {(16, *SHAPE)}
    assert grid.rows[0].images.min() == -1.0  # the file holds -2
    with np.load(tmp_path / "a1" / "samples" / "sfddm_4.npz") as file:
        np.testing.assert_array_equal(grid.rows[3].images, file["images"][:16])
    # Without a seed in common the rows say their own.
    grid = comparison_tables.sample_grid(_compare(b, c), [4], load_images)
    assert [row.label for row in grid.rows] == [
        "teacher DDIM, NFE 16", "PD, NFE 4", "CFD, NFE 4, seed 2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    runs = [_run(folder / "runs" / f"a{s}", "sfddm_digits", s) for s in (0, 1)]
    runs.append(_run(folder / "runs" / "b", "pd_digits", 0, {FULL: 1.0, ("pd", 2, ""): 2.0}))
    said = compare(runs, folder / "out", command="python -m ddistill.compare a <b>")
    assert said == f"{folder / 'out' / 'compare.html'}: 3 runs, 4 methods"
    return folder / "out"


def test_page_is_one_file_with_every_part(written):
    text = (written / "compare.html").read_text()
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
        "Seeds are not the same for all methods. PD: 0; all others: 0, 1.", "a machine",
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
    assert costs["pd", 2]["updates"] == {"mean": 200.0, "spread": None}
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
    run = _run(tmp_path / "run")
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
        Line("zeros", [1, 2], [0.0, 0.0], [0.1, 0.0]),
        Line("nothing", [], []),
        Line("wide", [1, 1024], [1e-4, 1e4], [1.0, 1.0], "teacher"),
    ],
)
def test_panels_take_hard_data(count, line):
    panels = [Panel("score", "lower", [line], floor=0.5, logarithmic=i == 0) for i in range(count)]
    plot = PanelPlot(panels)
    with Image.open(io.BytesIO(panels_figure(plot, DARK))) as image:
        assert image.width == 1472
    assert panels_alt(plot).count("real test images: 0.5") == count


def test_panels_need_one_to_three():
    with pytest.raises(ValueError, match="0 panels; one figure holds 1 to 3"):
        panels_figure(PanelPlot([]))
    panel = Panel("score", "lower", [Line("a", [1], [1.0])])
    with pytest.raises(ValueError, match="4 panels"):
        panels_figure(PanelPlot([panel] * 4))
