"""Compiles a training step of Stable Diffusion 1.5 for TPUs that need not be there.

    python benchmarks/aot_stable_diffusion.py --mesh=1,4,4 --batch=16
    python benchmarks/aot_stable_diffusion.py --mesh=4,4,1 --students=4 --method=dmd --rank=64

The frozen U-Net teaches a student of the same architecture, which has an average of its weights;
captions are encoded inside the step. Only shapes go in: no weights, no data, no TPU. Weights of all
networks are cut over the last axis of the mesh. With `--students` there are as many students, each
with batches of its own; the method "dmd" has a second trained network beside each of them, and with
`--rank` both are factors of low rank on the teacher. See `aot_compile.py` for what compiles, and
for `--quick`.
"""

import argparse
import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from aot_compile import CHIPS, compile_chunk, prepare, size_of, tpu_mesh
from jaxtyping import PyTree
from shapes import arguments, captioned_latents, text_encoder, unet_facts

from ddistill.data import Dataset
from ddistill.data.facts import DataFacts
from ddistill.interop.imported import Imported
from ddistill.interop.sources import write_noted
from ddistill.networks.clip_text import CLIPText
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import SOURCES, plan_stages
from ddistill.runtime.sharding import Layout, data_mesh
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    LowRankSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
)
from ddistill.training.compiled import Chunk, step_settings
from ddistill.training.step import make_step
from ddistill.typing import Options

# A pipeline that is not there: planning then takes what is noted of it.
SOURCE = "diffusers:/stable-diffusion"
SCHEDULE = {"start": 0.00085, "end": 0.012}
# By name the options of the U-Net and of the text encoder, the side of the latents, and the least
# elements of an array that is cut.
SIZES: dict[str, tuple[Options, Options, int, int]] = {
    "sd15": ({}, {}, 64, 2**16),
    "tiny": (
        {
            "widths": (32,),
            "blocks": (1,),
            "attends": (),
            "heads": (2,),
            "context_dim": 32,
            "norm_groups": 8,
        },
        {"width": 32, "layers": 1, "heads": 2, "hidden": 64, "vocabulary": 512},
        8,
        2**10,
    ),
}


@dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
      size: a key of `SIZES`.
      mesh: sizes of (student, data, model).
      batch: images of a step of one student on all of its chips together.
      guidance: scale of the teacher's classifier-free guidance; 1 for none.
      quick: whether the compiler does the least.
      students: K; 0 for one student without a student axis.
      method: "o2mkd", "sfddm" with the eight teacher steps of its recipe, or "dmd" without pairs.
      rank: of the student, and of the network beside it; 0 for whole networks.
      chip: a key of `aot_compile.TOPOLOGIES`.
    """

    size: str = "sd15"
    mesh: tuple[int, int, int] = (1, 4, 4)
    batch: int = 16
    guidance: float = 1.0
    quick: bool = False
    students: int = 0
    method: str = "o2mkd"
    rank: int = 0
    chip: str = "v5e"


METHODS: dict[str, Options] = {
    "o2mkd": {"name": "o2mkd"},
    "sfddm": {"name": "sfddm", "substeps": 8},
    "dmd": {"name": "dmd", "regression_weight": 0.0, "fake_weight": "snr"},
}


def pipeline(case: Case) -> Imported:
    """The facts of the U-Net."""
    unet, _, side, _ = SIZES[case.size]
    return unet_facts(SOURCE, {**unet, "dtype": "bfloat16"}, side)


def plans(case: Case, known: Imported, dataset: Dataset) -> dict[str, StagePlan]:
    """The teacher as it is, and a student of four steps that learns from it at their levels."""
    stages = {
        "teacher": StageSettings(
            {"name": "denoising"},
            source=SOURCE,
            # For the network beside the student that starts as a copy of it.
            network={**known.network, "remat": True},
            steps=0,
            batch_size=case.batch,
            ema=(),
        ),
        "student": StageSettings(
            METHODS[case.method],
            network={**known.network, "remat": True},
            teacher="teacher",
            init="teacher",
            guidance=case.guidance,
            grid=GridSettings(steps=1 if case.method == "dmd" else 4),
            conditional=True,
            steps=1000,
            batch_size=case.batch,
            optimizer=OptimizerSettings(name="adamw", learning_rate=1e-5, clip=1.0),
            # Students of a partition are this program too: an owner is no part of a train step.
            students=StudentsSettings(
                count=case.students,
                sweep={"seed": tuple(range(case.students))} if case.students else {},
            ),
            low_rank=LowRankSettings(case.rank, networks=_adapted(case)),
        ),
    }
    settings = Settings(
        name="stable-diffusion",
        stages=stages,
        pipeline=tuple(stages),
        data={"name": "latents"},
        schedule=ScheduleSettings("scaled_linear_beta", 1000, SCHEDULE),
        evaluation=EvaluationSettings(classifier="", clip=0.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_noted(Path(folder) / SOURCES, {"teacher": (SOURCE, known)})
        made = plan_stages(settings, DataFacts.of(dataset), Path(folder), Path(folder))
    return {plan.name: plan for plan in made}


def _adapted(case: Case) -> tuple[str, ...]:
    return ("student", "fake") if case.method == "dmd" else ("student",)


def program(case: Case, layout: Layout) -> tuple[Chunk, list[Any]]:
    """The train step of the student and the shapes of its arguments on the devices of a layout."""
    _, text, side, _ = SIZES[case.size]
    encoder = text_encoder(text, layout)
    dataset = captioned_latents(CLIPText(**text), side)
    made = plans(case, pipeline(case), dataset)
    plan = made["student"]
    chunk = Chunk(make_step(step_settings(plan, layout, flip=False)), 1, False, layout)
    return chunk, arguments(plan, made, dataset, layout, encoder)


def operations(case: Case) -> float:
    """Operations of a step of one student on one device, as XLA counts them unoptimised."""
    one = dataclasses.replace(case, students=0)
    chunk, shapes = program(one, Layout(data_mesh(1, jax.devices("cpu")[:1])))
    return float(chunk.lower(*shapes).cost_analysis()["flops"])


def _layout(case: Case) -> Layout:
    mesh, smallest = tpu_mesh(case.mesh, case.chip), SIZES[case.size][3]
    return Layout(mesh, case.students, "vmap", smallest=smallest)


def lower_case(case: Case) -> dict[str, Any]:
    """What is known without compiling for TPUs: parameters, operations, bytes that a chip keeps."""
    layout = _layout(case)
    state, inputs = program(case, layout)[1][:2]
    return {
        "parameters": size_of(state.params),
        "students": max(1, case.students),
        "frozen": size_of(inputs.teacher) + size_of(inputs.text_encoder),
        "batch": case.batch,
        "kept": _bytes_of_chip(state) + _bytes_of_chip(inputs),
        "flops_of_one": operations(case),
    }


def compile_case(case: Case) -> dict[str, Any]:
    """What the compiled program takes; numbers are those of one chip and one step."""
    layout = _layout(case)
    chunk, shapes = program(case, layout)
    return compile_chunk(chunk, shapes, layout, case.quick)[1]


def _bytes_of_chip(tree: PyTree) -> int:
    """Bytes of the parts of arrays that lie on one chip, without padding."""
    parts = ((x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree))
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="sd15", choices=SIZES)
    parser.add_argument("--mesh", default="1,4,4", help="sizes of student, data, model")
    parser.add_argument("--batch", type=int, default=16, help="of a student on all of its chips")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--students", type=int, default=0, help="K; 0: one without a student axis")
    parser.add_argument("--method", default="o2mkd", choices=METHODS)
    parser.add_argument("--rank", type=int, default=0, help="0: whole networks")
    parser.add_argument("--chip", default="v5e", choices=CHIPS)
    parser.add_argument("--lower", action="store_true", help="do not compile")
    args = vars(parser.parse_args())
    lower, sizes = args.pop("lower"), tuple(int(n) for n in args.pop("mesh").split(","))
    prepare(args["chip"])
    case = Case(mesh=sizes, **args)  # type: ignore[arg-type]
    found = lower_case(case)
    print(json.dumps(found if lower else {**found, **compile_case(case)}))


if __name__ == "__main__":
    main()
