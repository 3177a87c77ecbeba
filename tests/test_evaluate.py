"""The evaluation of a run: what is sampled from what, what is kept, and what the rows say."""

import collections
import dataclasses
import html
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluated import Run, Telling, images
from lite0_cases import Narrow, write_state
from PIL import Image
from runs import LateStop, Notes, one_stage, plans_of, snapshot, tiny_settings

from ddistill import data
from ddistill.evaluation import evaluate_run, feature_networks, sampling, scorer
from ddistill.evaluation.checks import check_evaluation
from ddistill.evaluation.interpolation import INNER
from ddistill.evaluation.metrics.features import extract, params_hash
from ddistill.evaluation.metrics.frechet import frechet_distance, moments
from ddistill.evaluation.metrics.paths import slerp
from ddistill.evaluation.metrics.precision_recall import precision_recall
from ddistill.evaluation.metrics.resampling import subset
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row, read_rows
from ddistill.evaluation.records.sampler_runs import read_sampler_runs
from ddistill.evaluation.report import sections
from ddistill.evaluation.sampling_plan import planned_runs
from ddistill.interop.efficientnet_lite import load_lite0
from ddistill.recipes import progressive
from ddistill.runtime.files import write_json
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.schedules import make_schedule
from ddistill.settings import EvaluationSettings, GridSettings, OptimizerSettings, StageSettings
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.trained import load_network

