"""Samplers as values: their facts, their update rules, callbacks and registration."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from sampled import KEY, TwoPoints, coarse, every_sampler, network, unit_noise

from ddistill.diffusion import add_noise, ddim_step, from_x0
from ddistill.errors import ConfigError
from ddistill.samplers import (
    SAMPLERS,
    Previous,
    Sampler,
    ddim,
    ddim_afs,
    ddpm,
    dpm_solver_pp,
    from_noise,
    get_sampler,
    heun,
    heun_flow,
    nfe,
    register_sampler,
    renoise,
)
from ddistill.schedules import Schedule, cosine

every_real_loop = pytest.mark.parametrize("loop", ["scan", "dispatch", "unroll"])


# --------------------------------------------------------------------------------------- facts


@every_sampler
def test_the_number_of_steps_follows_from_the_number_of_evaluations(name):
    sampler = get_sampler(name)
    for steps in (1, 2, 7):
        found = sampler.steps_for(sampler.evaluations(steps))
        assert sampler.evaluations(found) == sampler.evaluations(steps)
        # An analytic first step is free, so that one and two steps take one evaluation.
        assert found == steps or (sampler.first is not None and steps == 2)
        assert nfe(name, steps) == sampler.evaluations(steps)


def test_some_numbers_of_evaluations_have_no_number_of_steps():
    assert (heun.steps_for(35), heun.steps_for(34), heun.steps_for(0)) == (18, None, None)


@every_sampler
def test_samplers_that_draw_no_noise_give_the_same_images_for_every_key(name):
    sampler, noise = get_sampler(name), jnp.float32(unit_noise())
    for steps in (1, 3):
        one, other = (
            sampler(TwoPoints(0.5), coarse(steps), noise, jax.random.key(k)) for k in (1, 2)
        )
        if not sampler.draws_noise(steps):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(sampler(TwoPoints(0.5), coarse(steps), noise), one)
        elif steps > 1:
            assert np.abs(one - other).max() > 1e-3
    assert sampler.deterministic == (not sampler.draws_noise(3))


def test_a_step_of_unknown_options_is_refused_with_the_known_ones():
    with pytest.raises(TypeError, match=r"ddim\(\) has no option 'eat'. Options: eta."):
        ddim(TwoPoints(), coarse(2), unit_noise(), KEY, eat=1.0)
    with pytest.raises(TypeError, match=r"heun\(\) has no option 'eta'. Options: none."):
        heun(TwoPoints(), coarse(2), unit_noise(), eta=1.0)


# -------------------------------------------------------------------------------- update rules


@every_sampler
def test_steps_taken_one_by_one_are_the_sampler(name):
    """Consistency methods and teacher rollouts call the rules on their own."""
    sampler, schedule, noise = get_sampler(name), coarse(4), jnp.float32(unit_noise())
    _, states = sampler(TwoPoints(0.7), schedule, noise, KEY, trajectory=True)
    z, previous = states[0], None
    levels = [schedule.at(i) for i in (4, 3, 2, 1, 0)]
    for i, (here, there) in enumerate(pairwise(levels)):
        key = None if sampler.deterministic else jax.random.fold_in(KEY, i)
        step = sampler.last if i == 3 and sampler.last else sampler.step
        more = (previous,) if sampler.multistep else ()
        following, prediction = step(TwoPoints(0.7), z, here, there, key, *more)
        np.testing.assert_allclose(following, states[i + 1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(add_noise(prediction.x0, prediction.eps, here), z, atol=1e-5)
        z, previous = following, Previous(here, prediction.x0)


def test_a_rule_takes_a_level_for_each_image_of_a_batch():
    """As losses do: the images of a batch are at levels of their own."""
    schedule, z = cosine(100), jnp.float32(unit_noise())
    here, there = schedule.at(np.array([90, 50, 20])), schedule.at(np.array([60, 40, 0]))

    def denoise(z, level):
        return network()(z, level)

    together, _ = ddim.step(denoise, z, here, there)
    for i, (a, b) in enumerate([(90, 60), (50, 40), (20, 0)]):
        alone, _ = ddim.step(denoise, z[i : i + 1], schedule.at(a), schedule.at(b))
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------- callbacks


@every_sampler
@every_real_loop
def test_callbacks_see_every_step_in_order(name, loop):
    sampler, schedule, noise = get_sampler(name), coarse(3), jnp.float32(unit_noise())
    seen = []
    run = dict(loop=loop, clip=1.0, trajectory=True)
    images, states = sampler(
        TwoPoints(0.7), schedule, noise, KEY, callback=lambda *args: seen.append(args), **run
    )
    assert [i for i, *_ in seen] == [0, 1, 2]
    assert all(type(i) is int for i, *_ in seen)
    np.testing.assert_array_equal(np.stack([z for _, z, _, _ in seen]), states[:-1])
    times = [float(level.time) for _, _, level, _ in seen]
    np.testing.assert_allclose(times, schedule.time[:0:-1])
    for _, z, level, prediction in seen:
        again = add_noise(prediction.x0, prediction.eps, level)
        np.testing.assert_allclose(again, z, rtol=1e-4, atol=1e-4)
    # The last level is clean, so that the last prediction is the image.
    np.testing.assert_allclose(jnp.clip(seen[-1][3].x0, -1.0, 1.0), images, rtol=1e-4, atol=1e-5)
    alone, _ = sampler(TwoPoints(0.7), schedule, noise, KEY, **run)
    np.testing.assert_allclose(alone, images, rtol=1e-4, atol=1e-5)


@every_real_loop
def test_callbacks_are_called_at_every_run_of_a_compiled_sampler(loop):
    seen = []

    @jax.jit
    def run(noise):
        def record(i, z, level, prediction):
            seen.append((i, float(z[0, 0, 0, 0])))

        return ddim(TwoPoints(), coarse(2), noise, loop=loop, callback=record)

    for start in (0.5, 0.25):
        seen.clear()
        run(jnp.full((1, 2, 2, 1), start)).block_until_ready()
        jax.effects_barrier()
        assert [i for i, _ in seen] == [0, 1]
        assert seen[0][1] == start


def test_callbacks_on_several_devices_need_the_loop_of_single_steps():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    noise, seen = jax.device_put(jnp.ones((4, 2, 2, 1)), place), []

    def record(i, z, level, prediction):
        seen.append((i, z.shape))

    ddim(TwoPoints(), coarse(2), noise, loop="dispatch", callback=record)
    assert seen == [(0, (4, 2, 2, 1)), (1, (4, 2, 2, 1))]
    with pytest.raises(ValueError, match=r"loop='scan' needs noise on one device.*is on 2. Use"):
        ddim(TwoPoints(), coarse(2), noise, loop="scan", callback=record)


TRACES: list[int] = []


@struct.dataclass
class Traced:
    """Predicts nothing but `x0`, and notes when it is traced, which is once for each program."""

    x0: jax.Array

    def __call__(self, z, level, cond=None):
        TRACES.append(len(TRACES))
        return from_x0(jnp.broadcast_to(self.x0, z.shape), z, level)


def test_callbacks_and_options_of_default_value_compile_nothing_again():
    noise, run = jnp.zeros((2, 3, 7, 1)), dict(loop="dispatch")
    one, other = Traced(jnp.float32(0.1)), Traced(jnp.float32(0.2))

    def traces(*arguments, **options):
        before = len(TRACES)
        ddim(*arguments, **run, **options)
        return len(TRACES) - before

    assert traces(one, coarse(3), noise) > 0
    assert traces(other, coarse(5), noise, KEY, eta=0.0) == 0
    # A step that returns its prediction is one more program for all callbacks.
    assert traces(one, coarse(3), noise, callback=lambda *_: None) > 0
    assert traces(other, coarse(3), noise, callback=lambda *_: None) == 0
    assert traces(one, coarse(3), noise, KEY, eta=0.5) > 0


# -------------------------------------------------------------------------------- registration


@pytest.fixture
def registry():
    """Forgets, after the test, what it registers."""
    before = dict(SAMPLERS)
    yield
    SAMPLERS.clear()
    SAMPLERS.update(before)


def midpoint_update(denoise, z, here, there, key=None, *, share=0.5):
    """Two DDIM steps, the second from a level between `here` and `there`."""
    middle = jax.tree.map(lambda a, b: (1 - share) * a + share * b, here, there)
    first = denoise(z, here)
    between = ddim_step(first, z, here, middle)
    second = denoise(between, middle)
    return ddim_step(second, between, middle, there), second


@pytest.mark.usefixtures("registry")
def test_a_registered_sampler_is_found_by_its_name():
    own = Sampler("midpoint", "Midpoint", midpoint_update, evaluations=lambda steps: 2 * steps)
    assert register_sampler(own) is own
    assert get_sampler("midpoint") is own
    assert nfe("midpoint", 4) == 8
    with pytest.raises(ConfigError, match="Did you mean 'midpoint'"):
        get_sampler("midpont")
    grid = coarse(3)
    fine = Schedule(*(np.insert(t, [1, 2, 3], (t[1:] + t[:-1]) / 2) for t in jax.tree.leaves(grid)))
    images = own(network(), grid, unit_noise(), loop="scan")
    np.testing.assert_allclose(images, ddim(network(), fine, unit_noise()), rtol=1e-4, atol=1e-5)
    other = own(network(), grid, unit_noise(), share=0.25)
    assert np.abs(other - images).max() > 1e-3


@pytest.mark.usefixtures("registry")
def test_a_taken_or_unusable_name_is_refused():
    with pytest.raises(ConfigError, match="'ddim' is taken by the sampler 'DDIM'.*other than ddim"):
        register_sampler(dataclasses.replace(ddpm, name="ddim"))
    assert get_sampler("ddim") is ddim
    for name in ("", "two words", "heun-edm", "a/b"):
        with pytest.raises(ConfigError, match="letters, digits and underscores"):
            register_sampler(dataclasses.replace(ddpm, name=name))
    assert register_sampler(ddim) is ddim  # the same value again does no harm


def test_the_analytic_step_has_no_option_of_noise():
    with pytest.raises(TypeError, match=r"ddim_afs\(\) has no option 'eta'. Options: none"):
        ddim_afs(None, None, None, eta=0.5)


def test_the_librarys_samplers_have_their_names():
    every = (ddim, ddim_afs, ddpm, heun, heun_flow, dpm_solver_pp, renoise, from_noise)
    assert {s.name: s for s in every} == SAMPLERS
    assert len({s.label for s in SAMPLERS.values()}) == len(SAMPLERS)
