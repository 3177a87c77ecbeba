"""Students that share out the data's classes: what each is shown, and from whom they start."""

import contextlib
import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from runs import Notes, config, differences, plans_of, saved_state, tiny_settings

from ddistill import data, experiment
from ddistill.data.facts import DataFacts
from ddistill.errors import CheckpointError, ConfigError
from ddistill.planning.planner import plan_stages
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import GridSettings, MeshSettings, OptimizerSettings, StudentsSettings
from ddistill.students import take
from ddistill.trained_run import open_run
from ddistill.training.batches import BatchReader, spans, student_rows
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages

# ------------------------------------------------------------------------------ what is shown


def settings(**students):
    wanted = tiny_settings()
    stage = dataclasses.replace(
        wanted.stages["student"],
        objective={"name": "o2mkd"},
        grid=GridSettings(),
        students=StudentsSettings(**students),
        batch_size=100,
        method="o2mkd",
    )
    return dataclasses.replace(wanted, stages={**wanted.stages, "student": stage})


@pytest.fixture(scope="module")
def digits():
    return data.load({"name": "digits"}, "train")


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Plans of stages of many students, each made once."""
    made = {}

    def plan(**students):
        key = str(students)
        if key not in made:
            made[key] = plans_of(settings(**students), tmp_path_factory.mktemp("plan") / "run")
        return made[key]["student"]

    return plan


def shown(plan, dataset, steps):
    """`[steps, K, B]`, the examples of every student's batches."""
    reader = BatchReader(
        dataset, student_rows(dataset, plan), plan.settings.batch_size, plan.layout(mesh())
    )
    batch_indices = [np.asarray(p[0]) for _, _, _, p in reader.batches(spans(0, steps, 1, ()))]
    return np.concatenate(batch_indices)


def mesh():
    """All students on one device, whose batches are then one array."""
    return MeshSettings(student=1, data=1)


