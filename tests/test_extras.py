"""Extra scalars of a network: embedding, denoisers, samplers, and what planning says of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import plans_of, tiny_settings

from ddistill import networks
from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.networks.extras import ExtraEmbedding
from ddistill.networks.weights import Weights
from ddistill.partitions import timestep_partition
from ddistill.samplers import ddim
from ddistill.schedules import cosine
from ddistill.settings import GridSettings
from ddistill.students import RoutedDenoiser, stack
from ddistill.training.initial import Start, initial_state
from ddistill.training.run_stages import Networks, starting_point
from ddistill.wrapped_denoiser import GuidedDenoiser

SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (), "out_channels": 1}
DIT = {"width": 8, "depth": 1, "heads": 2, "out_channels": 1}
X = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
TIME = jnp.array([0.5, 3.0, 9.0])


@pytest.mark.parametrize("name", ["unet", "song", "dhariwal", "dit"])
def test_weights_of_a_network_without_the_inputs_give_the_same_bits(name):
    own = {"norm_groups": 4, "mid_attention": False} if name == "unet" else {}
    options = DIT if name == "dit" else {**SMALL, **own}
    plain = networks.build(name, **options)
    wide = networks.build(name, **options, extras=("guidance",))
    scales = jnp.array([[1.0], [3.0], [7.5]])
    # The last layer of a fresh network is zero too, and would hide everything before it.
    shapes = jax.eval_shape(wide.init, jax.random.key(1), X, TIME)["params"]
    flat, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(2), len(flat))
    drawn = [0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, flat)]
    random = jax.tree.unflatten(tree, drawn)
    params = {key: value for key, value in random.items() if key != "extra_guidance"}
    assert params.keys() == jax.eval_shape(plain.init, jax.random.key(1), X, TIME)["params"].keys()
    embedding = random["extra_guidance"]
    start = {**embedding, "dense_1": jax.tree.map(jnp.zeros_like, embedding["dense_1"])}

    @jax.jit
    def run(params, extra):
        return wide.apply({"params": params}, X, TIME, extra=extra)

    wanted = jax.jit(lambda params: plain.apply({"params": params}, X, TIME))(params)
    np.testing.assert_array_equal(run({**params, "extra_guidance": start}, scales), wanted)
    told = run(random, scales)
    assert np.abs(told - wanted).max() > 1e-3
    assert np.abs(told - run(random, scales[::-1]))[[0, 2]].max() > 1e-3
    np.testing.assert_allclose(told[1], run(random, scales[::-1])[1], atol=1e-5)
    with pytest.raises(ValueError, match="takes guidance, and extra is None"):
        wide.apply({"params": random}, X, TIME)
    with pytest.raises(ValueError, match=r"extra of shape \(3, 2\)"):
        wide.apply({"params": random}, X, TIME, extra=jnp.ones((3, 2)))


def test_the_last_layer_of_an_extra_input_is_zero_before_training():
    module = ExtraEmbedding(width=5, features=8, scale=1000.0)
    variables = module.init(jax.random.key(0), jnp.ones(2))
    assert not np.any(module.apply(variables, jnp.array([1.0, 4.0])))
    grads = jax.grad(lambda v: jnp.sum(module.apply(v, jnp.array([1.0, 4.0]))))(variables)
    assert np.abs(grads["params"]["dense_1"]["kernel"]).max() > 1e-2


def test_names_of_inputs_are_checked():
    with pytest.raises(ConfigError, match="'guidence'.*Did you mean 'guidance'"):
        networks.build("unet", **SMALL, norm_groups=4, extras=("guidence",))
    with pytest.raises(ConfigError, match="named once"):
        networks.build("song", **SMALL, extras=("guidance", "guidance"))
    with pytest.raises(ConfigError, match="must be a list of names"):
        networks.build("unet", **SMALL, norm_groups=4, extras=(3,))


# -------------------------------------------------------------------------------- denoisers

MODULE = tiny.TinyNet(num_classes=4, extras=("guidance", "end_time"))
LEVELS = cosine(8)


def told_denoiser(seed=0, module=MODULE) -> Denoiser:
    """A denoiser whose extra inputs have an effect."""
    params = tiny.tiny_params(seed, module)
    for name in module.extras:
        kernel = jax.random.normal(jax.random.key(seed + 5), (1, 6))
        params[f"extra_{name}"] = {"kernel": kernel, "bias": jnp.zeros(6)}
    return Denoiser.from_module(module, params, "v")


def test_a_denoiser_is_given_one_value_or_one_an_example():
    denoiser, level, cond = told_denoiser(), LEVELS.at(np.array([2, 5, 8])), jnp.array([0, 1, 2])
    scale = jnp.array([1.0, 2.0, 5.0])
    found = denoiser.given(guidance=scale, end_time=0.5)(X, level, cond)
    for i in range(3):
        here = jax.tree.map(lambda x, i=i: x[i : i + 1], (X, level, cond))
        one = denoiser.given(guidance=float(scale[i]), end_time=0.5)(*here)
        np.testing.assert_allclose(found.x0[i], one.x0[0], rtol=1e-5, atol=1e-6)
    assert (
        np.abs(found.x0 - denoiser.given(guidance=1.0, end_time=0.5)(X, level, cond).x0).max() > 0.1
    )
    with pytest.raises(ValueError, match=r"'end_time' has no value: use given\(end_time="):
        denoiser.given(guidance=1.0)(X, level, cond)
    with pytest.raises(ValueError, match="has no input 'guidance'"):
        tiny.tiny_denoiser().given(guidance=1.0)


def test_students_and_guided_denoisers_pass_the_values_on():
    level, cond, scale = LEVELS.at(np.array([2, 5, 8])), jnp.array([0, 1, 2]), jnp.arange(3.0) + 1
    alone = [told_denoiser(seed).given(guidance=scale, end_time=0.2) for seed in (1, 2)]
    partition = timestep_partition(LEVELS, 2)
    both = dataclasses.replace(alone[0], params=stack([d.params for d in alone]))
    routed = RoutedDenoiser(dataclasses.replace(both, extra={}), partition)
    assert routed.extras == MODULE.extras
    found = routed.given(guidance=scale, end_time=0.2)(X, level, cond).x0
    owner = np.asarray(partition.owner(level, cond))
    assert set(owner) == {0, 1}
    for i, k in enumerate(owner):
        np.testing.assert_allclose(found[i], alone[k](X, level, cond).x0[i], rtol=1e-5, atol=1e-6)
    guided = GuidedDenoiser(told_denoiser(1), 2.0, 4).given(guidance=scale, end_time=0.2)
    null = alone[0](X, level, jnp.full(3, 4)).x0
    wanted = null + 2.0 * (alone[0](X, level, cond).x0 - null)
    np.testing.assert_allclose(guided(X, level, cond).x0, wanted, rtol=1e-4, atol=1e-5)


def test_guidance_can_be_a_scale_for_every_example():
    denoiser = tiny.tiny_denoiser(0, "v", tiny.TinyNet(num_classes=4))
    level, cond, scale = (
        LEVELS.at(np.array([2, 5, 8])),
        jnp.array([0, 1, 2]),
        jnp.array([0.0, 1, 3]),
    )
    found = GuidedDenoiser(denoiser, scale, 4)(X, level, cond).x0
    for i, one in enumerate(scale):
        alone = GuidedDenoiser(denoiser, float(one), 4)(X, level, cond).x0[i]
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loop", ["dispatch", "scan", "unroll"])
def test_samplers_tell_a_two_time_network_where_the_step_ends(loop):
    denoiser = told_denoiser().given(guidance=2.0)
    cond, z = jnp.array([0, 1, 2]), X
    images = ddim(denoiser, LEVELS, X, cond=cond, loop=loop)
    for i in range(8, 0, -1):
        here, there = LEVELS.at(i), LEVELS.at(i - 1)
        told = denoiser.given(end_time=there.time)
        prediction = told(z, jax.tree.map(lambda x: jnp.full(3, x), here), cond)
        z = there.alpha * prediction.x0 + there.sigma * prediction.eps
    np.testing.assert_allclose(images, z, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------- planning


def guided_chain(**changes):
    """A teacher, a student of its guidance, and a student of that student."""
    full = tiny_settings()
    first = dataclasses.replace(
        full.stages["student"],
        objective={"name": "progressive", "guidance_range": (1.0, 4.0)},
        network={},
        prediction="",
        grid=GridSettings(steps=8),
        method="pd",
        **{"steps": 8, **changes},
    )
    second = dataclasses.replace(first, teacher="first", grid=GridSettings(steps=4))
    stages = {
        "teacher": dataclasses.replace(full.stages["teacher"], steps=4),
        "first": first,
        "second": second,
    }
    return dataclasses.replace(full, stages=stages, pipeline=tuple(stages))


def with_stage(settings, name, **changes):
    stage = dataclasses.replace(settings.stages[name], **changes)
    return dataclasses.replace(settings, stages={**settings.stages, name: stage})


def test_a_students_network_is_its_teachers_with_the_inputs_of_its_objective(tmp_path):
    plans = plans_of(guided_chain(), tmp_path / "run")
    assert [p.settings.network.get("extras", ()) for p in plans.values()] == [
        (),
        ("guidance",),
        ("guidance",),
    ]
    # Two steps of the guided teacher, of two passes each; then of a student that knows the scale.
    calls = [p.students[0].objective.teacher_calls(p.teacher_passes) for p in plans.values()]
    assert calls[1:] == [4, 2]


def test_a_student_starts_as_its_teacher_whatever_it_is_told(tmp_path):
    plans = plans_of(guided_chain(), tmp_path / "run")
    module = plans["teacher"].module
    trained = Networks()
    trained.add(plans["teacher"], Weights(tiny.tiny_params(3, module)))
    state = initial_state(plans["first"], starting_point(plans["first"], plans, trained))
    student = Denoiser.from_module(plans["first"].module, state.params["student"], "v")
    teacher = trained(plans["teacher"])
    level, cond = plans["teacher"].levels.at(np.array([3, 9, 16])), jnp.array([0, 4, 9])
    wanted = teacher(X, level, cond)
    for scale in (1.0, 3.5):
        found = student.given(guidance=scale)(X, level, cond)
        np.testing.assert_array_equal(found.x0, wanted.x0)
    # Its averages begin there as well.
    average = state.ema["0.3"]
    assert jax.tree.structure(average) == jax.tree.structure(state.params["student"])
    # The next student takes over what the first one has learnt of the input.
    learnt = jax.tree.map(lambda x: x + 1.0, state.params["student"])
    trained.add(plans["first"], Weights(learnt))
    second = initial_state(plans["second"], starting_point(plans["second"], plans, trained))
    np.testing.assert_array_equal(second.params["student"]["extra_guidance"]["bias"], 1.0)
    assert isinstance(starting_point(plans["second"], plans, trained), Start)


FIXED = {"objective": {"name": "progressive"}}
TINY = {"name": "tiny", "num_classes": 10, "dropout": 0.1}


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        (
            "first",
            {"network": TINY, "prediction": "v"},
            "extras=(), but the objective 'progressive' gives",
        ),
        ("second", FIXED, "is a network that is given guidance, which the objective"),
        (
            "first",
            {**FIXED, "network": {**TINY, "extras": ("guidance",)}, "prediction": "v"},
            "gives its student no extra inputs",
        ),
        (
            "second",
            {"objective": {"name": "progressive", "guidance_range": (0.5, 3.0)}},
            "goes from 0.5 to 3, but the teacher 'first' was trained on 1 to 4",
        ),
        ("first", {"guidance": 2.0}, "guidance=2.0 is a fixed scale"),
        ("teacher", {"objective": {"name": "denoising"}}, "never seen the null class, but"),
        (
            "first",
            {"network": {**TINY, "extras": ("guidance",)}, "prediction": "v", "conditional": False},
            "conditional=False gives the teacher no class",
        ),
        ("second", {"resume": "teacher", "init": "fresh"}, "whose network differs: network.extras"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_compiles(
    stage, changes, words, tmp_path
):
    with pytest.raises(ConfigError) as caught:
        plans_of(with_stage(guided_chain(), stage, **changes), tmp_path / "run")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scales", [(1.0,), (2.0, 2.0), (-1.0, 2.0), (1.0, float("inf"))])
def test_ranges_that_are_none_are_refused(scales, tmp_path):
    objective = {"name": "cd", "guidance_range": scales}
    with pytest.raises(ConfigError, match="guidance_range=.* must be empty, or the lowest"):
        plans_of(with_stage(guided_chain(), "first", objective=objective), tmp_path / "run")
