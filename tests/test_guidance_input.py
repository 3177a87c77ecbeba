"""Guidance as an input of the student: closed forms, whole stages, sampling and exports."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from exported import COMMON, UNET
from exported import run as pretended
from exported import settings as run_settings
from flax import struct
from gaussian import GaussianDenoiser, ddim_map
from jax import export as jax_export
from killed import kill_while_training
from runs import differences, saved_state
from test_extras import guided_chain
from test_path_stages import train

import ddistill
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling import noise_bank
from ddistill.evaluation.sampling_plan import planned_runs
from ddistill.export.__main__ import main as export
from ddistill.objectives import Batch, make_level_tables, make_objective
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.planning.manifests import TrainedManifest
from ddistill.schedules import cosine, subsequence
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    ScheduleSettings,
    StageSettings,
    StudentsSettings,
)
from ddistill.students import take

# Two classes N(m, s^2), and what the teacher takes for the data where it is told no class.
MEANS, STD, NULL = jnp.array([-0.8, 0.6, 0.1]), 0.5, 2
LOW, HIGH = 0.5, 4.0


@struct.dataclass
class ClassesDenoiser:
    """The exact denoiser of both classes."""

    means: jax.Array

    def __call__(self, z, level, cond, *, key=None):
        return GaussianDenoiser(self.means[cond][:, None, None, None], STD)(z, level)


@struct.dataclass
class Noted:
    """A network that keeps what it is given."""

    guidance: jax.Array

    def given(self, *, guidance):
        return Noted(guidance)


def mean_at(scale, label):
    """Of the data that a guided teacher makes: affine in the scale."""
    return MEANS[NULL] + scale * (MEANS[label] - MEANS[NULL])


def examples(count=6):
    label = jnp.arange(count) % 2
    image = jax.random.normal(jax.random.key(1), (count, 2, 2, 1))
    return Batch(image, label, label, jax.random.split(jax.random.key(2), count))


def prepared(name, levels, **hyper):
    objective = make_objective({"name": name, "guidance_range": (LOW, HIGH), **hyper})
    networks = NetworkFacts(teacher=tiny.TinyNet(num_classes=2), student_prediction="v")
    return objective.prepare(StageFacts(np.arange(0, 17, 16 // levels), networks))


@pytest.mark.parametrize(
    ("name", "hyper"), [("progressive", {}), ("cd", {"target_ema": 0.5}), ("cd", {"level_skip": 2})]
)
def test_targets_are_those_of_the_gaussian_that_the_scale_makes(name, hyper):
    """The guided score of two classes of one spread is that of a class between or beyond them."""
    objective, batch = prepared(name, 8, **hyper), examples()
    tables = make_level_tables(cosine(16), np.arange(0, 17, 2))
    networks = {"student": Noted(0.0), "teacher": ClassesDenoiser(MEANS)}
    if name == "cd":
        networks["target"] = Noted(0.0)
    told = objective.at_guidance(networks, batch)
    scale = told["student"].guidance
    assert len(np.unique(scale)) == 6
    assert scale.min() >= LOW
    assert scale.max() <= HIGH
    if name == "cd":
        np.testing.assert_array_equal(told["target"].guidance, scale)
    means = mean_at(scale, batch.label)[:, None, None, None]
    exact = GaussianDenoiser(means, STD)
    state = objective.state(told, batch, tables)
    found = objective.target({**told, "target": exact}, state, tables)
    wanted = objective.target({"teacher": exact, "target": exact}, state, tables)
    np.testing.assert_allclose(found.x0, wanted.x0, rtol=1e-4, atol=1e-4)


def test_a_chain_to_one_step_is_affine_in_the_scale():
    """PD's targets, walked from 8 teacher steps to 1, end where DDIM leads with the guided score.

    Images of the float64 closed form at the scales 1, 2 and 3 are at equal distances.
    """
    tables = make_level_tables(cosine(16), np.arange(0, 17, 2))
    levels = subsequence(cosine(16), np.arange(0, 17, 2))
    noise = np.asarray(jax.random.normal(jax.random.key(5), (6, 2, 2, 1)))
    images = {}
    for scale in (1.0, 2.0, 3.0):
        objective, batch = prepared("progressive", 8), examples()
        teacher = objective.at_guidance(
            {"student": Noted(0.0), "teacher": ClassesDenoiser(MEANS)}, batch
        )["teacher"]
        teacher = dataclasses.replace(teacher, scale=jnp.full(6, scale))
        z = jnp.asarray(noise) * jnp.maximum(1.0, levels.sigma[-1])
        for i in range(8, 0, -1):
            state = tiny.state(z, np.full(6, i), tables).replace(cond=batch.label)
            x0 = objective.target({"teacher": teacher}, state, tables).x0
            here, there = levels.at(i), levels.at(i - 1)
            z = there.alpha * x0 + there.sigma / here.sigma * (z - here.alpha * x0)
        fine = subsequence(cosine(16), np.arange(17))
        mean = np.asarray(mean_at(scale, batch.label), np.float64)[:, None, None, None]
        np.testing.assert_allclose(z, ddim_map(fine, noise, mean, STD), rtol=1e-3, atol=1e-3)
        images[scale] = np.asarray(z)
    step = images[2.0] - images[1.0]
    np.testing.assert_allclose(images[3.0] - images[2.0], step, rtol=1e-3, atol=2e-3)
    assert np.abs(step).max() > 0.3


# ------------------------------------------------------------------------------- whole stages


def chain_of(method="cd", **changes):
    """A teacher, and a student that takes guidance; 20 steps each."""
    full = guided_chain(steps=20, **changes)
    first = full.stages["first"]
    if method == "cd":
        cd = {"name": "cd", "guidance_range": (1.0, 4.0), "target_ema": 0.5}
        first = dataclasses.replace(first, objective=cd, method="cd", grid=GridSettings(steps=4))
    stages = {"teacher": full.stages["teacher"], "student": first}
    return dataclasses.replace(full, stages=stages, pipeline=tuple(stages))


@pytest.mark.slow
def test_one_student_that_was_killed_ends_as_a_plain_one_that_was_not(tmp_path):
    straight, _ = train(chain_of(), tmp_path / "straight")
    again = chain_of(students=StudentsSettings(count=1, partition="classes")), tmp_path / "one"
    kill_while_training("student", 19, train, *again)
    resumed, said = train(*again)
    assert any("going on from the checkpoint at step 17" in line for line in said)
    plain, alone = (saved_state(plans[-1], 20) for plans in (straight, resumed))
    for field in ("params", "opt_state", "ema", "targets"):
        assert not differences(getattr(plain, field), take(getattr(alone, field), 0))
    assert np.abs(plain.params["student"]["extra_guidance"]["kernel"]).max() > 1e-4
    # 20 steps of 8 examples, two calls of two passes each.
    manifest = straight[-1].manifest()
    assert isinstance(manifest, TrainedManifest)
    assert manifest.teacher_calls == 20 * 8 * 4


# ------------------------------------------------------------------------ sampling and exports


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose networks are random: a student of guidance 1 to 4, on one and two steps."""
    network = {**UNET, "multipliers": (1,), "attention": (), "num_classes": 10}
    teacher = StageSettings(
        {"name": "denoising", "label_dropout": 0.1, "null_class": 10},
        network=network,
        prediction="v",
        conditional=True,
        **COMMON,
    )
    student = StageSettings(
        {"name": "cd", "guidance_range": (1.0, 4.0)},
        teacher="teacher",
        init="teacher",
        grid=GridSettings(steps=4),
        samplers={"ddim": (2,)},
        method="cd",
        **COMMON,
    )
    stages = {"teacher": teacher, "student": student}
    made = run_settings("guided", ScheduleSettings("cosine", 16), stages)
    made = dataclasses.replace(made, evaluation=dataclasses.replace(made.evaluation, guidance=2.0))
    return pretended(made, tmp_path_factory.mktemp("guided"))


