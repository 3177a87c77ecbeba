"""Text-to-image students that diffusers opens, and that draw the run's images."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import text_round_trip
import tiny_sd
import yaml
from text_round_trip import UNEVEN, Drawing, cases, drawn_by_diffusers, off, on_grid

from ddistill.data.byte_pairs import BytePairTokenizer
from ddistill.errors import ConfigError
from ddistill.evaluation.report.students_table import _text_shares
from ddistill.export import lora, stablehlo, text_pipeline
from ddistill.export.__main__ import collect, main, with_decoder
from ddistill.export.facts import LearntParts
from ddistill.export.text_parts import write_text_parts
from ddistill.export.text_schedulers import pipeline_scheduler
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.interop.tensors import read_tensors
from ddistill.networks.text_encoding import encode_texts
from ddistill.schedules import Schedule, uniform_grid
from ddistill.settings import ScheduleSettings
from ddistill.trained_run import open_run
from ddistill.training.text_cells import read_groups

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_round_trip.make_run(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def run(folder):
    return open_run(folder)


@pytest.fixture(scope="module")
def student(run):
    return collect(run, "student")


@pytest.fixture
def parts(student):
    return student.pipeline


# ------------------------------------------------------------------------------------ in the run


class Only:
    """Networks of which one range and one cell of students predicts everything."""

    def __init__(self, networks, cell):
        self._networks, self._cell = networks, cell

    def __getattr__(self, name):
        return getattr(self._networks, name)

    def __call__(self, plan, student=None, step=None):
        return self._networks(plan).of_group(self._cell)


def test_prompts_are_sampled_by_the_students_of_their_cells(run):
    opened = dataclasses.replace(run, stage="routed")
    words, plan = text_round_trip.PROMPTS, run.plan("routed")
    encoder = run.networks.text_encoder(plan)
    cells = run.networks(plan).partition.group(
        encode_texts(encoder, run.networks.tokenize(plan, words))
    )
    assert set(cells) == {0, 1}
    noise = text_round_trip.noises()[0]
    found = opened.sample(prompts=words, noise=noise)
    for cell in (0, 1):
        alone = dataclasses.replace(opened, networks=Only(run.networks, cell))
        own = alone.sample(prompts=words, noise=noise)
        same = np.abs(found.astype(int) - own).max(axis=(1, 2, 3)) <= 1
        np.testing.assert_array_equal(same, cells == cell)


def test_the_report_has_the_shares_of_the_captions(run):
    plan, dataset = run.plan("routed"), text_round_trip.captioned(run)
    found = _text_shares(plan, run.networks, dataset, run.settings.evaluation)
    # Of 7 captions, of which every other one is sampled.
    assert [x.split(",")[0] for x in found] == [
        "57.1% of the captions",
        "42.9% of the captions",
    ] * 2
    few = dataclasses.replace(run.settings.evaluation, batch_size=3)
    assert _text_shares(plan, run.networks, dataset, few) == found
    groups = read_groups(plan, 7)[[0, 1, 3, 5]]
    assert [x.split(", ")[1] for x in found[:2]] == [
        f"{share:.1%} of those sampled" for share in (np.mean(groups == 0), np.mean(groups == 1))
    ]


# -------------------------------------------------------------------------------- the same images


def learnt_parts(run):
    """The parts of the pipeline as if the run had trained them."""
    plan = run.plan("student")
    tokenizer = BytePairTokenizer(tuple(tiny_sd.merges(tiny_sd.WORDS)), 77)
    encoder = run.networks.text_encoder(plan)
    return LearntParts(run.networks.decoder(plan), encoder, tokenizer, 8)


def test_parts_that_a_run_has_learnt_are_those_of_a_pipeline(run, student, tmp_path):
    own = dataclasses.replace(student, pipeline=learnt_parts(run))
    for name, found in (("theirs", student), ("own", own)):
        text_pipeline.write(found, tmp_path / name)
    theirs, ours = (read_stable_diffusion(tmp_path / name) for name in ("theirs", "own"))
    for one, other in ((theirs.vae, ours.vae), (theirs.text_encoder, ours.text_encoder)):
        assert one.network == other.network
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert (ours.scaling, ours.image_shape) == (theirs.scaling, theirs.image_shape)
    words = text_round_trip.CAPTIONS
    np.testing.assert_array_equal(ours.tokens(words), theirs.tokens(words))


@pytest.mark.parity
def test_pipelines_of_diffusers_draw_our_images(run, parts, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    draw, images = Drawing(run), {}
    found = cases(run)
    new = text_round_trip.new_parts(parts, tmp_path / "new")
    found["new_parts"] = dataclasses.replace(found["ddim_1"], pipeline=new)
    found["learnt"] = dataclasses.replace(found["ddim_1"], pipeline=learnt_parts(run))
    for name, case in found.items():
        text_pipeline.write(case, tmp_path / name)
        images[name] = draw(case)
        assert off(images[name], drawn_by_diffusers(tmp_path / name)) <= 1, name
    assert np.mean((images["ddim_4"] > 0) & (images["ddim_4"] < 255)) > 0.5
    for name in ("ddim_1", "ddim_uneven", "renoise_4", "teacher"):
        assert off(images[name], images["ddim_4"]) > 2, name
    for name in ("new_parts", "learnt"):
        np.testing.assert_array_equal(images[name], images["ddim_1"])


@pytest.mark.parity
def test_the_unet_alone_is_put_into_the_teachers_pipeline(run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    found = cases(run)["renoise_4"]
    text_pipeline.write(found, tmp_path / "pipeline")
    text_pipeline.write_unet_alone(found, tmp_path / "unet")
    monkeypatch.chdir(tmp_path / "unet")
    code = text_round_trip.code_of(tmp_path / "unet")
    assert code.count('"TEACHER"') == 1
    images = drawn_by_diffusers(
        tmp_path / "unet", change=lambda code: code.replace("TEACHER", str(tmp_path / "pipeline"))
    )
    np.testing.assert_array_equal(images, drawn_by_diffusers(tmp_path / "pipeline"))


@pytest.mark.parity
def test_equal_students_are_one_student_and_routes_agree(run, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "routed"
    text_pipeline.write(cases(run)["routed"], out)
    for k in (1, 2, 3):
        shutil.rmtree(out / f"unet_{k}")
        shutil.copytree(out / "unet", out / f"unet_{k}")
    space: dict = {}
    exec(compile((out / "pipeline.py").read_text(), "pipeline.py", "exec"), space)
    routed = space["RoutedPipeline"].load(out)
    whole = diffusers.StableDiffusionPipeline.from_pretrained(out)
    latents = torch.from_numpy(text_round_trip.noises()[0].transpose(0, 3, 1, 2).copy())
    pictures = []
    for pipeline in (whole, routed):
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
        pictures.append(pipeline(text_round_trip.PROMPTS, latents=latents, **options).images)
    np.testing.assert_allclose(*pictures, atol=1e-5)
    # The same student for any text and any level, as in the run.
    plan, rng = run.plan("routed"), np.random.default_rng(0)
    words = ["a", "cat", "dog", "digit", "three", "red", "small", "thick", "7", "zebra", "of"]
    prompts = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(10_000)]
    partition, encoder = run.networks(plan).partition, run.networks.text_encoder(plan)
    ids = run.networks.tokenize(plan, prompts)
    ours, theirs = [], []
    for start in range(0, len(prompts), 2000):
        chunk = slice(start, start + 2000)
        ours.append(partition.group(encode_texts(encoder, ids[chunk])))
        theirs.append(routed.unet.router.cells(routed.embeddings(prompts[chunk])).numpy())
    cells = np.concatenate(theirs)
    np.testing.assert_array_equal(np.concatenate(ours), cells)
    assert np.bincount(cells).min() > 500
    for i in range(1, 1001, 37):
        level = plan.levels.at(i)
        students = routed.unet.router.students(torch.tensor([0, 1]), i - 1)
        assert students.tolist() == [2 * int(partition.times.owner(level)) + c for c in (0, 1)]


def test_lora_files_of_students_of_texts_have_the_router(run, tmp_path):
    found = cases(run)["routed"]
    base = run.networks.weights(found.sampler_run.plan.text_stage).params
    lora.write(found, tmp_path, base, 1)
    facts = json.loads((tmp_path / "ddistill.json").read_text())
    assert facts["router"] == {"students": ["s0", "s1", "s2", "s3"], "pool": "all", "cells": 2}
    assert "axes" in read_tensors(tmp_path / "router.safetensors")
    card = (tmp_path / "README.md").read_text()
    assert 'cell = Router.load(".").cell_of(pipeline, "a photo of a cat")' in card
    assert "steps = [['s2', 's3'], ['s2', 's3'], ['s0', 's1'], ['s0', 's1']]" in card
    assert "pipeline.set_adapters(steps[0][cell])" in card


@pytest.mark.parity
def test_the_code_of_the_card_selects_the_adapter_of_a_prompt(run, parts, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, out = cases(run)["routed"], tmp_path / "out"
    lora.write(found, out, run.networks.weights(found.sampler_run.plan.text_stage).params, 1)
    teacher = tmp_path / "teacher"
    text_pipeline.write(cases(run)["teacher"], teacher)
    chosen = []
    kind = diffusers.StableDiffusionPipeline
    monkeypatch.setattr(kind, "set_adapters", lambda self, name: chosen.append(name))
    monkeypatch.setattr(kind, "load_lora_weights", lambda self, *given, **named: None)
    partition, encoder = found.network.partition, run.networks.text_encoder(run.plan("routed"))
    ids = run.networks.tokenize(run.plan("routed"), text_round_trip.PROMPTS)
    cells = partition.group(encode_texts(encoder, ids))
    assert set(cells) == {0, 1}
    monkeypatch.chdir(out)
    monkeypatch.syspath_prepend(str(out))
    code = text_round_trip.code_of(out).replace("TEACHER", str(teacher))
    for prompt, cell in zip(text_round_trip.PROMPTS, cells):
        chosen.clear()
        exec(code.replace(text_pipeline.PROMPT, prompt), {})
        sys.modules.pop("pipeline")
        # The first of the four steps, and after each of them the next one.
        steps = [2 + cell, 2 + cell, cell, cell, cell]
        assert chosen[:5] == [f"s{k}" for k in steps]


def test_programs_take_states_of_texts_and_return_pictures(run, tmp_path):
    jax_export = pytest.importorskip("jax.export")
    pytest.importorskip("flatbuffers")
    found = {"student": on_grid(collect(run, "student"), (0, 1000))}
    found["teacher"] = collect(run, "teacher", 2)
    draw, noise = Drawing(run), text_round_trip.noises()[0]
    plan, words = run.plan("student"), text_round_trip.PROMPTS
    text = encode_texts(run.networks.text_encoder(plan), run.networks.tokenize(plan, words))
    for name, weights in (("student", "inside"), ("teacher", "beside")):
        case = with_decoder(found[name], run)
        stablehlo.write(case, tmp_path / name, weights == "inside")
        program = jax_export.deserialize(
            bytearray((tmp_path / name / "sampler.stablehlo").read_bytes())
        )
        given = []
        if weights == "beside":
            given = [read_tensors(tmp_path / name / "weights.safetensors")]
        made = program.call(*given, noise, np.asarray(text.states))
        assert made.shape == (4, 8, 8, 3)
        assert off(draw(found[name]), np.asarray(made)) <= 1, name


def test_programs_of_routed_students_are_one_a_cell(run, tmp_path):
    jax_export = pytest.importorskip("jax.export")
    pytest.importorskip("flatbuffers")
    found = on_grid(collect(run, "routed"), (0, 500, 1000))
    stablehlo.write(with_decoder(found, run), tmp_path, True)
    plan, words = run.plan("routed"), text_round_trip.PROMPTS
    text = encode_texts(run.networks.text_encoder(plan), run.networks.tokenize(plan, words))
    cells = run.networks(plan).partition.group(text)
    images, noise = Drawing(run)(found), text_round_trip.noises()[0]
    manifest = json.loads((tmp_path / "ddistill.json").read_text())
    assert manifest["program_of_cell"] == [0, 1]
    assert manifest["owners"] == [[0, 1], [2, 3]]
    assert {*read_tensors(tmp_path / "router.safetensors")} == {
        *("first_timesteps", "axes", "thresholds")
    }
    for g, name in enumerate(manifest["programs"]):
        program = jax_export.deserialize(bytearray((tmp_path / name).read_bytes()))
        made = np.asarray(program.call(noise, np.asarray(text.states)))
        assert off(images[cells == g], made[cells == g]) <= 1


# --------------------------------------------------------------------------------------- the files


def test_the_folder_is_a_pipeline_with_the_teachers_bytes(folder, parts, tmp_path):
    out = tmp_path / "out"
    main(["--to=diffusers", "--nfe=1000", str(folder), str(out)])
    copied = [path for path in parts.rglob("*") if path.is_file()]
    assert len(copied) == 7
    for path in copied:
        assert (out / path.relative_to(parts)).read_bytes() == path.read_bytes(), path
    again = read_stable_diffusion(out)
    assert again.licence == "creativeml-openrail-m"
    params = open_run(folder).networks(open_run(folder).plan("student")).params
    np.testing.assert_array_equal(
        again.unet.params["conv_in"]["kernel"], params["conv_in"]["kernel"]
    )
    card = (out / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["pipeline_tag"] == "text-to-image"
    assert metadata["library_name"] == "diffusers"
    assert 'pipeline("a photo of a cat", num_inference_steps=1000, guidance_scale=0)' in card
    assert "latents of 4 x 4 x 4 (height, width, channels), with captions" in card


def test_half_precision_is_of_the_unet_alone(student, tmp_path):
    half = dataclasses.replace(student, precision="float16")
    text_pipeline.write_unet(half, tmp_path, "unet.safetensors")
    kernels = read_tensors(tmp_path / "unet.safetensors")
    assert {str(x.dtype) for x in kernels.values()} == {"float16"}


def test_files_that_other_releases_need_are_added(parts, tmp_path):
    new = text_round_trip.new_parts(parts, tmp_path / "new")
    (new / "tokenizer" / "tokenizer_config.json").unlink()
    half = new / "vae" / "diffusion_pytorch_model.safetensors"
    half.rename(half.with_name("diffusion_pytorch_model.fp16.safetensors"))
    write_text_parts(new, tmp_path / "out", 77)
    text = "text_encoder/model.safetensors"
    theirs, ours = (read_tensors(folder / text) for folder in (parts, tmp_path / "out"))
    assert theirs.keys() == ours.keys()
    assert all(name.startswith("text_model.") for name in ours)
    for name in ("vocab.json", "merges.txt"):
        found = (tmp_path / "out" / "tokenizer" / name).read_text(encoding="utf-8")
        wanted = (parts / "tokenizer" / name).read_text(encoding="utf-8")
        if name == "vocab.json":
            found, wanted = json.loads(found), json.loads(wanted)
        assert found == wanted
    settings = json.loads((tmp_path / "out/tokenizer/tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 77
    assert (tmp_path / "out/vae/diffusion_pytorch_model.safetensors").is_file()


# ----------------------------------------------------------------------------------- the scheduler


def chosen(student, grid, sampler="ddim", prediction="eps", schedule=None):
    found = on_grid(student, grid, sampler)
    schedule = schedule or found.settings.schedule
    made = pipeline_scheduler(found.sampler_run, schedule, prediction)
    return made.kind, made.arguments, made.config


@pytest.mark.parametrize(
    "steps, sampler, kind",
    [
        (1, "ddim", "DDIMScheduler"),
        (4, "ddim", "DDIMScheduler"),
        (7, "ddim", "DPMSolverMultistepScheduler"),
        (1, "renoise", "DDIMScheduler"),
        (8, "renoise", "LCMScheduler"),
    ],
)
def test_even_grids_need_the_number_of_steps_alone(student, steps, sampler, kind):
    found, arguments, config = chosen(student, uniform_grid(1000, steps), sampler)
    assert (found, arguments) == (kind, {"num_inference_steps": steps})
    assert config["beta_schedule"] == "scaled_linear"
    if kind == "LCMScheduler":
        assert config["original_inference_steps"] == steps


@pytest.mark.parametrize(
    "grid, sampler, kind",
    [
        (UNEVEN, "ddim", "DPMSolverMultistepScheduler"),
        (UNEVEN, "renoise", "LCMScheduler"),
        (uniform_grid(1000, 3), "renoise", "LCMScheduler"),
        # Half a level, which diffusers rounds to the even neighbour.
        (uniform_grid(1000, 16), "ddim", "DPMSolverMultistepScheduler"),
        ((0, 400), "ddim", "DPMSolverMultistepScheduler"),
    ],
)
def test_other_grids_are_listed(student, grid, sampler, kind):
    found, arguments, _ = chosen(student, grid, sampler)
    assert (found, arguments) == (kind, {"timesteps": [int(i) - 1 for i in grid[:0:-1]]})


def test_levels_that_diffusers_does_not_have_are_refused(student):
    with pytest.raises(ConfigError, match="is sampled with ddpm; the export to diffusers supports"):
        chosen(student, UNEVEN, "ddpm")
    with pytest.raises(ConfigError, match="predicts flow, and a StableDiffusionPipeline knows eps"):
        chosen(student, UNEVEN, prediction="flow")
    with pytest.raises(ConfigError, match="timestep 0, where LCMScheduler returns its input"):
        chosen(student, (0, 1, 500), "renoise")
    other = ScheduleSettings("linear_beta", 1000, {"start": 1e-4, "end": 0.02})
    with pytest.raises(ConfigError, match="not timesteps 0 to 999 of the teacher's table"):
        chosen(student, UNEVEN, schedule=other)
    found = on_grid(student, UNEVEN)
    levels = found.sampler_run.levels
    own_times = Schedule(levels.alpha, levels.sigma, levels.time / 2)
    shifted = dataclasses.replace(found.sampler_run, levels=own_times)
    with pytest.raises(ConfigError, match="UNet2DConditionModel knows no others"):
        pipeline_scheduler(shifted, found.settings.schedule, "eps")


def test_what_cannot_be_a_pipeline_says_what_can(run, student, tmp_path):
    weak = dataclasses.replace(student.sampler_run, guidance=0.5)
    with pytest.raises(ConfigError, match="guidance 0.5, and diffusers guides above 1 alone"):
        text_pipeline.write(dataclasses.replace(student, sampler_run=weak), tmp_path / "a")
    routed = collect(run, "routed")
    with pytest.raises(ConfigError, match="are 4 U-Nets, of which a router picks one"):
        text_pipeline.write_unet_alone(routed, tmp_path / "c")
    with pytest.raises(ConfigError, match="sees pixels, and a StableDiffusionPipeline decodes"):
        text_pipeline.write(dataclasses.replace(student, pipeline=None), tmp_path / "b")
