"""Pipelines of DiT: read as teachers, kept with stages, and written for students."""

import dataclasses
import json
import shutil
from pathlib import Path

import exported
import jax
import numpy as np
import pytest
import tiny_dit
from test_export import off, ours

from ddistill.data.encodings import EncoderFacts
from ddistill.data.facts import DataFacts
from ddistill.data.latents.openers import open_pipeline
from ddistill.errors import CheckpointError, ConfigError
from ddistill.evaluation.sampling import noise_bank
from ddistill.experiment import note_run
from ddistill.export import dit
from ddistill.export.__main__ import collect, main
from ddistill.interop.diffusers import read_teacher
from ddistill.interop.pipeline_parts import copy_parts, read_parts
from ddistill.interop.tensors import read_tensors, write_tensors
from ddistill.parsing import to_plain
from ddistill.planning.planner import plan_stages
from ddistill.samplers import get_sampler
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
)
from ddistill.trained_run import open_run

NAMES = ("zero", "one", "two")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_dit.write_folder(tmp_path_factory.mktemp("dit") / "pipeline")


def changed(pipeline: Path, to: Path, file: str, **changes) -> Path:
    """A copy of a folder with other values in a JSON file."""
    shutil.copytree(pipeline, to)
    path = to / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return to


def test_a_pipeline_is_a_teacher_of_classes(pipeline):
    found = read_teacher(pipeline)
    assert found.network["name"] == "dit"
    assert found.network["learned_sigma"] is True
    assert (found.num_classes, found.image_shape) == (3, tiny_dit.LATENTS)
    assert list(found.parts) == ["vae"]
    assert found.folder == pipeline
    assert found.prediction == "eps"
    assert found.schedule == {
        "name": "linear_beta",
        "steps": 16,
        "options": {"start": 0.01, "end": 0.4},
    }