def test_a_loaded_run_takes_any_guidance_of_the_range(folder):
    trained = ddistill.load(folder)
    assert trained.nfes == (2,)
    assert [run.inputs for run in trained.sampler_runs] == [{}, {"guidance": 2.0}]
    usual = trained.sample(4, labels=3)
    np.testing.assert_array_equal(usual, trained.sample(4, labels=3, guidance=2.0))
    assert np.abs(usual.astype(int) - trained.sample(4, labels=3, guidance=4.0)).mean() > 3
    for bad, words in (
        (4.5, r"guidance=4\.5 .*'student' was trained with guidance 1 to 4"),
        (float("nan"), "guidance=nan"),
        ("2", "guidance='2' is text; a number is needed"),
    ):
        with pytest.raises(ConfigError, match=words):
            trained.sample(1, guidance=bad)
    with pytest.raises(ConfigError, match="'teacher' does not take guidance as an input. Leave it"):
        ddistill.load(folder, stage="teacher").sample(1, guidance=2.0)
    evaluation = EvaluationSettings(classifier="", guidance=6.0)
    with pytest.raises(ConfigError, match=r"config.evaluation.guidance.*guidance 1 to 4"):
        planned_runs(dataclasses.replace(trained.settings, evaluation=evaluation), trained.plans)


def test_stablehlo_takes_the_guidance_and_diffusers_is_refused(folder, tmp_path):
    trained = ddistill.load(folder)
    out = tmp_path / "program"
    export(["--to=stablehlo", str(folder), str(out)])
    manifest = json.loads((out / "ddistill.json").read_text())
    assert manifest["arguments"][1:] == ["labels [batch] int32", "guidance [] float32"]
    assert manifest["input_ranges"] == {"guidance": [1.0, 4.0]}
    assert "numpy.float32(2)" in (out / "README.md").read_text()
    program = jax_export.deserialize(bytearray((out / "sampler.stablehlo").read_bytes()))
    seed = trained.settings.evaluation.noise_seed
    noise = np.asarray(noise_bank(trained.settings.evaluation, (8, 8, 1), 0, 3))
    for scale in (1.0, 3.5):
        wanted = trained.sample(3, labels=[0, 4, 9], seed=seed, guidance=scale).astype(int)
        made = program.call(noise, np.array([0, 4, 9], np.int32), np.float32(scale))
        assert np.abs(wanted - np.asarray(made)).max() <= 1
    with pytest.raises(SystemExit, match="is given guidance, which UNet2DModel does not support"):
        export(["--to=diffusers", str(folder), str(tmp_path / "folder")])
    export(["--to=safetensors", str(folder), str(tmp_path / "weights")])
    manifest = json.loads((tmp_path / "weights" / "ddistill.json").read_text())
    assert manifest["inputs"] == {"guidance": 2.0}
    assert manifest["network"]["extras"] == ["guidance"]
