"""Students of a text-to-image teacher: every method's targets, losses and programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import texted
import tiny
import tiny_sd
from flax import struct, traverse_util
from gaussian import GaussianDenoiser
from test_text_objectives import EMPTY, GRID, MEANS, TABLES, ExactOfTexts, MakesMeans, batch, texts

from benchmarks.shapes import arguments
from ddistill import data
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling_plan import short_runs
from ddistill.generation import at_guidance
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.networks import extra_inputs
from ddistill.networks.survivors import survivors
from ddistill.networks.text_encoding import TextEncoder
from ddistill.networks.text_unet import TextUNet
from ddistill.objectives import make_objective
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.planning.plan import StagePlan
from ddistill.runtime.sharding import Layout, data_mesh
from ddistill.settings import GridSettings, LowRankSettings, StudentsSettings
from ddistill.training.compiled import Chunk, step_settings
from ddistill.training.step import make_step
from ddistill.wrapped_denoiser import GuidedDenoiser

pytest.importorskip("tokenizers")

POINTS = ExactOfTexts(std=0.0)

# ------------------------------------------------------------------------------------ closed form


def loss(name, networks, given=None, **changes):
    objective = make_objective({"name": name, **changes}).prepare(StageFacts(GRID))
    given = given or batch()
    return objective.updates[0].loss({"fake": None, **networks}, given, TABLES)[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("progressive", {}),
        ("cd", {"solver": "ddim"}),
        ("cd", {"level_skip": 2, "distance": "pixel_huber", "huber": 0.001}),
        ("tsm", {}),
    ],
)
def test_points_are_learnt_without_a_loss(name, options):
    """Where the data of a prompt are a point, one step of a student is as good as the teacher."""
    found = loss(name, {"student": POINTS, "teacher": POINTS, "target": POINTS}, **options)
    np.testing.assert_allclose(found, 0.0, atol=1e-6)
    off = ExactOfTexts(0.1, 0.0)
    assert (loss(name, {"student": off, "teacher": POINTS, "target": POINTS}, **options) > 0).all()


def test_denoising_ends_at_the_spread_of_the_data():
    """The exact denoiser's error is the variance that a noisy latent leaves open."""
    count, std = 4096, 0.4
    prompts = np.arange(count) % 2
    given = batch(prompts)
    noise = np.random.default_rng(0).standard_normal((count, *tiny.IMAGE))
    image = jnp.asarray(MEANS[prompts][:, None, None, None] + std * noise, jnp.float32)
    given = dataclasses.replace(given, image=image)
    values = loss("denoising", {"student": ExactOfTexts(std=std)}, given, error="x0")
    levels = [TABLES.student.at(i) for i in range(1, len(GRID))]
    open_ = [(std * l.sigma) ** 2 / ((l.alpha * std) ** 2 + l.sigma**2) for l in levels]
    assert np.mean(values) == pytest.approx(np.mean(open_), rel=0.05)


@struct.dataclass
class Told:
    """A network that keeps the guidance that it is given."""

    guidance: jax.Array

    def given(self, *, guidance):
        return Told(guidance)


def test_guidance_as_an_input_moves_the_target_away_from_the_empty_text():
    """LCM: the teacher at w is exact for the point m0 + w (m - m0), m0 the empty text's."""
    objective = make_objective({"name": "cd", "guidance_range": (1.0, 8.0), "level_skip": 2})
    facts = NetworkFacts(teacher=TextUNet(), student_prediction="eps")
    objective = objective.prepare(StageFacts(GRID, facts))
    given = batch()
    told = objective.at_guidance(
        {"student": Told(0.0), "teacher": POINTS, "target": Told(0.0)}, given
    )
    scale = told["student"].guidance
    np.testing.assert_array_equal(scale, told["target"].guidance)
    assert len(np.unique(scale)) == 6
    own = MEANS[[0, 1, 1, 0, 1, 0]]
    means = (MEANS[EMPTY] + scale * (own - MEANS[EMPTY]))[:, None, None, None]
    exact = GaussianDenoiser(means, 0.0)
    state = objective.state(told, given, TABLES)
    found = objective.target({**told, "target": exact}, state, TABLES)
    np.testing.assert_allclose(found.x0, jnp.broadcast_to(means, found.x0.shape), atol=1e-4)


