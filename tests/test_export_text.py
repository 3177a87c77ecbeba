"""Text-to-image students that diffusers opens, and that draw the run's images."""

import dataclasses
import json
import shutil
import sys

import exported
import numpy as np
import pytest
import texted

import ddistill
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling import noise_bank
from ddistill.export.__main__ import collect, main
from ddistill.export.text_parts import write_text_parts
from ddistill.export.text_schedulers import pipeline_scheduler
from ddistill.interop.pipeline_parts import copy_parts
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.interop.tensors import read_tensors, write_tensors
from ddistill.settings import GridSettings
from ddistill.trained_run import open_run

pytest.importorskip("tokenizers")

PROMPTS = ["a red cat", "a photo of the small digit two"]
UNEVEN = (0, 201, 641, 1000)


def settings(teacher, path, model):
    """A pipeline, and students on all of its levels, on uneven ones, and with renoising."""
    made = texted.distilled(teacher, path, model)
    student = made.stages["student"]
    fresh = dataclasses.replace(student, samplers={"renoise": (4, 3)}, grid=GridSettings())
    stages = {
        "teacher": made.stages["teacher"],
        "even": dataclasses.replace(fresh, samplers={"ddim": (1, 2, 3, 4, 7)}),
        "uneven": dataclasses.replace(student, grid=GridSettings(explicit=UNEVEN)),
        "fresh": fresh,
    }
    evaluation = dataclasses.replace(made.evaluation, enabled=False)
    return dataclasses.replace(made, stages=stages, pipeline=tuple(stages), evaluation=evaluation)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    teacher = texted.teacher(root)
    (teacher / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    path = texted.latent_set(root, f"diffusers:{teacher}", 8)
    made = settings(teacher, path, read_stable_diffusion(teacher))
    folder = exported.run(made, root)
    copy_parts(teacher, open_run(folder).plan("teacher").folder)
    return folder


@pytest.fixture
def export(run, tmp_path):
    def write(form, *options):
        out = tmp_path / "out"
        main([f"--to={form}", *options, str(run), str(out)])
        return out

    return write


def test_it(run, export):
    out = export("diffusers", "--stage=even", "--nfe=4")
    print((out / "README.md").read_text())
    for f in sorted(out.rglob("*")):
        print(f.relative_to(out))
    print((out / "scheduler/scheduler_config.json").read_text())
