"""Files of a run's state that are empty, cut off or of another kind: redone, or one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from runs import Notes, differences, one_stage, plans_of, saved_state, snapshot
from test_files import damaged

from ddistill import data
from ddistill.data.facts import FACTS, DataFacts
from ddistill.errors import CheckpointError, ConfigError, DataError
from ddistill.evaluate import _config
from ddistill.evaluation.evaluate_run import _is_done
from ddistill.experiment import note_run
from ddistill.planning.identity import FORMAT
from ddistill.planning.manifests import OWNER, PAIRS, RECORD, TRAINED
from ddistill.planning.opened import check_version
from ddistill.planning.plan import StagePlan
from ddistill.runtime import files
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.schemas import Schema
from ddistill.trained_run import open_run
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.folders import check_folders
from ddistill.training.pairs import _seconds
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.trained import load_state

SETTINGS = one_stage(checkpoint_every=20, keep=10)


def go_on(workdir: Path) -> list[str]:
    plans = plans_of(SETTINGS, workdir)
    check_folders(list(plans.values()))
    notes = Notes()
    images = data.load(SETTINGS.data, "train")
    run_stages(list(plans.values()), RunContext(SETTINGS, images, notes, StopRequest()))
    return notes.said


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("complete") / "run"
    go_on(workdir)
    return workdir


@pytest.fixture
def plan(complete, tmp_path) -> StagePlan:
    """The complete stage, in a folder of its own."""
    shutil.copytree(complete, tmp_path / "run")
    return plans_of(SETTINGS, tmp_path / "run")["teacher"]


def other(plan: StagePlan) -> StagePlan:
    """The same folder, as a stage of other settings sees it."""
    stage = dataclasses.replace(SETTINGS.stages["teacher"], batch_size=4)
    changed = dataclasses.replace(SETTINGS, stages={"teacher": stage})
    return plans_of(changed, plan.folder.parent.parent)["teacher"]


@damaged
def test_a_damaged_manifest_is_none_and_is_written_anew(plan, content):
    before, digests = plan.manifest(), snapshot(plan.folder / "checkpoints" / "40")
    plan.manifest_path.write_bytes(content)
    assert plan.manifest() is None
    assert plan.diverged_students() == []
    if content:  # once is enough for the training
        return
    said = go_on(plan.folder.parent.parent)
    assert "teacher: going on from the checkpoint at step 40" in said
    assert plan.manifest() == before
    assert snapshot(plan.folder / "checkpoints" / "40") == digests


@damaged
def test_a_damaged_owner_is_read_off_the_manifest(plan, content):
    record = plan.folder / "stage.json"
    whole = files.read_object(record)
    record.write_bytes(content)
    assert "teacher: complete (40 steps), found on disk" in go_on(plan.folder.parent.parent)
    assert files.read_object(record) == whole
    record.write_bytes(content)
    with pytest.raises(CheckpointError, match="holds stage 'teacher' of other settings"):
        check_folders([other(plan)])


def test_a_damaged_owner_is_read_off_the_checkpoints(plan):
    (plan.folder / "stage.json").write_bytes(b"")
    plan.manifest_path.unlink()
    check_folders([plan])
    with pytest.raises(CheckpointError, match="holds stage 'teacher' of other settings"):
        check_folders([other(plan)])
    for path in (plan.folder / "checkpoints").glob("*/record/metadata"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        check_folders([plan])
    text = str(caught.value)
    assert text.startswith(f"{plan.folder / 'stage.json'}: not valid JSON: the file is empty. It")
    assert "Delete the folder to train the stage anew" in text
    assert "\n" not in text


def test_a_missing_owner_is_read_off_what_is_there(plan):
    """A copy of a part of a folder is nobody else's."""
    (plan.folder / "stage.json").unlink()
    check_folders([plan])
    with pytest.raises(CheckpointError, match="of other settings: what these were is not noted"):
        check_folders([other(plan)])
    plan.manifest_path.unlink()
    with pytest.raises(CheckpointError, match="holds stage 'teacher' of other settings"):
        check_folders([other(plan)])


def test_an_empty_owner_of_an_empty_folder_is_nobody(tmp_path):
    plan = plans_of(SETTINGS, tmp_path / "run")["teacher"]
    plan.folder.mkdir(parents=True)
    (plan.folder / "stage.json").touch()
    check_folders([plan])
    go_on(tmp_path / "run")
    assert files.read_object(plan.folder / "stage.json")["digest"] == plan.digest


