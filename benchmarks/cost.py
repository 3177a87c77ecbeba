"""Writes docs/cost.md: operations, memory and estimated hours of every shipped config.

    python benchmarks/cost.py --seconds=2400

Operations are counted by XLA in the lowered program of one student's update, before optimisation.
Memory is that of the same program compiled for one chip of a TPU v5e (extra `tpu-aot`), with the
share of the batch that the chip has; students of Stable Diffusion need several chips and are left
out. Nothing runs. Programs that several stages or configs share
are measured once. docs/cost.json keeps what is done, so that the same command continues;
`--seconds=0` only writes the page.
"""

import argparse
import dataclasses
import functools
import gc
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import aot_compile
import jax
import numpy as np
from cost_page import page
from shapes import (
    accelerated,
    arguments,
    first_student,
    network,
    plan_all,
    read_settings,
    text_encoder,
    texts_of,
)

from ddistill.conditions import TextCondition
from ddistill.data import Dataset
from ddistill.networks import attention
from ddistill.networks.captioned_unet import CaptionedUNet
from ddistill.networks.text_unet import TextUNet
from ddistill.objectives.base import static_part
from ddistill.objectives.sfd import SFD
from ddistill.planning.plan import StagePlan
from ddistill.runtime.sharding import Layout, data_mesh, make_mesh
from ddistill.samplers import nfe
from ddistill.training.compiled import Chunk, step_settings
from ddistill.training.step import make_step

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs" / "cost.json", ROOT / "docs" / "cost.md"
# Pixels of the images of one student on one chip; larger batches are spread over chips.
PIXELS = 128 * 32 * 32
# The program of an imported network that is used as it is.
UNTRAINED = "none"


def program_of(plan: StagePlan, plans: Mapping[str, StagePlan]) -> str:
    """A name of what one student of a stage computes per image; equal names cost the same.

    Dropout, averages and the size of the batch change the operations of an image by less than 1 %.
    """
    s = plan.settings
    others = [
        sorted(plans[n].modules.items()) if n else None for n in (s.teacher_stage, s.classifier)
    ]
    made = (
        *(static_part(plan.objective), loop_calls(plan), sorted(plan.modules.items()), *others),
        *(bool(s.pairs), plan.image_shape),
        *((plan.levels.num_steps,) if is_pairs(plan) else ()),
        *((plan.teacher_passes,) if plan.teacher_passes != 1 else ()),
    )
    text = re.sub(r"dropout=[\d.]+", "", repr(made))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_pairs(plan: StagePlan) -> bool:
    """Whether the stage samples its teacher and trains nothing."""
    return plan.objective.trains.kind == "pairs"


def loop_calls(plan: StagePlan) -> int:
    """Calls of the teacher that XLA does not count: the body of a loop counts once."""
    own = plan.students[0].objective
    if isinstance(own, SFD):  # all calls are in one loop
        return int(own.teacher_calls()) - 1
    walked = plan.objective.dynamic_hparams().get("substeps") if plan.settings.teacher else None
    if walked is None or not getattr(plan.objective, "hidden_weight", 0):
        return 0
    first = any(getattr(plan.objective, f"{name}_weight", 0) for name in ("output", "feature"))
    return int(plan.objective.teacher_calls(1)) - 1 - first


def chunk_of(plan: StagePlan, dataset: Dataset, layout: Layout) -> Chunk:
    """The train step of one student, with streamed images."""
    step = make_step(step_settings(plan, layout, dataset.hflip))
    resident = not plan.objective.requires.images  # then no images are given
    return Chunk(step, 1, resident, layout)


def lowered(plan: StagePlan, plans: Mapping[str, StagePlan], dataset: Dataset, mesh: Any) -> Any:
    """The program of one update of one student on a mesh of one device."""
    layout = Layout(mesh)
    chunk = chunk_of(plan, dataset, layout)
    encoder = text_encoder({}, layout) if reads_states(plan) else None
    return chunk.lower(*arguments(plan, plans, dataset, layout, encoder))