SHARES = {
    "two": {"count": 2, "partition": "classes"},
    "three": {"count": 3, "partition": "classes"},
    "at random": {"count": 3, "partition": "classes", "grouping": "random"},
    "both": {"count": 6, "partition": "both", "ranges": 2},
}


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
def test_a_student_is_shown_its_own_classes_and_all_of_their_images(planned, digits, share):
    plan = planned(**share, mapping="vmap")
    owned = plan.partition.owned_classes(10)
    steps = -(-max(np.isin(digits.labels, np.flatnonzero(own)).sum() for own in owned) // 100)
    batch_indices = shown(plan, digits, int(steps))
    assert batch_indices.shape == (steps, share["count"], 100)
    for k, own in enumerate(owned):
        mine = np.flatnonzero(np.isin(digits.labels, np.flatnonzero(own)))
        seen = batch_indices[:, k].reshape(-1)
        # An epoch has every image once, and no other student's.
        np.testing.assert_array_equal(np.sort(seen[: len(mine)]), mine)
        assert set(seen) <= set(mine)


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
def test_one_function_decides_what_is_shown_and_who_is_asked(planned, share):
    """For every level and class: the owner, and nobody else, is trained on both."""
    plan = planned(**share, mapping="vmap")
    tables, levels = plan.tables, plan.levels
    shown_classes = [
        set(np.asarray(row)[:count].tolist())
        for row, count in zip(tables.classes, tables.class_count)
    ]
    for k, own in enumerate(plan.partition.owned_classes(10)):
        assert shown_classes[k] == set(np.flatnonzero(own).tolist())
        assert set(plan.students[k].classes) == shown_classes[k]
    index = np.repeat(np.arange(1, levels.num_steps + 1), 10)
    label = np.tile(np.arange(10), levels.num_steps)
    owner = np.asarray(plan.partition.owner(levels.at(index), jnp.asarray(label)))
    for i, c, k in zip(index, label, owner):
        trained = [
            j
            for j in range(share["count"])
            if tables.low[j] <= i <= tables.high[j] and c in shown_classes[j]
        ]
        assert trained == [k]


@pytest.mark.parametrize("count", [2, 3, 4, 7, 10])
@pytest.mark.parametrize("grouping", ["consecutive", "random"])
def test_sizes_differ_by_one_at_most(planned, count, grouping):
    plan = planned(count=count, partition="classes", grouping=grouping, mapping="vmap")
    sizes = np.asarray(plan.tables.class_count)
    assert sizes.sum() == 10
    assert sizes.max() - sizes.min() <= 1


def test_listed_groups_are_taken_as_they_are(planned):
    groups = ((9, 0), (1, 2, 3, 4, 5, 6, 7, 8))
    plan = planned(count=2, partition="classes", groups=groups, mapping="vmap")
    assert [set(m.classes) for m in plan.students] == [set(g) for g in groups]


# --------------------------------------------------------------------------- one student of all


def matching(students: StudentsSettings):
    """A student of distribution matching, which draws classes from the table of its own."""
    wanted = tiny_settings(log_every=5, checkpoint_every=6, mesh=mesh())
    optimizer = OptimizerSettings(learning_rate=1e-2)
    teacher = dataclasses.replace(
        wanted.stages["teacher"], steps=4, accumulate=1, ema=(0.9,), optimizer=optimizer
    )
    student = dataclasses.replace(
        wanted.stages["student"],
        objective={"name": "dmd", "regression_weight": 0.0},
        grid=GridSettings(steps=1),
        steps=6,
        ema=(0.9,),
        optimizer=optimizer,
        students=students,
        method="dmd",
    )
    return dataclasses.replace(wanted, stages={"teacher": teacher, "student": student})


def test_one_student_of_all_classes_learns_what_a_stage_without_students_does(digits, tmp_path):
    """Bit for bit: the same batches, noise, levels and classes."""
    ended = {}
    for name, students in {
        "alone": StudentsSettings(),
        "one": StudentsSettings(count=1, partition="classes"),
    }.items():
        wanted = matching(students)
        plans = plans_of(wanted, tmp_path / name)
        run_stages(list(plans.values()), RunContext(wanted, digits, Notes(), StopRequest()))
        ended[name] = saved_state(plans["student"], 6)
        start = saved_state(plans["teacher"], 4)
    assert differences(ended["alone"].params["student"], start.params["student"])
    for part in ("params", "opt_state", "ema"):
        one = take(getattr(ended["one"], part), 0)
        assert differences(one, getattr(ended["alone"], part)) == [], part


# ------------------------------------------------------------------------ groups from a file


def clustered(file):
    """Three students that share out the classes by the embeddings in a file."""
    return {
        "count": 3,
        "partition": "classes",
        "grouping": "clustered",
        "embeddings": str(file),
    }


def near(groups):
    """`[10, 2]`, embeddings that are close within a group and far between groups."""
    rows = np.random.default_rng(0).normal(size=(10, 2))
    for i, group in enumerate(groups):
        rows[group, 0] += 50.0 * i
    return rows


GROUPS, OTHERS = ([0, 3, 5], [1, 2, 4], [6, 7, 8, 9]), ([0, 1, 2], [3, 4, 5], [6, 7, 8, 9])


def test_the_groups_and_not_the_file_tell_stages_apart(tmp_path):
    digests = {}
    for name, groups in {"a": GROUPS, "b": GROUPS, "c": OTHERS}.items():
        np.save(tmp_path / f"{name}.npy", near(groups))
        plan = plans_of(settings(**clustered(tmp_path / f"{name}.npy")), tmp_path / "run")[
            "student"
        ]
        assert plan.settings.students.groups == tuple(map(tuple, groups))
        digests[name] = plan.digest
    listed = settings(count=3, partition="classes", groups=GROUPS)
    assert plans_of(listed, tmp_path / "run")["student"].digest == digests["a"]
    assert digests["a"] == digests["b"] != digests["c"]


def test_a_finished_run_outlives_its_file_of_embeddings(tmp_path):
    file, run = tmp_path / "classes.npy", tmp_path / "run"
    np.save(file, near(GROUPS))
    changes = {"stages.student.students": clustered(file)}
    changes |= {f"stages.{name}.steps": 2 for name in ("teacher", "student")}

    def train():
        experiment.run(config(changes), run, tmp_path / "shared", "", "the command")

    train()
    file.unlink()
    plan = open_run(run).plan("student")
    assert plan.settings.students.groups == tuple(map(tuple, GROUPS))
    assert plan.manifest() is not None
    with pytest.raises(ConfigError, match="classes.npy' cannot be read"):
        train()
    np.save(file, near(OTHERS))
    with pytest.raises(CheckpointError, match=r"students\.groups was .* and is now "):
        train()
    np.save(file, near(GROUPS) + 1.0)
    train()


# --------------------------------------------------------------------- who starts from whom


def going_on(first, second, **changes):
    """The tiny run with a stage of many students and another one that starts from it."""
    wanted = settings(**first)
    more = dataclasses.replace(
        wanted.stages["student"],
        init="student",
        students=StudentsSettings(**second),
        method="",
        **changes,
    )
    stages = {**wanted.stages, "more": more}
    return dataclasses.replace(wanted, stages=stages, pipeline=tuple(stages))


def test_students_go_on_from_those_of_the_same_parts(tmp_path):
    np.save(tmp_path / "classes.npy", near(GROUPS))
    ways = (
        clustered(tmp_path / "classes.npy"),
        {"count": 3, "partition": "classes"} | {"groups": GROUPS},
    )
    for first, second in itertools.product(ways, ways):
        plans = plans_of(going_on(first, second), tmp_path / "run")
        assert list(map(list, plans["more"].settings.students.groups)) == list(GROUPS)
    # On fewer levels each of them answers for what it has answered for.
    ranges = {"count": 2, "partition": "timesteps"}
    wanted = going_on(ranges, ranges, grid=GridSettings(steps=4))
    assert plans_of(wanted, tmp_path / "run")["more"].levels.num_steps == 4


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            {"count": 2, "partition": "classes"},
            {"count": 2, "partition": "classes", "groups": [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]},
            ["other classes", "student 0 for 0, 2, 4, 6, 8 here, and for 0 to 4 of these there"],
        ),
        (
            {"count": 2, "partition": "timesteps"},
            {"count": 2, "partition": "timesteps", "boundaries": [4]},
            ["other levels", "student 0 for 1 to 3 here, and for 1 to 8 of these there"],
        ),
        (
            {"count": 2, "partition": "timesteps"},
            {"count": 2, "partition": "classes"},
            ["other levels", "student 0 for 1 to 16 here"],
        ),
        (
            {"count": 2, "partition": "classes"},
            {"count": 2, "sweep": {"seed": [1, 2]}},
            ["other parts", "'none' here and 'classes' there"],
        ),
    ],
)
def test_students_do_not_go_on_from_those_of_other_parts(tmp_path, first, second, words):
    with pytest.raises(ConfigError) as caught:
        plans_of(going_on(first, second), tmp_path / "run")
    for word in ("config.stages.more.init takes the weights of the students of 'student'", *words):
        assert word in str(caught.value)