def test_an_owner_of_an_older_version_is_told_as_that(plan):
    files.write_json(plan.folder / "stage.json", {"digest": "other", "settings": {}})
    with pytest.raises(CheckpointError, match="trained by another version of ddistill"):
        check_folders([plan])


@damaged
def test_a_damaged_digest_is_made_again_with_its_loss(plan, content):
    """The best checkpoint stays the best one."""
    folder = plan.folder / "checkpoints"
    before = {p.name: json.loads(p.read_text()) for p in (folder / "digests").glob("*.json")}
    for path in (folder / "digests").glob("*.json"):
        path.write_bytes(content)
    (folder / "digests" / "notes.json").write_text("{}")
    found = Checkpoints(folder, keep=10)
    best = found.best()
    found.close()
    assert best == min((seal["loss"], int(name[:-5])) for name, seal in before.items())[1]
    after = {p.name: json.loads(p.read_text()) for p in (folder / "digests").glob("*.json")}
    assert after == before


def test_a_kill_before_the_digest_keeps_the_loss(plan):
    folder = plan.folder / "checkpoints"
    losses = {p.stem: json.loads(p.read_text())["loss"] for p in folder.glob("digests/*.json")}
    shutil.rmtree(folder / "digests")
    found = Checkpoints(folder, keep=10)
    found.close()
    again = {p.stem: json.loads(p.read_text())["loss"] for p in folder.glob("digests/*.json")}
    assert again == losses
    assert None not in losses.values()


def test_a_record_that_is_no_object_is_damage(plan):
    folder = plan.folder / "checkpoints"
    shutil.rmtree(folder / "digests")
    (folder / "40" / "record" / "metadata").write_text("[]")
    state = saved_state(plan, 20)
    said = go_on_from(plan)
    assert "teacher: going on from the checkpoint at step 20" in said
    assert differences(state, saved_state(plan, 20)) == []
    assert plan.manifest().steps == 40


def go_on_from(plan: StagePlan) -> list[str]:
    plan.manifest_path.unlink()
    return go_on(plan.folder.parent.parent)


# ---------------------------------------------------------------- of the run, and of pairs


@damaged
@pytest.mark.parametrize("name", ["results.json", "evaluation.json"])
def test_a_damaged_evaluation_is_not_done(tmp_path, name, content):
    files.write_text(tmp_path / "report.html", "x")
    files.write_text(tmp_path / "results.json", "[]\n")
    files.write_json(tmp_path / "evaluation.json", {"digest": "d", "sampler_runs": []})
    assert _is_done(tmp_path, "d")
    assert not _is_done(tmp_path, "e")
    (tmp_path / name).write_bytes(content)
    assert _is_done(tmp_path, "d") == (name == "results.json" and content == b"[]")


@damaged
@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_damaged_run_is_one_line_when_it_is_opened(tmp_path, name, content):
    files.write_json(tmp_path / "config.json", one_config())
    files.write_json(tmp_path / "data.json", {"name": "digits"})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_run(tmp_path)
    text = str(caught.value)
    assert str(tmp_path / name) in text
    assert "Give the run's command again" in text
    assert "\n" not in text
    if name == "config.json":
        with pytest.raises(DataError, match=r"config\.json"):
            _config(tmp_path)


def one_config() -> dict:
    return json.loads(json.dumps(dataclasses.asdict(SETTINGS)))


def test_facts_that_lack_a_key_are_damage(tmp_path):
    files.write_json(tmp_path / "config.json", one_config())
    files.write_json(tmp_path / "data.json", {"name": "digits", "class_counts": None})
    with pytest.raises(CheckpointError, match=r"data\.json: key 'image_shape' is missing"):
        open_run(tmp_path)


@damaged
def test_what_is_noted_of_shards_is_not_needed(tmp_path, content):
    (tmp_path / "00000.json").write_bytes(content)
    assert _seconds(tmp_path / "00000.npz") == 0.0
    files.write_json(tmp_path / "00000.json", {"seconds": None})
    assert _seconds(tmp_path / "00000.npz") == 0.0


