"""Schedulers of flow matching: settings, sigmas and a trajectory against diffusers."""

import jax
import numpy as np
import pytest

from ddistill.diffusion import convert
from ddistill.errors import ConfigError
from ddistill.interop.ddim import read_schedule
from ddistill.interop.flow_match import (
    FLOW_KEYS,
    FLOW_SAMPLER_KEYS,
    FLOW_SCHEDULERS,
    write_flow_scheduler,
)
from ddistill.samplers import get_sampler
from ddistill.schedules import Schedule, build_schedule, linear_path, make_grid, subsequence

EULER = FLOW_SCHEDULERS[0]


def ours(config):
    made, prediction = read_schedule({"_class_name": EULER, **config}, "scheduler_config.json")
    assert prediction == "flow"
    return build_schedule(made["name"], made["steps"], **made["options"])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_those_of_the_straight_path(shift):
    table = ours({"shift": shift, "use_karras_sigmas": False})
    u = np.arange(1001) / 1000
    np.testing.assert_allclose(table.sigma, shift * u / (1 + (shift - 1) * u), atol=1e-6)
    np.testing.assert_allclose(table.time, 1000 * table.sigma, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting=True chooses .* Set it to false"),
        ({"use_dynamic_shifting": "no"}, "use_dynamic_shifting='no' must be true or false"),
        ({"invert_sigmas": True}, "invert_sigmas=True is of networks"),
        ({"num_train_timesteps": 500}, "num_train_timesteps=500 .* Allowed: 1000"),
        ({"shift": 0}, "shift=0 must be a number above 0"),
        ({"shift": "3"}, "shift='3' must be a number above 0"),
        ({"shfit": 3.0}, "shfit=3.0 is not an option .* Did you mean 'shift'"),
    ],
)
def test_what_is_not_supported_is_named(config, message):
    with pytest.raises(ConfigError, match=f"scheduler_config.json: {message}"):
        ours(config)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_levels_that_are_written_are_read_again(shift, steps):
    config, sigmas = write_flow_scheduler(linear_path(steps, shift))
    assert ours(config).num_steps == 1000
    assert len(sigmas) == steps
    s, u = config["shift"], np.asarray(sigmas)
    wanted = linear_path(steps, shift).sigma[:0:-1]
    np.testing.assert_allclose(s * u / (1 + (s - 1) * u), wanted, atol=1e-6)


def test_other_levels_are_written_as_sigmas_or_refused():
    uneven = subsequence(linear_path(8), np.array([0, 1, 4, 8]))
    config, sigmas = write_flow_scheduler(uneven)
    assert config["shift"] == 1.0
    np.testing.assert_allclose(sigmas, [1.0, 0.5, 0.125])
    with pytest.raises(ConfigError, match="alpha = 1 - sigma"):
        write_flow_scheduler(build_schedule("cosine", 4))
    path = linear_path(4)
    with pytest.raises(ConfigError, match="other times"):
        write_flow_scheduler(Schedule(path.alpha, path.sigma, path.time / 1000))


# ----------------------------------------------------------------------------------- parity


@pytest.mark.parity
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_every_key_of_the_class_is_known(name):
    diffusers = pytest.importorskip("diffusers")
    config = dict(getattr(diffusers, name)().config)
    assert {key for key in config if not key.startswith("_")} <= FLOW_KEYS | FLOW_SAMPLER_KEYS
    assert ours(config).num_steps == 1000


@pytest.mark.parity
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigmas_of_training_are_diffusers(shift):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    table = ours(dict(theirs.config))
    np.testing.assert_allclose(table.sigma[:0:-1], theirs.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose(table.time[:0:-1], theirs.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_trajectory_of_euler_steps_is_diffusers(shift):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    table = ours({"shift": shift})
    levels = subsequence(table, make_grid(table, 5))
    config, sigmas = write_flow_scheduler(levels)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    theirs.set_timesteps(sigmas=sigmas)
    np.testing.assert_allclose(theirs.sigmas.numpy(), levels.sigma[::-1], atol=1e-6)

    def velocity(z, time):
        return 0.5 * z - 0.1 + 0.001 * time

    def denoiser(z, level, cond=None):
        return convert("flow", velocity(z, level.time), z, level)

    z = np.random.default_rng(0).standard_normal((2, 3, 3, 1)).astype(np.float32)
    found = get_sampler("ddim")(denoiser, levels, z, jax.random.key(0))
    state = torch.from_numpy(z)
    for t in theirs.timesteps:
        state = theirs.step(velocity(state, t), t, state).prev_sample
    np.testing.assert_allclose(found, state.numpy(), atol=1e-5)
