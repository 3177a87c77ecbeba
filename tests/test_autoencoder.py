"""Training of autoencoders: losses, the discriminator's start, stages, scaling, scores, latents."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn
from runs import LateStop, Notes, differences, one_stage, plans_of, saved_state

import ddistill
from ddistill import data, networks
from ddistill.commands.data import _KINDS
from ddistill.commands.dispatch import run as command
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.reconstructions import reconstruction_grids, score_reconstructions
from ddistill.experiment import note_run
from ddistill.networks.autoencoder_kl import gaussian
from ddistill.networks.patch_discriminator import PatchDiscriminator
from ddistill.networks.weights import Weights
from ddistill.objectives import make_objective
from ddistill.objectives.autoencoder import BoundAutoencoder, autoencoder_alarms
from ddistill.objectives.parts import StageFacts, Update
from ddistill.parsing import plain, to_plain
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.metrics_log import read_metrics
from ddistill.settings import GridSettings, MeshSettings, Settings, StageSettings, StudentsSettings
from ddistill.training.compiled import Programs
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.state import create_state
from ddistill.training.step import StepInputs, StepSettings, make_step
from ddistill.training.trained import Networks

NET = {"name": "autoencoder_kl", "widths": (4, 4), "blocks": 1, "norm_groups": 2}
STEPS, LOOKS, GAN_START = 8, 6, 3


class Halves(nn.Module):
    """Moments with the mean `scale` times an image and the log-variance `spread`; and back."""

    scale: float = 0.5
    spread: float = -200.0

    def setup(self):
        self.gain = self.param("gain", lambda _: jnp.full((), self.scale))

    def __call__(self, images):
        return self.decode(self.encode(images))

    def encode(self, images):
        log_variance = jnp.full_like(images, self.spread)
        return jnp.concatenate([self.gain * images, log_variance], axis=-1)

    def decode(self, latents):
        return latents[..., :1]


def bound(**options):
    module = Halves(**options)
    return BoundAutoencoder(Weights({"gain": jnp.asarray(module.scale)}), module)


# ---------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_loss_is_the_pixel_error_and_the_weighted_divergence(kind):
    batch = tiny.batch(5)
    objective = make_objective(
        {"name": "autoencoder", "reconstruction": kind, "kl_weight": 1e-3, "gan_weight": 0.0}
    )
    values, metrics, _ = objective.loss({"student": bound()}, batch, tiny.tables())
    x = np.asarray(batch.image, np.float64)
    # The log-variance is bounded to -30, where a draw is the mean.
    error = (np.abs(x / 2) if kind == "l1" else x**2 / 4).mean(axis=(1, 2, 3))
    divergence = (0.5 * (x**2 / 4 + np.exp(-30.0) - 1 + 30)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(values, error + 1e-3 * divergence / x[0].size, rtol=1e-4)
    mse = (x**2 / 4).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["psnr"], np.mean(10 * np.log10(4 / mse)), rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], divergence.mean() / x[0].size, rtol=1e-5)
    np.testing.assert_allclose(metrics["latent_std"], np.std(x / 2), rtol=1e-4)


def test_latents_are_drawn_and_the_divergence_is_0_at_the_standard_normal():
    objective, batch = make_objective({"name": "autoencoder"}), tiny.batch(64)
    found = objective.loss({"student": bound(scale=0.0, spread=0.0)}, batch, tiny.tables())[1]
    assert float(found["kl"]) == 0.0
    np.testing.assert_allclose(found["latent_std"], 1.0, atol=0.1)


def test_the_scaling_is_one_over_the_spread_of_draws():
    """Of a mixture of Gaussians around the images, with a mean that is not 0."""
    images = jnp.asarray(np.random.default_rng(0).uniform(-0.2, 1.0, (50, 4, 4, 1)), jnp.float32)
    measures = make_objective({"name": "autoencoder"}).diagnostics.measures
    numbers = measures.of_images(bound(scale=3.0, spread=-1.0), images)
    found = measures.stored({k: float(np.mean(v)) for k, v in numbers.items()})
    wanted = np.sqrt(np.var(3.0 * np.asarray(images)) + np.exp(-1.0))
    np.testing.assert_allclose(found["latent_std"], wanted, rtol=1e-4)
    np.testing.assert_allclose(found["scaling"], 1 / wanted, rtol=1e-4)


def test_patches_are_judged_one_by_one():
    net = PatchDiscriminator(width=4, layers=2)
    params = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
    logits = net.apply(params, images)
    assert logits.shape == (2, 4, 4, 1)
    np.testing.assert_allclose(net.apply(params, images[:1]), logits[:1], atol=1e-5)
    assert params["params"]["halve_1"]["kernel"].shape == (4, 4, 4, 8)


def test_an_update_may_begin_late():
    late = Update("other", lambda *_: None, every=2, first=3)
    assert np.flatnonzero(late.due(np.arange(8))).tolist() == [4, 6]
    assert late.updates(8) == 2
    assert not Update("other", lambda *_: None, first=1).always


def test_the_discriminator_learns_and_is_followed_from_its_start_on():
    objective = make_objective(
        {
            "name": "autoencoder",
            "gan_weight": 1.0,
            "gan_start": 2,
            "gan_width": 2,
            "gan_layers": 1,
            "kl_weight": 0.0,
        }
    )
    modules = {"student": Halves(), "discriminator": objective.auxiliaries["discriminator"].module}
    optimizers = {name: optax.sgd(0.1) for name in modules}
    step = jax.jit(make_step(StepSettings(objective, modules, "eps", optimizers)))
    image = jnp.zeros((1, *tiny.IMAGE))
    params = {n: m.init(jax.random.key(1), image)["params"] for n, m in modules.items()}
    state = create_state(params, optimizers, ())
    batch, inputs = tiny.batch(6), StepInputs(None, tiny.tables())
    moved, losses = [], []
    for _ in range(4):
        new, metrics = step(state, inputs, batch.image, batch.label, jax.random.key(0))
        moved.append(bool(differences(new.params["discriminator"], state.params["discriminator"])))
        followed = float(metrics["loss"] - metrics["reconstruction_error"])
        losses.append(abs(followed) > 1e-6)
        state = new
    assert moved == losses == [False, False, True, True]


def test_alarms_say_what_is_wrong():
    def names(**means):
        return [(alarm.name, alarm.fatal) for alarm in autoencoder_alarms(means)]

    assert names(kl=2.0, latent_std=5.0, logit_real=1.0, logit_fake=-1.0) == []
    assert names(kl=0.01) == [("collapse", False)]
    assert names(kl=1e-5, latent_std=1e5) == [("collapse", True), ("spread", True)]
    assert names(logit_real=8.0, logit_fake=-8.0) == [("discriminator", False)]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"reconstruction": "l3"}, "objective.reconstruction='l3'"),
        ({"kl_weight": -1.0}, "objective.kl_weight=-1.0 must be a number >= 0"),
        ({"gan_start": 5}, "objective.gan_start=5 has no effect: objective.gan_weight is 0"),
        ({"gan_weight": 1.0, "gan_start": 9}, "gan_start=9 is not below the 9 steps"),
        ({"gan_weight": 1.0, "gan_layers": 4}, "gan_layers=4 needs images of 16 pixels a side"),
        ({"gan_weight": 1.0, "gan_width": 0}, "objective.gan_width=0 must be 1 or more"),
    ],
)
def test_hyperparameters_are_checked(settings, part):
    def prepare():
        made = make_objective({"name": "autoencoder", **settings})
        return made.prepare(StageFacts(np.arange(2), steps=9, batch_size=4, image_shape=(8, 8, 1)))

    with pytest.raises(ConfigError) as error:
        prepare()
    assert part in str(error.value)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------- the stage


@pytest.fixture(autouse=True, scope="module")
def _small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny_autoencoder", tiny.TinyAutoencoder)
        yield


def autoencoder(**changes) -> StageSettings:
    stage = one_stage().stages["teacher"]
    objective = {"name": "autoencoder", "reconstruction": "l2", "kl_weight": 1e-4}
    return dataclasses.replace(
        stage,
        **{
            "objective": objective,
            "network": {"name": "tiny_autoencoder"},
            "steps": STEPS,
            "ema": (0.5,),
            **changes,
        },
    )


def alone(**changes) -> Settings:
    """A run of one stage that trains an autoencoder."""
    made = one_stage(log_every=2, checkpoint_every=3)
    return dataclasses.replace(
        made,
        data={"name": "text_digits"},
        stages={"autoencoder": autoencoder(**changes)},
        pipeline=("autoencoder",),
        evaluation=dataclasses.replace(made.evaluation, teacher="", classifier="", batch_size=128),
    )


# Two students of other weights of the divergence, micro-batches, and a discriminator.
MANY = {
    "objective": {
        "name": "autoencoder",
        "gan_weight": 0.1,
        "gan_start": GAN_START,
        "gan_layers": 1,
        "gan_width": 2,
    },
    "students": StudentsSettings(count=2, sweep={"kl_weight": (1e-4, 10.0)}),
    "accumulate": 2,
}


def train(settings: Settings, folder: Path, stop=None, programs=None):
    plans = plans_of(settings, folder)
    dataset = data.load(settings.data, "train")
    stop = StopRequest() if stop is None else stop  # a late stop counts how often it is asked
    context = RunContext(settings, dataset, Notes(), stop, programs=programs or Programs())
    return plans, run_stages(list(plans.values()), context), context


def test_a_stage_of_two_students_goes_on_bit_for_bit_after_a_stop(tmp_path):
    settings, programs = alone(**MANY), Programs()
    plans, manifests, _ = train(settings, tmp_path / "whole", programs=programs)
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "parts", LateStop(LOOKS), programs)
    again, resumed, notes = train(settings, tmp_path / "parts", programs=programs)
    assert any("going on from the checkpoint" in line for line in notes.reporter.said)
    whole, parts = (saved_state(p["autoencoder"], STEPS) for p in (plans, again))
    assert differences(whole, parts) == []
    measured = manifests["autoencoder"].measured
    assert resumed["autoencoder"].measured == measured
    assert [set(own) for own in measured] == [
        {"psnr", "kl", "latent_mean", "latent_std", "scaling"}
    ] * 2
    assert measured[1]["kl"] < measured[0]["kl"], "the second has the larger weight"
    row = read_metrics(plans["autoencoder"].folder / "metrics.jsonl")[-1]
    assert {"psnr/0", "kl/1", "latent_std", "logit_real", "loss_discriminator"} <= row.keys()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with a trained autoencoder, its plans, and its networks."""
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    settings = alone()
    folder.mkdir()
    plans, _, context = train(settings, folder)
    facts = DataFacts.of(context.dataset)
    note_run(folder, to_plain(dataclasses.asdict(settings)), facts, list(plans.values()))
    return folder, settings, plans, context.networks


