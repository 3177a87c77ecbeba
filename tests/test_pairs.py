"""Pairs of noise and a teacher's images: made, stored, refused, drawn and regressed onto."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import LateStop, Notes, plans_of, tiny_settings

from ddistill.errors import CheckpointError, TrainingError
from ddistill.objectives import Batch, make_level_tables
from ddistill.objectives.inputs import Pairs, Share
from ddistill.objectives.sampling import draw_pair
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.samplers import get_sampler
from ddistill.schedules import cosine
from ddistill.settings import GridSettings, ScheduleSettings, StageSettings
from ddistill.training.pairs import PairMaker, make_pairs, read_pairs

NET = {True: {"name": "tiny", "num_classes": 10}, False: {"name": "tiny"}}


def settings(conditional=True, schedule="cosine", sampler="heun", levels=4, seed=0, **changes):
    """A teacher, and pairs of it: three files, the last one shorter than the others."""
    wanted = tiny_settings()
    teacher = dataclasses.replace(
        wanted.stages["teacher"],
        network=NET[conditional],
        objective={"name": "denoising"},
        conditional=conditional,
        prediction="x0",
    )
    made = {"name": "pairs", "sampler": sampler, "shard": 2, "clip": 2.0}
    pairs = StageSettings(
        objective=made,
        teacher="teacher",
        grid=GridSettings(steps=levels),
        **{"steps": 5, "batch_size": 6, **changes},
    )
    return dataclasses.replace(
        wanted,
        schedule=ScheduleSettings(name=schedule, steps=16),
        stages={"teacher": teacher, "pairs": pairs},
        pipeline=("teacher", "pairs"),
        seed=seed,
    )


def planned(folder, **changes):
    return plans_of(settings(**changes), folder / "run")["pairs"]


def teacher(conditional=True, seed=0):
    return tiny.tiny_denoiser(seed, "x0", tiny.TinyNet(num_classes=10 if conditional else 0))


def make(plan, network=None, stop=None):
    network = teacher(plan.settings.conditional) if network is None else network
    return make_pairs(plan, PairMaker(network), Notes(), StopRequest() if stop is None else stop)


def shards(plan):
    return sorted((plan.folder / "pairs").glob("*.npz"))


def contents(plan):
    return {path.name: path.read_bytes() for path in shards(plan)}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Pairs that nobody has stopped."""
    plan = planned(tmp_path_factory.mktemp("pairs"))
    make(plan)
    return plan


@pytest.fixture
def copied(straight, tmp_path):
    """The same in a folder of its own, to be damaged."""
    plan = planned(tmp_path)
    shutil.copytree(straight.folder, plan.folder, dirs_exist_ok=True)
    assert plan.digest == straight.digest
    return plan


# ----------------------------------------------------------------------------------- making


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("sampler", ["heun", "ddim"])
def test_images_are_where_the_sampler_leads_from_the_noise(
    straight, tmp_path, conditional, sampler
):
    plan = straight
    if not conditional or sampler != "heun":
        plan = planned(tmp_path, conditional=conditional, sampler=sampler)
        make(plan)
    pairs = read_pairs(plan)
    assert pairs.noise.shape == pairs.image.shape == (30, 8, 8, 1)
    assert pairs.noise.dtype == pairs.image.dtype == np.float32
    np.testing.assert_array_equal(pairs.label, np.arange(30) % 10 if conditional else 0)
    wanted = get_sampler(sampler)(
        teacher(conditional),
        plan.levels,
        jnp.asarray(pairs.noise),
        cond=jnp.asarray(pairs.label) if conditional else None,
        clip=2.0,
    )
    np.testing.assert_allclose(pairs.image, wanted, rtol=1e-5, atol=1e-5)
    assert plan.levels.num_steps == 4
    # Normal, and of every pair its own.
    assert abs(pairs.noise.mean()) < 0.1
    assert abs(pairs.noise.std() - 1) < 0.1
    assert len(np.unique(pairs.noise[:, 0, 0, 0])) == 30