def test_a_transformer_alone_is_one_too(pipeline, tmp_path):
    alone = shutil.copytree(pipeline / "transformer", tmp_path / "alone")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (alone / "scheduler_config.json").write_text(json.dumps(scheduler))
    found, whole = read_teacher(alone), read_teacher(pipeline)
    assert found.prediction == "flow"
    assert found.schedule == {"name": "linear_path", "steps": 1000, "options": {"shift": 3.0}}
    assert (found.network, dict(found.parts)) == (whole.network, {})
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(whole.params)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"vae": ["diffusers", "VQModel"]}, "vae is a VQModel. Allowed: Auto"),
        ("model_index.json", {"scheduler": None}, "names no scheduler, which a DiTPipeline needs"),
        ("model_index.json", {"text": ["a", "B"]}, r"the part text \(B\) is not known"),
        ("vae/config.json", {"latent_channels": 3}, "has 4 channels, and the latents of vae 3"),
        ("transformer/config.json", {"num_layers": 3}, "blocks.2.* is missing"),
        ("transformer/config.json", {"upcast": True}, "upcast=True is not an option"),
    ],
)
def test_what_does_not_fit_is_named(pipeline, tmp_path, file, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_teacher(changed(pipeline, tmp_path / "other", file, **changes))


def test_its_autoencoder_makes_latent_sets(pipeline):
    opened = open_pipeline(f"diffusers:{pipeline}", ["a photo of a cat", "a photo of a dog"])
    assert opened.encoder.digest == read_teacher(pipeline).parts["vae"]
    assert (opened.encoder.channels, opened.encoder.factor) == (4, 2)
    assert opened.encoder.scaling == tiny_dit.SCALING.factor
    assert opened.tokenize(["a dog"]).shape == (1, 32)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    moments = opened.encode(images)
    assert moments.shape == (2, 4, 4, 8)
    np.testing.assert_allclose(opened.encode(images[::-1])[::-1], moments, atol=1e-4)


# ------------------------------------------------------------------------------ finished runs


def facts_of(pipeline: Path) -> DataFacts:
    """A set of latents that the pipeline has made."""
    digest = read_teacher(pipeline).parts["vae"]
    encoder = EncoderFacts("autoencoder_kl", digest, "moments", 4, 2, tiny_dit.SCALING.factor)
    return DataFacts(
        "set", tiny_dit.LATENTS, NAMES, (5, 5, 5), False, "made here", {}, encoder=encoder
    )


def settings_of(pipeline: Path) -> Settings:
    stages = {
        "teacher": StageSettings(
            {"name": "denoising"}, source=f"diffusers:{pipeline}", steps=0, batch_size=4
        ),
        "student": StageSettings(
            {"name": "sfddm", "substeps": 1},
            teacher="teacher",
            init="teacher",
            guidance=2.0,
            grid=GridSettings(steps=4),
            method="sfddm",
            **exported.COMMON,
        ),
    }
    made = exported.settings("dit", ScheduleSettings(**read_teacher(pipeline).schedule), stages)
    evaluation = EvaluationSettings(enabled=False, classifier="", clip=0.0, grid_images=0)
    return dataclasses.replace(made, data={"name": "latents", "path": "set"}, evaluation=evaluation)


@pytest.fixture(scope="module")
def run(pipeline, tmp_path_factory):
    """The folder of a run with random students; its teacher has kept the autoencoder."""
    root = tmp_path_factory.mktemp("run")
    made, facts = settings_of(pipeline), facts_of(pipeline)
    plans = plan_stages(made, facts, root / "dit", root / "shared")
    (root / "dit").mkdir(exist_ok=True)
    note_run(root / "dit", to_plain(dataclasses.asdict(made)), facts, plans)
    for plan in plans:
        exported.pretend(plan)
    copy_parts(pipeline, plans[0].folder)
    return root / "dit"


def test_latents_of_another_autoencoder_are_refused(pipeline, tmp_path):
    facts = facts_of(pipeline)
    others = dataclasses.replace(facts.encoder, digest="0" * 64)
    with pytest.raises(ConfigError, match="has the image encoder .* Make the set with the teacher"):
        plan_stages(
            settings_of(pipeline), dataclasses.replace(facts, encoder=others), tmp_path, tmp_path
        )


def test_stages_keep_the_autoencoder(pipeline, run, tmp_path):
    trained = open_run(run)
    kept = trained.plan("teacher").folder / "pipeline"
    assert sorted(path.name for path in kept.iterdir()) == ["vae"]
    parts = trained.networks.parts(trained.plan("student"))
    assert parts.tokenizer is None
    assert parts.text_encoder is None
    assert parts.decoder(np.zeros((1, *tiny_dit.LATENTS), np.float32)).shape == (1, 8, 8, 3)
    copy_parts(pipeline, tmp_path)
    shutil.rmtree(tmp_path / "pipeline" / "vae")
    with pytest.raises(CheckpointError, match="vae is missing.* copy them again"):
        read_parts(tmp_path, texts=False)


def test_a_student_is_written_as_a_pipeline_and_read_again(pipeline, run, tmp_path):
    out = tmp_path / "out"
    main(["--to=diffusers", str(run), str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "ddistill.json",
        "model_index.json",
        "scheduler",
        "transformer",
        "vae",
    ]
    found, trained = read_teacher(out), open_run(run)
    assert found.network == read_teacher(pipeline).network
    assert found.parts == read_teacher(pipeline).parts
    weights = trained.networks.weights(trained.plan("student")).params
    assert jax.tree.structure(found.params) == jax.tree.structure(weights)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(weights)):
        np.testing.assert_array_equal(a, b)


def test_files_of_the_autoencoder_get_their_usual_names(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "dit")
    (weights,) = copy.rglob("pipeline/vae/*.safetensors")
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    main(["--to=diffusers", str(copy), str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out" / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_a_pipeline_that_would_ignore_a_shift_of_the_latents_is_not_written(run):
    found = collect(open_run(run))
    assert dit._beyond_pipeline(found) == ""
    plan = found.sampler_run.plan
    shifted = dataclasses.replace(plan, encoder=dataclasses.replace(plan.encoder, shift=0.1))
    changed = dataclasses.replace(
        found, sampler_run=dataclasses.replace(found.sampler_run, plan=shifted)
    )
    assert dit._beyond_pipeline(changed).startswith("the autoencoder shifts its latents")


def test_weights_in_shards_are_kept_with_their_index(pipeline, tmp_path):
    other = shutil.copytree(pipeline, tmp_path / "other")
    whole = other / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(whole)
    names, places = sorted(tensors), {}
    for i, own in enumerate((names[::2], names[1::2])):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors"
        write_tensors(other / "vae" / file, {name: tensors[name] for name in own})
        places |= dict.fromkeys(own, file)
    whole.unlink()
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (other / "vae" / f"{whole.name}.index.json").write_text(json.dumps(index))
    copy_parts(other, tmp_path / "stage")
    copy_parts(pipeline, tmp_path / "one")
    latents = np.zeros((1, *tiny_dit.LATENTS), np.float32)
    found, wanted = (
        read_parts(tmp_path / name, texts=False).decoder(latents) for name in ("stage", "one")
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parity
def test_the_pipeline_draws_our_images(run, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import diffusers.pipelines.dit.pipeline_dit as module

    out, labels = tmp_path / "out", [0, 2, 1, 0]
    main(["--to=diffusers", str(run), str(out)])
    trained = open_run(run)
    sampler_run = trained.sampler_run()
    noise = noise_bank(trained.settings.evaluation, tiny_dit.LATENTS, 0, 4)
    network = trained.network(sampler_run)
    latents = get_sampler("ddim")(
        network, sampler_run.levels, noise, jax.random.key(0), cond=np.asarray(labels)
    )
    pictures = trained.networks.parts(sampler_run.plan).decoder(np.asarray(latents))
    given = torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())
    monkeypatch.setattr(module, "randn_tensor", lambda **_: given)
    made = module.DiTPipeline.from_pretrained(out)
    made.set_progress_bar_config(disable=True)
    images = made(labels, guidance_scale=1.0, num_inference_steps=4, output_type="np").images
    np.testing.assert_allclose(images, np.clip(pictures / 2 + 0.5, 0, 1), atol=2e-4)


# ---------------------------------------------------------------------- students on pixels


def flow_run() -> Settings:
    """Two students of a DiT teacher of digits, by flow matching, that share the levels."""
    network = {"name": "dit", "width": 8, "depth": 1, "heads": 2, "out_channels": 1}
    teacher = StageSettings(
        {"name": "denoising", "error": "flow"},
        network=network,
        prediction="flow",
        **exported.COMMON,
    )
    student = StageSettings(
        {"name": "o2mkd"},
        teacher="teacher",
        init="teacher",
        students=StudentsSettings(count=2, partition="timesteps"),
        method="o2mkd",
        samplers={"ddim": (4,)},
        **exported.COMMON,
    )
    stages = {"teacher": teacher, "pair": student}
    return exported.settings("flow", ScheduleSettings("linear_path", 16), stages)


def test_flow_students_have_a_scheduler_of_flow_matching(tmp_path):
    folder, out = exported.run(flow_run(), tmp_path), tmp_path / "out"
    main(["--to=diffusers", str(folder), str(out)])
    facts = json.loads((out / "ddistill.json").read_text())
    assert facts["network_class"] == "DiTTransformer2DModel"
    np.testing.assert_allclose(facts["scheduler_sigmas"], [1.0, 0.75, 0.5, 0.25])
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    tensors = read_tensors(out / "student_1" / "diffusion_pytorch_model.safetensors")
    assert not np.any(
        tensors["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    )
    assert json.loads((out / "student_1" / "config.json").read_text())["_unconditional"] is True


@pytest.mark.parity
def test_flow_students_draw_our_images_with_their_own_pipeline(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    folder, out = exported.run(flow_run(), tmp_path), tmp_path / "out"
    main(["--to=diffusers", str(folder), str(out)])
    noise, images, _ = ours(folder, 3, nfe=4)
    space: dict = {}
    exec(compile((out / "pipeline.py").read_text(), "pipeline.py", "exec"), space)
    made = space["Students"](out)(noise=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()))
    assert off(images, made.numpy()) <= 1
