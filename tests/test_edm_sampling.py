"""EDM's own sampling levels: in closed form, planned for pairs and teachers, and its algorithm."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import plans_of, tiny_settings

from ddistill import recipes
from ddistill.diffusion import from_x0
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling_plan import planned_runs, teacher_run
from ddistill.samplers import heun
from ddistill.schedules import edm_sampling, karras, make_grid, subsequence
from ddistill.settings import GridSettings, ScheduleSettings, StageSettings


def edm_sigmas(steps):
    """arXiv 2206.00364 eq. 5 as it is printed, noisiest first, and 0 behind it."""
    i = np.arange(steps)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return np.append((high + i / (steps - 1) * (low - high)) ** 7, 0.0)


@pytest.mark.parametrize("T", [1000, 256, 18])
@pytest.mark.parametrize("steps", [2, 5, 18, 256])
def test_the_levels_are_the_closed_form_whatever_the_table_is(T, steps):
    table = karras(T)
    levels, rows = edm_sampling("karras", {}, table, steps, "spacing")
    np.testing.assert_allclose(levels.sigma[::-1], edm_sigmas(steps), rtol=1e-6)
    np.testing.assert_allclose(levels.time[1:], np.log(edm_sigmas(steps)[-2::-1]) / 4, atol=1e-6)
    assert (rows[0], rows[-1]) == (0, T)
    apart = np.abs(np.log(table.sigma[rows[1:]] / levels.sigma[1:]))
    assert apart.max() <= np.diff(np.log(table.sigma[1:])).max() / 2 + 1e-6


def settings(**changes):
    """A teacher of EDM's kind, pairs of it on EDM's levels, and an evaluation on them."""
    wanted = tiny_settings()
    teacher = dataclasses.replace(
        wanted.stages["teacher"], objective={"name": "denoising"}, prediction="edm", accumulate=1
    )
    pairs = StageSettings(
        objective={"name": "pairs"},
        teacher="teacher",
        grid=GridSettings(steps=18, spacing="edm"),
        steps=2,
        batch_size=4,
    )
    evaluation = dataclasses.replace(
        wanted.evaluation,
        teacher_samplers={"heun": (18,)},
        teacher_spacing="edm",
        full_sampler="heun",
        full_steps=40,
    )
    changed = {
        "schedule": ScheduleSettings(name="karras", steps=100),
        "stages": {"teacher": teacher, "pairs": pairs},
        "pipeline": ("teacher", "pairs"),
        "evaluation": evaluation,
        **changes,
    }
    return dataclasses.replace(wanted, **changed)


def test_pairs_and_teachers_are_sampled_on_edms_levels(tmp_path):
    wanted = settings()
    plans = plans_of(wanted, tmp_path / "run")
    levels = plans["pairs"].levels
    np.testing.assert_allclose(levels.sigma[::-1], edm_sigmas(18), rtol=1e-6)
    assert plans["pairs"].indices[-1] == 100, "students start where the pairs do"
    sampler_runs = {c.key: c for c in planned_runs(wanted, list(plans.values()))}
    sampler_run = sampler_runs["teacher_heun_18"]
    np.testing.assert_array_equal(sampler_run.levels.sigma, levels.sigma)
    assert (sampler_run.nfe, sampler_run.sampler_name) == (35, "heun-edm")
    np.testing.assert_allclose(
        sampler_runs["teacher_heun_40"].levels.sigma[::-1], edm_sigmas(40), 1e-6
    )
    # Any number of steps, as `TrainedRun.sampler_run` takes it.
    other = teacher_run(wanted, plans["teacher"], 13)
    np.testing.assert_allclose(other.levels.sigma[::-1], edm_sigmas(7), rtol=1e-6)


def test_rows_of_the_table_stay_what_they_were(tmp_path):
    wanted = settings()
    evaluation = dataclasses.replace(wanted.evaluation, teacher_spacing="trailing")
    wanted = dataclasses.replace(wanted, evaluation=evaluation)
    plans = plans_of(wanted, tmp_path / "run")
    sampler_run = planned_runs(wanted, list(plans.values()))[1]
    np.testing.assert_array_equal(sampler_run.levels.sigma, karras(100).sigma[sampler_run.grid])
    assert sampler_run.sampler_name == "heun"


@pytest.mark.parametrize(
    ("stage", "schedule", "message"),
    [
        ("pairs", "cosine", "pairs.grid.spacing='edm' samples on EDM's own .* run's is 'cosine'"),
        ("teacher", "karras", "grid.spacing='edm' are EDM's own sigmas, for stages of pairs"),
    ],
)
def test_levels_that_a_stage_does_not_have_are_refused(stage, schedule, message, tmp_path):
    wanted = settings(schedule=ScheduleSettings(name=schedule, steps=100))
    own = dataclasses.replace(wanted.stages[stage], grid=GridSettings(steps=18, spacing="edm"))
    wanted = dataclasses.replace(wanted, stages={**wanted.stages, stage: own})
    with pytest.raises(ConfigError, match=message):
        plans_of(wanted, tmp_path / "run")


def test_a_teacher_of_some_levels_alone_is_not_asked_at_others(tmp_path):
    wanted = settings()
    own = dataclasses.replace(wanted.stages["teacher"], grid=GridSettings(steps=50, time="index"))
    wanted = dataclasses.replace(wanted, stages={"teacher": own}, pipeline=("teacher",))
    plans = plans_of(wanted, tmp_path / "run")
    with pytest.raises(ConfigError, match="teacher_spacing='edm' .* times are not c_noise"):
        planned_runs(wanted, list(plans.values()))


def test_a_teacher_of_a_coarse_table_is_not_asked_below_it(tmp_path):
    wanted = settings()
    own = dataclasses.replace(wanted.stages["teacher"], grid=GridSettings(steps=50))
    wanted = dataclasses.replace(wanted, stages={"teacher": own}, pipeline=("teacher",))
    plans = plans_of(wanted, tmp_path / "run")
    with pytest.raises(ConfigError, match="levels go from sigma .* to 80 alone"):
        planned_runs(wanted, list(plans.values()))


@pytest.mark.parametrize(
    ("made", "steps"), [(recipes.msd_cifar, 18), (recipes.msd_imagenet64, 256)]
)
def test_the_papers_recipes_make_pairs_and_measure_on_edms_levels(made, steps):
    wanted = made()
    assert wanted.stages["pairs"].grid == GridSettings(steps=steps, spacing="edm")
    assert wanted.stages["pairs"].objective["sampler"] == "heun"
    assert wanted.evaluation.teacher_spacing == "edm"
    assert 18 in wanted.evaluation.teacher_samplers["heun"]
    # Those on digits are what their published tables were measured with.
    digits = recipes.digits_conditional("msd_digits", recipes.digits_msd((1,)))
    assert digits.stages["pairs"].grid.spacing == digits.evaluation.teacher_spacing == "trailing"


@pytest.mark.parametrize(
    ("levels", "spacing"), [({"name": "cosine", "steps": 99}, "trailing"), ({}, "edm")]
)
def test_a_teacher_of_other_levels_is_sampled_on_rows_of_its_table(monkeypatch, levels, spacing):
    found = types.SimpleNamespace(
        network={"name": "unet"}, prediction="eps", num_classes=10, schedule=levels
    )
    monkeypatch.setattr(recipes.common, "read_source", lambda *_: found)
    wanted = recipes.with_teacher(recipes.msd_cifar((1,)), "diffusers:folder")
    assert wanted.stages["pairs"].grid == GridSettings(steps=18, spacing=spacing)
    assert wanted.evaluation.teacher_spacing == spacing


def edm_sampler(net, sigmas, latents):
    """arXiv 2206.00364 algorithm 1 with sigma(t) = t and no churn, its states in float64."""
    import torch

    def slope(x, sigma):
        told = torch.full((len(x),), float(sigma))
        with torch.no_grad():
            return (x - net(x.float(), told).double()) / sigma

    x = torch.tensor(latents).permute(0, 3, 1, 2).double() * sigmas[0]
    for now, following in itertools.pairwise(sigmas):
        d = slope(x, now)
        moved = x + (following - now) * d
        if following > 0:
            moved = x + (following - now) * (d + slope(moved, following)) / 2
        x = moved
    return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parity
def test_heun_18_is_edms_sampler_of_a_network_of_theirs():
    """The network is torch's in both: that ours gives its numbers is tested in test_edm.py."""
    torch = pytest.importorskip("torch")
    import torch_edm

    # More threads wait for one another: 8x8 images are no work to share out.
    torch.set_num_threads(1)
    net = torch_edm.network("ddpmpp")

    def answer(z, time):
        sigma = torch.full((len(z),), float(np.exp(4.0 * np.float64(time))))  # of c_noise
        with torch.no_grad():
            x0 = net(torch.tensor(np.array(z)).permute(0, 3, 1, 2), sigma)
        return x0.permute(0, 2, 3, 1).numpy()

    def denoiser(z, level, cond=None):
        shape = jax.ShapeDtypeStruct(z.shape, jnp.float32)
        return from_x0(jax.pure_callback(answer, shape, z, level.time), z, level)

    levels, _ = edm_sampling("karras", {}, karras(1000), 18, "spacing")
    noise = np.random.default_rng(2).standard_normal((2, 8, 8, 3)).astype(np.float32)
    theirs = edm_sampler(net, edm_sigmas(18), noise)
    atol = 2e-5 * np.abs(theirs).max()
    np.testing.assert_allclose(heun(denoiser, levels, jnp.asarray(noise)), theirs, atol=atol)
    on_the_table = subsequence(karras(1000), make_grid(karras(1000), 18))
    other = heun(denoiser, on_the_table, jnp.asarray(noise))
    assert np.abs(other - theirs).max() > 10 * atol, "rows of the table are other levels"