def test_the_stored_scaling_is_that_of_the_average(finished):
    _, settings, plans, _ = finished
    plan = plans["autoencoder"]
    found = plan.manifest().measured[0]
    images = jnp.asarray(data.load(settings.data, "train").images)
    mean, log_variance = gaussian(Networks()(plan).encode(images))
    spread = float(jnp.sqrt(jnp.var(mean) + jnp.mean(jnp.exp(log_variance))))
    np.testing.assert_allclose(found["latent_std"], spread, rtol=1e-4)
    np.testing.assert_allclose(found["scaling"], 1 / spread, rtol=1e-4)


def test_weights_depend_neither_on_micro_batches_nor_on_the_mesh(finished, tmp_path):
    _, settings, plans, _ = finished
    stage = dataclasses.replace(settings.stages["autoencoder"], accumulate=2)
    one = dataclasses.replace(settings.training, mesh=MeshSettings(data=1))
    alone = dataclasses.replace(settings, stages={"autoencoder": stage}, training=one)
    others, _, _ = train(alone, tmp_path / "run")
    assert [
        p["autoencoder"].layout(s.training.mesh).mesh.shape["data"]
        for p, s in ((plans, settings), (others, alone))
    ] == [4, 1]
    ours, theirs = (saved_state(p["autoencoder"], STEPS) for p in (plans, others))
    for a, b in zip(jax.tree.leaves(ours.ema), jax.tree.leaves(theirs.ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_run_without_images_of_its_own_is_not_sampled(finished):
    with pytest.raises(ConfigError, match="no stage that generates images"):
        ddistill.load(finished[0])


def test_reconstructions_of_test_images_are_scored_and_drawn(finished):
    folder, settings, plans, trained = finished
    notes = Notes()
    test = data.load(settings.data, "test")
    evaluation = Evaluation(
        settings, list(plans.values()), test, trained, folder, notes, StopRequest()
    )
    found = score_reconstructions(evaluation)["autoencoder"]
    images = np.asarray(test.images)
    rebuilt = np.clip(trained(plans["autoencoder"])(jnp.asarray(images)), -1, 1)
    mse = np.square(rebuilt - images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.psnr, np.mean(10 * np.log10(4 / mse)), rtol=1e-4)
    assert found.images == 360
    assert json.loads((folder / "reconstructions.json").read_text())["autoencoder"]["read"] is None
    assert (folder / "reconstructions.png").stat().st_size > 1000
    (grid,) = reconstruction_grids(evaluation)
    np.testing.assert_allclose(grid.rows[1].images[0], rebuilt[0], atol=1e-5)
    assert grid.caption == str(found)
    assert notes.said == [f"autoencoder: PSNR {found.psnr:.2f} dB on 360 test images"]


def test_a_latent_set_is_made_by_the_autoencoder_of_a_run(finished, tmp_path, capsys):
    folder, settings, plans, trained = finished
    words = ["data", "latents", "digits:train", str(tmp_path / "set"), "--test=digits:test"]
    flags = [f"--pipeline=run:{folder}@autoencoder", "--image-size=8", "--batch-size=512"]
    assert command([*words, *flags]) == 0
    capsys.readouterr()
    made = data.load({"name": "latents", "path": str(tmp_path / "set")}, "test")
    known = data.load(settings.data, "test")
    wanted = trained(plans["autoencoder"]).encode(jnp.asarray(known.images))
    assert made.image_shape == (4, 4, 2)
    # Grey levels are stored in 8 bits.
    np.testing.assert_allclose(np.float32(made.images), wanted, atol=0.05)
    manifest = plans["autoencoder"].manifest()
    assert made.encoder.scaling == manifest.measured[0]["scaling"]
    assert (made.encoder.factor, len(made.encoder.digest)) == (2, 64)
    np.testing.assert_array_equal(made.tokens, known.tokens)
    with pytest.raises(ConfigError, match=r"'encoder'.* Allowed: autoencoder"):
        _KINDS["run"](f"{folder}@encoder", ())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"teacher": "autoencoder"}, "is an autoencoder, not a denoiser"),
        (
            {"network": {**NET, "out_channels": 1, "widths": (4,) * 5}},
            "with H and W that divide by 16",
        ),
        ({"network": NET}, "[B, H, W, 3] is needed"),
    ],
)
def test_stages_that_cannot_work_are_refused(changes, part, tmp_path):
    made = alone()
    second = autoencoder(**changes)
    if "teacher" in changes:
        second = StageSettings(
            {"name": "sfddm"}, steps=2, batch_size=8, grid=GridSettings(steps=2), **changes
        )
    stages = {**made.stages, "second": second}
    made = dataclasses.replace(made, stages=stages, pipeline=tuple(stages))
    with pytest.raises(ConfigError) as error:
        plans_of(made, tmp_path / "run")
    assert part in str(error.value)


def test_the_published_recipe_has_the_size_of_its_prototype():
    from ddistill import recipes

    stage = recipes.digits_autoencoder()
    options = dict(stage.network)
    net = networks.build(options.pop("name"), **options)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 167_381
    config = plain(recipes.to_config(recipes.text_digits()))
    assert config["stages"]["teacher"]["latents"] == "autoencoder"