def test_the_real_score_is_guided_and_the_fake_one_is_not():
    """Images are driven to the guided mean: those at the prompt's own mean still move away."""
    objective = make_objective({"name": "dmd", "regression_weight": 0.0, "backward": "data"})
    objective = objective.prepare(StageFacts(GRID))
    guided, given = GuidedDenoiser(ExactOfTexts(), 1.75, texts([EMPTY])), batch([1] * 6)
    end = 0.75 * float(MEANS[1] - MEANS[EMPTY])

    def gradient(shift):
        networks = {"teacher": guided, "fake": ExactOfTexts(shift=shift)}

        def total(moved):
            student = {"student": MakesMeans(moved)}
            return jnp.sum(objective.student_loss({**networks, **student}, given, TABLES)[0])

        return jax.grad(total)(shift)

    assert gradient(0.0) < 0 < gradient(2 * end)
    assert abs(gradient(end)) < 1e-3 * abs(gradient(0.0))


def test_snr_weights_make_the_fake_loss_the_error_of_eps():
    objective = make_objective({"name": "dmd", "regression_weight": 0.0, "fake_weight": "snr"})
    objective = dataclasses.replace(objective, top=32)
    given, fake = batch(), ExactOfTexts(0.3)
    given = dataclasses.replace(given, shared={"image": given.image, "cond": given.cond})
    found, metrics = objective.guidance_loss({"fake": fake}, given, TABLES)
    level, noise, z = objective._noised(given.image, given.key("fake"), TABLES)
    wanted = jnp.mean(jnp.square(fake(z, level, given.cond).eps - noise), axis=(1, 2, 3))
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    assert metrics["fake_error"] == pytest.approx(float(jnp.mean(wanted)), rel=1e-3)


# -------------------------------------------------------------------------------------- programs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Settings of a run on a tiny pipeline, and its text encoder with shapes for parameters."""
    root = tmp_path_factory.mktemp("students")
    teacher = tiny_sd.write_folder(root / "teacher", tiny_sd.one_level)
    model = read_stable_diffusion(teacher)
    path = texted.latent_set(root, f"diffusers:{teacher}", 8)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.text_encoder.params
    )
    return texted.distilled(teacher, path, model), TextEncoder(shapes, model.text_encoder.build())


def plan_with(made, folder, **changes) -> dict[str, StagePlan]:
    changes = {"guidance": 1.0, "accumulate": 1, **changes}
    return runs.plans_of(texted.changed(made[0], "student", **changes), folder)


def traced(made, plans):
    """Shapes of the state and the metrics after a step of the stage "student"."""
    plan, dataset = plans["student"], data.load(made[0].data, "train")
    layout = Layout(data_mesh(1), plan.settings.students.count, "vmap")
    images = bool(plan.objective.requires.images)
    chunk = Chunk(make_step(step_settings(plan, layout, flip=False)), 1, not images, layout)
    given = arguments(plan, plans, dataset, layout, made[1])
    return jax.eval_shape(chunk._steps, *given)


