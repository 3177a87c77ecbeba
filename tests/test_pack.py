"""`ddistill pack RUN OUT`: a run and its shared stages as one folder."""

import dataclasses
import os
import shutil
import stat
from pathlib import Path

import chex
import numpy as np
import pytest
from exported import levels_run, run
from runs import snapshot

import ddistill
from ddistill.commands.pack import main, modules_needed, pack
from ddistill.errors import CheckpointError, ConfigError
from ddistill.planning.manifests import shared_stages
from ddistill.runtime.files import read_object, write_json
from ddistill.runtime.leftovers import new_name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a shared teacher, an earlier checkpoint, and rests of a killed process."""
    made = dataclasses.replace(levels_run(), pipeline=("teacher", "even"))
    folder = run(made, tmp_path_factory.mktemp("levels"))
    checkpoints = folder / "stages" / "even" / "checkpoints"
    shutil.copytree(checkpoints / "2", checkpoints / "1")
    shutil.copy(checkpoints / "digests" / "2.json", checkpoints / "digests" / "1.json")
    (folder / new_name("report.html")).write_text("half a page")
    (folder / "stages" / "even" / ".lock").touch()
    (folder / "report.html").write_text("a page")
    (folder / "report.html").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """The packed run on "another machine": nothing else of the run is in reach."""
    out = tmp_path_factory.mktemp("elsewhere") / "a" / "packed"
    before = snapshot(trained.parent)
    said = pack(trained, out)
    assert said.startswith(f"{out}: 2 stages, ")
    assert snapshot(trained.parent) == before
    return out


def test_a_packed_run_samples_the_images_of_the_run(trained, packed):
    before = snapshot(packed)
    ours, theirs = ddistill.load(packed), ddistill.load(trained)
    np.testing.assert_array_equal(ours.sample(3, seed=5), theirs.sample(3, seed=5))
    for a, b in zip(ours.plans, theirs.plans, strict=True):
        chex.assert_trees_all_equal(ours.networks.weights(a), theirs.networks.weights(b))
    assert snapshot(packed) == before, "opening it has written into it"


def test_it_holds_the_files_of_run_and_shared_stages_and_no_rests(trained, packed):
    [teacher] = (packed / "shared").iterdir()
    assert teacher.name.startswith("teacher-")
    wanted = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    wanted -= {p for p in wanted if p.endswith((".tmp", ".lock"))}
    origin = trained.parent / "shared"
    wanted |= {f"shared/{p.relative_to(origin)}" for p in origin.rglob("*") if p.is_file()}
    found = {str(p.relative_to(packed)) for p in packed.rglob("*") if p.is_file()}
    assert found == wanted
    assert list(packed.parent.iterdir()) == [packed]
    umask = os.umask(0)
    os.umask(umask)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in packed.rglob("*") if p.is_file()}
    assert modes == {0o666 & ~umask}
    assert stat.S_IMODE(packed.stat().st_mode) == 0o777 & ~umask


def test_a_packed_run_can_be_packed_again_and_slim(packed, tmp_path):
    pack(packed, tmp_path / "slim", slim=True)
    steps = sorted(p.name for p in (tmp_path / "slim/stages/even/checkpoints").iterdir())
    assert steps == ["2", "digests"]
    seals = (tmp_path / "slim/stages/even/checkpoints/digests").iterdir()
    assert [p.name for p in seals] == ["2.json"]


def test_shared_stages_are_inside_a_packed_run_and_beside_another(trained, packed):
    assert shared_stages(packed) == packed / "shared"
    assert shared_stages(trained) == trained.parent / "shared"


def test_an_existing_folder_is_refused_and_so_is_one_inside_the_run(trained, tmp_path):
    (tmp_path / "there").mkdir()
    for out, text in (
        (tmp_path / "there", "there exists, and nothing is overwritten"),
        (trained / "packed", "which is copied. Choose a folder elsewhere"),
        (next((trained.parent / "shared").iterdir()) / "x", "which is copied"),
    ):
        before = snapshot(trained.parent)
        with pytest.raises(ConfigError, match=text):
            pack(trained, out)
        assert snapshot(trained.parent) == before
    with pytest.raises(SystemExit, match=r"error: .*nowhere does not exist"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def copy_of(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained.parent, folder / "copy", ignore=shutil.ignore_patterns("1", "1.json"))
    return folder / "copy" / trained.name


def test_runs_that_are_not_complete_are_refused(trained, tmp_path):
    mine = copy_of(trained, tmp_path)
    config = read_object(mine / "config.json")
    config["evaluation"]["enabled"] = True
    write_json(mine / "config.json", config)
    with pytest.raises(ConfigError, match=r"no results\.json and no evaluation\.json: its eval"):
        pack(mine, tmp_path / "out")
    (mine / "stages" / "even" / "complete.json").unlink()
    with pytest.raises(CheckpointError, match="Stage 'even' in .* is not complete"):
        pack(mine, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_damaged_weights_are_found_before_the_folder_appears(trained, tmp_path):
    mine = copy_of(trained, tmp_path)
    [weights, *_] = (mine.parent / "shared").glob("teacher-*/checkpoints/2/state/ocdbt*/d/*")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint at step 2, which stage 'teacher'"):
        pack(mine, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_the_modules_that_a_run_needs_are_named(trained, tmp_path):
    noted = read_object(trained / "stages.json")
    extensions = {"objective a": "mine", "network b": "mine", "sampler c": "x.y"}
    write_json(tmp_path / "stages.json", {**noted, "extensions": extensions})
    needed = " It needs the modules mine, x.y on PYTHONPATH, which are not copied."
    assert modules_needed(tmp_path) == needed
    assert modules_needed(trained) == ""