def test_a_pair_does_not_depend_on_its_batch_nor_on_its_file(straight, tmp_path):
    plan = planned(tmp_path, steps=3, batch_size=10)
    make(plan)
    ours, theirs = read_pairs(plan), read_pairs(straight)
    np.testing.assert_array_equal(ours.noise, theirs.noise)
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_allclose(ours.image, theirs.image, rtol=1e-5, atol=1e-6)


def test_a_stopped_stage_goes_on_behind_its_last_file(straight, tmp_path):
    plan = planned(tmp_path)
    with pytest.raises(Interrupted, match="stage 'pairs' at batch 3"):
        make(plan, stop=LateStop(4))
    assert plan.manifest() is None
    assert [path.name for path in shards(plan)] == ["00000.npz"]
    written = shards(plan)[0].stat().st_mtime_ns
    make(plan)
    assert shards(plan)[0].stat().st_mtime_ns == written
    assert contents(plan) == contents(straight)
    assert plan.manifest().shards == straight.manifest().shards
    # The time of both sessions counts.
    took = [json.loads(path.with_suffix(".json").read_text())["seconds"] for path in shards(plan)]
    assert len(took) > 1
    assert min(took) > 0
    assert plan.manifest().train_seconds == pytest.approx(sum(took))


def in_shards(folder, shard):
    wanted = settings()
    one = wanted.stages["pairs"]
    one = dataclasses.replace(one, objective={**one.objective, "shard": shard})
    stages = {**wanted.stages, "pairs": one}
    return plans_of(dataclasses.replace(wanted, stages=stages), folder / "run")["pairs"]


def test_files_of_another_length_do_not_stand_for_other_batches(straight, tmp_path):
    """The third file of one batch each is not the third file of two, which has one batch too."""
    plan = in_shards(tmp_path, 1)
    with pytest.raises(Interrupted, match="at batch 3"):
        make(plan, stop=LateStop(4))
    assert [path.name for path in shards(plan)] == ["00000.npz", "00001.npz", "00002.npz"]
    longer = in_shards(tmp_path, 2)
    assert longer.digest == plan.digest
    make(longer)
    np.testing.assert_array_equal(read_pairs(longer).noise, read_pairs(straight).noise)


def test_images_that_are_not_finite_are_not_kept(tmp_path):
    plan, network = planned(tmp_path), teacher()
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), network.params)
    with pytest.raises(TrainingError, match=r"'pairs', batch 0: .* not finite.*objective.clip"):
        make(plan, network.replace(params=broken))
    assert plan.manifest() is None
    assert not (plan.folder / "pairs").exists()


# ------------------------------------------------------------------------------------ damage


def truncate(plan, path):
    path.write_bytes(path.read_bytes()[:-100])


def delete(plan, path):
    path.unlink()


def flip(plan, path):
    data = bytearray(path.read_bytes())
    data[-1500] ^= 1  # within the images
    path.write_bytes(bytes(data))


def swap(plan, path):
    """The file of another seed's pairs."""
    other = planned(plan.folder / "other", seed=1)
    make(other)
    shutil.copy(other.folder / "pairs" / path.name, path)


def repeat(plan, path):
    """Another file of the same stage."""
    shutil.copy(plan.folder / "pairs" / "00000.npz", path)


DAMAGE = (truncate, delete, flip, swap, repeat)


@pytest.mark.parametrize("harm", DAMAGE)
def test_files_that_are_not_what_was_written_are_refused_and_made_anew(copied, straight, harm):
    path = shards(copied)[1]
    harm(copied, path)
    with pytest.raises(CheckpointError) as caught:
        read_pairs(copied)
    text = str(caught.value)
    assert str(path) in text
    assert f"Delete {copied.manifest_path} and run again" in text
    # What the message says to do has to help.
    copied.manifest_path.unlink()
    make(copied)
    assert contents(copied) == contents(straight)
    read_pairs(copied)


