"""Checkpoints on a small tree: what comes back, what is kept, and what happens to damaged ones."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from runs import differences

from ddistill.errors import CheckpointError
from ddistill.training.checkpoints import Checkpoints, digests
from ddistill.training.state import TrainState, create_state

RECORD = {
    "clock": {"train": 0.1 + 0.2, "compile": 1e-300, "wait": 0.0},
    "loss": 0.1234567890123456789,
    "scores": {"sums": {"loss": [0.1, 3]}, "last": {}},
    "alarms": {"step": 3, "known": {"": {"loss": 0.1}}, "fatal": [["", "x", 2]], "born": []},
    "digest": "abc",
    "settings": {"teacher": "", "ema": [0.9, 0.99], "nested": {"none": None, "yes": True, "n": 3}},
}


def make_state(step: int, width: int = 5, extra: bool = False, rates=(0.9, 0.99)) -> TrainState:
    """A state whose every array depends on `step`."""
    rng = np.random.default_rng(step)
    params = {"layer": {"kernel": rng.normal(size=(3, width)), "bias": rng.normal(size=width)}}
    if extra:
        params["more"] = {"scale": rng.normal(size=2)}
    params = jax.tree.map(jnp.float32, params)
    optimizer = optax.adam(1e-3)
    state = create_state({"student": params}, {"student": optimizer}, rates)
    _, opt_state = optimizer.update(params, state.opt_state["student"], params)
    ema = {rate: jax.tree.map(lambda x, r=rate: x * float(r), params) for rate in state.ema}
    return state.replace(step=jnp.int32(step), opt_state={"student": opt_state}, ema=ema)


def save(checkpoints: Checkpoints, *steps: int, losses: tuple[float, ...] = ()) -> None:
    for i, step in enumerate(steps):
        loss = losses[i] if losses else 1.0
        checkpoints.save(step, make_state(step), {**RECORD, "loss": loss}, loss)
    checkpoints.wait()
    assert checkpoints.steps()[-1] == steps[-1]


def restored(folder: Path, like: TrainState | None = None):
    checkpoints = Checkpoints(folder, keep=9)
    try:
        return checkpoints.restore(make_state(0) if like is None else like)
    finally:
        checkpoints.close()


@pytest.fixture
def warnings(monkeypatch):
    """What was logged as a warning."""
    seen: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: seen.append(text % args))
    return seen


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder with checkpoints at steps 1 and 2; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=9)
    save(checkpoints, 1, 2)
    checkpoints.close()
    return folder


@pytest.fixture
def copied(two, tmp_path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


def files_of(folder: Path) -> list[Path]:
    return sorted(x for x in folder.rglob("*") if x.is_file())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ------------------------------------------------------------------------------------ round trip


def test_state_and_record_come_back_bit_for_bit(two, warnings):
    state, record = restored(two)
    assert differences(state, make_state(2)) == []
    assert differences(state, make_state(1))
    assert record == {**RECORD, "loss": 1.0}
    assert warnings == []


def test_shapes_alone_are_enough_to_restore(two):
    state, _ = restored(two, jax.eval_shape(lambda: make_state(0)))
    assert differences(state, make_state(2)) == []
    # Committed to the device like what a step returns: otherwise step 2 would compile again.
    assert all(x.committed for x in jax.tree.leaves(state))


def test_an_empty_folder_has_nothing(tmp_path):
    assert restored(tmp_path / "new") is None


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    """Train steps donate the state while the checkpoint is still being written."""

    def big(value):
        return create_state(
            {"student": {"w": jnp.full((512, 1024), value, jnp.float32)}},
            {"student": optax.sgd(0.1)},
            (),
        )

    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints, state = Checkpoints(tmp_path, keep=9), big(0.0)
    for at in range(1, 4):
        state = step(state)
        checkpoints.save(at, state, RECORD, 1.0)
        for _ in range(5):
            state = step(state)
        state = state.replace(step=jnp.int32(at))
    checkpoints.close()
    found, _ = restored(tmp_path, big(0.0))
    assert int(found.step) == 3
    np.testing.assert_array_equal(found.params["student"]["w"], 13.0)


# ---------------------------------------------------------------------------------------- damage


def test_a_checkpoint_with_any_file_cut_in_half_is_passed_over(two, tmp_path, warnings):
    names = [x.relative_to(two) for x in files_of(two / "2")]
    assert len(names) > 5
    for i, name in enumerate(names):
        folder = Path(shutil.copytree(two, tmp_path / str(i) / "checkpoints"))
        cut(folder / name)
        warnings.clear()
        state, record = restored(folder)
        assert differences(state, make_state(1)) == [], name
        assert record == {**RECORD, "loss": 1.0}, name
        assert len(warnings) == 1, name
        assert f"{folder / '2'} is damaged" in warnings[0]
        assert "going back to the one before" in warnings[0]
        assert (folder / "damaged" / "2").is_dir()
        assert not (folder / "2").exists()


def test_without_digests_damage_is_found_by_reading(two, tmp_path, warnings):
    """A kill between the last write and the digests: every file still reads, or is passed over."""
    found = {}
    names = [x.relative_to(two) for x in files_of(two / "2")]
    for i, name in enumerate(names):
        folder = Path(shutil.copytree(two, tmp_path / str(i) / "checkpoints"))
        (folder / "digests" / "2.json").unlink()
        cut(folder / name)
        warnings.clear()
        state, record = restored(folder)
        step = int(state.step)
        assert differences(state, make_state(step)) == [], name
        assert record == {**RECORD, "loss": 1.0}, name
        assert len(warnings) == (step == 1), name
        found[str(name)] = step
    arrays = [step for name, step in found.items() if "/d/" in name]
    assert 1 in arrays, found


def test_a_missing_and_a_new_file_are_damage_too(copied, warnings):
    next(x for x in files_of(copied / "2") if "/d/" in str(x)).unlink()
    (copied / "1" / "stranger").write_text("?")
    with pytest.raises(CheckpointError, match=r"None of the checkpoints \[1, 2\]"):
        restored(copied)
    assert len(warnings) == 2


def test_one_flipped_bit_is_damage(copied, warnings):
    largest = max(files_of(copied / "2"), key=lambda x: x.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    state, _ = restored(copied)
    assert int(state.step) == 1
    assert len(warnings) == 1


def test_when_all_are_damaged_the_error_says_what_to_do(copied, warnings):
    for step in (1, 2):
        cut(copied / str(step) / "record" / "metadata")
    for _ in range(2):  # and again: the stage must not silently start from step 0 the next time
        with pytest.raises(CheckpointError) as error:
            restored(copied)
        text = str(error.value)
        assert "None of the checkpoints [1, 2]" in text
        assert str(copied / "damaged") in text
        assert "delete that folder and run again" in text
    assert len(warnings) == 2
    shutil.rmtree(copied / "damaged")
    assert restored(copied) is None


def saved_with(folder: Path, record: dict) -> Path:
    checkpoints = Checkpoints(folder, keep=9)
    checkpoints.save(2, make_state(2), record, 1.0)
    checkpoints.close()
    return folder


EMPTY_WATCH = {"step": 2, "known": {}, "fatal": [], "born": []}


@pytest.mark.parametrize(
    "key, inner, empty",
    [
        ("scores", None, {"sums": {}, "last": {}}),
        ("scores", "last", {**RECORD["scores"], "last": {}}),
        ("alarms", None, EMPTY_WATCH),
        ("alarms", "born", {**RECORD["alarms"], "born": []}),
        ("alarms", "step", {**RECORD["alarms"], "step": 2}),
        ("loss", None, None),
    ],
)
def test_a_record_that_lacks_a_key_with_an_empty_value_is_used(
    tmp_path, warnings, key, inner, empty
):
    lacking = {k: v for k, v in RECORD.items() if k != key}
    if inner is not None:
        lacking[key] = {k: v for k, v in RECORD[key].items() if k != inner}
    folder = saved_with(tmp_path / "checkpoints", lacking)
    state, record = restored(folder)
    assert differences(state, make_state(2)) == []
    assert record == {**RECORD, key: empty}
    assert warnings == []


@pytest.mark.parametrize(
    "changes",
    [{"clock": None}, {"clock": {"train": 1.0}}, {"scores": []}, {"alarms": {"step": "x"}}],
)
def test_a_record_of_wrong_values_is_an_error_that_moves_nothing(tmp_path, warnings, changes):
    folder = saved_with(tmp_path / "checkpoints", {**RECORD, **changes})
    before = files_of(folder)
    for _ in range(2):
        with pytest.raises(CheckpointError) as error:
            restored(folder)
        text = str(error.value)
        assert f"{folder / '2' / 'record' / 'metadata'}: key '{next(iter(changes))}' is " in text
        assert "\n" not in text
    assert files_of(folder) == before
    assert warnings == []
    # Of a finished stage the weights alone are wanted.
    checkpoints = Checkpoints(folder, keep=9, read_only=True)
    state, _ = checkpoints.restore(make_state(0), 2)
    assert differences(state, make_state(2)) == []
    checkpoints.close()


def test_without_times_a_record_is_an_error(tmp_path):
    """The cost of a stage is reported from them."""
    folder = saved_with(tmp_path / "checkpoints", {k: v for k, v in RECORD.items() if k != "clock"})
    with pytest.raises(CheckpointError, match="metadata: key 'clock' is missing"):
        restored(folder)


def test_training_goes_on_after_damage(copied, warnings):
    cut(copied / "2" / "record" / "metadata")
    checkpoints = Checkpoints(copied, keep=9)
    state, _ = checkpoints.restore(make_state(0))
    assert int(state.step) == 1
    save(checkpoints, 2, 3)
    checkpoints.close()
    state, _ = restored(copied)
    assert differences(state, make_state(3)) == []
    assert sorted(x.stem for x in (copied / "digests").glob("*")) == ["1", "2", "3"]
    assert len(warnings) == 1


# ------------------------------------------------------------------------------- another network


@pytest.mark.parametrize(
    "other, named",
    [
        ({"width": 6}, "ema/0.9/layer/kernel: (3, 5) on disk, (3, 6) wanted"),
        ({"extra": True}, "ema/0.99/more/scale: (2,) wanted, not on disk"),
        ({"rates": (0.9,)}, "ema/0.99/layer/bias: (5,) on disk, not wanted"),
    ],
    ids=["wider", "more layers", "fewer averages"],
)
def test_another_network_is_refused_by_name_and_left_alone(two, warnings, other, named):
    before = digests(two)
    with pytest.raises(CheckpointError) as error:
        restored(two, make_state(0, **other))
    text = str(error.value)
    assert str(two / "2") in text
    assert "belongs to another network or optimiser" in text
    assert named in text
    assert digests(two) == before
    assert warnings == []


@pytest.mark.parametrize("sealed", [True, False])
def test_shapes_are_known_with_a_seal_and_without_one(copied, sealed):
    """A seal notes them. Without one, after a kill, Orbax reads them from the arrays."""
    if not sealed:
        shutil.rmtree(copied / "digests")
    checkpoints = Checkpoints(copied, keep=9, read_only=True)
    found = checkpoints._saved_shapes(2)
    checkpoints.close()
    leaves = jax.tree_util.tree_flatten_with_path(make_state(2))[0]
    assert sorted(found.values()) == sorted(x.shape for _, x in leaves)
    assert found["params/student/layer/kernel"] == (3, 5)
    with pytest.raises(CheckpointError, match=r"kernel: \(3, 5\) on disk, \(3, 6\) wanted"):
        restored(copied, make_state(0, width=6))


def test_another_optimiser_is_refused(two):
    params = make_state(0).params
    other = create_state(params, {"student": optax.sgd(0.1)}, (0.9, 0.99))
    with pytest.raises(CheckpointError, match=r"opt_state/student/0/count: \(\) on disk, not want"):
        restored(two, other)


# ---------------------------------------------------------------------------- what is kept, crash


def kept(folder: Path) -> tuple[list[int], list[int]]:
    """Steps that have a checkpoint and steps that have digests."""
    steps = sorted(int(x.name) for x in folder.iterdir() if x.name.isdigit())
    return steps, sorted(int(x.stem) for x in (folder / "digests").glob("*.json"))


def test_the_newest_and_the_best_are_kept(tmp_path):
    """Loss by step: 3, 1, 2, 4, 5, 6; also across a restart in the middle."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1, 2, 3, losses=(3.0, 1.0, 2.0))
    assert kept(tmp_path) == ([2, 3], [2, 3])
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 4, 5, 6, losses=(4.0, 5.0, 6.0))
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best() == 2
    state, record = checkpoints.restore(make_state(0), checkpoints.best())
    assert (int(state.step), record["loss"]) == (2, 1.0)
    assert checkpoints.restore(make_state(0), 4) is None
    checkpoints.close()
    assert kept(tmp_path) == ([2, 5, 6], [2, 5, 6])
    state, record = restored(tmp_path)
    assert (int(state.step), record["loss"]) == (6, 6.0)


