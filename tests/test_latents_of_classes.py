"""Networks on latents that read no texts: their samples and exports are pictures."""

import dataclasses
import json

import exported
import numpy as np
import pytest
import texted
import tiny_dit
from finished import plain
from runs import plans_of
from test_export import off, ours

import ddistill
from ddistill import data
from ddistill.errors import CheckpointError, ConfigError
from ddistill.evaluation.checks import check_decoders
from ddistill.export import autoencoder
from ddistill.export.__main__ import main
from ddistill.interop.pipeline_parts import read_decoder
from ddistill.interop.tensors import read_tensors
from ddistill.runtime.files import write_json
from ddistill.settings import GridSettings, Settings, StageSettings
from ddistill.training.trained import Networks

DIT = {"name": "dit", "width": 8, "depth": 1, "heads": 2, "out_channels": 4}


def on_a_set(path) -> Settings:
    """A DiT from scratch on a set of latents, and a student of it."""
    teacher = StageSettings({"name": "denoising"}, network=DIT, **{**exported.COMMON, "steps": 1})
    student = StageSettings(
        {"name": "sfddm", "substeps": 1},
        teacher="teacher",
        init="teacher",
        grid=GridSettings(steps=4),
        method="sfddm",
        **exported.COMMON,
    )
    made = exported.settings("set", exported.LINEAR, {"teacher": teacher, "student": student})
    evaluation = dataclasses.replace(made.evaluation, clip=0.0)
    data_settings = {"name": "latents", "path": str(path)}
    return dataclasses.replace(made, data=data_settings, evaluation=evaluation)


def test_a_network_from_scratch_decodes_with_the_autoencoder_of_its_set(tmp_path):
    pipeline = tiny_dit.write_folder(tmp_path / "pipeline")
    path = texted.latent_set(tmp_path, f"diffusers:{pipeline}", 8)
    both = on_a_set(path)
    alone = dataclasses.replace(both, pipeline=("teacher",))
    run = ddistill.train(plain(alone), workdir=tmp_path / "run", quiet=True)
    teacher = dataclasses.replace(run, stage="teacher")
    made = teacher.sample(3, nfe=2, trajectory=True)
    assert (made.images.shape, made.images.dtype) == ((3, 8, 8, 3), np.uint8)
    decode = read_decoder(run.plan("teacher").folder)
    wanted = np.clip(decode(made.states[-1]) * 127.5 + 127.5, 0, 255)
    np.testing.assert_allclose(made.images, wanted, atol=1.0)
    kept = run.plan("teacher").folder / "pipeline" / "vae"
    for file in (pipeline / "vae").iterdir():
        assert (kept / file.name).read_bytes() == file.read_bytes()
    # A student has its teacher's.
    student = plans_of(both, tmp_path / "run")["student"]
    assert not student.keeps_files
    assert student.text_stage.name == "teacher"
    latents = made.states[-1]
    np.testing.assert_array_equal(Networks().decoder(student)(latents), decode(latents))
    for file in kept.iterdir():
        file.unlink()
    kept.rmdir()
    with pytest.raises(CheckpointError, match="latents by autoencoder_kl .* Copy the folder vae"):
        ddistill.load(run.folder, stage="teacher").sample(1)


def test_a_set_without_a_decoder_is_refused_before_training(tmp_path):
    path = texted.latent_set(
        tmp_path, f"diffusers:{tiny_dit.write_folder(tmp_path / 'pipeline')}", 8
    )
    made = on_a_set(path)
    evaluation = dataclasses.replace(made.evaluation, enabled=True)
    made = dataclasses.replace(made, evaluation=evaluation)
    plans, dataset = list(plans_of(made, tmp_path).values()), data.load(made.data, "train")
    check_decoders(made, plans, dataset)
    without = dataclasses.replace(dataset, files={})
    with pytest.raises(ConfigError, match="'teacher' is trained on latents .* have no decoder"):
        check_decoders(made, plans, without)
    off_ = dataclasses.replace(evaluation, enabled=False)
    check_decoders(dataclasses.replace(made, evaluation=off_), plans, without)


# ------------------------------------------------------------------- an autoencoder of the run


def on_its_own(network) -> Settings:
    """An autoencoder of digits, and a teacher of no classes on its latents."""
    vae = {"name": "autoencoder_kl", "widths": (4, 8), "blocks": 1, "latent_channels": 2}
    stages = {
        "autoencoder": StageSettings(
            {"name": "autoencoder"},
            network={**vae, "norm_groups": 2, "out_channels": 1},
            **exported.COMMON,
        ),
        "teacher": StageSettings(
            {"name": "denoising"},
            network={**network, "out_channels": 2},
            latents="autoencoder",
            **exported.COMMON,
        ),
    }
    made = exported.settings("own", exported.LINEAR, stages)
    evaluation = dataclasses.replace(made.evaluation, clip=0.0)
    return dataclasses.replace(made, evaluation=evaluation)


def finished(made, folder):
    run = exported.run(made, folder)
    manifest = plans_of(made, run)["autoencoder"].manifest_path
    record = json.loads(manifest.read_text())
    write_json(manifest, {**record, "measured": [{"scaling": 0.5}]})
    return run


@pytest.mark.parametrize("network", [exported.UNET, DIT], ids=["unet", "dit"])
def test_exports_decode_with_the_autoencoder_of_the_run(tmp_path, network):
    folder, out = finished(on_its_own(network), tmp_path), tmp_path / "out"
    main(["--to=diffusers", "--stage=teacher", "--nfe=4", str(folder), str(out)])
    assert not (out / "model_index.json").exists()
    facts = json.loads((out / "ddistill.json").read_text())
    assert (facts["vae"], facts["unets"]) == ("vae", ["student_0"])
    config = json.loads((out / "vae" / "config.json").read_text())
    assert (config["_class_name"], config["scaling_factor"]) == ("AutoencoderKL", 0.5)
    assert (config["latent_channels"], config["sample_size"]) == (2, 8)
    assert "decoder.conv_out.weight" in read_tensors(
        out / "vae" / "diffusion_pytorch_model.safetensors"
    )


@pytest.mark.parity
@pytest.mark.parametrize("network", [exported.UNET, DIT], ids=["unet", "dit"])
def test_their_pipeline_draws_our_pictures(tmp_path, network):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    folder, out = finished(on_its_own(network), tmp_path), tmp_path / "out"
    main(["--to=diffusers", "--stage=teacher", "--nfe=4", str(folder), str(out)])
    noise, images, _ = ours(folder, 4, 4, "teacher")
    assert images.shape == (4, 8, 8, 1)
    space: dict = {}
    exec(compile((out / "pipeline.py").read_text(), "pipeline.py", "exec"), space)
    made = space["Students"](out)(noise=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()))
    assert off(images, made.numpy()) <= 1


def test_an_autoencoder_that_diffusers_lacks_is_named(tmp_path, monkeypatch):
    folder = finished(on_its_own(exported.UNET), tmp_path)
    monkeypatch.setattr(autoencoder, "AutoencoderKL", StageSettings)  # a class that it is not of
    with pytest.raises(SystemExit, match="the autoencoder of the latents, AutoencoderKL"):
        main(["--to=diffusers", "--stage=teacher", "--nfe=4", str(folder), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
