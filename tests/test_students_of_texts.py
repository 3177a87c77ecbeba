"""Students that share out texts, from their settings to their batches."""

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
from ddistill.networks.text_encoding import TextEncoder, encode_texts
from ddistill.partitions import EmbeddingPartition, ProductPartition, text_part
from ddistill.planning.identity import OF_TEXTS
from ddistill.settings import StudentsSettings
from ddistill.training import loop
from ddistill.training.batches import student_rows
from ddistill.training.text_cells import CELLS, fit_texts, fitted_partition, read_groups

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Settings of a pipeline and two students that share out texts."""
    root = tmp_path_factory.mktemp("shared")
    teacher = texted.teacher(root)
    path = texted.latent_set(root, f"diffusers:{teacher}", 8)
    settings = texted.distilled(teacher, path, read_stable_diffusion(teacher), steps=2)
    return shared(
        settings, count=2, partition="texts", text_split="clusters", pool="all", mapping="loop"
    )


@pytest.fixture(scope="module")
def encoder(made):
    model = read_stable_diffusion(made.stages["teacher"].source.partition(":")[2])
    return TextEncoder(model.text_encoder.params, model.text_encoder.build(), "all")


def shared(settings, **students):
    return texted.changed(settings, "student", students=StudentsSettings(**students))


def test_every_student_is_trained_on_its_own_captions(made, encoder, tmp_path, monkeypatch):
    batches = []

    def spied(*given):
        found = student_rows(*given)
        batches.extend(found)
        return found

    monkeypatch.setattr(loop, "student_rows", spied)
    off = dataclasses.replace(made, evaluation=dataclasses.replace(made.evaluation, enabled=False))
    lean = texted.changed(off, "student", guidance=1.0, steps=1, ema=())
    run = ddistill.train(plain(lean), workdir=tmp_path / "run", quiet=True)
    plan, dataset = run.plan("student"), data.load(made.data, "train")
    groups = read_groups(plan, len(dataset))
    assert sorted(np.bincount(groups)) == [3, 4]
    # The teacher has one batch, of all captions.
    _, *own = [rows for _, rows in batches]
    for k, rows in enumerate(own):
        np.testing.assert_array_equal(groups[rows], k)
    assert sum(map(len, own)) == len(batches[0][1]) == len(dataset)
    # One owner for the captions of the set and for prompts.
    found = run.networks.text_encoder(plan)
    assert found.pool == "all"
    partition = run.networks(plan).partition
    np.testing.assert_array_equal(partition.group(encode_texts(found, dataset.tokens)), groups)
    (cells,) = (run.folder / "stages").rglob(CELLS)
    fit_texts(dataclasses.replace(plan, folder=tmp_path), dataset, encoder)
    assert (tmp_path / CELLS).read_bytes() == cells.read_bytes()


def test_cells_that_cannot_be_read_say_what_to_do(made, encoder, tmp_path):
    plan = dataclasses.replace(plans_of(made, tmp_path)["student"], folder=tmp_path)
    with pytest.raises(CheckpointError, match="texts are assigned to students, cannot be read"):
        fitted_partition(plan)
    fit_texts(plan, data.load(made.data, "train"), encoder)
    assert fitted_partition(plan).cells.count == 2
    (tmp_path / CELLS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="texts are assigned to students, cannot be read"):
        fitted_partition(plan)
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
        ({"count": 2, "partition": "classes"}, "divides classes, and network 'text_unet'"),
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


def test_a_column_has_a_value_a_student(made, encoder, tmp_path):
    dataset = data.load(made.data, "train")
    listed = shared(made, count=2, partition="texts", text_split="listed", column="kind")
    plan = dataclasses.replace(plans_of(listed, tmp_path)["student"], folder=tmp_path)
    with pytest.raises(ConfigError, match="students.column='kind' is no column of"):
        fit_texts(plan, dataset, encoder)
    kinds = ["b", "a", "a", "b", "a", "b", "b"]
    with_kinds = dataclasses.replace(dataset, texts={**dataset.texts, "kind": kinds})
    fit_texts(plan, with_kinds, encoder)
    np.testing.assert_array_equal(np.bincount(read_groups(plan, 7)), [3, 4])
    three = dataclasses.replace(dataset, texts={"kind": ["a", "b", "c", "a", "b", "c", "a"]})
    with pytest.raises(ConfigError, match="column='kind' has 3 values, and there are 2 students"):
        fit_texts(plan, three, encoder)