def reads_states(plan: StagePlan) -> bool:
    """Whether a text encoder beside the network reads the captions."""
    return isinstance(plan.module, TextUNet) and not isinstance(plan.module, CaptionedUNet)


def forward_flops(plan: StagePlan, plans: Mapping[str, StagePlan], images: int) -> float:
    """Operations of one call of a stage's teacher on a batch; guidance calls its network twice."""
    layout = Layout(data_mesh(1, jax.devices("cpu")[:1]))
    teacher = network(plans[plan.settings.teacher_stage], layout.of_teacher)
    level = plan.students[0].tables.teacher.at(np.full(images, 1))
    z = jax.ShapeDtypeStruct((images, *plan.image_shape), np.float32)
    cond = jax.ShapeDtypeStruct((images,), np.int32) if plan.settings.conditional else None
    if is_pairs(plan) and plan.students[0].tables.classes is not None:
        cond = jax.ShapeDtypeStruct((images,), np.int32)
    cond = texts_of(plan, images) or cond
    if reads_states(plan):
        states = (images, plan.tokenizer.length, plan.module.context_dim)  # type: ignore[union-attr]
        cond = TextCondition(*(jax.ShapeDtypeStruct(x, np.float32) for x in (states, states[::2])))
    call = jax.jit(lambda network, z, cond: network(z, level, cond).x0)
    return plan.teacher_passes * call.lower(teacher, z, cond).cost_analysis()["flops"]


def count(plan: StagePlan, plans: Mapping[str, StagePlan], dataset: Dataset) -> dict[str, Any]:
    """Parameters of one student, and operations an image of its update or of a set of pairs."""
    plan = on_a_chip(plan)
    with mock.patch.object(attention, "MOST_SCORES", 1 << 60):  # the body of a loop counts once
        return _count(plan, plans, dataset)


def _count(plan: StagePlan, plans: Mapping[str, StagePlan], dataset: Dataset) -> dict[str, Any]:
    images = plan.settings.batch_size
    if is_pairs(plan):
        calls = nfe(plan.objective.sampler, plan.levels.num_steps)  # type: ignore[attr-defined]
        return {"parameters": 0, "flops": calls * forward_flops(plan, plans, images) / images}
    program = lowered(plan, plans, dataset, data_mesh(1, jax.devices("cpu")[:1]))
    flops = program.cost_analysis()["flops"]
    extra = loop_calls(plan)
    if extra > 0:
        flops += extra * forward_flops(plan, plans, images)
    layout = Layout(data_mesh(1, jax.devices("cpu")[:1]))
    weights = jax.tree.leaves(first_student(plan, layout).params["student"])
    return {"parameters": sum(x.size for x in weights), "flops": flops / images}


def on_a_chip(plan: StagePlan) -> StagePlan:
    """The stage with a half, quarter ... of its batch, the largest of at most `PIXELS` pixels."""
    images, (height, width, _) = plan.settings.batch_size, plan.image_shape
    while images % 2 == 0 and images * height * width > PIXELS:
        images //= 2
    settings = dataclasses.replace(plan.settings, batch_size=images, accumulate=1)
    return dataclasses.replace(plan, settings=settings)


def memory(plan: StagePlan, plans: Mapping[str, StagePlan], dataset: Dataset) -> dict[str, Any]:
    """Bytes of a chip for the compiled program of its share of the batch."""
    began, plan = time.perf_counter(), on_a_chip(plan)
    program = lowered(plan, plans, dataset, make_mesh((1, 1, 1), one_chip()))
    found = aot_compile.memory_of(program.compile())
    seconds = round(time.perf_counter() - began)
    return {"images": plan.settings.batch_size, "bytes": found, "seconds": seconds}


def one_chip() -> list[Any]:
    """One device of a TPU v5e that is not there."""
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)
    )
    return list(described.devices[:1])