def test_pairs_of_another_stage_are_refused_with_their_manifest(copied, tmp_path):
    """A folder that was copied here as a whole."""
    other = planned(tmp_path / "other", seed=1)
    make(other)
    shutil.rmtree(copied.folder)
    shutil.copytree(other.folder, copied.folder)
    with pytest.raises(CheckpointError, match="were made by another teacher") as caught:
        read_pairs(copied)
    assert str(copied.folder) in str(caught.value)


def test_pairs_that_are_not_complete_are_refused(copied):
    copied.manifest_path.unlink()
    with pytest.raises(CheckpointError, match="'pairs' .* is not complete.*--stage=pairs"):
        read_pairs(copied)


# ------------------------------------------------------------------------------------ drawing


def draw(pairs, classes, own, count=40_000):
    shown = make_level_tables(cosine(8), np.arange(9), share=Share(classes=classes, num_classes=10))
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(draw_pair, static_argnums=(1, 3))(keys, pairs, shown, own))


@pytest.mark.parametrize("classes", [(1, 4, 7), tuple(range(10))], ids=["own", "all"])
def test_without_filter_every_pair_is_as_likely(classes):
    """Also those of classes that the student is never asked for (arXiv 2410.23274)."""
    counts = np.bincount(draw(50, classes, own=False), minlength=50)
    assert len(counts) == 50
    # Of 800 expected the standard deviation is 28.
    np.testing.assert_allclose(counts, 800, atol=5 * 28)


@pytest.mark.parametrize("pairs", [50, 57])
def test_with_a_filter_pairs_are_of_the_students_classes(pairs):
    """As likely, each one; a last round that does not reach all classes is left out."""
    rows = draw(pairs, (1, 4, 7), own=True)
    assert set(rows % 10) == {1, 4, 7}
    counts = np.bincount(rows, minlength=pairs)
    mine = np.isin(np.arange(pairs) % 10, (1, 4, 7)) & (np.arange(pairs) < 50)
    np.testing.assert_allclose(counts[mine], 40_000 / 15, atol=5 * 51)
    assert counts[~mine].sum() == 0


# ----------------------------------------------------------------------------------- regression


def test_a_student_is_asked_at_the_noise_that_the_sampler_started_from(tmp_path):
    """sigma_T is 80: a student that is the teacher has no error on pairs of one step."""
    wanted = settings(schedule="karras", sampler="ddim", levels=1)
    student = StageSettings(
        objective={"name": "dmd"},
        teacher="teacher",
        init="teacher",
        pairs="pairs",
        grid=GridSettings(steps=1),
        steps=1,
        batch_size=8,
    )
    stages = {**wanted.stages, "dmd": student}
    wanted = dataclasses.replace(wanted, stages=stages, pipeline=tuple(stages))
    plans = plans_of(wanted, tmp_path / "run")
    # Rescaled, because a network of this size is lost at inputs of 80.
    network = teacher()
    network = network.replace(params=jax.tree.map(lambda x: 0.05 * x, network.params))
    make(plans["pairs"], network)
    stored = read_pairs(plans["pairs"])
    assert stored.image.std() > 1e-3
    pairs = jax.tree.map(lambda x: jnp.asarray(x[:8]), stored)
    data = Batch(pairs.image, pairs.label, pairs.label, jax.random.split(jax.random.key(0), 8))
    shown, objective = plans["dmd"].tables, plans["dmd"].objective
    networks = dict.fromkeys(("student", "teacher", "fake"), network)

    @jax.jit
    def regression(pairs):
        return objective.student_loss(networks, data.replace(pairs=pairs), shown)[1]["regression"]

    assert float(regression(pairs)) < 1e-10
    scaled = Pairs(pairs.noise / 80, pairs.label, pairs.image)
    assert float(regression(scaled)) > 1e-6


# ---------------------------------------------------------------------------------- wrong use


def stage(name, **changes):
    """Changes of a config: a stage of this objective before the student's, or in its place."""
    plain = {"objective": {"name": name}, "teacher": "teacher", "steps": 5, "batch_size": 6}
    return {**plain, **changes}


