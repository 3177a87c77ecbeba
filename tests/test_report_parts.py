"""The parts of a run's report, for images of every size and channels, with and without scores."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from runs import many_hosts_settings, plans_of

from ddistill.data import Dataset
from ddistill.evaluation.figures.image_grids import check_grid, grid_image
from ddistill.evaluation.figures.tables import Table
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.report import costs_table
from ddistill.evaluation.report.memorisation import class_grids, nearest_parts, spread
from ddistill.evaluation.report.report import Part
from ddistill.evaluation.report.strips import in_strip
from ddistill.evaluation.report.teacher_parts import consistency_parts, interpolation_parts
from ddistill.evaluation.sampling import Samples
from ddistill.evaluation.sampling_plan import planned_runs
from ddistill.evaluation.scored import ScoredRun

SIZES = pytest.mark.parametrize(("size", "channels"), [(8, 1), (33, 3), (256, 3)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The reference teacher and two students that share out its levels, as one network."""
    settings = many_hosts_settings()
    return planned_runs(settings, list(plans_of(settings, tmp_path_factory.mktemp("r")).values()))


def _scored(runs, size, channels, paths=True):
    rng = np.random.default_rng(0)
    teacher = rng.uniform(-1.2, 1.2, (12, size, size, channels)).astype(np.float32)
    return [
        ScoredRun(
            run,
            Samples(teacher + np.float32(0.1 * i), 1.0),
            {"psnr_to_teacher": Estimate(20.0, 19.0, 21.0)} if i else {},
            np.arange(12) % 10,
            paths=np.stack([teacher[:10]] * 3) if paths else None,
        )
        for i, run in enumerate(runs)
    ]


def _dataset(size, channels, count=20):
    pixels = np.random.default_rng(1).integers(0, 256, (count, size, size, channels))
    labels = np.zeros(count, np.int32)
    return Dataset("d", pixels.astype(np.uint8), labels, 1, ("only",))


def _grids(parts: list[Part]):
    return [check_grid(g) for p in parts if isinstance(p.block, list) for g in p.block]


@SIZES
def test_parts_without_scores_show_images_of_every_kind(runs, size, channels):
    scored = _scored(runs, size, channels)
    dataset = _dataset(size, channels)
    parts = [
        *consistency_parts(None, scored),
        *interpolation_parts(None, scored),
        *nearest_parts(dataset, None, scored),
    ]
    assert [p.title for p in parts] == [
        "Consistency with the teacher",
        "Difference",
        "Interpolation",
        "Nearest training images",
    ]
    for grid in _grids(parts):
        height = np.asarray(grid.rows[0].images).shape[1]
        assert height == (size if size <= 96 else 85)  # 256 / 3, because 256 / 2 is above 96
        grid_image([grid])
    (table,) = (p.block for p in parts if isinstance(p.block, Table))
    assert table.columns == ["sampler", "NFE", "PSNR to teacher, dB"]
    assert table.rows[-1][-1] == "20.0 [19.0, 21.0]"


def test_the_nearest_image_is_the_copied_one(runs):
    dataset = _dataset(33, 3)
    scored = _scored(runs, 33, 3)
    copied = dataset.take([7, 3]) / np.float32(127.5) - 1
    images = np.concatenate([copied, scored[0].samples.images[2:]])
    scored[0] = dataclasses.replace(scored[0], samples=Samples(images, 1.0))
    (part,) = nearest_parts(dataset, None, scored)
    rows = part.block[0].rows
    assert [row.label for row in rows[:2]] == [runs[0].label, "nearest in pixels"]
    np.testing.assert_array_equal(rows[1].images[:2], dataset.take([7, 3]))
    assert "all 20 training images" in part.block[0].caption


def test_students_without_paths_and_teachers_without_students_have_parts_of_their_own(runs):
    scored = _scored(runs, 8, 1, paths=False)
    assert interpolation_parts(None, scored) == []
    assert consistency_parts(None, scored[:1]) == []
    assert len(nearest_parts(_dataset(8, 1), None, scored[:1])) == 1
    assert spread(list("abcdefg"), 3) == ["a", "d", "g"]
    assert spread(["a"], 3) == ["a"]


def test_costs_count_the_updates_of_a_student_and_not_train_steps(monkeypatch):
    manifest = SimpleNamespace(
        students=1, parameters=5, steps=300, updates=1200, batch_size=64, teacher_calls=0,
        train_seconds=1.0, compile_seconds=2.0,
    )  # fmt: skip
    monkeypatch.setattr(costs_table, "complete_manifest", lambda plan: manifest)
    table = costs_table.costs_table([SimpleNamespace(name="sfd_n4")], [])
    assert table.rows[0][table.columns.index("updates")] == "1,200"


def test_a_grid_of_classes_has_images_of_the_class_of_its_row(runs):
    labels = np.arange(12) % 5
    scored = _scored(runs, 8, 1)
    names = dataclasses.replace(_dataset(8, 1), class_names=("zero", "", "two"), num_classes=5)
    grids = class_grids(names, None, scored, labels)
    assert len(grids) == len(scored)
    assert [row.label for row in grids[0].rows] == ["zero", "class 1", "two", "class 3", "class 4"]
    for c, row in enumerate(grids[0].rows):
        assert len(row.images) == 2  # class 4 has two of the twelve
        own = np.clip(scored[0].samples.images[[c, c + 5]], -1, 1) * 127.5 + 128
        np.testing.assert_array_equal(row.images, np.clip(own, 0, 255).astype(np.uint8))


def test_samples_of_networks_without_classes_are_sorted_by_the_classifier(runs):
    scored = _scored(runs, 8, 1)
    scored[1] = dataclasses.replace(scored[1], classes=np.array([3] * 7 + [1] * 4 + [5]))
    grids = class_grids(_dataset(8, 1), None, scored, None)
    assert len(grids[0].rows) == 10  # no class has many, so that all have a row
    assert [(row.label, len(row.images)) for row in grids[1].rows] == [
        ("class 1", 4),
        ("class 3", 4),
    ]
    first = np.clip(scored[1].samples.images[7:11], -1, 1) * 127.5 + 128
    np.testing.assert_array_equal(grids[1].rows[0].images, np.clip(first, 0, 255).astype(np.uint8))
    assert "are not given classes" in grids[0].caption


def run_of(role, method, nfe, width=16):
    plan = SimpleNamespace(settings=SimpleNamespace(variant=""))
    return SimpleNamespace(
        run=SimpleNamespace(role=role, method=method, nfe=nfe, plan=plan, width=width, students=1)
    )


def test_the_strip_has_every_method_and_the_teacher_first():
    methods = [f"m{i}" for i in range(15)]
    scored = [run_of("reference_teacher", "ddim", 256)]
    for nfe in (4, 2, 1):
        scored += [run_of("teacher", "ddim", nfe)]
        scored += [
            run_of("student", method, nfe) for method in methods if (method, nfe) != ("m0", 4)
        ]
    shown = in_strip(scored)
    assert shown[0] is scored[0].run
    assert [run.method for run in shown[1:] if run.role == "student"] == [*methods[1:], "m0"]
    assert {run.nfe for run in shown[1:]} == {4, 2}
    # With few methods there is room for all.
    few = [s for s in scored if s.run.method in ("ddim", "m1", "m2")]
    assert in_strip(few) == [s.run for s in few]
    # Two widths of a method are two.
    assert len(in_strip([*scored, run_of("student", "m1", 1, width=8)])) == 17
