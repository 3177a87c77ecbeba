"""Files of a run's state that are empty, cut off or of another kind: redone, or one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from runs import Notes, differences, one_stage, plans_of, saved_state, snapshot
from test_files import damaged

from ddistill import data
from ddistill.errors import CheckpointError, DataError
from ddistill.evaluate import _config
from ddistill.evaluation.evaluate import _is_done
from ddistill.product import open_run
from ddistill.runtime import files
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.folders import check_folders
from ddistill.training.interrupt import StopRequest
from ddistill.training.pairs import _listed, _seconds
from ddistill.training.pipeline import run_stages
from ddistill.training.stages import StagePlan

SETTINGS = one_stage(checkpoint_every=20, keep=10)


def go_on(workdir: Path) -> list[str]:
    plans = plans_of(SETTINGS, workdir)
    check_folders(list(plans.values()))
    notes = Notes()
    run_stages(
        list(plans.values()), SETTINGS, data.load(SETTINGS.data, "train"), notes, StopRequest()
    )
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
    assert plan.frozen() == []
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
    assert plan.manifest()["steps"] == 40


def go_on_from(plan: StagePlan) -> list[str]:
    plan.manifest_path.unlink()
    return go_on(plan.folder.parent.parent)


# ---------------------------------------------------------------- of the run, and of pairs


@damaged
@pytest.mark.parametrize("name", ["results.json", "evaluation.json"])
def test_a_damaged_evaluation_is_not_done(tmp_path, name, content):
    files.write_text(tmp_path / "report.html", "x")
    files.write_text(tmp_path / "results.json", "[]\n")
    files.write_json(tmp_path / "evaluation.json", {"digest": "d", "calls": []})
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
    files.write_json(tmp_path / "data.json", {"name": "digits", "classes": None})
    with pytest.raises(CheckpointError, match=r"data\.json is damaged"):
        open_run(tmp_path)


@damaged
def test_what_is_noted_of_shards_is_not_needed(tmp_path, content):
    (tmp_path / "00000.json").write_bytes(content)
    assert _seconds(tmp_path / "00000.npz") == 0.0
    files.write_json(tmp_path / "00000.json", {"seconds": None})
    assert _seconds(tmp_path / "00000.npz") == 0.0


@pytest.mark.parametrize("shards", [None, [], {}, "x"])
def test_a_manifest_without_shards_is_one_line(plan, shards):
    with pytest.raises(CheckpointError, match=r"complete\.json is damaged: it lists no shards"):
        _listed({"shards": shards}, plan)
