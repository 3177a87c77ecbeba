"""Runs side by side: which are refused, and what is counted."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from comparing import (
    DASH,
    FEW,
    FULL,
    RESAMPLED,
    SHAPE,
    compared,
    fds_of,
    make_run,
    run_config,
    stat_of,
)
from runs import tiny_settings

from ddistill.compare import compare, load_images
from ddistill.errors import ConfigError
from ddistill.evaluation.comparison import tables
from ddistill.evaluation.records.rows import Row, write_rows
from ddistill.evaluation.records.sampler_runs import read_sampler_runs, write_sampler_runs
from ddistill.interop.imported import Imported
from ddistill.interop.sources import write_noted


@pytest.fixture
def seeds(tmp_path):
    """Two seeds of one experiment."""
    return [make_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1)]


def test_mean_and_spread_over_seeds(seeds):
    made = compared(*seeds)
    stat = stat_of(made, "SFDDM", 4)
    assert (stat.mean, stat.spread, stat.seeds) == (3.5, pytest.approx(math.sqrt(0.5)), 2)
    assert stat_of(made, "teacher DDIM", 16).mean == 1.5
    assert stat_of(made, "real data (floor)", 0).spread == 0.0
    entry = next(e for e in made.names if e.method == "sfddm")
    assert made.seeds[entry, 4, "fd"] == (0, 1)
    assert made.notes == (
        "Every seed has its own feature network, so the spread over seeds includes the spread "
        "between feature networks.",
    )


def test_costs_are_those_of_the_calls(seeds):
    made = compared(*seeds)
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
    a = make_run(tmp_path / "a", "sfddm_digits", times=1.0)
    b = make_run(tmp_path / "b", "pd_digits", fds={FULL: 1.0, ("pd", 4, ""): 5.0}, times=3.0)
    made = compared(a, b)
    assert fds_of(made) == {
        ("teacher DDIM", 4): (8.0, 1),
        ("teacher DDIM", 16): (1.0, 1),
        ("SFDDM", 4): (3.0, 1),
        ("PD", 4): (5.0, 1),
        ("real data (floor)", 0): (0.5, 1),
    }
    assert stat_of(made, "teacher DDIM", 16, "ms_per_image").mean == 32.0  # of 16 and 48
    assert stat_of(made, "teacher DDIM", 16).spread is None
    assert made.notes == ()
    keys = [(r.method, r.nfe, r.metric) for r in made.rows]
    assert len(keys) == len(set(keys))


def test_teachers_that_differ_are_told_apart(tmp_path):
    a = make_run(tmp_path / "a", "sfddm_digits", fds={FULL: 1.0, FEW: 8.0, ("sfddm", 4, ""): 3.0})
    b = make_run(tmp_path / "b", "pd_digits", fds={FULL: 1.0, FEW: 8.5, ("pd", 4, ""): 5.0})
    made = compared(a, b)
    assert fds_of(made).keys() == {
        ("teacher DDIM, sfddm digits", 4),
        ("teacher DDIM, sfddm digits", 16),
        ("teacher DDIM, pd digits", 4),
        ("teacher DDIM, pd digits", 16),
        ("SFDDM", 4),
        ("PD", 4),
        ("real data (floor)", 0),
    }
    assert len(made.references) == 2
    assert "do not share one teacher" in made.notes[0]
    sheet = tables.sample_grid(made, [4], load_images)
    assert [row.label for row in sheet.rows][:2] == [
        "teacher DDIM, pd digits, NFE 16", "teacher DDIM, sfddm digits, NFE 16",
    ]  # fmt: skip


@pytest.mark.parametrize("steps, merged", [(10, True), (11, False)])
def test_teachers_of_other_seeds_are_one_if_their_settings_are(tmp_path, steps, merged):
    other = run_config("pd_digits", 1)
    other["stages"]["teacher"] = {"steps": steps}
    a = make_run(tmp_path / "a", "sfddm_digits")
    b = make_run(tmp_path / "b", "pd_digits", 1, {FULL: 2.0, ("pd", 4, ""): 5.0}, config=other)
    made = compared(a, b)
    names = {name for name in made.names.values() if "teacher" in name}
    separate = {"teacher DDIM, sfddm digits", "teacher DDIM, pd digits"}
    assert names == ({"teacher DDIM"} if merged else separate)
    if merged:
        assert fds_of(made)["teacher DDIM", 16] == (1.5, 2)


def test_the_same_student_of_two_experiments_counts_once_and_another_does_not(tmp_path):
    a = make_run(tmp_path / "a", "sfddm_digits", fds={FULL: 1.0, ("sfddm", 4, ""): 3.0})
    both = {FULL: 1.0, ("sfddm", 4, ""): 3.0, ("sfddm", 8, ""): 2.0}
    b = make_run(tmp_path / "b", "compare_digits", fds=both)
    assert fds_of(compared(a, b)).keys() >= {("SFDDM", 4), ("SFDDM", 8)}
    c = make_run(tmp_path / "c", "ablation", fds={FULL: 1.0, ("sfddm", 4, ""): 3.1})
    found = fds_of(compared(a, b, c))
    assert found["SFDDM, sfddm digits", 4] == (3.0, 1)
    assert found["SFDDM, sfddm digits", 8] == (2.0, 1)
    assert found["SFDDM, ablation", 4] == (3.1, 1)
    assert found["teacher DDIM", 16] == (1.0, 1)


def test_variants_keep_their_rows_and_costs_apart(tmp_path):
    fds = {FULL: 1.0, ("sfddm", 4, ""): 3.0, ("sfddm", 4, "k=2: no past"): 4.0}
    made = compared(make_run(tmp_path / "a", fds=fds))
    assert fds_of(made)["SFDDM, k=2: no past", 4] == (4.0, 1)
    sources = {made.names[e]: found[0].sampler_run.key for (e, _), found in made.sources.items()}
    assert sources["SFDDM, k=2: no past"] == "sfddm_4k=2: no past"
    assert sources["SFDDM"] == "sfddm_4"


def test_warnings_and_seeds_of_tuned_settings_are_said(tmp_path):
    a = [make_run(tmp_path / f"a{s}", "one", s, tuned_on=(0,)) for s in (0, 1)]
    b = make_run(tmp_path / "b", "two", 1, warnings="The classifier is weak.")
    notes = compared(*a, b).notes
    assert notes[0] == "Warning, two, seed 1: The classifier is weak."
    assert "one: settings tuned on seed 0; these seeds: 0, 1." in notes


def test_runs_scored_by_an_earlier_version_name_the_way_out(tmp_path):
    a = make_run(tmp_path / "a", "one")
    b = make_run(tmp_path / "b", "two", protocol=dict.fromkeys(RESAMPLED))
    assert (
        compared(b)
        .notes[0]
        .startswith("Scored by an earlier version, without intervals; the floor")
    )
    with pytest.raises(
        ConfigError, match=r"b was scored by an earlier version: .*--stage=evaluate"
    ):
        compared(a, b)


def test_seeds_that_differ_are_said(tmp_path):
    a = [make_run(tmp_path / f"a{seed}", "sfddm_digits", seed) for seed in (0, 1)]
    b = make_run(
        tmp_path / "b", "pd_digits", 1, {FULL: 2.0, ("pd", 4, ""): 5.0, ("pd", 8, ""): 4.0}
    )
    (seeds, _) = compared(*a, b).notes
    assert seeds == "Not all methods have the same seeds. PD: 1; all others: 0, 1."


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
        ("reference_teacher", "ddim-16", "ddim-8", {"reference_teacher": "ddim-8"}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_runs_that_do_not_compare_are_refused(tmp_path, key, first, second, change, seed):
    a = make_run(tmp_path / "a", "one", reference_teacher="ddim-16")
    b = make_run(tmp_path / "b", "two", seed, **{"reference_teacher": "ddim-16", **change})
    with pytest.raises(ConfigError) as caught:
        compare([a, b], tmp_path / "out")
    text = str(caught.value)
    assert f"{a} (one, seed 0) and {b} (two, seed {seed})" in text
    assert f"{key} is {first!r} in the first and {second!r} in the second" in text
    assert not (tmp_path / "out").exists()


def test_rows_of_earlier_versions_name_no_reference_teacher(tmp_path):
    a = make_run(tmp_path / "a", "one")
    b = make_run(tmp_path / "b", "two", reference_teacher="ddim-16")
    assert compared(a, b).names


def test_runs_of_one_seed_need_one_feature_network(tmp_path):
    a, b = (
        make_run(tmp_path / "a", "one"),
        make_run(tmp_path / "b", "two", protocol={"features_hash": "zz"}),
    )
    with pytest.raises(ConfigError, match="features_hash is 'h0' in the first and 'zz'.*--cache"):
        compared(a, b)
    c = make_run(tmp_path / "c", "two", 1, protocol={"features_hash": "zz"})
    assert compared(a, c).names


def test_runs_of_one_experiment_differ_in_their_seed_alone(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"a and .*b are both experiment 'exp' .*seed=0"):
        compared(a, b)
    with pytest.raises(ConfigError, match="are the same measurement"):
        compared(a, a)
    config = run_config("exp", 1)
    config["stages"]["student"]["steps"] = 4
    c = make_run(tmp_path / "c", seed=1, config=config)
    with pytest.raises(
        ConfigError, match=r"config\.stages\.student\.steps is '3' .* '4' .*--config.name"
    ):
        compared(a, c)


def test_a_run_that_is_not_finished_is_named_with_what_to_do(tmp_path):
    good = make_run(tmp_path / "good")
    for name in ("config.json", "results.json", "evaluation.json"):
        run = make_run(tmp_path / f"no_{name}", "other")
        (run / name).unlink()
        with pytest.raises(
            ConfigError, match=rf"no_{name} is not finished: it has no {name}\. Give"
        ):
            compare([good, run], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"goood is no folder of a run\. Did you mean 'good'\?"):
        compare([tmp_path / "goood"], tmp_path / "out")
    (good / "evaluation.json").write_text('{"digest": "d"}')
    with pytest.raises(
        ConfigError, match=r"evaluation.json: key 'sampler_runs' .* missing\. Give the run"
    ):
        compare([good], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_scores_is_refused(tmp_path):
    run = make_run(tmp_path / "a")
    rows = [
        r for r in json.loads((run / "results.json").read_text()) if r["metric"] == "ms_per_image"
    ]
    write_rows(run / "results.json", [Row(**row) for row in rows])
    with pytest.raises(ConfigError, match=r"a has no scores: .*evaluation\.classifier"):
        compare([run], tmp_path / "out")


def test_damaged_files_are_named(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "samples" / "sfddm_4.npz").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"sfddm_4\.npz cannot be read .*Delete evaluation\.json"):
        compare([run], tmp_path / "out")
    runs = read_sampler_runs(run / "evaluation.json")
    write_sampler_runs(run / "evaluation.json", "d", runs[:-1])
    with pytest.raises(ValueError, match="no sampler run for sfddm at NFE 4"):
        compare([run], tmp_path / "out")
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        compare([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sampler_runs_are_read_strictly(tmp_path):
    path = make_run(tmp_path / "a") / "evaluation.json"
    runs = read_sampler_runs(path)
    write_sampler_runs(tmp_path / "again.json", "d", runs)
    assert read_sampler_runs(tmp_path / "again.json") == runs
    content = json.loads(path.read_text())
    assert content["digest"] == "d"
    for change, message in (
        ({"rolle": "teacher"}, "sampler run 0: key 'rolle' is not known. Did you mean 'role'?"),
        (
            {"role": "judge"},
            "sampler run 0: role='judge' must be one of reference_teacher, teacher, student",
        ),
        ({"updates": 1.5}, "sampler run 0: updates=1.5 must be of type int"),
    ):
        broken = {**content, "sampler_runs": [{**content["sampler_runs"][0], **change}]}
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=re.escape(message)):
            read_sampler_runs(path)
    del content["sampler_runs"][0]["seconds"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"sampler run 0: key 'seconds' is missing"):
        read_sampler_runs(path)


def test_an_evaluation_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "evaluation.json").write_text('{"digest": "d", "calls": [{"role": "full"}]}')
    message = r"written by an earlier version, .*: train the run again in another --workdir, "
    with pytest.raises(ValueError, match=message):
        read_sampler_runs(run / "evaluation.json")
    with pytest.raises(ConfigError, match=message):
        compare([run], tmp_path / "out")


def test_nfe_chooses_the_columns_and_the_full_teacher_stays(tmp_path):
    fds = {FULL: 1.0, FEW: 8.0, ("ddim", 2, ""): 9.0, ("sfddm", 2, ""): 4.0, ("pd", 8, ""): 3.0}
    made = compared(make_run(tmp_path / "a", fds=fds))
    counts = tables.chosen_nfe(made, [4, 2, 1])
    assert counts == [2, 4]
    table = tables.matrix(made, "fd", counts)
    assert list(table.columns) == ["method", "NFE 2", "NFE 4"]
    assert [list(row) for row in table.rows] == [
        ["teacher DDIM", "9.00", "8.00"],
        ["SFDDM", "4.00", DASH],
        ["teacher DDIM, NFE 16 (reference)", "1.00", "1.00"],
        ["real data (floor)", "0.500", "0.500"],
    ]
    assert table.best == frozenset()  # without intervals nobody can say
    full = tables.matrix(made, "fd", [8, 16])
    assert [row[0] for row in full.rows] == ["teacher DDIM", "PD", "real data (floor)"]
    with pytest.raises(ConfigError, match=r"--nfe=1,32: .* Measured: 2, 4, 8, 16\."):
        tables.chosen_nfe(made, [1, 32])


def test_score_tables_hold_every_number(seeds):
    first, second = tables.score_tables(compared(*seeds))
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
    a = [make_run(tmp_path / f"a{s}", "sfddm_digits", s) for s in (2, 1)]
    b = make_run(
        tmp_path / "b", "pd_digits", 1, {FULL: 2.0, ("pd", 8, ""): 4.0, ("pd", 4, ""): 5.0}
    )
    c = make_run(tmp_path / "c", "cfd_digits", 2, {FULL: 3.0, ("cfd", 4, ""): 5.5})
    grid = tables.sample_grid(compared(*a, b), [4, 8], load_images)
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
    grid = tables.sample_grid(compared(b, c), [4], load_images)
    assert [row.label for row in grid.rows] == [
        "teacher DDIM, NFE 16", "PD, NFE 4", "CFD, NFE 4, seed 2",
    ]  # fmt: skip


# ---------------------------------------------------------------------- by content, not by name

IDENTITY = {
    "pixels": "aa",
    "labels": "bb",
    "images": 10,
    "image_shape": "8x8x1",
    "classes": 10,
    "flip": False,
}


def facts(**changes):
    return {
        "name": "x",
        "image_shape": [8, 8, 1],
        "class_names": ["a"],
        "class_counts": [10],
        "hflip": False,
        "provenance": "",
        "identity": {**IDENTITY, **changes},
    }


def with_data(folder, **changes):
    (folder / "data.json").write_text(json.dumps(facts(**changes)))
    return folder


def trained(seed, **changes):
    """A config that this version reads, with settings of its teacher changed."""
    settings = tiny_settings()
    stages = {**settings.stages}
    stages["teacher"] = dataclasses.replace(stages["teacher"], **changes)
    made = dataclasses.replace(settings, seed=seed, name="exp", stages=stages)
    return json.loads(json.dumps(dataclasses.asdict(made)))


def test_the_same_data_by_another_name_compare(tmp_path):
    a = with_data(make_run(tmp_path / "a", "one"))
    other = {"data": "mine", "protocol": {"reference": "mine/train"}}
    b = with_data(make_run(tmp_path / "b", "two", 1, **other), flip=True)
    made = compared(a, b)
    assert {row.data for row in made.rows} == {"digits"}
    # Of the same experiment mirroring is a difference of the recipe.
    c = with_data(make_run(tmp_path / "c", "one", 1, **other), flip=True)
    with pytest.raises(ConfigError, match=r"config\.data\.flip is 'False' .* 'True'"):
        compared(a, c)


@pytest.mark.parametrize("key", ["pixels", "labels", "images"])
def test_other_data_of_the_same_name_do_not_compare(tmp_path, key):
    a = with_data(make_run(tmp_path / "a", "one"))
    b = with_data(make_run(tmp_path / "b", "two", 1), **{key: "other"})
    with pytest.raises(ConfigError, match=rf"data\.identity\.{key} is .* Both are called 'digits'"):
        compared(a, b)
    (b / "data.json").unlink()  # what an older version wrote goes by the name
    assert compared(a, b).names


def test_another_split_of_the_same_data_is_another_reference(tmp_path):
    a = with_data(make_run(tmp_path / "a", "one"))
    b = make_run(tmp_path / "b", "two", 1, protocol={"reference": "digits/test"})
    with pytest.raises(ConfigError, match=r"protocol\.reference is 'train' .* 'test'"):
        compared(a, with_data(b))


def test_settings_that_are_not_learnt_from_may_differ(tmp_path):
    config = trained(1, variant="x", shared=True)
    config["data"] = {"name": "folder", "path": "elsewhere"}
    config["training"]["log_every"] = 7
    b = make_run(tmp_path / "b", seed=1, config=config)
    assert compared(make_run(tmp_path / "a", config=trained(0)), b).names


def test_settings_that_are_learnt_from_may_not(tmp_path):
    a = make_run(tmp_path / "a", config=trained(0))
    b = make_run(tmp_path / "b", seed=1, config=trained(1, batch_size=3))
    with pytest.raises(ConfigError, match=r"config\.stages\.teacher\.batch_size is .* '3'"):
        compared(a, b)


def test_files_of_other_projects_count_by_their_content(tmp_path):
    runs = [
        make_run(tmp_path / name, seed=i, config=trained(i, source=f"diffusers:{name}", steps=0))
        for i, name in enumerate("ab")
    ]

    def noted(run, digest):
        found = Imported({}, None, "eps", None, (8, 8, 1), 0, digest, "x")
        write_noted(run / "sources.json", {"teacher": (f"diffusers:{run.name}", found)})

    for run in runs:
        noted(run, "the same")
    assert compared(*runs).names
    noted(runs[1], "another")
    with pytest.raises(ConfigError, match=r"config\.stages\.teacher\.source is 'the same'"):
        compared(*runs)


def test_teachers_of_one_recipe_are_one_whatever_their_runs_are_called(tmp_path):
    """Also without a seed in common, and where settings that are not learnt from differ."""
    a = make_run(tmp_path / "a", "one", 0, config=trained(0))
    b = make_run(tmp_path / "b", "two", 1, config=trained(1, shared=True))
    assert "each teacher has its own line" not in " ".join(compared(a, b).notes)
    c = make_run(tmp_path / "c", "two", 1, config=trained(1, batch_size=3))
    assert "each teacher has its own line" in " ".join(compared(a, c).notes)
