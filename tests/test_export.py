"""Exported students: what is written, and that others draw our images from it."""

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from exported import classes_run, levels_run, run

import ddistill
from ddistill import experiment, recipes
from ddistill.diffusion import KINDS, convert, input_scale
from ddistill.evaluation.sampling import conditions, noise_bank
from ddistill.export.__main__ import collect, main
from ddistill.export.diffusers import _beyond_ddim
from ddistill.interop.diffusers import read_teacher
from ddistill.interop.tensors import read_tensors
from ddistill.schedules import Level, make_schedule, subsequence
from ddistill.settings import ScheduleSettings
from ddistill.trained_run import open_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {s.name: run(s, folder) for s in (levels_run(), classes_run())}


@pytest.fixture
def export(runs, tmp_path):
    """`export(run, form, ...)` exports and returns the folder."""

    def write(name: str, form: str, *options: str) -> Path:
        out = tmp_path / "out"
        main([f"--to={form}", *options, str(runs[name]), str(out)])
        return out

    return write


def ours(folder: Path, count: int, nfe: int | None = None, stage: str = "", labels=None):
    """(noise, images, labels) of the run itself."""
    trained = ddistill.load(folder, stage)
    sampler_run, e = trained.sampler_run(stage, nfe), trained.settings.evaluation
    noise = np.array(noise_bank(e, sampler_run.plan.image_shape, 0, count))
    images = trained.sample(count, seed=e.noise_seed, nfe=nfe, labels=labels)
    cond = conditions(sampler_run, 0, count) if labels is None else np.asarray(labels)
    return noise, images, cond


def off(a, b):
    """The largest difference in grey levels."""
    return int(np.abs(a.astype(int) - np.asarray(b).astype(int)).max())


# ------------------------------------------------------------------------------------ diffusers


@pytest.mark.parity
@pytest.mark.parametrize("nfe, spacing", [(4, "trailing"), (3, "leading")])
def test_ddim_pipelines_draw_our_images(runs, export, nfe, spacing):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    out = export("levels", "diffusers", f"--nfe={nfe}")
    pipeline = diffusers.DDIMPipeline.from_pretrained(out)
    assert pipeline.scheduler.config.timestep_spacing == spacing
    noise, images, _ = ours(runs["levels"], 6, nfe)
    pipeline.set_progress_bar_config(disable=True)
    given = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    module = sys.modules[type(pipeline).__module__]
    before = module.randn_tensor
    module.randn_tensor = lambda *_, **__: given
    try:
        made = pipeline(
            batch_size=6,
            num_inference_steps=nfe,
            use_clipped_model_output=True,
            output_type="pt",
        ).images
    finally:
        module.randn_tensor = before
    # diffusers rounds [0, 1] to grey levels in its own way; ours is used here.
    theirs = np.floor(np.clip(made.numpy() * 255 + 0.5, 0, 255)).transpose(0, 2, 3, 1)
    assert off(images, theirs) <= 1


