"""Compiles a stage's train step for TPUs that need not be there, and tells what the program takes.

    python benchmarks/aot_compile.py --config=configs/o2mkd_cifar.py --mesh=4,4,1 --batch=256
    python benchmarks/aot_compile.py --config=benchmarks/dit_steps.py:flow --mesh=1,2,8 --remat

Only shapes go in: no weights, no data, no TPU. What compiles is libtpu, which the extra `tpu`
installs on any Linux; every release of jax wants its own. `--quick` compiles with the least
optimisation, about six times as fast: the same operations and exchanges, memory within some
percent, but every operation by itself reads from and writes to the chip's main memory.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from hlo import convolution_groups, estimated_cycles, exchanges
from jax.sharding import Mesh
from jaxtyping import PyTree
from shapes import accelerated, arguments, plan_all, read_settings

from ddistill.data import Dataset
from ddistill.planning.plan import StagePlan
from ddistill.runtime.sharding import Layout, data_mesh, make_mesh
from ddistill.settings import StageSettings
from ddistill.training.compiled import Chunk, step_settings
from ddistill.training.step import make_step
from ddistill.typing import Options

# By the number of chips; a program has to use all of a topology's.
TOPOLOGIES = {
    "v5e": {4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"},
    "v5p": {4: "v5p:2x2x1", 8: "v5p:2x2x2", 16: "v5p:2x2x4", 64: "v5p:4x4x4"},
}
# By kind of chip, the accelerator that libtpu is told of.
CHIPS = {"v5e": "v5litepod-16", "v5p": "v5p-8"}
# Of one v5e chip: bytes that a program can have, bf16 operations a second, bytes a second, and the
# clock that these operations mean for four 128 x 128 matrix units.
HBM, FLOPS, BANDWIDTH = 15.75 * 2**30, 197e12, 819e9
CLOCK = FLOPS / (4 * 128 * 128 * 2)


@dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
      config: a config file, or FILE:VARIANT; its last stage is compiled.
      mesh: sizes of (student, data, model).
      count: K; 0 for the config's.
      batch: of every student; 0 for the config's.
      accumulate: parts that a batch is worked through in.
      remat: whether trained networks recompute their blocks in the backward pass.
      quick: see above.
      blocks: blocks of a level of all networks; 0 for the config's.
      levels: resolutions of all networks, the finest first; 0 for the config's.
    """

    config: str
    mesh: tuple[int, int, int]
    count: int = 0
    batch: int = 0
    accumulate: int = 1
    remat: bool = False
    quick: bool = False
    blocks: int = 0
    levels: int = 0


def prepare(chip: str = "v5e") -> None:
    """Makes libtpu usable where there is no TPU; has to come before jax looks at its devices."""
    jax.config.update("jax_platforms", "cpu")
    # libtpu cannot read back what it was made to write there.
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": CHIPS[chip],
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # Nobody's TPU is taken away: several may compile at once.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def tpu_mesh(sizes: tuple[int, int, int], chip: str = "v5e") -> Mesh:
    """A mesh of all chips of a topology."""
    from jax.experimental import topologies

    name = TOPOLOGIES[chip][int(np.prod(sizes))]
    described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return make_mesh(sizes, described.devices)


def plans(case: Case) -> tuple[StagePlan, dict[str, StagePlan], Dataset]:
    """The config's last stage, all of its stages, and black images of the data's shape."""
    settings = read_settings(case.config)
    last = settings.pipeline[-1]

    def change(name: str, stage: StageSettings) -> StageSettings:
        stage = accelerated(name, stage)
        stage = dataclasses.replace(stage, network=_cut(stage.network, case))
        if name != last:
            return stage
        count = case.count or stage.students.count
        return dataclasses.replace(
            stage,
            students=dataclasses.replace(stage.students, count=count),
            batch_size=case.batch or stage.batch_size,
            accumulate=case.accumulate,
        )

    made, dataset = plan_all(settings, change)
    # After planning, because a stage without a network has that of its teacher.
    modules = {
        name: module.clone(remat=case.remat) if hasattr(module, "remat") else module
        for name, module in made[last].modules.items()
    }
    plan = dataclasses.replace(made[last], modules=modules)
    return plan, {**made, last: plan}, dataset