SMALLER = {"blocks": (1,), "middle": False}
PARTS = StudentsSettings(count=2, partition="timesteps")
SWEEP = StudentsSettings(count=2, sweep={"seed": (0, 1)})
ADM = {"name": "dmd2", "student_every": 10, "fake_weight": "snr"}
METHODS = {
    "denoising": {"objective": {"name": "denoising", "error": "eps", "label_dropout": 0.1}},
    "sfddm": {"objective": {"name": "sfddm", "substeps": 4}, "guidance": 7.5},
    "progressive": {"objective": {"name": "progressive"}, "grid": GridSettings(steps=4)},
    "lcm": {
        "objective": {"name": "cd", "level_skip": 2, "guidance_range": (3.0, 15.0)},
        "grid": GridSettings(steps=10),
    },
    "o2mkd": {
        "objective": {"name": "o2mkd", "feature_weight": 1.0, "features": ("down_0", "out_0")},
        "students": PARTS,
    },
    "tsm": {"objective": {"name": "tsm"}, "students": PARTS},
    "dm": {
        "objective": {"name": "dmd", "regression_weight": 0.0},
        "guidance": 1.75,
        "grid": GridSettings(steps=1),
    },
    "adm": {"objective": ADM, "guidance": 1.75, "grid": GridSettings(steps=1)},
    "adm of low rank": {
        "objective": ADM,
        "guidance": 1.75,
        "grid": GridSettings(steps=1),
        "students": SWEEP,
        "low_rank": LowRankSettings(2, networks=("student", "fake")),
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_every_method_can_be_made(made, tmp_path, name):
    changes = METHODS[name]
    plans = plan_with(made, tmp_path, **changes)
    state, metrics = traced(made, plans)
    assert {"loss", "grad_norm"} <= set(metrics)
    for leaf in jax.tree.leaves((state.params, metrics)):
        assert leaf.shape is not None
    student = plans["student"]
    if name == "lcm":
        assert student.module.guidance_dim == 256
        assert extra_inputs(student.settings.network) == ("guidance",)
        assert "guidance" in state.params["student"]
    if name.startswith("adm"):
        assert set(state.params) == {"student", "fake", "discriminator"}
        assert {"logit_real", "fake_error", "saturation"} <= set(metrics)
        # The head on the fake network's middle.
        assert student.objective.shapes[0][0] == "mid"
    if name == "adm of low rank":
        sizes = {n: sum(x.size for x in jax.tree.leaves(t)) for n, t in state.params.items()}
        assert (
            sizes["student"]
            == sizes["fake"]
            < 2 * sum(x.size for x in jax.tree.leaves(plans["teacher"].imported.params))
        )


def test_a_student_that_is_given_guidance_is_not_guided_beside(made, tmp_path):
    """As in diffusers, where a U-Net with `time_cond_proj_dim` runs once."""
    lcm = {"name": "cd", "level_skip": 2, "guidance_range": (1.0, 8.0)}
    plan = plan_with(made, tmp_path, objective=lcm, grid=GridSettings(steps=10))["student"]
    (run,) = short_runs(made[0], plan, 2)
    assert (run.guidance, run.inputs, run.nfe) == (1.0, {"guidance": 2.0}, 2)
    found = at_guidance(run, 5)
    assert (found.guidance, found.inputs, found.nfe) == (1.0, {"guidance": 5.0}, 2)
    assert found.scale_of_guidance == 5.0
    with pytest.raises(ConfigError, match="guidance=9 .*was trained with guidance 1 to 8"):
        at_guidance(run, 9.0)
    plain = plan_with(made, tmp_path)["student"]
    (run,) = short_runs(made[0], plain, 2)
    assert (at_guidance(run, 5).guidance, at_guidance(run, 5).nfe) == (5.0, 4)


def test_students_with_fewer_blocks_take_over_the_layers_that_remain():
    """As in BK-SDM: the first blocks down, the first and the last up; levels by their place.

    A level can go where the one above it is as wide, as the two innermost ones of Stable Diffusion.
    """
    theirs = TextUNet(
        widths=(4, 8, 8), blocks=(2,), attends=(0, 1), heads=(2,), context_dim=3, norm_groups=2
    )
    base = theirs.clone(blocks=(1,))
    small = base.clone(middle=False)
    little = small.clone(widths=(4, 8), attends=(0, 1))

    def shapes(net):
        side = 2 ** (len(net.widths) - 1)
        x = jnp.zeros((1, side, side, 4))
        found = jax.eval_shape(
            net.init, jax.random.key(0), x, jnp.zeros(1), net.example_condition()
        )
        return traverse_util.flatten_dict(found["params"], sep="/")

    given = shapes(theirs)
    names = dict(zip(given, given))
    for ours in (theirs, base, small, little):
        tree = traverse_util.unflatten_dict(names, sep="/")
        kept = traverse_util.flatten_dict(survivors(tree, ours, theirs), sep="/")
        wanted = shapes(ours)
        assert kept.keys() == wanted.keys()
        assert all(given[kept[name]].shape == wanted[name].shape for name in wanted)
    assert kept["up_1_1_text/norm/scale"] == "up_1_2_text/norm/scale"
    assert kept["up_1_0/conv1/kernel"] == "up_1_0/conv1/kernel"
    assert kept["down_1_0/conv1/kernel"] == "down_1_0/conv1/kernel"


def test_a_smaller_student_of_a_pipeline_starts_from_its_layers(made, tmp_path):
    teacher = runs.plans_of(made[0], tmp_path / "a")["teacher"].settings.network
    plans = plan_with(made, tmp_path / "b", network={**teacher, **SMALLER}, guidance=2.0)
    assert not plans["student"].module.middle
    narrow = {**teacher, **SMALLER, "widths": (8,)}
    with pytest.raises(ConfigError) as caught:
        plan_with(made, tmp_path / "c", network=narrow)
    text = str(caught.value)
    assert "takes over the layers of 'teacher'" in text
    assert "init='fresh'" in text
    assert "\n" not in text
