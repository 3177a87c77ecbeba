"""O2MKD's feature distance, and the projections that are learnt beside the students."""

import dataclasses
import functools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn
from runs import UNET, LateStop, differences, plans_of, saved_state, saved_steps
from stacks import train, with_students
from test_configs import FILES, load, planned
from test_o2mkd import NARROW, run, settings

from ddistill.data.facts import DataFacts
from ddistill.denoiser import Denoiser
from ddistill.diffusion import add_noise
from ddistill.errors import ConfigError
from ddistill.objectives import hyperparameters, make_objective
from ddistill.objectives.base import init_inputs, trained_auxiliaries
from ddistill.objectives.o2mkd import O2MKD
from ddistill.objectives.parts import NetworkFacts, StageFacts, Taps
from ddistill.objectives.sampling import normal
from ddistill.parsing import parse
from ddistill.planning.checks.networks import check_network
from ddistill.planning.context import StageContext
from ddistill.runtime.interrupt import Interrupted
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout, data_mesh
from ddistill.schedules import make_schedule
from ddistill.settings import Settings, StageSettings
from ddistill.students import stack, take
from ddistill.training.state import count_parameters
from ddistill.training.step_inputs import StepSettings
from ddistill.training.trained import load_network


def prepared(student, teacher, **hyper) -> O2MKD:
    """The objective as planning prepares it for two modules."""
    objective = O2MKD(**{"feature_weight": 0.1, **hyper})
    stage = StageSettings({"name": "o2mkd"}, steps=1, batch_size=1)
    run = Settings("run", {"stage": stage}, ("stage",), {"name": "digits"})
    facts = DataFacts("tiny", tiny.IMAGE, ("0",), (8,), False, "", {})
    context = StageContext("stage", stage, run, make_schedule("karras", 8), facts, earlier={})
    taps = objective.taps
    shapes = (
        check_network(context, objective, student, taps.student),
        check_network(context, objective, teacher, taps.teacher),
    )
    return objective.prepare(StageFacts(np.arange(5), NetworkFacts(teacher, "eps", *shapes)))


class TwoTaps(nn.Module):
    """What of a U-Net matters here: features of two sizes, and an output after the last of them."""

    inner: int
    outer: int

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=()):
        h = nn.tanh(nn.Dense(self.outer)(x) + nn.Dense(self.outer)(time[:, None])[:, None, None])
        mid = nn.tanh(nn.Dense(self.inner)(nn.avg_pool(h, (2, 2), (2, 2))))
        last = nn.tanh(h + nn.Dense(self.outer)(mid.repeat(2, axis=1).repeat(2, axis=2)))
        out = nn.Dense(1, name="final")(last)
        return (out, {tap: {"mid": mid, "last": last}[tap] for tap in taps}) if taps else out


def network(inner: int, outer: int, seed: int) -> tuple[Denoiser, TwoTaps]:
    module = TwoTaps(inner, outer)
    draw = jax.jit(module.init)
    params = draw(jax.random.key(seed), jnp.zeros((1, *tiny.IMAGE)), jnp.zeros(1))["params"]
    return Denoiser.from_module(module, params, "eps"), module


def bound(objective: O2MKD, seed: int = 5):
    """The projection's parameters and what a loss calls."""
    module = trained_auxiliaries(objective)["projection"]
    inputs = init_inputs(objective, "projection", tiny.IMAGE, False)
    params = module.init(jax.random.key(seed), *inputs)["params"]
    return params, lambda p: functools.partial(module.apply, {"params": p})


# ---------------------------------------------------------------------------------- the loss


