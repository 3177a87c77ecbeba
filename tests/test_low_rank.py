"""Networks of low rank: factors on a frozen base, for every network and for many students."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from finished import plain
from flax import linen as nn
from flax import traverse_util
from tiny import TinyNet

import ddistill
from benchmarks.hlo import convolution_groups
from ddistill import networks
from ddistill.conditions import TextCondition, Tokens
from ddistill.denoiser import Denoiser, whole
from ddistill.errors import ConfigError
from ddistill.low_rank import adapted_layers, adapting, draw_factors, extract, merged
from ddistill.schedules import cosine
from ddistill.settings import LowRankSettings, Settings, StudentsSettings
from ddistill.students import stack
from ddistill.training.loop import Learnt, apart_from_teacher
from ddistill.training.run_stages import starting_point
from ddistill.wrapped_denoiser import with_guidance

UNET = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "out_channels": 3}
TEXT = {
    **{"widths": (8, 16), "blocks": (1,), "attends": (0,), "heads": (2,), "context_dim": 6},
    **{"norm_groups": 4, "out_channels": 3},
}
NETS = {
    "unet": {**UNET, "attention": (2,), "norm_groups": 4, "num_classes": 3},
    "adm": {**UNET, "attention": (2,), "norm_groups": 4, "resample": "resblock"},
    "text_unet": TEXT,
    "linear": {**TEXT, "linear_projection": True, "remat": True, "depth": (2,)},
    "captioned_unet": {**TEXT, "vocabulary": 20, "positions": 5, "text_layers": 1, "text_heads": 2},
    "song": {**UNET, "attention": (2,)},
    "dhariwal": {**UNET, "attention": (2,)},
}
BLOCKS = ("down_*", "mid_*", "up_*")


def net_of(name):
    kind = {"adm": "unet", "linear": "text_unet"}.get(name, name)
    return networks.build(kind, **NETS[name])


def inputs(net, count=2):
    """Images, times and conditions, all different."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(count, 4, 4, 3)), jnp.float32)
    time = jnp.arange(count) + 3.0
    if isinstance(net, networks.CaptionedUNet):
        return x, time, Tokens(jnp.arange(5 * count).reshape(count, 5))
    if getattr(net, "reads_text", False):
        states = jnp.asarray(rng.normal(size=(count, 4, 6)), jnp.float32)
        return x, time, TextCondition(states, states.mean(axis=1))
    return x, time, jnp.arange(count) if net.num_classes else None


def drawn(net, *given):
    """Parameters at which every layer matters, also those that are zero before training."""
    return filled(jax.eval_shape(net.init, jax.random.key(0), *given)["params"], 1)


def filled(shapes, seed=0):
    rng = np.random.default_rng(seed)

    def fill(x):
        size = 0.2 if len(x.shape) == 1 else np.prod(x.shape[:-1]) ** -0.5
        return np.float32(size * rng.standard_normal(x.shape))

    return jax.tree.map(fill, shapes)


def factors_of(base, rank, targets=BLOCKS, seed=3):
    """Random factors, where a fresh network has zeros."""
    shapes = jax.eval_shape(lambda: draw_factors(jax.random.key(0), base, rank, targets))
    return filled(shapes, seed)


@pytest.mark.parametrize("name", NETS)
def test_layers_with_factors_are_the_network_with_merged_kernels(name):
    net = net_of(name)
    given = inputs(net)
    base = drawn(net, *given)
    factors = factors_of(base, 3, ("*",) if name == "unet" else BLOCKS)

    def adapted(base, factors):
        with adapting(base, factors):
            return net.apply({"params": base}, *given)

    plainly = jax.jit(lambda params: net.apply({"params": params}, *given))
    ours, wanted = jax.jit(adapted)(base, factors), plainly(merged(base, factors))
    np.testing.assert_allclose(ours, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(wanted - plainly(base)).max() > 1e-2


def test_fresh_factors_change_nothing():
    base = {"layer": {"kernel": jnp.ones((3, 4, 5))}}
    fresh = draw_factors(jax.random.key(0), base, 2, ("*",))
    chex.assert_trees_all_equal(merged(base, fresh), base)
    a = fresh["layer"]["a"]
    assert 0.5 * 12**-0.5 < jnp.abs(a).max() <= 12**-0.5


def test_all_layers_of_blocks_are_adapted_and_no_others():
    """DMD2's list: attention, feed-forward, projections, convolutions, time of blocks, resampling.

    At rank 64 the 278 listed layers of Stable Diffusion 1.5 have 67,252,224 numbers in PEFT's form,
    counted from the shapes of its tensors.
    """
    net = networks.build("text_unet")
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), net.example_condition()
    )["params"]
    found = {"/".join(path) for path in adapted_layers(shapes, BLOCKS)}
    assert {path.split("/")[0] for path in found}.isdisjoint({"conv_in", "conv_out", "time_0"})
    flat = traverse_util.flatten_dict(shapes, sep="/")
    kernels = {path.removesuffix("/kernel") for path in flat if path.endswith("/kernel")}
    assert kernels - found == {"conv_in", "conv_out", "time_0", "time_1"}
    factors = jax.eval_shape(lambda: draw_factors(jax.random.key(0), shapes, 64, BLOCKS))
    assert sum(x.size for x in jax.tree.leaves(factors)) == 67_252_224