@pytest.mark.parametrize("shards", [None, [], {}, "x", {"00000.npz": None}])
def test_a_manifest_without_shards_is_damage(plan, shards):
    """The stage is not complete; its shards are kept, and listed anew."""
    whole = {
        **plan.manifest().to_json(),
        "pairs": 8,
        "provenance": {},
        "shards": {"00000.npz": "hash"},
    }
    assert PAIRS.problem(whole) == ""
    assert PAIRS.problem({**whole, "shards": shards}).startswith("key 'shards' is ")


# ------------------------------------------------------- valid JSON of another form, and folders


def spoilt(whole: dict, schema: Schema):
    """The object without each of its keys, and with values of other kinds in their places."""
    for key in [*schema.needed, *schema.known]:
        if key in schema.needed:
            yield {k: v for k, v in whole.items() if k != key}
        for value in (None, "x", -1, [], [None], {"a": None}, True, 1.5):
            changed = {**whole, key: value}
            if schema.problem(changed):
                yield changed


def test_every_spoilt_manifest_is_none(plan):
    whole = files.read_object(plan.manifest_path)
    cases = list(spoilt(whole, TRAINED))
    assert len(cases) > 60
    for content in cases:
        files.write_json(plan.manifest_path, content)
        assert plan.manifest() is None
        assert plan.diverged_students() == []
        with pytest.raises(CheckpointError, match="'teacher'.* is not complete"):
            load_state(plan)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"diverged": None}, "key 'diverged' is null, and a list of values"),
        ({"diverged": [0, 4]}, "key 'diverged' lists 2 students of 1"),
        ({"teacher_calls_of_each": []}, "key 'teacher_calls_of_each' lists 0 students of 1"),
        ({"handed_on": True}, "key 'handed_on' is true, and a whole number of 0 or more is needed"),
        ({"batch_size": 0}, "key 'batch_size' is 0, and a whole number of 1 or more is needed"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(plan, changes, problem):
    files.write_json(plan.manifest_path, {**plan.manifest().to_json(), **changes})
    with pytest.raises(files.DamagedFile, match=problem):
        files.read_object(plan.manifest_path, TRAINED)


def test_a_manifest_that_lacks_a_key_is_written_anew(plan):
    before = plan.manifest()
    files.write_json(plan.manifest_path, {"digest": plan.digest, "steps": 40})
    assert "teacher: going on from the checkpoint at step 40" in go_on(plan.folder.parent.parent)
    assert plan.manifest() == before


def test_every_spoilt_owner_is_read_off_the_manifest(plan):
    record = plan.folder / "stage.json"
    whole = files.read_object(record)
    for content in spoilt(whole, OWNER):
        files.write_json(record, content)
        check_folders([plan])
        with pytest.raises(CheckpointError, match="holds stage 'teacher' of other settings"):
            check_folders([other(plan)])


@pytest.mark.parametrize("identity", [{"sources": 5}, {"sources": [1, "a"]}, {"stage": []}, {}])
def test_an_identity_of_another_form_is_other_settings(plan, identity):
    record = plan.folder / "stage.json"
    files.write_json(record, {"digest": "other", "identity": identity, "lineage": {"a": {}}})
    with pytest.raises(CheckpointError, match="holds stage 'teacher' of other settings"):
        check_folders([plan])


@pytest.mark.parametrize("name", ["complete.json", "stage.json", "data.json", "config.json"])
def test_a_folder_in_place_of_a_state_file_is_one_line(plan, name):
    workdir = plan.folder.parent.parent
    write_run(workdir)
    path = workdir / name if name in ("data.json", "config.json") else plan.folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    if name == "stage.json":  # which is not needed to read a stage
        use(workdir)
    with pytest.raises(CheckpointError) as caught:
        (go_on if name == "stage.json" else use)(workdir)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def use(workdir: Path) -> None:
    found = open_run(workdir)
    found.network(found.sampler_runs[0])


def write_run(workdir: Path) -> None:
    facts = DataFacts.of(data.load(SETTINGS.data, "train"))
    note_run(workdir, one_config(), facts, list(plans_of(SETTINGS, workdir).values()))


def test_every_spoilt_fact_of_the_data_is_one_line(tmp_path):
    write_run(tmp_path)
    whole = files.read_object(tmp_path / "data.json")
    assert FACTS.problem(whole) == ""
    cases = [
        *spoilt(whole, FACTS),
        {**whole, "image_shape": [8, 8]},
        {**whole, "image_shape": [8, 8, 2]},
        {**whole, "image_shape": [8, 0, 1]},
        {**whole, "class_counts": [10]},
        {**whole, "class_names": ["a"]},
    ]
    for content in cases:
        files.write_json(tmp_path / "data.json", content)
        with pytest.raises(CheckpointError, match=r"data\.json: key '.*Give the run's command"):
            open_run(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": None},
        {"stages": {"teacher": 3}},
        {"pipeline": 1},
        {"data": []},
        {"schedule": "x"},
    ],
)
def test_settings_of_wrong_kinds_are_one_line(tmp_path, changes):
    write_run(tmp_path)
    files.write_json(tmp_path / "config.json", {**one_config(), **changes})
    with pytest.raises(ConfigError, match=r"config\.json: ") as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_record_from_which_no_training_can_go_on_is_known(plan):
    folder = plan.folder / "checkpoints"
    whole = files.read_object(folder / "40" / "record" / "metadata")
    assert RECORD.problem(whole) == ""
    for content in spoilt(whole, RECORD):
        assert RECORD.problem(content)
    for changes in (
        {"clock": {"train": 1.0}},
        {"scores": {"sums": {"a": [1]}, "last": {}}},
        {"alarms": {"step": 1, "known": {}, "fatal": [["a"]], "born": []}},
        {"alarms": {"step": 1, "known": {}, "fatal": [], "born": [[1, 2]]}},
    ):
        assert RECORD.problem({**whole, **changes}).startswith("key '")