def test_even_steps_of_a_schedule_that_ends_in_noise_are_a_pipeline(runs):
    """Their own betas do not fit into float32; those of the teacher's levels do."""
    exported = collect(open_run(runs["levels"]), nfe=4)
    schedule = ScheduleSettings("cosine", 1000)
    levels = make_schedule("cosine", 1000)

    def at(*grid):
        sampler_run = dataclasses.replace(
            exported.sampler_run, grid=np.array(grid), levels=subsequence(levels, list(grid))
        )
        settings = dataclasses.replace(exported.settings, schedule=schedule)
        return dataclasses.replace(exported, sampler_run=sampler_run, settings=settings)

    assert _beyond_ddim(at(0, 250, 500, 750, 1000)) == ""
    assert "in float32" in _beyond_ddim(at(0, 300, 1000))


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.7, 0.3), (0.0, 1.0), (1.0, 5.0), (0.6, 0.8)])
def test_the_pipeline_reads_every_prediction_as_we_do(kind, alpha, sigma):
    """Levels of the straight path, of EDM and of DDPM; eps says nothing of x0 at alpha = 0."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from ddistill.export import pipeline

    if kind == "eps" and not alpha:
        return
    rng, level = np.random.default_rng(0), Level(*np.float32([alpha, sigma, 3.0]))
    z, output = rng.standard_normal((2, 3, 2, 4, 4)).astype(np.float32)
    seen = []

    def network(x, time):
        seen.append(x.numpy())
        return types.SimpleNamespace(sample=torch.from_numpy(output))

    students = object.__new__(pipeline.Students)
    students.facts = {"prediction": kind, "sigma_data": 0.5, "conditional": False, "clip": 0.0}
    students.unets, students.owners = [network], torch.zeros((1, 1), dtype=torch.int64)
    students.levels = {n: torch.tensor([0.0, float(getattr(level, n))]) for n in vars(level)}
    found = students.predict(torch.from_numpy(z), 1, torch.zeros(3, dtype=torch.int64))
    np.testing.assert_allclose(found, convert(kind, output, z, level).x0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[0], input_scale(kind, level) * z, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name, labels", [("levels", None), ("classes", [0, 9, 4, 5, 0])])
def test_routed_students_draw_our_images_with_their_own_pipeline(runs, export, name, labels):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    out = export(name, "diffusers")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "ddistill.json",
        "pipeline.py",
        "student_0",
        "student_1",
    ]
    noise, images, cond = ours(runs[name], 5, labels=labels)
    space: dict = {}
    exec(compile((out / "pipeline.py").read_text(), "pipeline.py", "exec"), space)
    made = space["Students"](out)(
        labels=None if cond is None else cond,
        noise=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
    )
    assert off(images, made.numpy()) <= 1


def test_what_diffusers_is_given_comes_back_bit_for_bit(runs, export, tmp_path):
    first = export("levels", "diffusers", "--stage=teacher")
    found = read_teacher(first)
    assert found.prediction == "eps"
    assert found.schedule == {
        "name": "linear_beta",
        "steps": 16,
        "options": {"start": 0.01, "end": 0.4},
    }
    again = tmp_path / "again"
    # The same weights as the teacher of another experiment, with a student of its own to come.
    made = recipes.with_teacher(levels_run(), f"diffusers:{first}")
    made = dataclasses.replace(made, name="imported", pipeline=("teacher",))
    experiment.run(recipes.to_config(made), tmp_path / "imported", tmp_path / "shared", "", "test")
    main(["--to=diffusers", "--stage=teacher", str(tmp_path / "imported"), str(again)])
    for part in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json"):
        assert (again / part).read_bytes() == (first / part).read_bytes(), part
    scheduler = "scheduler/scheduler_config.json"
    assert json.loads((again / scheduler).read_text()) == json.loads(
        (first / scheduler).read_text()
    )


def test_other_users_can_read_the_files(export):
    umask = os.umask(0o022)
    try:
        out = export("levels", "safetensors")
    finally:
        os.umask(umask)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert "weights.safetensors" in {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def test_cards_say_what_the_export_is(export):
    given = ["--licence=CC-BY-4.0", "--dataset=me/digits", "--base-model=you/teacher"]
    out = export("classes", "safetensors", *given)
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "license": "cc-by-4.0",
        "library_name": "ddistill",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "distillation", "ddistill", "msd_dm", "class-conditional", "jax"],
        "base_model": ["you/teacher"],
        "datasets": ["me/digits"],
    }
    for text in (
        "Data: digits, images of 8 x 8 x 1",
        "10 classes",
        "msd_dm, 2 students",
        "(NFE): 1, with ddim",
        "predicts edm",
        "[you/teacher](https://huggingface.co/you/teacher)",
        "The run has no scores of it.",
    ):
        assert text in card, text
    assert not (out / "samples.png").exists()


# ---------------------------------------------------------------------------- stablehlo, weights


@pytest.mark.parametrize("weights", ["inside", "beside"])
def test_stablehlo_runs_where_only_jax_is(runs, export, weights):
    out = export("levels", "stablehlo", f"--weights={weights}", "--nfe=3")
    noise, images, _ = ours(runs["levels"], 5, 3)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    # The card's own example, from our noise, with ddistill out of reach.
    lines = [line for line in code.splitlines() if not line.startswith("noise =")]
    where = next(i for i, line in enumerate(lines) if line.startswith("images"))
    lines.insert(where, 'noise = numpy.load("noise.npy")')
    lines.insert(0, 'import sys\nsys.modules["ddistill"] = None')
    lines.append('numpy.save("images.npy", images)')
    np.save(out / "noise.npy", noise)
    done = subprocess.run(
        [sys.executable, "-I", "-c", "\n".join(lines)], cwd=out, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(code.strip().splitlines()) <= 10
    assert off(images, np.load(out / "images.npy")) <= 1


def test_stablehlo_of_classes_is_a_program_a_group(runs, export):
    jax_export = pytest.importorskip("jax.export")
    out = export("classes", "stablehlo")
    manifest = json.loads((out / "ddistill.json").read_text())
    assert manifest["program_of_class"] == [0] * 5 + [1] * 5
    noise, images, cond = ours(runs["classes"], 4, labels=[7, 2, 9, 0])
    for i, label in enumerate(cond):
        name = manifest["programs"][manifest["program_of_class"][label]]
        program = jax_export.deserialize(bytearray((out / name).read_bytes()))
        made = program.call(noise[i : i + 1], np.array([label], np.int32))
        assert off(images[i : i + 1], made) <= 1


@pytest.mark.parametrize(
    "bad, message",
    [
        (lambda x: x[:, :4], "batch"),
        (lambda x: x.astype(np.int32), "dtype|int32"),
    ],
)
def test_wrong_arguments_of_a_program_are_readable(export, bad, message):
    jax_export = pytest.importorskip("jax.export")
    out = export("levels", "stablehlo", "--nfe=3")
    program = jax_export.deserialize(bytearray((out / "sampler.stablehlo").read_bytes()))
    with pytest.raises(ValueError, match=message):
        program.call(bad(np.zeros((2, 8, 8, 1), np.float32)))


def test_safetensors_hold_the_stack_and_say_who_owns_what(runs, export):
    out = export("levels", "safetensors")
    tensors = read_tensors(out / "weights.safetensors")
    params = ddistill.load(runs["levels"])
    network = params.networks(params.plan("pair"))
    kernel = network.students.params["conv_in"]["kernel"]
    assert tensors["conv_in/kernel"].shape == (2, 3, 3, 1, 8)
    np.testing.assert_array_equal(tensors["conv_in/kernel"], kernel)
    manifest = json.loads((out / "ddistill.json").read_text())
    assert manifest["owners"] == [[0], [0], [0], [1], [1], [1]]
    assert len(manifest["levels"]["alpha"]) == 7
    assert manifest["levels"]["alpha"][0] == 1.0


# ----------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--to=diffusers", "--stage=teacher", "--nfe=17"], "the teacher has 16 levels"),
        (["--to=diffusers", "--nfe=5"], r"nfe=5: the students of this run have 4 \(even\)"),
        (["--to=diffusers", "--stage=evn"], "Did you mean 'even'"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_left(
    runs, tmp_path, capsys, arguments, message
):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, str(runs["levels"]), str(tmp_path / "out")])
    assert str(caught.value).startswith("error: ")
    assert re.search(message, str(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(runs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit, match="is not an empty folder; nothing is overwritten"):
        main(["--to=safetensors", str(runs["levels"]), str(tmp_path / "out")])
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