def _cut(network: Options, case: Case) -> Options:
    """Options of a U-Net of the blocks and levels that a case asks for."""
    if case.blocks and "blocks" in network:
        network = {**network, "blocks": case.blocks}
    if case.levels and "multipliers" in network:
        network = {**network, "multipliers": network["multipliers"][: case.levels]}
    return network


def operations_of_one(case: Case) -> float:
    """Operations of one student's step on its whole batch, as XLA counts them before optimising.

    Of a program for one device, without a student axis: nothing of the mesh is in it.
    """
    plan, made, dataset = plans(case)
    layout = Layout(data_mesh(1, jax.devices("cpu")[:1]))
    chunk = Chunk(
        make_step(step_settings(plan, layout, dataset.hflip)),
        1,
        not plan.objective.requires.images,  # then no images are given
        layout,
    )
    lowered = chunk.lower(*arguments(plan, made, dataset, layout))
    return lowered.cost_analysis()["flops"]


def quick_compiler(quick: bool) -> None:
    """Makes libtpu do the least that gives a program, or its usual."""
    jax.config.update("jax_optimization_level", "O0" if quick else "UNKNOWN")
    jax.config.update("jax_memory_fitting_level", "O0" if quick else "O2")


def compile_case(case: Case) -> dict[str, Any]:
    """What the compiled program takes: seconds to compile it, memory, operations, exchanges.

    Memory, operations, bytes and seconds are those of one chip and one step.
    """
    plan, made, dataset = plans(case)
    # Students that share a chip are batched: TPUs take grouped convolutions well.
    layout = Layout(tpu_mesh(case.mesh), plan.settings.students.count, "vmap")
    chunk = Chunk(
        make_step(step_settings(plan, layout, dataset.hflip)),
        1,
        not plan.objective.requires.images,  # then no images are given
        layout,
    )
    shapes = arguments(plan, made, dataset, layout)
    compiled, found = compile_chunk(chunk, shapes, layout, case.quick)
    text = compiled.as_text()
    state, inputs = shapes[:2]
    return {
        "parameters": size_of(state.params),
        "frozen": size_of(inputs.teacher),
        "students": plan.settings.students.count,
        "batch": plan.settings.batch_size,
        **found,
        "cycles": estimated_cycles(text),
        "convolution_groups": list(convolution_groups(text)),
    }


def compile_chunk(
    chunk: Chunk, shapes: list[Any], layout: Layout, quick: bool
) -> tuple[Any, dict[str, Any]]:
    """A compiled train step, and its times, memory, operations and exchanges between chips.

    Args:
      chunk, shapes: the step and the shapes of its arguments.
      layout: of its devices.
      quick: whether the compiler does the least.
    """
    quick_compiler(quick)
    begun = time.perf_counter()
    lowered = chunk.lower(*shapes)
    lowered_in = time.perf_counter() - begun
    compiled = lowered.compile()
    took = time.perf_counter() - begun - lowered_in
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return compiled, {
        "lower_seconds": lowered_in,
        "compile_seconds": took,
        "memory": memory_of(compiled),
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "optimal_seconds": cost.get("optimal_seconds"),
        "exchanges": [
            {"operation": name, "axes": axes, "count": n}
            for (name, axes), n in exchanges(compiled.as_text(), layout.mesh.shape).items()
        ],
    }


def memory_of(compiled: Any) -> int:
    """Bytes of a compiled program on one chip: arguments, new results, temporaries, code."""
    found = compiled.memory_analysis()
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    return (
        found.argument_size_in_bytes
        + kept
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )


def size_of(tree: PyTree) -> int:
    """Elements of all arrays."""
    return sum(x.size for x in jax.tree.leaves(tree))


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/o2mkd_cifar.py")
    parser.add_argument("--mesh", default="4,4,1", help="sizes of student, data, model")
    parser.add_argument("--count", type=int, default=0, help="K; 0: the config's")
    parser.add_argument("--batch", type=int, default=0, help="of every student; 0: the config's")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--blocks", type=int, default=0, help="of all networks; 0: the config's")
    parser.add_argument("--levels", type=int, default=0, help="of all networks; 0: the config's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags(parser)
    args = vars(parser.parse_args())
    sizes = tuple(int(n) for n in args.pop("mesh").split(","))
    case = Case(mesh=sizes, **args)  # type: ignore[arg-type]
    prepare()
    found: Mapping[str, Any] = {"flops_of_one": operations_of_one(case), **compile_case(case)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