# ---------------------------------------------------------------------------------- wrong use

KEY = "config.stages.student.students"
PAIRED = [[2 * c, 2 * c + 1] for c in range(5)]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"count": 11, "partition": "classes"}, [".count=11", "10 classes", "1 to 10"]),
        (
            {"count": 22, "partition": "both", "ranges": 2},
            [".count=22", ".ranges=2", "10 classes", "up to 20"],
        ),
        ({"count": 34, "partition": "both", "ranges": 17}, [".ranges=17", "2 noise levels"]),
        (
            {"count": 5, "partition": "classes", "groups": [*PAIRED[:4], [8]]},
            [".groups: no student owns the classes 9"],
        ),
        (
            {"count": 5, "partition": "classes", "groups": [*PAIRED[:4], [8, 9, 3]]},
            [".groups: class 3 is owned by student 1 and by student 4", "belongs to one"],
        ),
        (
            {"count": 5, "partition": "classes", "groups": [*PAIRED[:4], [8, 10]]},
            [".groups[4] names class 10", "0 to 9"],
        ),
        ({"count": 4, "partition": "classes", "groups": PAIRED}, ["5 groups for 4 students"]),
        ({"count": 6, "partition": "classes", "groups": [*PAIRED, []]}, [".groups[5] is empty"]),
        ({"count": 5, "partition": "both", "ranges": 2}, [".ranges=2", ".count=5", "divisor"]),
        ({"count": 4, "partition": "both"}, [".ranges=0", "divisor"]),
        (
            {"count": 2, "partition": "timesteps", "groups": PAIRED[:2]},
            [".groups=", "no effect", "'classes'"],
        ),
        (
            {"count": 2, "partition": "classes", "boundaries": [4]},
            [".boundaries=", "no effect", "'timesteps'"],
        ),
        (
            {"count": 2, "partition": "classes", "grouping": "clusterd"},
            [".grouping='clusterd'", "'clustered'"],
        ),
        (
            {"count": 2, "partition": "classes", "grouping": "clustered"},
            [".grouping='clustered'", ".npy"],
        ),
        (
            {
                "count": 2,
                "partition": "classes",
                "grouping": "clustered",
                "embeddings": "nowhere.npy",
            },
            ["students.embeddings='nowhere.npy'", "cannot be read"],
        ),
    ],
)
def test_shares_that_cannot_be(refused, wanted, words):
    text = refused({"stages.student.students": wanted})
    for word in (KEY, *words):
        assert word in text


