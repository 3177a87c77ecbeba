"""Times a train step of K students by every mapping, against K separate steps.

    python benchmarks/student_axis.py --markdown

"separate" dispatches one student's compiled step K times, each on a state of its own, its batch
spread over all devices: what K runs one after the other would cost. "shard" gives students devices
of their own; "vmap, grouped" is vmap with XLA's own rule for convolutions. Variants are interleaved
in one process and compared within a round, as in train_step.py. "temporary" is what the compiled
program needs beside its arguments on one device.
"""

import argparse
import dataclasses
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import Deadline, Variant, machine, print_table

from ddistill import networks
from ddistill.denoiser import Denoiser
from ddistill.networks.convolution import for_platform
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.inputs import Share
from ddistill.optimizers import make_optimizer
from ddistill.runtime.cpu import use_quick_code
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import (
    Layout,
    data_mesh,
    place,
    plan_layout,
    replicate,
    use_cores_as_devices,
)
from ddistill.schedules import cosine, make_grid
from ddistill.settings import MeshSettings, OptimizerSettings, StudentsSettings
from ddistill.students import clone
from ddistill.training.compiled import Chunk
from ddistill.training.rounds import advance, split, split_state
from ddistill.training.state import create_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings

SHAPES: dict[str, dict[str, Any]] = {
    "digits": {"image": (8, 8, 1), "multipliers": (1, 2), "blocks": 1, "attention": (4,)},
    "32x32": {"image": (32, 32, 3), "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,)},
    # Only to try the command.
    "tiny": {
        "image": (4, 4, 1),
        "multipliers": (1,),
        "blocks": 1,
        "attention": (),
        "mid_attention": False,
    },
}
# Width of teacher and students, and the batch of each student.
SIZES = {
    "cpu": {"digits": (16, 8, 64), "32x32": (32, 16, 16), "tiny": (4, 4, 4)},
    "gpu": {"digits": (16, 8, 256), "32x32": (128, 64, 128), "tiny": (4, 4, 4)},
}


VARIANTS = ("shard", "loop", "unroll", "vmap", "vmap, grouped", "map")


class Task:
    """The pieces that every variant of one network shares."""

    def __init__(self, shape: str, kind: str, dtype: str, width: int):
        spec = dict(SHAPES[shape])
        self.image = spec.pop("image")
        teacher, students, self.batch = SIZES[kind][shape]
        self.width = width or students

        def build(channels: int):
            groups = min(8, channels)
            return networks.build(
                "unet",
                channels=channels,
                norm_groups=groups,
                out_channels=self.image[-1],
                dtype=dtype,
                **spec,
            )

        self.layout = Layout(data_mesh(self.batch))
        self.module = build(self.width)
        self.params = self.init(self.module)
        self.teacher = Denoiser.from_module(build(teacher), self.init(build(teacher)), "v")
        self.images = jnp.zeros((256, *self.image), jnp.uint8)
        self.labels = jnp.zeros(256, jnp.int32)
        self.settings = StepSettings(
            objective=make_objective({"name": "o2mkd"}),
            modules={"student": self.module},
            prediction="v",
            optimizers={"student": make_optimizer(OptimizerSettings())},
            layout=self.layout,
        )

    def init(self, module: Any) -> Any:
        """First weights of a network."""
        x, t = jnp.zeros((1, *self.image)), jnp.zeros((1,))
        return jax.jit(module.init)(jax.random.key(0), x, t)["params"]

    def tables(self, k: int, count: int) -> Any:
        """The levels of student k of `count`."""
        grid = make_grid(cosine(256), 256, "trailing")
        return make_level_tables(
            cosine(256), grid, share=Share(256 * k // count + 1, 256 * (k + 1) // count)
        )

    def student_axis(self, count: int, variant: str) -> Layout:
        """The layout of K students under a variant's name."""
        students = StudentsSettings(count=count, mapping=variant.split(",")[0])
        return plan_layout(MeshSettings(), students, self.batch, "mesh")


def separate(task: Task, count: int) -> tuple[Variant, float]:
    """K states, each with its own dispatch of the one-student program."""
    layout, optimizers = task.layout, task.settings.optimizers
    chunk = Chunk(make_step(task.settings), 1, True, layout)
    params = {"student": task.params}
    states = [create_state(params, optimizers, (0.999,), layout) for _ in range(count)]
    inputs = [
        replicate(layout.mesh, StepInputs(task.teacher, task.tables(k, count)))
        for k in range(count)
    ]
    images, labels = replicate(layout.mesh, (task.images, task.labels))
    batch_indices = np.zeros((1, task.batch), np.int32)
    key, rates = stream_key(0, "benchmark"), {"student": np.zeros(1, np.float32)}
    took, needs = compiled(chunk, states[0], inputs[0], images, labels, batch_indices, key, rates)

    def run() -> None:
        for k in range(count):
            states[k], _ = chunk(states[k], inputs[k], images, labels, batch_indices, key, rates)
        jax.block_until_ready(states)

    return Variant("separate", run, took), needs


def stacked(task: Task, count: int, variant: str) -> tuple[Variant, float]:
    """One stack of K students, mapped."""
    layout = task.student_axis(count, variant)
    modules = {"student": task.module}
    if variant == "vmap":
        modules = {"student": for_platform(task.module, layout.platform, True)}
    settings = dataclasses.replace(task.settings, layout=layout, modules=modules)
    chunk = Chunk(make_step(settings), 1, True, layout)
    params = {"student": clone(task.params, count)}
    state = create_state(params, settings.optimizers, (0.999,), layout, students=count)
    tables = jax.tree.map(lambda *x: np.stack(x), *(task.tables(k, count) for k in range(count)))
    lies = layout.by_student() if layout.one_by_one else layout.whole()
    teacher = place(task.teacher, layout.whole())
    inputs = [StepInputs(teacher, place(own, lies)) for own in split(layout, tables)]
    images, labels = replicate(layout.mesh, (task.images, task.labels))
    batch_indices = split(layout, np.zeros((1, count, task.batch), np.int32), axis=1)
    keys = split(layout, jnp.stack([stream_key(k, "benchmark") for k in range(count)]))
    rates = split(layout, {"student": np.zeros((1, count), np.float32)}, axis=1)
    rounds, batch = split_state(layout, state), [images] * layout.rounds
    arguments = rounds[0], inputs[0], images, labels, batch_indices[0], keys[0], rates[0]
    took, needs = compiled(chunk, *arguments)

    def run() -> None:
        nonlocal rounds
        rounds, _ = advance(
            layout, chunk, rounds, inputs, batch, labels, batch_indices, keys, rates
        )
        jax.block_until_ready(rounds)

    sizes = "x".join(str(n) for n in layout.mesh.devices.shape)
    return Variant(f"{variant} ({sizes})", run, took), needs


def compiled(chunk: Chunk, *arguments: Any) -> tuple[float, float]:
    """Seconds to lower and compile a program, and MiB on a device that it needs of its own."""
    start = time.perf_counter()
    program = chunk.lower(*arguments).compile()
    took, found = time.perf_counter() - start, program.memory_analysis()
    return took, math.nan if found is None else found.temp_size_in_bytes / 2**20


HEADING = "network width batch K variant ms/step images/s ratio compile-s temporary-MiB"


@dataclasses.dataclass
class Measured:
    """The variants of one network and one K, the separate steps first.

    Attributes:
      shape, task, count: the network, its pieces, K.
      made: the variants.
      needs: by variant, MiB on a device beside the arguments.
    """

    shape: str
    task: Task
    count: int
    made: list[Variant] = dataclasses.field(default_factory=list)
    needs: dict[str, float] = dataclasses.field(default_factory=dict)

    def prepare(self, mapping: str) -> Variant:
        """Compiles a variant: "separate" or a mapping."""
        task, count = self.task, self.count
        found = separate(task, count) if mapping == "separate" else stacked(task, count, mapping)
        self.needs[found[0].name] = found[1]
        print(f"{self.shape}, K={count}: {found[0].name} compiled", file=sys.stderr)
        return found[0]

    def rows(self) -> Iterator[list[str]]:
        """A row of the table for each variant that was timed."""
        task, count = self.task, self.count
        for v in [v for v in self.made if v.seconds]:
            ratio = statistics.median(a / b for a, b in zip(v.seconds, self.made[0].seconds))
            seconds = statistics.median(v.seconds)
            row = [self.shape, str(task.width), str(task.batch), str(count), v.name]
            row += [f"{1e3 * seconds:.1f}", f"{count * task.batch / seconds:.0f}", f"{ratio:.2f}"]
            yield [*row, f"{v.compile_seconds:.1f}", f"{self.needs[v.name]:.0f}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="digits,32x32", help=f"of: {', '.join(SHAPES)}")
    parser.add_argument("--counts", default="1,2,4,8", help="values of K")
    parser.add_argument("--mappings", default=";".join(VARIANTS))
    parser.add_argument("--width", type=int, default=0, help="of the students; 0: see SIZES")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of rounds a K")
    parser.add_argument("--seconds", type=float, default=0.0, help="of all; 0: no limit")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)
    deadline = Deadline(args.seconds)
    use_quick_code(os.environ)
    use_cores_as_devices()
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    print(f"{machine()}; {args.dtype}")
    done: list[Measured] = []

    def show() -> None:
        print_table([HEADING.split(), *(row for one in done for row in one.rows())], args.markdown)

    deadline.watch(show)
    for shape in args.networks.split(","):
        task = Task(shape, kind, args.dtype, args.width)
        for count in (int(k) for k in args.counts.split(",")):
            own = Measured(shape, task, count)
            done.append(own)
            for mapping in ("separate", *args.mappings.split(";")):
                deadline.prepare(mapping, functools.partial(own.prepare, mapping), own.made)
            deadline.measure(own.made, args.rounds, args.limit)
            jax.clear_caches()
    deadline.close()
    show()


if __name__ == "__main__":
    main()