def test_default_targets_are_for_networks_without_a_middle_too():
    net = networks.build("text_unet", **{**TEXT, "middle": False})
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(net))["params"]
    assert {path[0].partition("_")[0] for path in adapted_layers(shapes, BLOCKS)} == {"down", "up"}
    with pytest.raises(ConfigError, match="no layer of the network fits"):
        adapted_layers(
            TinyNet().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)), BLOCKS
        )


def test_gradients_are_those_of_merged_kernels():
    net = networks.build("text_unet", **{**TEXT, "widths": (8,), "remat": True})
    given = inputs(net)
    base = drawn(net, *given)
    factors = factors_of(base, 2)

    # The base is an argument: XLA computes with constants while it compiles.
    def ours(factors, base):
        denoiser = Denoiser.from_module(net, factors, "eps", base=base)
        return jnp.sum(jnp.square(denoiser(given[0], cosine(8).at(4), given[2]).x0))

    def theirs(factors, base):
        denoiser = Denoiser.from_module(net, merged(base, factors), "eps")
        return jnp.sum(jnp.square(denoiser(given[0], cosine(8).at(4), given[2]).x0))

    one, other = (jax.jit(jax.grad(f))(factors, base) for f in (ours, theirs))
    chex.assert_trees_all_close(one, other, rtol=1e-3, atol=1e-3)


def test_students_share_the_layers_of_the_base():
    """K students are K times the batch for the base: its convolutions stay plain."""
    net = networks.build("unet", **NETS["unet"], conv_impl="xla")
    given = inputs(net)
    base = drawn(net, *given)
    students = [factors_of(base, 2, seed=k) for k in range(3)]

    def apply(factors, base):
        with adapting(base, factors):
            return net.apply({"params": base}, *given)

    many, plainly = jax.jit(jax.vmap(apply, in_axes=(0, None))), jax.jit(net.apply)
    found = many(stack(students), base)
    all_merged = merged(base, stack(students))
    for k, own in enumerate(students):
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, k=k: x[k], all_merged), merged(base, own), atol=1e-6
        )
        wanted = plainly({"params": merged(base, own)}, *given)
        np.testing.assert_allclose(found[k], wanted, atol=1e-4 * np.abs(wanted).max())
    # Grouped are the convolutions to the two channels of the factors, and none with a whole kernel.
    text = many.lower(stack(students), base).as_text("hlo")
    wide = [
        line
        for line in text.splitlines()
        if " convolution(" in line and "feature_group_count=3" in line
    ]
    assert wide
    assert list(convolution_groups(text)) == [3]
    assert all(line.split("]")[0].endswith(",6") for line in wide)


def test_extraction_is_exact_from_the_true_rank_on_and_the_best_below():
    net = net_of("text_unet")
    base = drawn(net, *inputs(net))
    params = jax.device_get(merged(base, factors_of(base, 3)))
    for rank in (3, 8):
        found = extract(base, params, rank)
        chex.assert_trees_all_close(merged(base, found.factors), params, atol=1e-5)
        assert found.left_out < 1e-9
        assert found.ranks.keys() == adapted_layers(base, BLOCKS).keys()
    # Of rank 1, the largest singular value of every layer stays.
    found = extract(base, params, 1)
    total = left = 0.0
    for path in found.ranks:
        change = [traverse_util.flatten_dict(t)[(*path, "kernel")] for t in (params, base)]
        s = np.linalg.svd((change[0] - change[1]).reshape(-1, change[0].shape[-1]))[1]
        total, left = total + np.sum(s**2), left + np.sum(s[1:] ** 2)
    assert found.left_out == pytest.approx(left / total, rel=1e-4)


def test_what_is_no_kernel_is_left_out_and_said():
    net = TinyNet()
    base = jax.device_get(net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)))
    params = jax.tree.map(lambda x: x + 1.0 if x.ndim == 1 else x, base)["params"]
    params["final"]["kernel"] = params["final"]["kernel"] + 1.0
    found = extract(base["params"], params, 4)
    assert found.ranks == {("final",): 1}
    assert found.left_out == pytest.approx(13 / 19)
    with pytest.raises(ConfigError, match="nothing to extract"):
        extract(base["params"], base["params"], 4)
    del params["final"]["bias"]
    with pytest.raises(ConfigError, match=r"'final/bias' is missing and in the base \(1,\)"):
        extract(base["params"], params, 4)


def test_a_layer_that_cannot_adapt_is_named():
    class Scaled(nn.Module):
        """Its kernel is no layer's."""

        @nn.compact
        def __call__(self, x):
            return x * self.param("kernel", nn.initializers.ones, (1, 1))[0]

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Scaled(name="scaled")(x)

    params = {"scaled": {"kernel": jnp.ones((1, 1))}}
    factors = draw_factors(jax.random.key(0), params, 1, ("scaled",))
    with (
        adapting(params, factors),
        pytest.raises(ConfigError, match="'scaled' is a Scaled, which is not a layer"),
    ):
        Outer().apply({"params": params}, jnp.ones((2, 3)))