# Seven images do not spread over the devices of these tests, which is quicker to compile.
UPDATES, BATCH = 3, 7
# As a folder may be called; a protocol holds neither spaces nor "=" nor ":".
NAME, WORD = "my digits: a=b", "my_digits_a_b"
# As classes may be called: matplotlib's formulas, markup, bytes that are not UTF-8.
CLASSES = ("$x^$", os.fsdecode(b"caf\xe9"), "<b>", "a|b", "[/]", "", "\n", "_c", "é", "猫")
TEACHERS = ["teacher_ddim_16", "teacher_ddim_4", "teacher_ddim_2", "teacher_dpm_solver_pp_4"]
STUDENTS = ["pd_n4", "pd_n2", "own_n4"]
# Rows of the run's table of 16 steps, noisiest first, clean end left out.
LEVELS = {
    "teacher_ddim_16": range(16, 0, -1),
    "teacher_ddim_4": (16, 12, 8, 4),
    "teacher_ddim_2": (16, 8),
    "pd_n4": (16, 12, 8, 4),
    "pd_n2": (16, 8),
    "own_n4": (16, 12, 8, 4),
}
SCORES = {"fd", "fd_infinity", "precision", "recall", "density", "coverage", "class_tv"}
ALWAYS = {"ms_per_image", "psnr_to_teacher"}
# Scores of samples only, and of samples that are compared with the reference teacher.
SAMPLED = {"copying", "path_length", "path_largest_step"} | SCORES
COMPARED = {"feature_distance_to_teacher", "relative_distance_to_teacher"} | SAMPLED | ALWAYS


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A teacher of 16 steps, PD down to 4 and 2, and a student of 4 that is told its own index."""
    options = {"steps": UPDATES, "batch_size": BATCH, "optimizer": OptimizerSettings()}
    judge = StageSettings(
        objective={"name": "classification"},
        network={"name": "digits_classifier", "width": 4, "feature_dim": 6, "norm_groups": 2},
        **options,
    )
    chain = progressive(8, 2, **options)
    # Like pd_n4 in all but the times, so that it costs no compilation.
    own = dataclasses.replace(
        chain["pd_n4"], grid=GridSettings(4, time="index"), variant="own index"
    )
    stages = {
        "classifier": judge,
        "critic": judge,
        "teacher": dataclasses.replace(tiny_settings().stages["teacher"], accumulate=1, **options),
        **chain,
        "own_n4": own,
    }
    evaluation = EvaluationSettings(
        samples=16,
        batch_size=8,
        teacher_samplers={"ddim": (4, 2), "dpm_solver_pp": (4,)},
        grid_images=4,
        strip_images=2,
        tuned_on=(0, 3),
    )
    settings = dataclasses.replace(
        tiny_settings(), stages=stages, pipeline=tuple(stages), evaluation=evaluation
    )
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    plans = list(plans_of(settings, folder).values())
    check_evaluation(settings, plans)
    train = data.load(settings.data, "train")
    run_stages(plans, RunContext(settings, train, Notes(), StopRequest()))
    return Run(settings, plans, dataclasses.replace(train, name=NAME, class_names=CLASSES))


@pytest.fixture(scope="module")
def done(run, tmp_path_factory) -> tuple[Path, list[Row], list[str]]:
    """Folder, rows and keys of the drawn batches of a whole evaluation."""
    folder = tmp_path_factory.mktemp("done")
    rows, _, drawn = run.evaluate(folder, report=True)
    return folder, rows, drawn


# ------------------------------------------------------------------------------- what is sampled


def test_all_that_is_asked_for_is_sampled_once(done):
    _, _, drawn = done
    assert drawn == [key for key in (*TEACHERS, *STUDENTS) for _ in range(2)]


def test_the_report_says_how_often_each_classifier_is_right(run, done):
    page = (done[0] / "report.html").read_text()
    test = data.load(run.settings.data, "test")
    critic = load_network(next(p for p in run.plans if p.name == "critic"))
    logits, _ = critic(data.to_unit(test.take(range(len(test)))))
    right = float(np.mean(np.argmax(logits, axis=1) == test.labels))
    assert "classifier &#x27;critic&#x27;" in page or "classifier 'critic'" in page
    assert f"accuracy {right:.1%} on the test images" in page


def test_every_sampler_run_starts_from_the_same_noise(run):
    wanted = sampling.noise_bank(run.settings.evaluation, (8, 8, 1), 0, 16)
    assert len(np.unique(np.asarray(wanted), axis=0)) == 16
    assert abs(float(wanted.mean())) < 0.15
    assert 0.85 < float(wanted.std()) < 1.15
    for sampler_run in run.sampler_runs().values():
        for start in (0, 8):
            frames = sampling.draw(
                sampler_run, Telling("time"), run.settings.evaluation, start, 8, trajectory=True
            )
            # The cosine table ends at sigma = 1 (within rounding), so z starts as the noise.
            np.testing.assert_allclose(frames[0], wanted[start : start + 8], atol=1e-6)


def test_another_noise_seed_is_another_bank(run):
    banks = [
        sampling.noise_bank(run.with_evaluation(noise_seed=seed).evaluation, (8, 8, 1), 0, 4)
        for seed in (1234, 1235)
    ]
    assert np.abs(np.asarray(banks[0] - banks[1])).min(axis=(1, 2, 3)).max() > 0
    assert np.abs(np.asarray(banks[0] - banks[1])).mean() > 0.5


@pytest.mark.parametrize(("batch", "count"), [(4, 16), (8, 12), (8, 5)])
def test_images_depend_on_neither_the_batch_nor_their_number(run, done, tmp_path, batch, count):
    folder, _, _ = done
    changed = {"batch_size": batch, "samples": count}
    for key, sampler_run in run.sampler_runs().items():
        if key == "teacher_ddim_16":
            continue
        evaluation = run.evaluation(tmp_path, Notes(), StopRequest(), **changed)
        found = sampling.collect(sampler_run, evaluation)
        assert found.images.shape == (count, 8, 8, 1)
        np.testing.assert_allclose(found.images, images(folder, key)[:count], atol=1e-5)


@pytest.mark.parametrize("key", LEVELS)
def test_a_network_is_called_at_its_own_levels_with_the_times_it_was_taught(run, key):
    """Each state is alpha * x0 + sigma * eps with x0 = the time of the level and eps = 0."""
    sampler_run, rows = run.sampler_runs()[key], list(LEVELS[key])
    table = make_schedule("cosine", 16)
    times = table.time[rows] if key != "own_n4" else [3, 2, 1, 0]
    evaluation = run.with_evaluation(clip=0.0).evaluation
    frames = sampling.draw(sampler_run, Telling("time"), evaluation, 0, 4, trajectory=True)
    assert len(frames) - 1 == sampler_run.nfe == sampler_run.steps == len(rows)
    for frame, time, reached in zip(frames[1:], times, [*rows[1:], 0]):
        np.testing.assert_allclose(frame, table.alpha[reached] * time, atol=1e-5)


def test_what_a_student_is_told_when_sampled_is_what_it_was_told_when_trained(run):
    for plan in run.plans:
        if plan.name in STUDENTS:
            sampler_run = run.sampler_runs()[plan.name]
            steps = int(plan.tables.count)
            assert sampler_run.nfe == steps == plan.settings.grid.steps
            taught = np.asarray(plan.tables.student.time)[1 : steps + 1]
            np.testing.assert_array_equal(sampler_run.levels.time[1:], taught)


def test_conditional_networks_get_all_classes_in_turn_whatever_the_batch(run):
    sampler_run = run.sampler_runs()["pd_n2"]
    evaluation = run.with_evaluation(clip=0.0).evaluation
    for batch in (4, 8):
        starts = range(0, 24, batch)
        told = [sampling.draw(sampler_run, Telling("cond"), evaluation, s, batch) for s in starts]
        classes = np.concatenate(told)[:, 0, 0, 0]
        np.testing.assert_allclose(classes, [*range(10), *range(10), 0, 1, 2, 3], atol=1e-5)


def test_unconditional_networks_get_no_classes(tmp_path):
    plans = list(plans_of(one_stage(), tmp_path / "run").values())
    sampler_run = planned_runs(one_stage(), plans)[0]
    assert sampling.conditions(sampler_run, 0, 8) is None


# -------------------------------------------------------------------------------------- the rows


def test_one_row_for_each_metric_and_sampler_run(run, done):
    folder, rows, _ = done
    assert read_rows(folder / "results.json") == rows
    found = collections.defaultdict(list)
    for row in rows:
        found[row.experiment, row.method, row.nfe, row.students].append(row.metric)
    wanted = {
        # The distance of 360 test images does not compare with that of 16 samples.
        ("tiny", "real", 0, 0): SCORES - {"fd"} | {"accuracy"},
        ("tiny", "ddim", 16, 0): SAMPLED | {"ms_per_image"},
        ("tiny", "ddim", 4, 0): COMPARED,
        ("tiny", "ddim", 2, 0): COMPARED,
        ("tiny", "dpm_solver_pp", 4, 0): COMPARED,
        ("tiny", "pd", 4, 1): COMPARED,
        ("tiny", "pd", 2, 1): COMPARED,
        ("tiny/own index", "pd", 4, 1): COMPARED,
    }
    assert {key: sorted(metrics) for key, metrics in found.items()} == {
        key: sorted(metrics) for key, metrics in wanted.items()
    }
    width = run.plans[-1].module.width
    assert {(row.seed, row.width, row.data) for row in rows} == {(0, 0, NAME), (0, width, NAME)}


def test_a_students_cost_is_that_of_every_stage_since_the_teacher(run, done):
    _, rows, _ = done
    seconds = {p.name: p.manifest().train_seconds for p in run.plans}
    assert min(seconds.values()) > 0
    lineages = {
        ("tiny", 4): ["pd_n4"],
        ("tiny", 2): ["pd_n4", "pd_n2"],
        ("tiny/own index", 4): ["own_n4"],
    }
    for (experiment, nfe), stages in lineages.items():
        ours = [r for r in rows if (r.method, r.experiment, r.nfe) == ("pd", experiment, nfe)]
        assert ours
        for row in ours:
            assert row.train_seconds == pytest.approx(sum(seconds[s] for s in stages))
            # PD asks its teacher twice an example.
            assert row.teacher_calls == 2 * UPDATES * BATCH * len(stages)
    undistilled = [row for row in rows if row.students == 0]
    assert {(row.teacher_calls, row.train_seconds) for row in undistilled} == {(0, 0.0)}


def test_protocols_name_what_a_number_was_measured_with(run, done):
    _, rows, _ = done
    judge = load_network(next(p for p in run.plans if p.name == "classifier"))
    emas = {"ddim": 0.3, "dpm_solver_pp": 0.3, "pd": None, "real": None}
    samplers = {"real": "none", "dpm_solver_pp": "dpm_solver_pp"}
    for row in rows:
        real = row.method == "real"
        assert Protocol.parse(row.protocol) == Protocol(
            features="digits_classifier",
            features_hash=params_hash(judge.weights),
            reference=f"{WORD}/train",
            reference_n=1437,
            samples=360 if real else 16,
            sampler=samplers.get(row.method, "ddim"),
            nfe=row.nfe,
            ema=emas[row.method],
            clip=None if real else 1.0,
            noise_seed=1234,
            quantised=True,
            floor=360,
            count=16,
            subsets=100,
            splits=8,
            subset_seed=2020,
            strata=True,  # samples of all classes in turn, and a split made by class
        )


def test_scores_have_intervals_and_say_why_they_mean_little(run, done):
    folder, rows, _ = done
    for row in rows:
        exact = row.metric in ("accuracy", "ms_per_image")
        assert (row.low is None) == (row.high is None) == exact
        assert row.tuned_on == (0, 3)
    (warnings,) = {row.warnings for row in rows}
    accuracy = next(row.value for row in rows if row.metric == "accuracy")
    assert accuracy < 0.8
    assert f"accuracy of {accuracy:.1%} on the test images, below 80%" in warnings
    page = (folder / "report.html").read_text()
    assert page.index("below 80%") < page.index("FD\N{INFINITY} of teacher DDIM")
    assert "Settings were tuned on seeds 0, 3; this run has seed 0, one of them." in page


def test_the_floor_is_taken_at_the_count_of_the_samples(run, done):
    """Recall and coverage of 16 test images at a time, as of 16 samples; precision of all."""
    _, rows, _ = done
    network = load_network(next(p for p in run.plans if p.name == "classifier"))
    test = data.load(run.settings.data, "test")
    # As the evaluation does: with other rounding an image at the edge of a sphere may change sides.
    apply = jax.jit(lambda images: network(images))
    real, floor = (
        extract(apply, images, run.settings.evaluation.batch_size, quantise=True)[1]
        for images in (run.train, test)
    )
    value = {row.metric: row for row in rows if row.method == "real"}
    rng = np.random.default_rng(0)
    recalls = [
        precision_recall(real, floor[subset(rng, 360, 16, test.labels)])["recall"]
        for _ in range(60)
    ]
    spread = np.std(recalls) / np.sqrt(60) + np.std(recalls) / np.sqrt(100)
    assert value["recall"].value == pytest.approx(np.mean(recalls), abs=4 * spread)
    whole = precision_recall(real, floor)
    assert value["precision"].value == pytest.approx(whole["precision"], abs=1e-6)
    assert whole["coverage"] > 2 * value["coverage"].value


def test_the_scores_are_those_of_the_images_on_disk(run, done):
    """Frechet distance and PSNR worked out again, by hand, from the samples on disk."""
    folder, rows, _ = done
    network = load_network(next(p for p in run.plans if p.name == "classifier"))
    judge = jax.jit(lambda pixels: network(pixels)[1])

    def features(pixels):
        byte = np.round((np.clip(pixels, -1, 1) + 1) * 127.5)
        return np.asarray(judge(jnp.asarray(byte / 127.5 - 1, jnp.float32)))

    def value(metric, sampler_run):
        variant = sampler_run.plan.settings.variant
        name = f"tiny/{variant}" if variant else "tiny"
        wanted = (metric, name, sampler_run.method, sampler_run.nfe)
        return next(r.value for r in rows if (r.metric, r.experiment, r.method, r.nfe) == wanted)

    real = moments(features(run.train.images))
    full = np.clip(images(folder, "teacher_ddim_16"), -1, 1)
    for key, sampler_run in run.sampler_runs().items():
        ours = images(folder, key)
        wanted = frechet_distance(*real, *moments(features(ours)))
        assert value("fd", sampler_run) == pytest.approx(wanted, rel=1e-3, abs=1e-6)
        if key != "teacher_ddim_16":
            error = np.square(np.clip(ours, -1, 1) - full).mean(axis=(1, 2, 3))
            psnr = (10 * np.log10(4 / error)).mean()
            assert value("psnr_to_teacher", sampler_run) == pytest.approx(psnr, rel=1e-5)
    assert {r.reference_teacher for r in rows if r.method != "real"} == {"ddim-16"}
    assert {r.reference_teacher for r in rows if r.method == "real"} == {""}


def test_distances_to_the_teacher_are_those_of_the_images_on_disk(run, done):
    folder, rows, _ = done
    network = load_network(next(p for p in run.plans if p.name == "classifier"))
    judge = jax.jit(lambda images: network(images))

    def features(pixels):
        return extract(judge, pixels, 8, quantise=True)[1].astype(np.float64)

    teacher = features(images(folder, "teacher_ddim_16"))
    # Labels go through ten classes, so that of 16 images only 0 to 5 and 10 to 15 share a class.
    unrelated = np.linalg.norm(teacher[:6] - teacher[10:], axis=1).mean()
    for key, sampler_run in run.sampler_runs().items():
        own = features(images(folder, key))
        name = f"tiny/{sampler_run.plan.settings.variant}".removesuffix("/")
        found = {
            r.metric: r.value
            for r in rows
            if (r.experiment, r.method, r.nfe) == (name, sampler_run.method, sampler_run.nfe)
        }
        with np.load(folder / "samples" / f"{key}.paths.npz") as file:
            inner = file["images"]
        assert inner.shape == (6, INNER, 8, 8, 1)
        path = np.stack([own[:6], *features(inner.reshape(-1, 8, 8, 1)).reshape(6, INNER, -1)
                         .swapaxes(0, 1), own[10:]], axis=1)  # fmt: skip
        steps = np.linalg.norm(np.diff(path, axis=1), axis=-1)
        ends = np.linalg.norm(own[10:] - own[:6], axis=1).mean()
        assert found["path_length"] == pytest.approx(steps.sum(1).mean() / ends, rel=1e-3)
        assert found["path_largest_step"] == pytest.approx(steps.max(1).mean() / ends, rel=1e-3)
        if key != "teacher_ddim_16":
            gap = np.linalg.norm(own - teacher, axis=1).mean()
            assert found["feature_distance_to_teacher"] == pytest.approx(gap, rel=1e-3, abs=1e-6)
            relative = found["relative_distance_to_teacher"]
            assert relative == pytest.approx(gap / unrelated, rel=1e-3, abs=1e-6)


def test_between_two_noises_are_images_of_the_points_between_them(run, done, tmp_path):
    """The middle of a path is the sample of the middle of the two noises."""
    folder, _, _ = done
    sampler_run = run.sampler_runs()["pd_n2"]
    bank = np.asarray(sampling.noise_bank(run.settings.evaluation, (8, 8, 1), 0, 16))
    place = np.array([4 / (INNER + 1)])
    inputs = sampling.SamplerInputs(
        jnp.asarray(slerp(bank[3], bank[13], place)), np.array([3]), jax.random.key(0)
    )
    network = load_network(sampler_run.plan)
    wanted = sampling.run_sampler(sampler_run, network, inputs, run.settings.evaluation.clip)
    with np.load(folder / "samples" / "pd_n2.paths.npz") as file:
        np.testing.assert_allclose(file["images"][3, 3], wanted[0], atol=1e-5)


def test_interpolation_that_fails_loses_no_score(run, unfinished, monkeypatch):
    def broken(*args):
        raise ValueError("no path")

    monkeypatch.setattr(evaluate_run, "collect_paths", broken)
    before = {(r.method, r.nfe, r.metric) for r in read_rows(unfinished / "results.json")}
    rows, _, _ = run.evaluate(unfinished, classifier="", report=True)
    assert {r.metric for r in rows} == ALWAYS
    assert {(r.method, r.nfe, r.metric) for r in rows} <= before
    page = (unfinished / "report.html").read_text()
    assert "Not drawn: ValueError: no path" in page
    assert "Student minus teacher" in page


def test_the_report_compares_with_the_teacher_and_the_training_images(done):
    folder = done[0]
    text = (folder / "report.html").read_text()
    for heading in (
        "Consistency with the teacher",
        "Student minus teacher",
        "Interpolation between two noises, path 1",
        "Smoothness of interpolation",
        "Classes: PD, 2 steps",
        "Nearest training images",
        "Copying",
        "What the numbers mean",
        "Files and commands",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("Not drawn") == 0
    for metric in COMPARED:
        assert html.escape(METRICS[metric].meaning) in text
    for name in ("difference", "interpolation", "nearest", "nearest_distances", "denoising"):
        with Image.open(folder / f"{name}.png") as picture:
            picture.load()
    for link in re.findall(r'href="([^#"]+)"', text):
        assert (folder / link).exists(), link


def test_the_report_shows_every_sampler_run_and_names_the_data(done):
    text = (done[0] / "report.html").read_text()
    assert f"trained on {NAME}" in text
    for label in ("teacher DDIM, 16 steps", "teacher DPM-Solver++, 4 steps", "PD, 4 steps"):
        assert label in text
    assert "PD (own index), 4 steps" in text


def test_pictures_that_fail_lose_no_result_and_are_named(run, done, unfinished, monkeypatch):
    def broken(*args):
        raise ValueError("no\npicture")

    for name in ("run_strip", "_grid", "_classes", "students_table"):
        monkeypatch.setattr(sections, name, broken)
    (unfinished / "strip.png").unlink()
    rows, said, _ = run.evaluate(unfinished, report=True)
    assert read_rows(unfinished / "results.json") == rows
    assert len(read_sampler_runs(unfinished / "evaluation.json")) == len(TEACHERS) + len(STUDENTS)
    text = (unfinished / "report.html").read_text()
    assert text.count("Not drawn: ValueError: no picture") == 4
    assert "PD (own index), 4 steps" in text
    assert not (unfinished / "strip.png").exists()
    told = [line for line in said if line.endswith("could not be drawn: ValueError: no picture")]
    assert len(told) == 4
    assert said[-1].startswith("evaluation: done")


def test_a_report_that_ends_the_run_leaves_the_results(run, unfinished, monkeypatch):
    """And the page of an earlier evaluation does not pass for that of this one."""

    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(sections, "write_report", broken)
    for name in ("run_strip", "_grid", "_classes", "_plot", "students_table", "_parts"):
        monkeypatch.setattr(sections, name, lambda *args: None)
    (unfinished / "results.json").unlink()
    with pytest.raises(ZeroDivisionError):
        run.evaluate(unfinished, report=True)
    assert read_rows(unfinished / "results.json")
    assert read_sampler_runs(unfinished / "evaluation.json")
    assert not (unfinished / "report.html").exists()


# -------------------------------------------------------------------------- again, and after harm


def test_a_second_evaluation_draws_and_changes_nothing(run, done):
    folder, rows, _ = done
    before = snapshot(folder)
    assert {"results.json", "report.html", "metrics.jsonl"} <= before.keys()
    again, said, drawn = run.evaluate(folder)
    assert drawn == []
    assert again == rows
    assert snapshot(folder) == before
    assert len(said) == 1
    assert said[0].startswith("evaluation: complete")


@pytest.fixture
def unfinished(done, tmp_path) -> Path:
    """The folder of an evaluation that was killed after its last sample."""
    shutil.copytree(done[0], tmp_path / "copy")
    (tmp_path / "copy" / "evaluation.json").unlink()
    return tmp_path / "copy"


HARM = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "overwritten": lambda path: path.write_bytes(b"no zip" * 100),
    "flipped": lambda path: path.write_bytes(
        path.read_bytes().replace(
            images(path.parent.parent, path.stem).tobytes()[:40], bytes(40), 1
        )
    ),
    "another's": lambda path: shutil.copy(path.with_name("pd_n4.npz"), path),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_only_samples_that_are_not_there_whole_are_drawn_again(run, done, unfinished, harm):
    before = snapshot(unfinished / "samples")
    harm(unfinished / "samples" / "pd_n2.npz")
    _, _, drawn = run.evaluate(unfinished, classifier="")
    assert drawn == ["pd_n2", "pd_n2"]
    np.testing.assert_array_equal(images(unfinished, "pd_n2"), images(done[0], "pd_n2"))
    after = snapshot(unfinished / "samples")
    assert [name for name in before if after[name] != before[name]] == ["pd_n2.npz"]
    assert after.keys() == before.keys()


@pytest.mark.parametrize("changes", [{"noise_seed": 7}, {"samples": 17}])
def test_other_noise_or_another_number_draws_all_again(run, done, unfinished, changes):
    rows, said, drawn = run.evaluate(unfinished, classifier="", **changes)
    assert set(drawn) == {*TEACHERS, *STUDENTS}
    assert not any(line.startswith("evaluation: complete") for line in said)
    protocols = [Protocol.parse(row.protocol) for row in rows]
    assert {getattr(p, key) for p in protocols for key in changes} == set(changes.values())
    if "noise_seed" in changes:
        for key in (*TEACHERS, *STUDENTS):
            moved = np.abs(images(unfinished, key) - images(done[0], key)).max(axis=(1, 2, 3))
            assert moved.min() > 1e-3


def test_an_evaluation_of_an_earlier_version_is_scored_anew_without_sampling(run, unfinished):
    write_json(unfinished / "evaluation.json", {"digest": "of another version", "calls": []})
    rows, said, drawn = run.evaluate(unfinished)
    assert drawn == []
    assert rows == read_rows(unfinished / "results.json")
    assert any(line.startswith("warning: The classifier") for line in said)


def test_a_complete_evaluation_of_other_settings_is_not_taken_for_this_one(run, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "copy")
    _, said, drawn = run.evaluate(tmp_path / "copy", classifier="", student_sampler="dpm_solver_pp")
    assert drawn == [key for key in STUDENTS for _ in range(2)]
    assert not any(line.startswith("evaluation: complete") for line in said)


def test_a_stop_between_batches_keeps_what_is_whole(run, done, tmp_path):
    with pytest.raises(Interrupted, match="the evaluation.*DPM-Solver"):
        run.evaluate(tmp_path, LateStop(8))  # two checks a sampler run: in the middle of the fourth
    kept = snapshot(tmp_path)
    assert sorted(kept) == sorted(f"samples/{key}.npz" for key in TEACHERS[:3])
    rows, _, drawn = run.evaluate(tmp_path)
    assert drawn == [key for key in (TEACHERS[3], *STUDENTS) for _ in range(2)]
    after = snapshot(tmp_path)
    assert {name: after[name] for name in kept} == kept
    for key in (*TEACHERS, *STUDENTS):
        np.testing.assert_array_equal(images(tmp_path, key), images(done[0], key))
    for old, new in zip(done[1], rows, strict=True):
        timed = {"value": 0.0} if old.metric == "ms_per_image" else {}
        assert dataclasses.replace(new, **timed) == dataclasses.replace(old, **timed)


def test_without_a_classifier_all_is_sampled_and_shown_and_nothing_scored(run, unfinished):
    """The images are those of the scored run, so none is drawn again for it."""
    (unfinished / "report.html").unlink()
    rows, said, drawn = run.evaluate(unfinished, report=True, classifier="")
    assert drawn == []
    assert {row.metric for row in rows} == ALWAYS
    assert len(rows) == 2 * 7 - 1
    assert {row.method for row in rows} == {"ddim", "dpm_solver_pp", "pd"}
    protocols = [Protocol.parse(row.protocol) for row in rows]
    assert {(p.features, p.features_hash, p.reference) for p in protocols} == {("none",) * 3}
    assert sum("not scored" in line for line in said) == 7
    text = (unfinished / "report.html").read_text()
    assert "PD (own index), 4 steps" in text
    assert "real test images" not in text


# ------------------------------------------------------------------------- a fixed feature network


@pytest.fixture
def fixed(tmp_path, monkeypatch):
    """A weight file of EfficientNet-Lite0, of which scores see few features."""
    monkeypatch.setattr(feature_networks, "EfficientNetLite0", Narrow)
    monkeypatch.setattr(scorer, "MOST_REAL", 100)
    return str(write_state(tmp_path / "lite0.pth"))


@pytest.mark.parametrize("classifier", ["classifier", ""])
def test_a_fixed_network_gives_the_features(run, tmp_path, fixed, classifier):
    """Distances in its features; class metrics of the classifier, where there is one."""
    folder = tmp_path / "run"
    changes = {"features": fixed, "classifier": classifier, "teacher_samplers": {}}
    rows, *_ = run.evaluate(folder, report=True, **changes)
    lite0 = {"fd_efficientnet_lite0", "fd_efficientnet_lite0_infinity"}
    neighbours = {"precision", "recall", "density", "coverage"}
    by_classes = {"class_tv"} if classifier else set()
    teacher = {row.metric for row in rows if row.method == "ddim"}
    others = {"ms_per_image", "copying", "path_length", "path_largest_step"}
    assert teacher == lite0 | neighbours | by_classes | others
    floor = {row.metric for row in rows if row.method == "real"}
    assert floor - teacher == ({"accuracy"} if classifier else set())
    protocol = Protocol.parse(rows[0].protocol)
    assert re.fullmatch("efficientnet_lite0-[0-9a-f]{8}", protocol.features)
    assert protocol.reference_n == 100
    page = (folder / "report.html").read_text()
    assert "FD\N{INFINITY} (EfficientNet-Lite0)" in page
    assert ("Classes of the samples" in page) == bool(classifier)
    apply = jax.jit(lambda p, x: Narrow().apply({"params": p}, x)[1])
    params = load_lite0(fixed).params

    def features(pixels):
        return extract(lambda x: apply(params, x), pixels, 20, quantise=True)

    chosen = np.arange(100) * len(run.train) // 100
    wanted = frechet_distance(
        *moments(features(run.train.take(chosen))),
        *moments(features(images(folder, "teacher_ddim_16"))),
    )
    found = next(
        r.value for r in rows if r.metric == "fd_efficientnet_lite0" and r.method == "ddim"
    )
    assert found == pytest.approx(wanted, rel=1e-2)
    again, _, drawn = run.evaluate(folder, **changes)
    assert again == rows
    assert not drawn
