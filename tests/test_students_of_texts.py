"""Students that share out texts, from their settings to their samples."""

import dataclasses

import numpy as np
import pytest
import texted
from finished import plain
from runs import plans_of

import ddistill
from ddistill import data
from ddistill.errors import CheckpointError, ConfigError
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.partitions import EmbeddingPartition, ProductPartition, text_part
from ddistill.planning.identity import OF_TEXTS
from ddistill.settings import StudentsSettings
from ddistill.training.batches import student_rows
from ddistill.training.text_cells import CELLS, fit_texts, fitted_partition, read_groups

pytest.importorskip("tokenizers")

WORDS = ["a red cat", "a small dog", "picture number 3", "two", "green digit of the cat"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Settings of a pipeline and two students that share out texts."""
    root = tmp_path_factory.mktemp("shared")
    teacher = texted.teacher(root)
    path = texted.latent_set(root, f"diffusers:{teacher}", 8)
    settings = texted.distilled(teacher, path, read_stable_diffusion(teacher), steps=2)
    return shared(settings, count=2, partition="texts", text_split="clusters", pool="all")


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    return ddistill.train(plain(made), workdir=folder, quiet=True)


def shared(settings, **students):
    return texted.changed(settings, "student", students=StudentsSettings(**students))


def test_every_student_learns_its_own_captions_and_samples_them(made, run):
    plan = run.plan("student")
    dataset = data.load(made.data, "train")
    groups = read_groups(plan, len(dataset))
    assert sorted(np.bincount(groups)) == [3, 4]
    rows = student_rows(dataset, plan, groups)
    for k, (_, own) in enumerate(rows):
        np.testing.assert_array_equal(groups[own], k)
    assert sum(len(own) for _, own in rows) == len(dataset)
    # One owner for the captions of the set and for prompts.
    network, encoder = run.networks(plan), run.networks.text_encoder(plan)
    assert encoder.pool == "all"
    np.testing.assert_array_equal(network.partition.group(encoder(dataset.tokens)), groups)
    owners = network.partition.group(encoder(run.networks.tokenize(plan, WORDS)))
    noise = np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype(np.float32)
    found = run.sample(prompts=WORDS, noise=noise)
    for k in (0, 1):
        alone = dataclasses.replace(run, networks=Only(run.networks, k))
        own = alone.sample(prompts=WORDS, noise=noise)
        same = np.abs(found.astype(int) - own).max(axis=(1, 2, 3)) <= 1
        np.testing.assert_array_equal(same, owners == k)


class Only:
    """Networks of which one student predicts everything."""

    def __init__(self, networks, student):
        self._networks, self._student = networks, student

    def __getattr__(self, name):
        return getattr(self._networks, name)

    def __call__(self, plan, student=None, step=None):
        return self._networks(plan).student(self._student)


def test_the_report_says_the_shares(run):
    report = (run.folder / "report.html").read_text()
    assert "42.9% of the captions" in report
    assert "57.1% of the captions" in report


def test_another_stage_of_the_same_captions_has_the_same_cells(made, run, tmp_path):
    plan = run.plan("student")
    before = (plan.folder / CELLS).read_bytes()
    again = dataclasses.replace(plan, folder=tmp_path)
    fit_texts(again, data.load(made.data, "train"), run.networks.text_encoder(plan))
    assert (tmp_path / CELLS).read_bytes() == before
    (tmp_path / CELLS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="texts are assigned to students, cannot be read"):
        fitted_partition(again)
    with pytest.raises(CheckpointError, match="it is of 7 captions, not 8"):
        read_groups(plan, 8)


# ---------------------------------------------------------------------------------------- planning


def test_ranges_of_levels_and_texts_are_a_product(made, tmp_path):
    both = shared(made, count=4, partition="both", ranges=2)
    plan = plans_of(both, tmp_path)["student"]
    assert isinstance(plan.partition, ProductPartition)
    assert text_part(plan.partition) == EmbeddingPartition(2, "tokens")
    assert [s.tables.low.item() for s in plan.students] == [1, 1, 2, 2]
    groups = np.array([0, 1, 1, 0, 1, 0, 1])
    rows = student_rows(data.load(made.data, "train"), plan, groups)
    np.testing.assert_array_equal(rows[3][1], [1, 2, 4, 6])
    np.testing.assert_array_equal(rows[1][1], rows[3][1])


def test_the_split_is_in_the_digest_of_students_of_texts_alone(made, tmp_path):
    one = plans_of(made, tmp_path)["student"]
    other = plans_of(
        shared(made, count=2, partition="texts", text_split="principal", pool="all"), tmp_path
    )["student"]
    assert one.digest != other.digest
    ranges = plans_of(shared(made, count=2, partition="timesteps"), tmp_path)["student"]
    assert not set(OF_TEXTS) & set(ranges.identity["stage"]["students"])


@pytest.mark.parametrize(
    ("students", "message"),
    [
        ({"count": 3, "partition": "texts"}, "count=3 is no power of two"),
        ({"count": 2, "partition": "texts", "text_split": "cuts"}, "'cuts' is not known"),
        ({"count": 2, "partition": "texts", "pool": "mean"}, "pool='mean' is not known"),
        ({"count": 2, "partition": "texts", "text_split": "listed"}, "goes with text_split='lis"),
        ({"count": 2, "partition": "timesteps", "pool": "all"}, "has no effect without"),
        ({"count": 2, "partition": "classes"}, "students.partition cannot be|share out"),
        (
            {"count": 4, "partition": "both", "ranges": 2, "grouping": "random"},
            "students.grouping='random' has no effect: the network reads texts",
        ),
        ({"count": 6, "partition": "both", "ranges": 3}, "students.ranges=3, but there are 2"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(made, tmp_path, students, message):
    with pytest.raises(ConfigError, match=message) as error:
        plans_of(shared(made, **students), tmp_path)
    assert "\n" not in str(error.value)


def test_a_column_has_a_value_a_student(made, run, tmp_path):
    dataset = data.load(made.data, "train")
    listed = shared(made, count=2, partition="texts", text_split="listed", column="kind")
    plan = dataclasses.replace(plans_of(listed, tmp_path)["student"], folder=tmp_path)
    encoder = run.networks.text_encoder(plan)
    with pytest.raises(ConfigError, match="students.column='kind' is no column of"):
        fit_texts(plan, dataset, encoder)
    kinds = ["b", "a", "a", "b", "a", "b", "b"]
    with_kinds = dataclasses.replace(dataset, texts={**dataset.texts, "kind": kinds})
    fit_texts(plan, with_kinds, encoder)
    np.testing.assert_array_equal(np.bincount(read_groups(plan, 7)), [3, 4])
    three = dataclasses.replace(dataset, texts={"kind": ["a", "b", "c", "a", "b", "c", "a"]})
    with pytest.raises(ConfigError, match="column='kind' has 3 values, and there are 2 students"):
        fit_texts(plan, three, encoder)