def test_classes_cannot_be_shared_out_where_there_are_none(refused):
    text = refused(
        {
            "stages.student.students": {"count": 2, "partition": "classes"},
            "stages.student.conditional": False,
            "stages.student.network": {"name": "tiny"},
            "stages.student.init": "fresh",
        }
    )
    assert f"{KEY}.partition='classes'" in text
    assert "config.stages.student.conditional=True" in text
    assert "partition='timesteps'" in text


def test_a_conditional_stage_needs_data_with_classes(digits, tmp_path):
    """A folder without folders of classes is a set of one class."""
    wanted = settings(count=1, partition="classes")
    alone = dataclasses.replace(
        digits, labels=np.zeros_like(digits.labels), num_classes=1, class_names=("all",)
    )
    with pytest.raises(ConfigError, match=r"conditional=True, but the data have one class"):
        plan_stages(wanted, DataFacts.of(alone), tmp_path / "run", tmp_path / "shared")


def test_a_discriminator_needs_images_of_every_class(digits, tmp_path):
    kept = np.flatnonzero(~np.isin(digits.labels, (3, 4)))
    some = dataclasses.replace(digits, images=digits.images[kept], labels=digits.labels[kept])
    wanted = settings(count=2, partition="classes")
    for gan_weight, words in ((0.0, ""), (1e-3, "student 0 .* images of class 3 to 4, of which")):
        stage = dataclasses.replace(
            wanted.stages["student"],
            objective={"name": "dmd", "regression_weight": 0.0, "gan_weight": gan_weight},
            grid=GridSettings(steps=1),
        )
        if gan_weight:
            stage = dataclasses.replace(stage, objective={**stage.objective, "features": ("last",)})
        now = dataclasses.replace(wanted, stages={**wanted.stages, "student": stage})
        expected = pytest.raises(ConfigError, match=words) if words else contextlib.nullcontext()
        with expected:
            plan_stages(now, DataFacts.of(some), tmp_path / "run", tmp_path / "shared")
