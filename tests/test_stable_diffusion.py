"""Stable Diffusion read from a folder of diffusers, and what its parts compute."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sd import LATENTS, SCALING, write_folder, write_json

from ddistill.conditions import TextCondition
from ddistill.denoiser import Denoiser, ModuleApply
from ddistill.errors import ConfigError
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.samplers import ddim
from ddistill.schedules import make_grid, subsequence
from ddistill.wrapped_denoiser import GuidedDenoiser

pytest.importorskip("tokenizers")

TEXTS = ["a photo of the cat", "", "A thin RED digit three, 3!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return read_stable_diffusion(folder)


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the folder whose files a test may change."""
    return shutil.copytree(folder, tmp_path / "model")


def images(count=5):
    return np.random.default_rng(0).uniform(-1, 1, (count, 8, 8, 3)).astype(np.float32)


def test_the_parts_and_facts_are_those_of_the_files(folder, model):
    assert (model.prediction, model.latent_shape, model.image_shape) == ("eps", LATENTS, (8, 8, 3))
    assert model.scaling == SCALING
    assert model.source == f"diffusers:{folder}"
    names = [part.network["name"] for part in (model.unet, model.vae, model.text_encoder)]
    assert names == ["text_unet", "autoencoder_kl", "clip_text"]
    assert model.text_encoder.build(dtype="bfloat16").dtype == "bfloat16"
    levels = model.levels()
    # Of Stable Diffusion: the last level is not quite noise.
    products = np.square(levels.alpha[[1, 400, -1]])
    np.testing.assert_allclose(products, [0.99915, 0.42609, 0.0046601], rtol=1e-4)
    np.testing.assert_array_equal(levels.time[1:], np.arange(1000))


def test_the_digest_is_of_the_files_and_not_of_the_folder(model, changed):
    (changed / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    again = read_stable_diffusion(changed, "named")
    assert (again.digest, again.source) == (model.digest, "diffusers:named")
    assert again.licence == "creativeml-openrail-m"
    path = changed / "scheduler" / "scheduler_config.json"
    write_json(path, {**json.loads(path.read_text()), "prediction_type": "v_prediction"})
    other = read_stable_diffusion(changed)
    assert other.prediction == "v"
    assert other.digest != model.digest
    assert other.unet.digest == model.unet.digest


def test_texts_are_encoded_in_chunks_of_any_size(model):
    tokens = model.tokens(TEXTS)
    whole, parts = (model.encode_text(tokens, chunk=chunk) for chunk in (8, 2))
    np.testing.assert_allclose(parts.states, whole.states, atol=1e-6)
    np.testing.assert_allclose(parts.pooled, whole.pooled, atol=1e-6)
    assert whole.states.shape == (3, 77, 16)


def test_pooled_states_are_means_over_tokens_or_all_or_the_end(model):
    tokens = model.tokens(TEXTS)
    states = np.asarray(model.encode_text(tokens).states)
    ends = np.argmax(tokens == model.tokenizer.end, axis=1)
    # "a photo of the cat" and its end token.
    assert ends[0] == 6
    wanted = {
        "tokens": [s[1 : end + 1].mean(0) for s, end in zip(states, ends)],
        "all": states.mean(1),
        "end": states[np.arange(3), ends],
    }
    for pool, vectors in wanted.items():
        pooled = model.encode_text(tokens, pool).pooled
        np.testing.assert_allclose(pooled, vectors, atol=1e-5, err_msg=pool)
    with pytest.raises(ConfigError, match="pool='mean' is not known"):
        model.encode_text(tokens, "mean")


def test_latents_are_scaled_and_their_noise_does_not_depend_on_chunks(model):
    x = images()
    moments = model.moments(x, chunk=2)
    mean, log_variance = np.split(np.asarray(moments), 2, axis=-1)
    np.testing.assert_allclose(model.encode(x), mean * SCALING.factor, atol=1e-5)
    drawn = [model.encode(x, jax.random.key(1), chunk) for chunk in (2, 5)]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-5)
    noise = (np.asarray(drawn[0]) / SCALING.factor - mean) / np.exp(0.5 * log_variance)
    assert abs(noise.mean()) < 0.2
    assert abs(noise.std() - 1.0) < 0.2


def test_decoding_undoes_the_scaling_in_chunks_of_any_size(model):
    z = np.random.default_rng(1).standard_normal((5, *LATENTS)).astype(np.float32)
    found = model.decode(z, chunk=2)
    assert found.shape == (5, 8, 8, 3)
    variables = {"params": model.vae.params}
    wanted = model.vae.build().apply(variables, z / SCALING.factor, method="decode")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    placed = model.on_device()
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(placed.vae.params))
    np.testing.assert_array_equal(placed.decode(z, chunk=2), found)