def test_value_is_the_sum_over_taps_of_mean_squares():
    """Projected, subtracted and averaged here in float64, from features of the bare modules."""
    (student, small), (teacher, large) = network(6, 4, 1), network(12, 8, 0)
    tables, batch = tiny.tables(), tiny.batch()
    objective = prepared(small, large, output_weight=2.0)
    assert objective.projected == (("mid", 6, 12), ("last", 4, 8))
    params, call = bound(objective)
    params = jax.tree.map(lambda x: x + 0.1, params)  # the biases too
    both = {"student": student, "teacher": teacher, "projection": call(params)}
    found, metrics = objective.regression_loss(both, batch, tables)

    index = jax.vmap(lambda key: jax.random.randint(key, (), 1, 5))(batch.key("level"))
    level = tables.student.at(index)
    z = add_noise(batch.image, normal(batch.key("noise"), batch.image), level)
    taps = {"taps": ("mid", "last")}
    ours, theirs = (
        module.apply({"params": d.params}, z, level.time, **taps)
        for d, module in ((student, small), (teacher, large))
    )
    expected = 2.0 * np.mean(np.subtract(ours[0], theirs[0], dtype=np.float64) ** 2, axis=(1, 2, 3))
    distances = 0.0
    for tap in taps["taps"]:
        kernel, bias = (np.asarray(params[tap][k], np.float64) for k in ("kernel", "bias"))
        f, g = (np.asarray(x[1][tap], np.float64) for x in (ours, theirs))
        distances += np.mean((f @ kernel[0, 0] + bias - g) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found, expected + 0.1 * distances, rtol=1e-4)
    np.testing.assert_allclose(metrics["feature_distance"], np.mean(distances), rtol=1e-4)


def test_a_student_that_is_the_teacher_has_no_loss_no_gradient_and_no_projection():
    teacher, module = network(6, 4, 0)
    objective = prepared(module, module)
    assert objective.projected == ()
    assert objective.auxiliaries == {}
    assert objective.updates[0].trained == ("student",)

    def loss(params):
        both = {"student": teacher.replace(params=params), "teacher": teacher}
        return jnp.sum(objective.regression_loss(both, tiny.batch(), tiny.tables())[0])

    value, gradient = jax.value_and_grad(loss)(teacher.params)
    assert float(value) == 0.0
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for g in jax.tree.leaves(gradient))


def test_only_features_of_unlike_widths_are_projected():
    objective = prepared(TwoTaps(8, 4), TwoTaps(8, 8))
    assert objective.projected == (("last", 4, 8),)
    params, call = bound(objective)
    assert set(params) == {"last"}
    features = {"mid": jnp.ones((2, 2, 2, 8)), "last": jnp.ones((2, 4, 4, 4))}
    out = call(params)(features)
    assert out["mid"] is features["mid"]
    assert out["last"].shape == (2, 4, 4, 8)


def test_gradients_reach_student_and_projections_and_not_the_teacher():
    (student, small), (teacher, large) = network(6, 4, 1), network(12, 8, 0)
    objective = prepared(small, large, output_weight=0.0)
    params, call = bound(objective)

    def loss(trees):
        both = {
            "student": student.replace(params=trees["student"]),
            "teacher": teacher.replace(params=trees["teacher"]),
            "projection": call(trees["projection"]),
        }
        return jnp.mean(objective.regression_loss(both, tiny.batch(), tiny.tables())[0])

    trees = {"student": student.params, "teacher": teacher.params, "projection": params}
    gradient = jax.jit(jax.grad(loss))(trees)
    largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient)
    assert max(jax.tree.leaves(largest["teacher"])) == 0.0
    assert min(jax.tree.leaves(largest["projection"])) > 0.0
    outside = largest["student"].pop("final")
    assert max(jax.tree.leaves(outside)) == 0.0
    assert min(jax.tree.leaves(largest["student"])) > 0.0


def test_off_it_is_not_there():
    objective = O2MKD()
    assert (objective.taps, objective.auxiliaries) == (Taps(), {})
    assert objective.updates[0].trained == ("student",)
    assert O2MKD(feature_weight=0.1, output_weight=0.0).teacher_calls() == 1


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"feature_weight": -0.1}, "objective.feature_weight=-0.1"),
        ({"feature_weight": 0.1, "features": ()}, r"features=\(\) must name at least one"),
        ({"feature_weight": 0.1, "features": ("mid", "mid")}, r"\('mid', 'mid'\).* each once"),
        ({"projected": (("mid", 4, 8),)}, "objective.projected is not a setting of 'o2mkd'"),
    ],
)
def test_hyperparameters_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "o2mkd", **hyper})


def test_what_planning_fills_in_is_no_hyperparameter():
    assert "features" in hyperparameters("o2mkd")
    assert "projected" not in hyperparameters("o2mkd")


def test_one_tap_or_a_list_of_them_can_be_given():
    one, listed = (make_objective({"name": "o2mkd", "features": f}) for f in ("mid", ["mid"]))
    assert one == listed
    assert one.features == ("mid",)
    assert hash(one) == hash(listed)


# ---------------------------------------------------------------------------------- the step

WIDE, THIN = tiny.TinyNet(width=8), tiny.TinyNet(width=4)


