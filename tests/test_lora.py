"""LoRA files that diffusers loads, of students of low rank and of whole ones."""

import dataclasses
import importlib.util
import json
import shutil

import exported
import numpy as np
import pytest
import texted
import tiny_sd

from ddistill.errors import ConfigError
from ddistill.export import lora
from ddistill.export.__main__ import collect, main
from ddistill.interop.lora import FILE, rank_of
from ddistill.interop.lora import to_tensors as lora_tensors
from ddistill.interop.pipeline_parts import copy_parts
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.interop.tensors import read_tensors, write_tensors
from ddistill.interop.text_unet_weights import to_tensors
from ddistill.settings import LowRankSettings, StudentsSettings
from ddistill.students import whole_network
from ddistill.trained_run import open_run

pytest.importorskip("tokenizers")
# Higher than every layer of the tiny network has, so that nothing is left out but what must be.
FULL = 512


def settings(teacher, path, model):
    """Two students of low rank that share the levels, and a whole one."""
    made = texted.distilled(teacher, path, model)
    student = made.stages["student"]
    low = dataclasses.replace(
        student,
        students=StudentsSettings(count=2, partition="timesteps"),
        low_rank=LowRankSettings(3),
    )
    stages = {"teacher": made.stages["teacher"], "low": low, "whole": student}
    evaluation = dataclasses.replace(made.evaluation, enabled=False)
    return dataclasses.replace(made, stages=stages, pipeline=tuple(stages), evaluation=evaluation)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a pipeline, and an opened run of its students with random weights."""
    root = tmp_path_factory.mktemp("lora")
    teacher = tiny_sd.write_folder(root / "teacher", tiny_sd.one_level)
    path = texted.latent_set(root, f"diffusers:{teacher}", 8)
    folder = exported.run(settings(teacher, path, read_stable_diffusion(teacher)), root)
    run = open_run(folder)
    plans = {plan.name: plan for plan in run.plans}
    copy_parts(teacher, plans["teacher"].folder)
    # Weights by chance are equal in all stages; those of the pipeline are the teacher's.
    shutil.rmtree(plans["whole"].folder / "checkpoints")
    exported.pretend(plans["whole"], seed=1)
    params = run.networks.weights(plans["teacher"]).params
    tensors = dict(to_tensors(tiny_sd.one_level(1)[0], 4, params))
    write_tensors(teacher / "unet" / "diffusion_pytorch_model.safetensors", tensors)
    return teacher, run


def export(made, out, *options):
    main(["--to=lora", *options, str(made[1].folder), str(out)])
    return out


def test_students_of_low_rank_are_written_as_they_were_trained(made, tmp_path, capsys):
    out = export(made, tmp_path / "out", "--stage=low", "--nfe=2")
    assert "2 LoRA files of rank 3" in capsys.readouterr().out
    student = made[1].networks.weights(made[1].plan("low")).student(1)
    found = read_tensors(out / "s1.safetensors")
    layer = student.params["down_0_0"]["conv1"]
    name = "unet.down_blocks.0.resnets.0.conv1"
    np.testing.assert_array_equal(
        found[f"{name}.lora_A.weight"], np.transpose(layer["a"], (3, 2, 0, 1))
    )
    np.testing.assert_array_equal(
        found[f"{name}.lora_B.weight"], np.transpose(layer["b"])[:, :, None, None]
    )
    query = student.params["down_0_0_text"]["block_0"]["attn1"]["q"]
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    np.testing.assert_array_equal(found[name], np.transpose(query["a"]))
    manifest = json.loads((out / "ddistill.json").read_text())
    assert manifest["adapters"] == ["s0", "s1"]
    assert manifest["left_out"] == [0.0, 0.0]
    card = (out / "README.md").read_text()
    assert "steps = ['s1', 's0']" in card
    assert "num_inference_steps=2" in card


def test_a_low_rank_of_a_whole_student_says_what_it_lacks(made, tmp_path, capsys):
    out = export(made, tmp_path / "out", "--stage=whole", "--nfe=2", "--rank=2")
    assert "a LoRA file of rank 2 without" in capsys.readouterr().out
    lost = json.loads((out / "ddistill.json").read_text())["left_out"][0]
    assert 0.1 < lost < 1.0
    found = read_tensors(out / FILE)
    assert {len(x) for name, x in found.items() if "lora_A" in name} == {2}


def test_other_formats_have_merged_kernels(made):
    plan = made[1].plan("low")
    found = whole_network(collect(made[1], "low", 2).network)
    wanted = made[1].networks.weights(plan).student(1).whole().params
    ours = found.student(1)
    assert ours.base is None
    np.testing.assert_allclose(
        ours.params["mid_0"]["conv2"]["kernel"], wanted["mid_0"]["conv2"]["kernel"], atol=1e-6
    )


def test_all_layers_of_a_file_have_one_rank():
    """Older releases of diffusers take the first layer's rank for the alpha of all."""
    rng, net = np.random.default_rng(0), tiny_sd.one_level(1)[0]
    factors = {
        "conv_in": {"a": rng.normal(size=(3, 3, 4, 5)), "b": rng.normal(size=(5, 16))},
        "conv_out": {"a": rng.normal(size=(3, 3, 16, 2)), "b": rng.normal(size=(2, 4))},
    }
    found = lora_tensors(net, 4, factors)
    assert {len(x) for name, x in found.items() if "lora_A" in name} == {5}
    assert rank_of(found) == 5
    a, b = (found[f"unet.conv_out.lora_{end}.weight"] for end in "AB")
    product = np.einsum("rcyx,or->yxco", a, b[:, :, 0, 0])
    wanted = factors["conv_out"]["a"] @ factors["conv_out"]["b"]
    np.testing.assert_allclose(product, wanted, rtol=1e-4, atol=1e-6)


