"""Stages on the latents of an autoencoder that a run has trained, and the scores of words."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texted
import tiny
from finished import plain
from runs import one_stage, plans_of

import ddistill
from ddistill import data, networks
from ddistill.data.words import Word
from ddistill.errors import CheckpointError, ConfigError
from ddistill.evaluation.words import Captioned, word_scores
from ddistill.interop.autoencoder_kl import Scaling
from ddistill.interop.pipeline_parts import Decoder, keep_files, read_decoder
from ddistill.networks.autoencoder_kl import AutoencoderKL, gaussian
from ddistill.networks.latent_encoding import LatentEncoder
from ddistill.networks.weights import Weights
from ddistill.settings import GridSettings, Settings, StageSettings
from ddistill.trained_pipeline import _autoencoder_files


@pytest.fixture(autouse=True, scope="module")
def _small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny_autoencoder", tiny.TinyAutoencoder)
        yield


def settings() -> Settings:
    """An autoencoder of captioned digits, and a teacher that reads captions on its latents."""
    facts = data.load({"name": "text_digits"}, "test").tokenizer
    joint = texted.joint("set", facts.vocabulary, facts.length)
    teacher = joint.stages["teacher"]
    network = {**teacher.network, "out_channels": 2}
    stages = {
        "autoencoder": dataclasses.replace(
            one_stage().stages["teacher"],
            objective={"name": "autoencoder", "reconstruction": "l2"},
            network={"name": "tiny_autoencoder"},
            steps=4,
            batch_size=8,
            ema=(),
        ),
        "teacher": dataclasses.replace(teacher, network=network, latents="autoencoder"),
    }
    evaluation = dataclasses.replace(
        joint.evaluation, samples=8, full_steps=2, guidances=(1.0, 2.0), interpolations=0
    )
    return dataclasses.replace(
        joint,
        data={"name": "text_digits"},
        stages=stages,
        pipeline=tuple(stages),
        evaluation=evaluation,
    )


def with_student(**changes) -> Settings:
    made = settings()
    student = StageSettings(
        {"name": "o2mkd"}, steps=2, batch_size=8, teacher="teacher", grid=GridSettings(steps=2)
    )
    stages = {**made.stages, "student": dataclasses.replace(student, **changes)}
    return dataclasses.replace(made, stages=stages, pipeline=tuple(stages))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "run"
    return ddistill.train(plain(settings()), workdir=folder, quiet=True)


def test_a_stage_on_latents_is_planned_with_their_shape(tmp_path):
    plans = plans_of(with_student(), tmp_path)
    teacher, student = plans["teacher"], plans["student"]
    for plan in (teacher, student):
        assert plan.image_shape == (4, 4, 2)
        assert plan.latent_source is plans["autoencoder"]
        assert plan.identity["sources"]["autoencoder"] == plans["autoencoder"].digest
    assert student.settings.latents == "autoencoder", "its teacher's"
    assert plans["autoencoder"].image_shape == (8, 8, 1)
    assert "latents" not in plans["autoencoder"].identity["stage"]


def test_a_step_sees_scaled_draws_of_the_latents():
    module = tiny.TinyAutoencoder()
    images = jnp.asarray(data.load({"name": "text_digits"}, "test").images[:3])
    params = module.init(jax.random.key(0), images)["params"]
    encoder = LatentEncoder(params, jnp.float32(3.0), module)
    keys = jax.random.split(jax.random.key(1), 3)
    found = encoder(keys, images)
    mean, log_variance = gaussian(module.apply({"params": params}, images, method="encode"))
    noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 2)))(keys)
    wanted = 3.0 * (mean + jnp.exp(0.5 * log_variance) * noise)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    # A row depends on its own key alone.
    np.testing.assert_allclose(encoder(keys[1:2], images[1:2]), found[1:2], rtol=1e-4, atol=1e-5)


def test_samples_of_a_teacher_on_latents_are_pictures(run):
    teacher = dataclasses.replace(run, stage="teacher")
    words = ["a thin three", "the digit nine, thick"]
    noise = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32)
    made = teacher.sample(prompts=words, noise=noise, trajectory=True)
    assert (made.images.shape, made.images.dtype) == ((2, 8, 8, 1), np.uint8)
    autoencoder = run.networks(run.plan("autoencoder"))
    scaling = run.plan("autoencoder").manifest().measured[0]["scaling"]
    wanted = autoencoder.decode(jnp.asarray(made.states[-1]) / scaling)
    np.testing.assert_allclose(made.images, np.clip(wanted * 127.5 + 127.5, 0, 255), atol=1.0)
    assert teacher.sampler_run().guidance == 2.0, "other scales are for scores"


def test_a_finished_run_knows_its_latents(run):
    opened = ddistill.load(run.folder)
    plan = opened.plan("teacher")
    assert (plan.image_shape, plan.latent_source.name) == ((4, 4, 2), "autoencoder")
    np.testing.assert_array_equal(
        opened.sample(prompts="a three", seed=1), run.sample(prompts="a three", seed=1)
    )
    manifest = run.plan("autoencoder").manifest_path
    kept = manifest.read_text()
    record = json.loads(kept)
    manifest.write_text(json.dumps({**record, "measured": []}))
    try:
        with pytest.raises(CheckpointError, match="has no scaling of its latents"):
            ddistill.load(run.folder).sample(prompts="a three")
    finally:
        manifest.write_text(kept)


def test_words_are_scored_at_every_guidance_and_prompts_are_shown(run):
    rows = json.loads((run.folder / "results.json").read_text())
    found = {
        ("guidance=2" in row["protocol"], row["nfe"]): row["value"]
        for row in rows
        if row["metric"] == "thickness_word"
    }
    assert found.keys() == {(True, 4), (False, 2)}
    assert "digit_word" not in {row["metric"] for row in rows}, "no classifier reads digits"
    captions = data.load({"name": "text_digits"}, "train").texts["caption"]
    report = (run.folder / "report.html").read_text()
    assert "Words of the captions" in report
    assert f">{captions[0]}</span>" in report
    assert (run.folder / "prompts.png").stat().st_size > 1000


def test_the_score_of_a_word_is_the_share_of_captions_that_have_it():
    pictures = np.linspace(-1, 1, 6, dtype=np.float32).reshape(6, 1, 1, 1)
    captions = ["dark 0", "a dark one", "light", "grey", "light", "dark"]
    word = Word("light_word", ("dark", "light"), lambda x, labels: (x.mean((1, 2, 3)) > 0) * 1)
    digit = Word("digit_word", ("zero", "one"))
    labels = np.zeros(6, np.int64)
    found = word_scores((word, digit), pictures, Captioned(captions, labels))
    assert found.keys() == {"light_word"}
    assert found["light_word"].value == 3 / 5
    assert found["light_word"].low < 3 / 5 < found["light_word"].high
    read = word_scores((digit,), pictures, Captioned(captions, labels, np.ones(6, np.int64)))
    assert read["digit_word"].value == 1.0


@pytest.mark.parametrize(
    ("stage", "changes", "part"),
    [
        ("teacher", {"latents": "autoencode"}, "Did you mean 'autoencoder'?"),
        ("student", {"latents": "teacher"}, "Allowed: autoencoder."),
        ("autoencoder", {"latents": "autoencoder"}, "Allowed: none, because no stage before"),
        ("teacher", {"latents": "", "network": None}, "its teacher 'teacher' is trained on images"),
    ],
)
def test_latents_that_cannot_be_are_refused(stage, changes, part, tmp_path):
    made = with_student()
    if changes.get("network", 1) is None:
        made = with_student(latents="autoencoder")
        net = {**made.stages["teacher"].network, "out_channels": 1}
        changes = {**changes, "network": net}
    with pytest.raises(ConfigError) as error:
        plans_of(texted.changed(made, stage, **changes), tmp_path)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_predictions_of_latents_are_not_clipped(tmp_path):
    made = settings()
    clipped = dataclasses.replace(made.evaluation, clip=1.0)
    with pytest.raises(ConfigError, match="stage 'teacher' sees latents"):
        plans_of(dataclasses.replace(made, evaluation=clipped), tmp_path)


def test_a_set_keeps_the_autoencoder_that_a_stage_decodes_with(run, tmp_path):
    module = AutoencoderKL((4,), 1, 2, 1, norm_groups=2, mid_attention=False)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    plan = dataclasses.replace(run.plan("autoencoder"), modules={"student": module})
    files = _autoencoder_files(plan, Weights(params), 2.5)
    for name, content in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    keep_files({name: tmp_path / "set" / name for name in files}, tmp_path / "stage")
    latents = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)
    wanted = Decoder(module, params, Scaling(2.5))(latents)
    np.testing.assert_allclose(read_decoder(tmp_path / "stage")(latents), wanted, atol=1e-5)
    assert read_decoder(tmp_path) is None
    assert _autoencoder_files(run.plan("autoencoder"), Weights(params), 1.0) == {}