def step_settings(**changes) -> StepSettings:
    objective = prepared(THIN, WIDE, feature_weight=1.0, features=("last",))
    modules = {"student": THIN, **trained_auxiliaries(objective)}
    rule = {name: optax.adam(1.0) for name in modules}
    layout = Layout(data_mesh(8, jax.devices()[:1]))
    return StepSettings(objective, modules, "v", rule, layout=layout, **changes)


def first_weights(s: StepSettings, seed: int):
    return {"student": tiny.tiny_params(seed, THIN), "projection": bound(s.objective, seed)[0]}


def trained(s: StepSettings, seeds: tuple[int, ...], steps: int, mapping: str = ""):
    """The state and all metrics of one student, or with a mapping of one for each seed."""
    weights = [first_weights(s, seed) for seed in seeds]
    keys = [stream_key(seed, "train") for seed in seeds]
    rng = [np.random.default_rng(seed) for seed in seeds]
    batch_indices = np.stack([r.integers(0, 40, (steps, 8)) for r in rng], axis=1).astype(np.int32)
    rates = {name: np.full((steps, len(seeds)), 0.01, np.float32) for name in s.modules}
    teacher, tables = tiny.tiny_denoiser(9, module=WIDE), tiny.tables()
    data = (tiny.batch(40).image, tiny.batch(40).label)
    if mapping:
        s, weights = with_students(s, len(seeds), mapping), stack(weights)
        tables = jax.tree.map(lambda x: np.stack([x] * len(seeds)), tables)
        keys = jnp.stack(keys)
    else:
        weights, keys, batch_indices = weights[0], keys[0], batch_indices[:, 0]
        rates = jax.tree.map(lambda x: x[:, 0], rates)
    state, rows = train(s, weights, teacher, tables, data, batch_indices, keys, rates)
    return state, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def test_projections_learn_and_the_distance_falls():
    s = step_settings()
    state, metrics = trained(s, (1,), 60)
    assert set(metrics) == {"loss", "grad_norm", "output_distance", "feature_distance", "x0_mse"}
    first, last = (np.mean(metrics["feature_distance"][i]) for i in (slice(5), slice(-5, None)))
    assert last < 0.5 * first
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), first_weights(s, 1), dict(state.params)
    )
    assert min(jax.tree.leaves(moved)) > 0
    assert set(state.opt_state) == {"student", "projection"}
    chex.assert_trees_all_equal_shapes(state.ema["0.9"], state.params["student"])