# ------------------------------------------------------------------------------------------ runs

LOW = LowRankSettings(rank=2, targets=("*",))


def settings(**second) -> Settings:
    """A teacher, two students of low rank on one base, and a stage that goes on from them."""
    made = runs.tiny_settings(4)
    evaluation = dataclasses.replace(made.evaluation, enabled=False)
    student = dataclasses.replace(
        made.stages["student"],
        objective={"name": "o2mkd"},
        students=StudentsSettings(count=2, partition="timesteps"),
        low_rank=LOW,
        method="o2mkd",
        ema=(0.5,),
    )
    later = dataclasses.replace(student, init="student", **second)
    stages = {"teacher": made.stages["teacher"], "student": student, "later": later}
    return dataclasses.replace(made, stages=stages, pipeline=tuple(stages), evaluation=evaluation)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("low_rank") / "run"
    return ddistill.train(plain(settings()), workdir=folder, quiet=True)


def test_a_stage_trains_factors_and_keeps_one_base(run):
    teacher, student = (
        run.networks.weights(run.plan("teacher")),
        run.networks.weights(run.plan("student")),
    )
    assert student.base is teacher.params
    shapes = {x.shape for x in jax.tree.leaves(student.params["final"])}
    assert shapes == {(2, 6, 2), (2, 2, 1)}
    trained = student.params["final"]["b"]
    assert np.abs(trained).min(axis=(1, 2)).max() > 0
    assert not np.array_equal(trained[0], trained[1])
    manifest = run.plan("student").manifest()
    assert manifest.parameters == sum(x.size for x in jax.tree.leaves(teacher.params))


def test_the_teacher_is_the_base_on_the_devices_too(run):
    """Bases that are the teacher's parameters are no arguments of the step beside it."""
    plans = {plan.name: plan for plan in run.plans}
    teacher = run.networks(plans["teacher"])
    bases = run.networks.bases(plans["student"], plans)
    assert bases.keys() == {"student"}
    assert apart_from_teacher(Learnt(with_guidance(teacher, 2.0, 10), bases=bases)) == {}
    other = {"student": jax.tree.map(np.copy, bases["student"])}
    assert apart_from_teacher(Learnt(teacher, bases=other)) == other


def test_a_later_stage_goes_on_with_the_factors(run):
    first, second = (run.networks.weights(run.plan(n)) for n in ("student", "later"))
    assert second.base is first.base
    moved = np.abs(second.params["final"]["b"] - first.params["final"]["b"]).max()
    assert 0 < moved < 0.2
    assert np.abs(first.params["final"]["b"]).max() > moved / 10


def test_a_run_opened_from_its_folder_samples_the_same(run):
    again = ddistill.load(run.folder)
    for stage in ("student", "later"):
        one, other = (dataclasses.replace(r, stage=stage).sample(3, seed=1) for r in (run, again))
        np.testing.assert_array_equal(one, other)
    routed = again.network(again.sampler_run("student"))
    assert routed.students.base is not None
    own = whole(routed.student(1))
    given = jnp.ones((1, 8, 8, 1)), run.plan("student").levels.at(2), jnp.zeros(1, jnp.int32)
    chex.assert_trees_all_close(own(*given), routed.student(1)(*given), atol=1e-4)
    assert not np.allclose(own(*given).x0, routed.student(0)(*given).x0, atol=1e-6)


def test_whole_students_start_from_merged_kernels(run, tmp_path):
    plans = runs.plans_of(settings(low_rank=LowRankSettings()), tmp_path / "r")
    start = starting_point(plans["later"], plans, run.networks).weights["student"]
    found = run.networks.weights(run.plan("student"))
    assert start.base is None
    wanted = found.student(1).whole().params
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], start.params), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low_rank": LowRankSettings(3, ("*",))}, "Set both alike"),
        ({"low_rank": LowRankSettings(-1)}, "low_rank.rank=-1 must be 0 (off) or more"),
        ({"low_rank": LowRankSettings(2, ("finall",))}, "fits 'finall'. Did you mean 'final'?"),
        ({"low_rank": LowRankSettings(2, ("*",), ("fake",))}, "low_rank.networks"),
        ({"low_rank": LowRankSettings(2, ("*",), ())}, "low_rank.networks is empty"),
        ({"low_rank": LOW, "init": "fresh"}, "init is 'fresh'"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, words, tmp_path):
    made = settings()
    stages = {**made.stages, "later": dataclasses.replace(made.stages["later"], **change)}
    with pytest.raises(ConfigError) as caught:
        runs.plans_of(dataclasses.replace(made, stages=stages), tmp_path / "r")
    assert words in str(caught.value)
    assert "config.stages.later" in str(caught.value)
    assert "\n" not in str(caught.value)
