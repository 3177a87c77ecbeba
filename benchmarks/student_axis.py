"""Times a train step of K students by every mapping, against K separate steps.

    python benchmarks/student_axis.py --markdown

"separate" dispatches one student's compiled step K times, each on a state of its own: what K runs
side by side would cost. Variants are interleaved in one process and compared within a round, as in
train_step.py; `temporary` is what the compiled program needs beside its arguments.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import Variant, machine, measure, print_table

from ddistill import networks
from ddistill.denoiser import Denoiser
from ddistill.mapping import MAPPINGS
from ddistill.objectives import make_objective, make_process
from ddistill.schedules import cosine, make_grid
from ddistill.settings import OptimizerSettings
from ddistill.students import clone
from ddistill.training.optimizers import make_optimizer
from ddistill.training.programs import make_chunk
from ddistill.training.sharding import data_mesh, replicate, use_cores_as_devices
from ddistill.training.state import create_state, stream_key
from ddistill.training.step import Frozen, StepSettings, make_step

SHAPES: dict[str, dict[str, Any]] = {
    "digits": {"image": (8, 8, 1), "multipliers": (1, 2), "blocks": 1, "attention": (4,)},
    "32x32": {"image": (32, 32, 3), "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,)},
}
# Width of teacher and students, and the batch of each student.
SIZES = {
    "cpu": {"digits": (16, 8, 64), "32x32": (32, 16, 16)},
    "gpu": {"digits": (16, 8, 256), "32x32": (128, 64, 128)},
}


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

        self.mesh = data_mesh(self.batch)
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
            mesh=self.mesh,
        )

    def init(self, module: Any) -> Any:
        """First weights of a network."""
        x, t = jnp.zeros((1, *self.image)), jnp.zeros((1,))
        return jax.jit(module.init)(jax.random.key(0), x, t)["params"]

    def process(self, k: int, count: int) -> Any:
        """The levels of student k of `count`."""
        grid = make_grid(cosine(256), 256, "trailing")
        return make_process(
            cosine(256), grid, low=256 * k // count + 1, high=256 * (k + 1) // count
        )

    def state(self, params: Any, students: int = 0) -> Any:
        """A state at step 0 on the devices."""
        made = create_state(
            {"student": params}, self.settings.optimizers, (0.999,), students=students
        )
        return replicate(self.mesh, made)


def separate(task: Task, count: int) -> Variant:
    """K states, each with its own dispatch of the one-student program."""
    chunk = make_chunk(make_step(task.settings), 1, True, task.mesh)
    states = [task.state(task.params) for _ in range(count)]
    frozen = [
        replicate(task.mesh, Frozen(task.teacher, task.process(k, count))) for k in range(count)
    ]
    picks = np.zeros((1, task.batch), np.int32)
    key, rates = stream_key(0, "benchmark"), {"student": np.zeros(1, np.float32)}

    def run() -> None:
        for k in range(count):
            states[k], _ = chunk(states[k], frozen[k], task.images, task.labels, picks, key, rates)
        jax.block_until_ready(states)

    return timed("separate", run)


def stacked(task: Task, count: int, mapping: str) -> Variant:
    """One stack of K students, mapped."""
    chunk = make_chunk(make_step(task.settings), 1, True, task.mesh, count, mapping)
    state = task.state(clone(task.params, count), count)
    process = jax.tree.map(lambda *x: jnp.stack(x), *(task.process(k, count) for k in range(count)))
    frozen = replicate(task.mesh, Frozen(task.teacher, process))
    picks = np.zeros((1, count, task.batch), np.int32)
    keys = jnp.stack([stream_key(k, "benchmark") for k in range(count)])
    rates = {"student": np.zeros((1, count), np.float32)}

    def run() -> None:
        nonlocal state
        state, _ = chunk(state, frozen, task.images, task.labels, picks, keys, rates)
        jax.block_until_ready(state)

    return timed(mapping, run)


def timed(name: str, run: Any) -> Variant:
    """A variant that has compiled."""
    start = time.perf_counter()
    run()
    return Variant(name, run, time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="digits,32x32", help=f"of: {', '.join(SHAPES)}")
    parser.add_argument("--counts", default="1,2,4,8", help="values of K")
    parser.add_argument("--mappings", default=",".join(m for m in MAPPINGS if m != "auto"))
    parser.add_argument("--width", type=int, default=0, help="of the students; 0: see SIZES")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of rounds a K")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    use_cores_as_devices()
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    print(machine())
    table = [
        ["network", "width", "batch", "K", "variant", "ms/step", "images/s", "ratio", "compile s"]
    ]
    for shape in args.networks.split(","):
        task = Task(shape, kind, args.dtype, args.width)
        for count in (int(k) for k in args.counts.split(",")):
            made = [separate(task, count)]
            made += [stacked(task, count, mapping) for mapping in args.mappings.split(",")]
            measure(made, args.rounds, args.limit)
            for v in made:
                ratio = statistics.median(a / b for a, b in zip(v.seconds, made[0].seconds))
                seconds = statistics.median(v.seconds)
                table.append(
                    [
                        shape,
                        str(task.width),
                        str(task.batch),
                        str(count),
                        v.name,
                        f"{1e3 * seconds:.1f}",
                        f"{count * task.batch / seconds:.0f}",
                        f"{ratio:.2f}",
                        f"{v.compile_seconds:.1f}",
                    ]
                )
            jax.clear_caches()
    print_table(table, args.markdown)


if __name__ == "__main__":
    main()
