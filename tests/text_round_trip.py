"""Exported text-to-image students, drawn by the run and by diffusers from the same noise.

python tests/text_round_trip.py make OUT     exports of a tiny run with the run's images; needs the
                                             extras of the tests, but no torch
python tests/text_round_trip.py check OUT    draws them again by the code of each model card; needs
                                             torch, diffusers and transformers alone

`check` is for environments with other releases of transformers than that of the tests. It prints
the largest difference of each export in grey levels, and fails above 1.
"""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np

PROMPTS = ["a red cat", "a photo of the small digit two", "three", "large green dog of the one"]
UNEVEN = (0, 201, 641, 1000)
EXPECTED = "expected.npz"


def settings(teacher, path, model):
    """A guided pipeline, and a student on all of its levels."""
    import texted

    from ddistill.settings import GridSettings, StudentsSettings

    made = texted.distilled(teacher, path, model)
    student = dataclasses.replace(made.stages["student"], grid=GridSettings())
    evaluation = dataclasses.replace(made.evaluation, enabled=False)
    routed = dataclasses.replace(
        student,
        students=StudentsSettings(count=4, partition="both", ranges=2, pool="all"),
    )
    stages = {**made.stages, "student": student, "routed": routed}
    pipeline = tuple(stages)
    return dataclasses.replace(made, stages=stages, pipeline=pipeline, evaluation=evaluation)


def make_run(root):
    """The folder of a run with random weights."""
    import exported
    import texted

    from ddistill import data
    from ddistill.interop.pipeline_parts import copy_parts
    from ddistill.interop.stable_diffusion import read_stable_diffusion
    from ddistill.trained_run import open_run
    from ddistill.training.text_cells import fit_texts

    teacher = texted.teacher(root)
    (teacher / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    path = texted.latent_set(root, f"diffusers:{teacher}", 8)
    folder = exported.run(settings(teacher, path, read_stable_diffusion(teacher)), root)
    run = open_run(folder)
    copy_parts(teacher, run.plan("teacher").folder)
    routed = run.plan("routed")
    fit_texts(routed, data.load(run.settings.data, "train"), run.networks.text_encoder(routed))
    return folder


def on_grid(found, grid, sampler="ddim"):
    """An `Exported` of all levels as one that is sampled on fewer."""
    from ddistill.schedules import subsequence

    run = found.sampler_run
    levels = subsequence(run.student_plan.levels, list(grid))
    changed = dataclasses.replace(run, sampler=sampler, grid=np.array(grid), levels=levels)
    return dataclasses.replace(found, sampler_run=changed)


def cases(run):
    """By name an `Exported`: numbers of steps, uneven levels, renoising, a guided teacher."""
    from ddistill.export.__main__ import collect
    from ddistill.schedules import uniform_grid

    student = collect(run, "student")
    even = {n: uniform_grid(1000, n) for n in (1, 2, 3, 4, 7)}
    return {
        **{f"ddim_{n}": on_grid(student, grid) for n, grid in even.items()},
        "ddim_uneven": on_grid(student, UNEVEN),
        "renoise_4": on_grid(student, even[4], "renoise"),
        "renoise_uneven": on_grid(student, UNEVEN, "renoise"),
        "teacher": collect(run, "teacher", 8),
        "routed": on_grid(collect(run, "routed"), even[4]),
    }


def new_parts(parts, out):
    """The parts of a pipeline as transformers since 5.6 writes them."""
    from ddistill.interop.tensors import read_tensors, write_tensors
    from ddistill.interop.tokenizer import read_tokenizer

    shutil.copytree(parts, out)
    weights = out / "text_encoder" / "model.safetensors"
    named = {k.removeprefix("text_model."): x for k, x in read_tensors(weights).items()}
    write_tensors(weights, named)
    read_tokenizer(parts / "tokenizer", 77).bpe.save(str(out / "tokenizer" / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (out / "tokenizer" / name).unlink()
    return out


def noises(seed=0):
    """The first noise, and that of the steps: `[1 + 7, B, 4, 4, 4]`."""
    shape = (8, len(PROMPTS), 4, 4, 4)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Drawing:
    """Images of a run's networks, with one compiled call of each network."""

    def __init__(self, run):
        import jax

        self.run = run
        self.call = jax.jit(lambda network, z, level, cond: network(z, level, cond))

    def __call__(self, found, prompts=PROMPTS):
        """The images uint8 of an `Exported`."""
        from ddistill.evaluation.metrics.pixels import quantise
        from ddistill.evaluation.prompts import texts_of
        from ddistill.evaluation.sampling import as_sampled

        sampled, (z, *fresh) = found.sampler_run, noises()
        networks, plan = self.run.networks, sampled.plan
        texts = texts_of(plan, networks, networks.tokenize(plan, prompts))
        cond, levels = texts.conditions(np.arange(len(prompts))), sampled.levels
        network = as_sampled(found.network, sampled, texts.null)
        for i in range(levels.num_steps, 0, -1):
            guess = self.call(network, z, levels.at(i), cond)
            noise = np.asarray(guess.eps)
            if sampled.sampler == "renoise":
                noise = fresh[levels.num_steps - i]
            z = levels.alpha[i - 1] * np.asarray(guess.x0) + levels.sigma[i - 1] * noise
        return quantise(networks.decoder(plan)(np.asarray(z)))


def code_of(folder):
    """The example of a model card."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def drawn_by_diffusers(folder, prompts=PROMPTS, change=None):
    """The images uint8 that the code of a model card makes of the same noise."""
    import torch
    from diffusers.schedulers import scheduling_lcm

    first, *fresh = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in noises()]
    sys.path.insert(0, str(folder))
    code = code_of(folder).replace('"."', repr(str(folder))).replace(".images[0]", ".images")
    code = code.replace('"a photo of a cat"', 'PROMPTS, latents=FIRST, output_type="np"')
    code = code.replace("\nimage =", "\npipeline.set_progress_bar_config(disable=True)\nimage =")
    if change is not None:
        code = change(code)
    space = {"PROMPTS": list(prompts), "FIRST": first}
    before, scheduling_lcm.randn_tensor = (
        scheduling_lcm.randn_tensor,
        lambda *_, **__: fresh.pop(0),
    )
    try:
        exec(code, space)
    finally:
        scheduling_lcm.randn_tensor = before
        sys.path.remove(str(folder))
        sys.modules.pop("pipeline", None)
    return np.floor(np.clip(space["image"] * 255 + 0.5, 0, 255)).astype(np.uint8)


def off(a, b):
    """The largest difference in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def main(what, out):
    out = Path(out)
    if what == "make":
        from ddistill.export import text_pipeline
        from ddistill.trained_run import open_run

        out.mkdir(parents=True)
        run = open_run(make_run(out))
        draw, found = Drawing(run), cases(run)
        parts = new_parts(found["ddim_1"].pipeline, out / "new_parts")
        found["new_parts"] = dataclasses.replace(found["ddim_1"], pipeline=parts)
        for name, case in found.items():
            folder = out / "exports" / name
            text_pipeline.write(case, folder)
            np.savez(folder / EXPECTED, images=draw(case))
        return
    worst = 0
    for path in sorted(out.glob(f"exports/*/{EXPECTED}")):
        found = off(np.load(path)["images"], drawn_by_diffusers(path.parent))
        print(f"{path.parent.name}: {found}")
        worst = max(worst, found)
    if worst > 1:
        sys.exit("error: images differ by more than one grey level")


if __name__ == "__main__":
    main(*sys.argv[1:])