PAIRS = stage("pairs", grid={"steps": 4})
DMD = stage("dmd", init="teacher", grid={"steps": 1}, pairs="pairs")
OTHER = {"objective": {"name": "denoising"}, "network": {"name": "tiny", "num_classes": 10}}
OTHER |= {"steps": 5, "batch_size": 8, "conditional": True, "prediction": "v"}


def chain(**stages):
    """All stages of a config, the teacher before them."""
    changes = {f"stages.{name}": stages.get(name, ...) for name in ("student",)}
    changes |= {f"stages.{name}": plain for name, plain in stages.items()}
    return {**changes, "pipeline": ("teacher", *stages)}


WRONG = {
    "none where they are needed": (
        chain(dm={**DMD, "pairs": ""}),
        ["config.stages.dm.pairs is empty", "regression_weight is above 0", "none, because"],
    ),
    "not one of the stages": (
        chain(pairs=PAIRS, dm={**DMD, "pairs": "pair"}),
        ["config.stages.dm.pairs='pair'", "Did you mean 'pairs'?", "Allowed: pairs"],
    ),
    "a stage that makes none": (
        chain(pairs=PAIRS, dm={**DMD, "pairs": "teacher"}),
        ["config.stages.dm.pairs='teacher'", "makes pairs", "Allowed: pairs"],
    ),
    "nothing uses them": (
        chain(
            pairs=PAIRS,
            dm={**DMD, "objective": {"name": "dmd", "regression_weight": 0.0}},
        ),
        [
            "config.stages.dm.pairs='pairs' has no effect",
            "'dmd' with regression_weight=0.0 reads no",
        ],
    ),
    "no method that uses them": (
        chain(pairs=PAIRS, tsm=stage("tsm", pairs="pairs", init="teacher")),
        ["config.stages.tsm.pairs='pairs' has no effect: 'tsm' reads no pairs"],
    ),
    "another teacher": (
        chain(other=OTHER, pairs={**PAIRS, "teacher": "other"}, dm=DMD),
        ["config.stages.dm.pairs='pairs'", "the teacher 'other'", "Make pairs of 'teacher'"],
    ),
    "of another level": (
        chain(pairs={**PAIRS, "grid": {"explicit": [0, 4, 8, 15]}}, dm=DMD),
        ["config.stages.dm.pairs='pairs'", "level 15", "level 16", "grid"],
    ),
    "too few to filter": (
        chain(
            pairs={**PAIRS, "steps": 1},
            dm={**DMD, "objective": {"name": "dmd", "filter_pairs": True}},
        ),
        ["config.stages.dm: objective.filter_pairs is True", "6 pairs", "10 classes", "10 or more"],
    ),
    "as a teacher": (
        chain(pairs=PAIRS, tsm=stage("tsm", teacher="pairs")),
        ["config.stages.tsm.teacher='pairs'", "makes pairs", "config.stages.tsm.pairs"],
    ),
    "as a start": (
        chain(pairs=PAIRS, dm={**DMD, "init": "pairs"}),
        ["config.stages.dm.init='pairs'", "makes pairs", "config.stages.dm.pairs"],
    ),
    "without a teacher": (
        chain(pairs={**PAIRS, "teacher": "", "network": OTHER["network"]}),
        ["config.stages.pairs.teacher is empty", "'pairs' needs one"],
    ),
    "an optimiser of its own": (
        chain(pairs={**PAIRS, "optimizer": {"learning_rate": 0.5}}),
        ["config.stages.pairs.optimizer: a stage of pairs trains nothing"],
    ),
    "a network of its own": (
        chain(
            pairs={
                **PAIRS,
                "network": {"name": "tiny", "num_classes": 10, "dropout": 0.5},
                "conditional": True,
            }
        ),
        ["config.stages.pairs.network: a stage of pairs trains nothing"],
    ),
    "a sampler that draws": (
        chain(pairs={**PAIRS, "objective": {"name": "pairs", "sampler": "ddpm"}}),
        ["objective.sampler='ddpm'", "'ddim'"],
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_pairs_that_cannot_be_used(refused, case):
    changes, words = case
    text = refused(changes)
    for word in words:
        assert word in text