@pytest.mark.parity
def test_all_parts_compute_what_diffusers_and_transformers_compute(folder, model, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    tokens = model.tokens(TEXTS)
    np.testing.assert_array_equal(tokens, pipe.tokenizer(TEXTS, **options).input_ids)

    def theirs(x):
        return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())

    def ours(x):
        return x.numpy().transpose(0, 2, 3, 1)

    x, z = images(3), np.random.default_rng(1).standard_normal((3, *LATENTS)).astype(np.float32)
    time, text = np.array([0, 500, 999]), model.encode_text(tokens)
    with torch.no_grad():
        states = pipe.text_encoder(torch.from_numpy(tokens).long()).last_hidden_state
        latents = ours(pipe.vae.encode(theirs(x)).latent_dist.mean) * pipe.vae.config.scaling_factor
        pictures = ours(pipe.vae.decode(theirs(z) / pipe.vae.config.scaling_factor).sample)
        noise = ours(pipe.unet(theirs(z), torch.from_numpy(time), states).sample)
    np.testing.assert_allclose(text.states, states.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.encode(x), latents, atol=1e-4)
    np.testing.assert_allclose(model.decode(z), pictures, atol=1e-4)
    variables = {"params": model.unet.params}
    found = model.unet.build().apply(variables, z, jnp.float32(time), text)
    np.testing.assert_allclose(found, noise, atol=1e-4)
    abar = np.square(model.levels().alpha[1:], dtype=np.float64)
    np.testing.assert_allclose(abar, pipe.scheduler.alphas_cumprod.numpy(), rtol=3e-5)


@pytest.mark.parity
def test_guided_sampling_draws_the_pictures_of_diffusers(changed, monkeypatch):
    """Ten steps of DDIM at a guidance of 7.5 from the same latents, to one grey level."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(changed, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    words = ["a photo of the cat", "three red dogs"]
    noise = np.random.default_rng(2).standard_normal((2, *LATENTS)).astype(np.float32)
    given = {
        "height": 8,
        "width": 8,
        "latents": torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        "num_inference_steps": 10,
        "guidance_scale": 7.5,
        "output_type": "np",
    }
    drawn = []
    for kind in ("epsilon", "v_prediction"):
        scheduler = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, **scheduler, prediction_type=kind
        )
        drawn.append(pipe(words, **given).images)
        edit(changed / "scheduler" / "scheduler_config.json", prediction_type=kind)
        model = read_stable_diffusion(changed)
        levels = subsequence(model.levels(), make_grid(model.levels(), 10, "trailing"))
        cond, null = (model.encode_text(model.tokens(t)) for t in (words, [""]))
        denoiser = Denoiser(model.unet.params, ModuleApply(model.unet.build()), model.prediction)
        latents = ddim(GuidedDenoiser(denoiser, 7.5, null), levels, noise, cond=cond)
        ours = np.clip(np.asarray(model.decode(latents)) / 2 + 0.5, 0, 1)
        assert np.abs(ours - drawn[-1]).max() <= 1 / 255, kind
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1


# ------------------------------------------------------------------------------- what is refused


def edit(path, **changes):
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {k: v for k, v in content.items() if v != "REMOVED"})


INDEX, UNET = "model_index.json", "unet/config.json"


@pytest.mark.parametrize(
    "file, changes, message",
    [
        (INDEX, {"_class_name": "StableDiffusionXLPipeline"}, "is of a StableDiffusionXLPipeline"),
        (INDEX, {"text_encoder": "REMOVED"}, "names no text_encoder, which a StableDiffusionPipe"),
        (INDEX, {"unet": ["diffusers", "UNet2DModel"]}, "unet is a UNet2DModel. Allowed: UNet2DCo"),
        (INDEX, {"vae": ["diffusers", "VQModel"]}, "vae is a VQModel. Allowed: AutoencoderKL"),
        (INDEX, {"image_encoder": ["x", "CLIPVision"]}, "part image_encoder .CLIPVision. is not"),
        (UNET, {"in_channels": 9}, "in_channels=9, out_channels=4"),
        (UNET, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type='text_proj' is not"),
        (
            UNET,
            {"cross_attention_dim": 8},
            "cross_attention_dim of the U-Net is 8, and that of",
        ),
        ("vae/config.json", {"latent_channels": 8}, "latents is 4, and that of vae is 8"),
        (
            "text_encoder/config.json",
            {"vocab_size": 5},
            "the tokenizer has 5.. tokens, and text",
        ),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "ends in pure noise .alpha = 0., where x0 does not follow from eps",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(changed, file, changes, message):
    edit(changed / file, **changes)
    with pytest.raises(ConfigError, match=message) as error:
        read_stable_diffusion(changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "missing, message",
    [
        ("model_index.json", "has no model_index.json; give the folder of a whole pipeline"),
        ("text_encoder", "text_encoder is missing; .*model_index.json names it"),
        ("tokenizer", "tokenizer is missing; .*model_index.json names one"),
        ("tokenizer/merges.txt", "merges.txt is missing; a tokenizer has tokenizer.json, or"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        ("vae/config.json", "vae/config.json is missing"),
        (
            "text_encoder/model.safetensors",
            "There are no weights in .*text_encoder.* needed: model.safetensors, model.bin",
        ),
    ],
)
def test_files_that_are_missing_are_named_in_one_line(changed, missing, message):
    path = changed / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ConfigError, match=message) as error:
        read_stable_diffusion(changed)
    assert "\n" not in str(error.value)


def test_half_precision_and_torch_files_of_the_text_encoder_are_found(changed, model):
    old = changed / "text_encoder" / "model.safetensors"
    old.rename(old.with_name("model.fp16.safetensors"))
    again = read_stable_diffusion(changed)
    same = jax.tree.map(np.array_equal, again.text_encoder.params, model.text_encoder.params)
    assert all(jax.tree.leaves(same))


def test_the_null_text_is_a_condition_like_others(model):
    null = model.encode_text(model.tokens([""]))
    assert isinstance(null, TextCondition)
    row = jax.tree.map(lambda x: x[0], model.encode_text(model.tokens(["", "cat"])))
    np.testing.assert_allclose(null.states[0], row.states, atol=1e-6)