def test_a_crash_while_writing_leaves_nothing_behind(copied, warnings):
    """Orbax writes under another name; what has that name is not a checkpoint and is removed."""
    shutil.copytree(copied / "2", copied / "3.orbax-checkpoint-tmp")
    shutil.copytree(copied / "2", copied / "4.orbax-checkpoint-tmp-1700000000")
    (copied / "digests" / "3.json.part").write_text("{")
    state, _ = restored(copied)
    assert int(state.step) == 2
    assert not list(copied.glob("*tmp*"))
    assert warnings == []


def test_a_crash_before_the_digests_is_made_good(copied, warnings):
    (copied / "digests" / "2.json").unlink()
    state, _ = restored(copied)
    assert differences(state, make_state(2)) == []
    seal = json.loads((copied / "digests" / "2.json").read_text())
    assert seal["files"] == digests(copied / "2")
    assert warnings == []


def test_digests_cover_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = digests(tmp_path)
    assert list(first) == ["a/x"]
    (tmp_path / "a" / "x").write_text("2")
    second = digests(tmp_path)
    assert second != first
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert digests(tmp_path) == {"a/y": second["a/x"]}


def test_reading_says_nothing(tmp_path, caplog):
    """Orbax warns that a folder is read only, which is meant."""
    folder = saved_with(tmp_path / "checkpoints", RECORD)
    caplog.clear()
    Checkpoints(folder, keep=9, read_only=True).close()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