def test_accumulation_changes_nothing_but_rounding():
    whole, _ = trained(step_settings(), (1,), 2)
    parts, _ = trained(step_settings(accumulate=2), (1,), 2)
    chex.assert_trees_all_close(whole, parts, rtol=2e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone():
    """Three trainings, one after the other."""
    s = step_settings()
    return [trained(s, (seed,), 3) for seed in range(3)]


@pytest.mark.parametrize("mapping", ["vmap", "loop", "shard"])
def test_every_student_learns_its_own_projections_as_if_it_were_alone(mapping, alone):
    state, metrics = trained(step_settings(), (0, 1, 2), 3, mapping)
    for k, (own, found) in enumerate(alone):
        for part in ("params", "opt_state", "ema"):
            chex.assert_trees_all_close(
                jax.device_get(take(getattr(state, part), k)),
                jax.device_get(getattr(own, part)),
                rtol=1e-5,
                atol=1e-5,
            )
        for name, values in found.items():
            np.testing.assert_allclose(metrics[name][:, k], values, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------- stages

LOSS = {"feature_weight": 0.1, "features": ("last",)}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nobody stops: students of width 4 and their teacher of width 6."""
    folder = tmp_path_factory.mktemp("projections") / "run"
    plans, _ = run(settings(loss=LOSS), folder)
    return folder, plans


def test_a_stage_saves_its_projections_and_hands_on_its_students(straight):
    _, plans = straight
    warm, many = plans["o2mkd_warmup"], plans["o2mkd_k2"]
    assert many.objective.projected == (("last", NARROW["width"], 6),)
    state = saved_state(many, 20)
    shapes = jax.tree.map(lambda x: x.shape, state.params["projection"])
    assert shapes == {"last": {"kernel": (2, 1, 1, 4, 6), "bias": (2, 6)}}
    assert set(state.opt_state) == {"student", "projection"}
    first, second = (take(state.params["projection"], k) for k in range(2))
    assert len(differences(first, second)) == 2
    handed_on = load_network(many).students.params
    assert jax.tree.structure(handed_on) == jax.tree.structure(state.params["student"])
    alone = count_parameters(saved_state(warm, 20).params["student"])
    assert many.manifest().parameters == warm.manifest().parameters == alone
    line = (many.folder / "metrics.jsonl").read_text().splitlines()[-1]
    for key in ("loss", "grad_norm", "feature_distance", "loss/1"):
        assert f'"{key}"' in line


def test_a_stopped_run_ends_as_the_straight_one(straight, tmp_path):
    folder, expected = straight
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("o2mkd_k2"))
    wanted = settings(loss=LOSS)
    with pytest.raises(Interrupted, match=r"stage 'o2mkd_k2' at step \d+"):
        run(wanted, tmp_path / "run", LateStop(8), only="o2mkd_k2")
    plan = plans_of(wanted, tmp_path / "run")["o2mkd_k2"]
    early = saved_state(plan, saved_steps(plan)[-1])
    assert 0 < int(early.step) < 20
    run(wanted, tmp_path / "run", only="o2mkd_k2")
    late = saved_state(plan, 20)
    changed = differences(early, late)
    for part in (".params['projection']", ".opt_state['projection']"):
        assert any(path.startswith(part) for path in changed), part
    assert differences(late, saved_state(expected["o2mkd_k2"], 20)) == []


def with_networks(teacher, student, **loss) -> Settings:
    wanted = settings(loss={"feature_weight": 0.1, **loss})
    stages = {
        name: dataclasses.replace(
            stage,
            network={**UNET, "multipliers": (1, 2), **(teacher if name == "teacher" else student)},
        )
        for name, stage in wanted.stages.items()
    }
    return dataclasses.replace(wanted, stages=stages)


@pytest.mark.parametrize(
    ("student", "loss", "words"),
    [
        (
            {"channels": 4, "multipliers": (1,)},
            {},
            [
                "config.stages.o2mkd_warmup.objective: the features at tap 'mid'",
                "(8, 8, 4) in the student and (4, 4, 16) in the teacher",
                "name other taps in objective.features",
            ],
        ),
        (
            {"channels": 4},
            {"features": ("midd", "last")},
            ["config.stages.o2mkd_warmup", "feature tap='midd'", "Did you mean 'mid'?"],
        ),
    ],
)
def test_features_that_cannot_be_compared_are_refused(student, loss, words, tmp_path):
    wanted = with_networks({"channels": 8}, student, **loss)
    with pytest.raises(ConfigError) as caught:
        plans_of(wanted, tmp_path / "run")
    for word in words:
        assert word in str(caught.value)


def test_students_of_the_teachers_width_have_no_projection(tmp_path):
    plans = plans_of(with_networks({"channels": 8}, {"channels": 8}), tmp_path / "run")
    assert [set(plan.modules) for plan in plans.values()] == [{"student"}] * 3


def test_the_digest_knows_the_features_only_where_they_are_compared(tmp_path):
    def digest(**loss):
        return plans_of(settings(loss=loss), tmp_path / "run")["o2mkd_warmup"].digest

    spelt_out = settings().stages["o2mkd_warmup"]
    short = {k: v for k, v in spelt_out.objective.items() if not k.startswith("feature")}
    assert len(spelt_out.objective) == len(short) + 2
    wanted = settings()
    stages = {**wanted.stages, "o2mkd_warmup": dataclasses.replace(spelt_out, objective=short)}
    before = plans_of(dataclasses.replace(wanted, stages=stages), tmp_path / "run")
    assert digest() == digest(features=("up_0",)) == before["o2mkd_warmup"].digest
    assert len({digest(), digest(**LOSS), digest(**{**LOSS, "feature_weight": 0.2})}) == 3


def test_a_config_switches_the_distance_on(tmp_path):
    config = load(next(f for f in FILES if f.stem == "o2mkd_digits")).get_config()
    config.stages.o2mkd_w8_k4.objective.feature_weight = 0.1
    plans = {plan.name: plan for plan in planned(parse(config, Settings), tmp_path)}
    assert plans["o2mkd_w8_k4"].objective.projected == (("mid", 16, 32), ("last", 8, 16))
    assert set(plans["o2mkd_w8_k4"].modules) == {"student", "projection"}
    assert set(plans["o2mkd_w8_k2"].modules) == {"student"}