def test_a_unet_that_the_run_has_changed_has_no_lora_files(made, tmp_path):
    run = made[1]
    found = collect(run, "whole", 2)
    teacher = found.sampler_run.plan.text_stage
    trained = dataclasses.replace(teacher, settings=dataclasses.replace(teacher.settings, steps=10))
    plan = dataclasses.replace(found.sampler_run.plan, text_source=trained)
    changed = dataclasses.replace(
        found, sampler_run=dataclasses.replace(found.sampler_run, plan=plan)
    )
    with pytest.raises(ConfigError, match="stage 'teacher' has trained the U-Net .* for 10 steps"):
        lora.write(changed, tmp_path / "out", run.networks.weights(teacher).params, 2)


def test_ranks_that_cannot_be(made, tmp_path):
    with pytest.raises(SystemExit, match="--rank=0 must be 1 or more"):
        export(made, tmp_path / "out", "--stage=low", "--nfe=2", "--rank=0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="compares with PEFT")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["low", "whole"])
def test_diffusers_loads_the_merged_unet(made, tmp_path, stage):
    """Files without an alpha, whose scale is 1, at a rank that is at least the true one."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    out = export(made, tmp_path / "out", f"--stage={stage}", "--nfe=2", f"--rank={FULL}")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(made[0], safety_checker=None)
    base = {name: x.clone() for name, x in pipeline.unet.state_dict().items()}
    manifest = json.loads((out / "ddistill.json").read_text())
    for name in manifest["adapters"]:
        file = f"{name}.safetensors" if len(manifest["adapters"]) > 1 else FILE
        pipeline.load_lora_weights(out, weight_name=file, adapter_name=name)
        config = pipeline.unet.peft_config[name]
        assert config.lora_alpha == config.r
        ranks = {**config.rank_pattern, "": config.r}
        assert set(config.alpha_pattern.values()) <= set(ranks.values())
    rng = np.random.default_rng(0)
    z, text = (torch.from_numpy(np.float32(rng.normal(size=s))) for s in ((2, 4, 4, 4), (2, 7, 16)))
    time = torch.tensor([3, 700])
    network = whole_network(collect(made[1], stage, 2).network)
    for k, name in enumerate(manifest["adapters"]):
        pipeline.set_adapters(name)
        student = network.student(k) if len(manifest["adapters"]) > 1 else network
        tensors = {
            n: torch.from_numpy(np.array(x))
            for n, x in to_tensors(tiny_sd.one_level(1)[0], 4, student.params)
        }
        merged = diffusers.UNet2DConditionModel.from_config(pipeline.unet.config)
        if stage == "whole":  # biases and norms are no part of a LoRA file
            tensors |= {n: base[n] for n in tensors if tensors[n].ndim == 1}
        merged.load_state_dict(tensors)
        with torch.no_grad():
            ours = pipeline.unet(z, time, text).sample
            wanted = merged(z, time, text).sample
        assert (ours - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