def tables(configs: list[Path]) -> Iterator[tuple[str, dict[str, StagePlan], Dataset]]:
    """Every config with its plans for an accelerator."""
    for path in configs:
        yield path.stem, *plan_all(read_settings(path), accelerated)


def stage_record(plan: StagePlan, plans: Mapping[str, StagePlan]) -> dict[str, Any]:
    """What the page needs of a stage beside its program."""
    s = plan.settings
    return {
        "program": program_of(plan, plans) if s.steps else UNTRAINED,
        "updates": s.steps,
        "batch": s.batch_size,
        "students": max(1, s.students.count),
        "pairs": is_pairs(plan),
    }


def largest(record: dict[str, Any], config: str) -> str:
    """The stage whose update has the most operations an image."""
    stages = record["configs"][config]["stages"]
    trained = {name: stage for name, stage in stages.items() if not stage["pairs"]}
    return max(trained, key=lambda name: record["programs"][trained[name]["program"]]["flops"])


def measure(record: dict[str, Any], configs: list[Path], seconds: float, save: Any) -> None:
    """Fills the record while time is left: operations of all programs, then memory.

    Only the program of a config's largest stage is compiled, because compiling takes minutes.
    """
    end = time.monotonic() + seconds

    def fill(key: str, program: dict[str, Any], what: str, make: Callable[[], Any]) -> None:
        if key in program or time.monotonic() > end:
            return
        print(what, flush=True)
        program[key] = make()
        save()
        jax.clear_caches()
        gc.collect()

    for config, plans, dataset in tables(configs):
        stages = {name: stage_record(plan, plans) for name, plan in plans.items()}
        found = {"image": list(dataset.image_shape), "stages": stages}
        imported = any(plan.imported is not None for plan in plans.values())
        record["configs"][config] = {**found, "pipeline": True} if imported else found
    save()
    # The digits come last, because they take minutes and not hours, and small images first: what is
    # left out at the end compiles slowly.
    paths = {path.stem: path for path in configs}
    order = sorted(paths, key=lambda n: ("digits" in n, record["configs"][n]["image"], n))
    for config in order:
        plans, dataset = plan_all(read_settings(paths[config]), accelerated)
        for name, stage in record["configs"][config]["stages"].items():
            make = functools.partial(count, plans[name], plans, dataset)
            fill(stage["program"], record["programs"], f"{config}, {name}: counting", make)
    aot_compile.quick_compiler(True)
    compiled = [c for c in order if not record["configs"][c].get("pipeline")]
    for config in [config for config in compiled if is_counted(record, config)]:
        name = largest(record, config)
        record["configs"][config]["largest"] = name
        program = record["programs"][record["configs"][config]["stages"][name]["program"]]
        plans, dataset = plan_all(read_settings(paths[config]), accelerated)
        make = functools.partial(try_memory, plans[name], plans, dataset)
        fill("memory", program, f"{config}, {name}: compiling", make)
    save()


def try_memory(*args: Any) -> dict[str, Any]:
    """`memory`, or the error of the compiler, such as that the program does not fit a chip."""
    try:
        return memory(*args)
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).splitlines()[0][:200]}


def is_counted(record: dict[str, Any], config: str) -> bool:
    """Whether the operations of all stages of a config are known."""
    stages = record["configs"][config]["stages"].values()
    return all(stage["program"] in record["programs"] for stage in stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2400.0, help="0: only write the page")
    parser.add_argument("--configs", default="", help="names, comma-separated; all by default")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record = {"jax": jax.__version__, "programs": {}, "configs": {}, **record}
    record["programs"][UNTRAINED] = {"flops": 0.0, "parameters": 0}
    names = args.configs.split(",") if args.configs else []
    found = sorted((ROOT / "configs").glob("*.py"))
    configs = [p for p in found if not names or p.stem in names]

    def save() -> None:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(page(record))

    if args.seconds:
        aot_compile.prepare()
        os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-1"
        measure(record, configs, args.seconds, save)
    PAGE.write_text(page(record))


if __name__ == "__main__":
    main()
