"""`sample(noise=, trajectory=, progress=)`, `interpolate` and `invert` of a finished run."""

import dataclasses

import numpy as np
import pytest

import ddistill
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling import noise_bank
from ddistill.trained_run import TrainedRun

NOISE = np.random.default_rng(0).standard_normal((5, 8, 8, 1))


@pytest.fixture(scope="module")
def trained(finished) -> TrainedRun:
    return finished.run


@pytest.fixture(scope="module")
def teacher(finished) -> TrainedRun:
    return ddistill.load(finished.run.folder, stage="teacher")


def near(a, b):
    return np.abs(a.astype(int) - b).max() <= 1


def test_noise_is_where_sampling_starts(trained):
    bank = np.asarray(noise_bank(trained.settings.evaluation, (8, 8, 1), 0, 5))
    seed = trained.settings.evaluation.noise_seed
    assert near(trained.sample(noise=bank), trained.sample(5, seed=seed))
    images = trained.sample(noise=NOISE)
    assert near(trained.sample(5, noise=NOISE, batch_size=2), images)
    assert near(trained.sample(noise=NOISE[3:]), images[3:])


def test_a_trajectory_goes_from_the_noise_to_the_images(trained):
    found = trained.sample(noise=NOISE, trajectory=True, batch_size=2)
    assert found.states.shape == (5, 5, 8, 8, 1)
    assert np.allclose(found.states[0], NOISE, atol=1e-6)
    assert np.array_equal(found.images, trained.sample(noise=NOISE, batch_size=2))
    assert found.levels.num_steps == 4
    # A state is noise and image, mixed at its level, where the noise is most of it.
    first = found.levels.at(3)
    assert np.std(found.states[1]) > 0.7 * float(first.sigma)


def test_progress_counts_the_steps_of_all_batches(trained):
    calls = []
    trained.sample(5, batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 12) for i in range(1, 13)]


def test_a_path_has_both_ends_and_small_steps(trained):
    path = trained.interpolate(3, 4, steps=9)
    assert path.shape == (9, 8, 8, 1)
    assert near(path[0], trained.sample(1, seed=3)[0])
    assert near(path[-1], trained.sample(1, seed=4)[0])
    moves = np.abs(np.diff(path.astype(float), axis=0)).mean(axis=(1, 2, 3))
    whole = np.abs(path[0].astype(float) - path[-1]).mean()
    assert moves.max() < 0.5 * whole
    assert near(trained.interpolate(NOISE[0], NOISE[1], steps=2), trained.sample(noise=NOISE[:2]))


def test_images_come_back_from_their_noise(teacher):
    """A trained teacher of 16 steps: each DDIM step is solved for its start."""
    images = teacher.sample(noise=0.2 * NOISE)
    errors = {}
    for iterations in (1, 8):
        noise = teacher.invert(images, iterations=iterations)
        errors[iterations] = np.abs(teacher.sample(noise=noise).astype(int) - images).mean()
    assert noise.shape == (5, 8, 8, 1)
    assert noise.dtype == np.float32
    assert errors[8] < 1.0
    assert errors[8] < errors[1]
    floats = images.astype(np.float32) / 127.5 - 1
    assert np.allclose(teacher.invert(floats, iterations=8), noise, atol=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda r: r.sample(2, noise=NOISE),
            r"noise of shape \(5, 8, 8, 1\).* shape \(2, 8, 8, 1\)",
        ),
        (lambda r: r.sample(noise=NOISE.astype(int)), "type int64; standard normal floats"),
        (
            lambda r: r.sample(noise=NOISE[0]),
            r"shape \(8, 8, 1\).* shape \(8, 8, 8, 1\) are needed",
        ),
        (lambda r: r.sample(noise=NOISE * np.nan), "noise has values that are not finite"),
        (lambda r: r.sample(noise=3.0), r"noise of shape \(\)"),
        (lambda r: r.sample(), "n=None is a NoneType"),
        (lambda r: r.interpolate(NOISE, 1), r"a of shape \(5, 8, 8, 1\).* shape \(8, 8, 1\)"),
        (lambda r: r.interpolate(0, -1), "b=-1 must be 0 or more"),
        (lambda r: r.interpolate(0, 1, steps=1), "steps=1 must be 2 or more"),
        (lambda r: r.interpolate(0, 1, label=2), "'student' is unconditional"),
        (lambda r: r.invert(NOISE), r"values outside of \[-1, 1\]"),
        (lambda r: r.invert(np.zeros((2, 4, 4, 1))), r"shape \(n, 8, 8, 1\) are needed"),
        (lambda r: r.invert(np.zeros((0, 8, 8, 1))), "images are none"),
        (lambda r: r.invert(np.zeros((1, 8, 8, 1)), iterations=0), "iterations=0 must be 1"),
    ],
)
def test_wrong_arguments_are_named(trained, call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call(trained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", ["ddpm", "renoise"])
def test_samplers_that_draw_noise_have_no_inverse_and_no_paths(trained, sampler):
    runs = tuple(dataclasses.replace(r, sampler=sampler) for r in trained.sampler_runs)
    changed = dataclasses.replace(trained)
    changed.__dict__["sampler_runs"] = runs
    for call in (lambda: changed.interpolate(0, 1), lambda: changed.invert(np.zeros((1, 8, 8, 1)))):
        with pytest.raises(ConfigError, match=f"'student' is sampled with {sampler}, which draws"):
            call()


def test_a_run_without_anything_to_sample_has_a_repr(trained):
    evaluation = dataclasses.replace(trained.settings.evaluation, teacher="none")
    settings = dataclasses.replace(trained.settings, evaluation=evaluation)
    assert repr(dataclasses.replace(trained, settings=settings, stage="teacher")).endswith(
        "stage 'teacher': teacher, student)"
    )