def test_seals_of_another_form_are_made_again(plan):
    """They say nothing of the checkpoint, and a checkpoint without a seal is not judged."""
    seal = plan.folder / "checkpoints" / "digests" / "40.json"
    whole = files.read_object(seal)
    for content in ({**whole, "files": []}, {**whole, "files": {"a": 1}}, {"loss": "x"}):
        files.write_json(seal, content)
        load_state(plan)
        assert files.read_object(seal) == content
    found = Checkpoints(plan.folder / "checkpoints", keep=10)
    found.close()
    assert files.read_object(seal)["files"] == whole["files"]


def test_stray_names_among_checkpoints_are_passed_over(plan):
    folder = plan.folder / "checkpoints"
    (folder / "damaged").mkdir()
    (folder / "damaged" / ".DS_Store").touch()
    (folder / "²").mkdir()
    assert "teacher: going on from the checkpoint at step 40" in go_on_from(plan)


# -------------------------------------------------------------------------------- reading alone


def test_reading_leaves_everything_as_it_is(plan):
    """Neither seals nor what a kill left are touched, and damage stays where it is."""
    folder = plan.folder / "checkpoints"
    (folder / "digests" / "40.json").unlink()
    (folder / "60.orbax-checkpoint-tmp").mkdir()
    before = snapshot(folder)
    load_state(plan)
    assert snapshot(folder) == before
    for path in (folder / "40").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:50])
    before = snapshot(folder)
    with pytest.raises(
        CheckpointError, match="at step 40.* is missing or damaged. Delete complete"
    ):
        load_state(plan)
    assert snapshot(folder) == before
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="at step 40.* is missing or damaged"):
        load_state(plan)
    assert not folder.exists()


OURS = json.dumps({"format": FORMAT, "digests": {"a": "x"}})


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ({}, False),
        ({"config.json": "{}"}, True),
        ({"config.json": "{}", "stages.json": '{"format": 4, "digests": {"a": "x"}}'}, True),
        ({"config.json": "{}", "stages.json": "cut o"}, False),
        (
            {
                "config.json": "{}",
                "stages.json": f'{{"format": {FORMAT}, "digests": {{"a": "x"}}}}',
            },
            False,
        ),
        ({"stages.json": f'{{"format": {FORMAT}, "digests": {{"a": "x"}}}}'}, False),
    ],
    ids=["empty", "before stages.json", "older", "damaged", "ours", "begun"],
)
def test_a_folder_with_the_run_of_another_version_is_left_alone(tmp_path, files, refused):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if not refused:
        return check_version(tmp_path)
    with pytest.raises(CheckpointError, match=r"a run of another version .* another --workdir"):
        check_version(tmp_path)
