"""Times the train step of distribution matching against its parts, and K students against K runs.

    python benchmarks/matching_step.py --markdown

The parts are what a step cannot do without: forward passes of the teacher and the fake denoiser,
forward and backward passes of the student and the fake denoiser. Their sum is what the step would
cost if nothing were computed twice and nothing else were there. Everything is interleaved in one
process and compared within a round.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import Deadline, Variant, machine, print_table

from ddistill import data, recipes
from ddistill.data.facts import DataFacts
from ddistill.networks.weights import Weights
from ddistill.objectives.inputs import Pairs
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import plan_stages
from ddistill.recipes.msd_paper import EDM_CIFAR
from ddistill.runtime.compilation import compiler_options
from ddistill.runtime.cpu import use_quick_code
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import over_data, place, use_cores_as_devices
from ddistill.settings import MeshSettings, Settings, StageSettings
from ddistill.training.compiled import Chunk, step_settings
from ddistill.training.initial import initial_state
from ddistill.training.rounds import advance, split, split_state
from ddistill.training.state import TrainState
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs

# Per update of the student, in forward passes (F), forward and backward passes by the weights (B),
# and forward passes through the teacher's first half with its gradient by the image (V).
PARTS = {
    "DMD": {"B": 2, "F": 2},
    "DMD, pairs": {"B": 3, "F": 2},
    "DMD2": {"B": 2, "F": 1, "V": 1, "H": 2},
}


def experiment(name: str, count: int, dtype: str = "") -> tuple[Settings, int]:
    """Settings with a stage for each row of `PARTS`, and a batch for this machine.

    Args:
      name: "digits", "cifar", or "tiny" to try the command.
      count: K.
      dtype: of the network of "cifar"; "" for float32 on CPU and bfloat16 elsewhere.
    """
    on_cpu = jax.default_backend() == "cpu"
    settings = recipes.digits_conditional(name, {})
    if name != "digits":
        options = {"channels": 32 if on_cpu else 128, **EDM_CIFAR}
        options["blocks"] = 2 if on_cpu else EDM_CIFAR["blocks"]
        options["dtype"] = dtype or ("float32" if on_cpu else "bfloat16")
        if name == "tiny":
            options |= {"channels": 4, "multipliers": (1,), "blocks": 1, "attention": ()}
            options |= {"mid_attention": False, "norm_groups": 2, "out_channels": 1}
        net = recipes.network("unet", **options)
        teacher = dataclasses.replace(settings.stages["teacher"], network=net)
        settings = dataclasses.replace(settings, stages={**settings.stages, "teacher": teacher})
    batch = 4 if name == "tiny" else {"digits": 64, "cifar": 8}[name] if on_cpu else 128
    judged = {"features_of": "teacher", "student_every": 1}
    kinds: dict[str, dict[str, Any]] = {
        "DMD": {"dm": {"regression_weight": 0.0}},
        "DMD, pairs": {},
        "DMD2": {"dm": {"name": "dmd2", **judged}},
    }
    optimizer = settings.stages["teacher"].optimizer
    stages: dict[str, StageSettings] = {"pairs": recipes.pairs_stage(2 * batch, batch, 2)}
    for i, options in enumerate(kinds.values()):
        stages |= recipes.msd(
            count, steps=1000, batch_size=batch, optimizer=optimizer, name=f"_{i}", **options
        )
    stages = {**settings.stages, **stages}
    return dataclasses.replace(settings, stages=stages, pipeline=tuple(stages)), batch


def plans(settings: Settings, image: tuple[int, int, int]) -> dict[str, StagePlan]:
    """The stages of an experiment, on made-up images of that shape."""
    images = np.zeros((256, *image), np.uint8)
    labels = (np.arange(256) % 10).astype(np.int32)
    dataset = data.Dataset("made up", images, labels, 10, tuple("0123456789"))
    with TemporaryDirectory() as folder:
        made = plan_stages(settings, DataFacts.of(dataset), Path(folder), Path(folder) / "shared")
    return {plan.name: plan for plan in made}


def denoiser(plan: StagePlan) -> Any:
    """A teacher with fresh weights, on the host."""
    params = jax.device_get(initial_state(plan).params["student"])
    return plan.objective.trains.bind(plan.module, Weights(params), plan.settings.prediction)


class Training:
    """The train step of a stage, as the loop runs it."""

    def __init__(self, plan: StagePlan, teacher: Any, batch: int):
        self.plan, self.batch = plan, batch
        self.layout = layout = plan.layout(MeshSettings())
        made = Pairs(
            np.zeros((2 * batch, *plan.image_shape), np.float32),
            np.zeros(2 * batch, np.int32),
            np.zeros((2 * batch, *plan.image_shape), np.float32),
        )
        pairs = place(made if plan.settings.pairs else None, layout.whole())
        there = place(teacher, layout.of_teacher(teacher))
        lies = layout.by_student() if layout.one_by_one else layout.whole()
        self.inputs = [
            StepInputs(there, place(own, lies), None, pairs) for own in split(layout, plan.tables)
        ]
        self.rounds = split_state(layout, initial_state(plan, layout=layout))
        keys = jnp.stack([stream_key(0, str(k)) for k in range(len(plan.students))])
        self.keys = split(layout, keys if plan.stacked else keys[0])
        shape = (1, len(plan.students), batch) if plan.stacked else (1, batch)
        self.batch_indices = split(layout, np.broadcast_to(np.arange(batch), shape), axis=1)
        rate = np.zeros((1, len(plan.students)) if plan.stacked else 1, np.float32)
        self.rates = split(layout, dict.fromkeys(plan.modules, rate), axis=1)
        self.images = jnp.zeros((256, *plan.image_shape), jnp.uint8)
        self.chunk = Chunk(make_step(step_settings(plan, layout, False)), 1, True, layout)

    def __call__(self) -> None:
        """One step of all students."""
        images = [self.images] * len(self.rounds)
        labels = jnp.zeros(256, jnp.int32)
        self.rounds, metrics = advance(
            self.layout, self.chunk, self.rounds, self.inputs, images, labels, self.batch_indices,
            self.keys, self.rates,
        )  # fmt: skip
        jax.block_until_ready((self.rounds, metrics))

    def memory(self) -> float:
        """MiB of temporary arrays that the compiled program asks for."""
        state: TrainState = self.rounds[0]
        args = (self.inputs[0], self.images, jnp.zeros(256, jnp.int32), self.batch_indices[0])
        compiled = self.chunk.lower(state, *args, self.keys[0], self.rates[0]).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20


def variant(name: str, run: Any) -> Variant:
    """A variant whose first call compiles."""
    start = time.perf_counter()
    run()
    return Variant(name, run, time.perf_counter() - start)


PART_NAMES = {
    "F": "forward",
    "H": "forward, first half",
    "B": "forward and backward, by the weights",
    "V": "forward, and backward by the image through the first half",
}


def parts(plan: StagePlan, teacher: Any, batch: int) -> dict[str, Callable[[], Variant]]:
    """By name what makes a part of a step, on the devices and with the images that a step has."""
    layout = plan.layout(MeshSettings())
    mesh = layout.one_round().mesh
    spread = over_data(mesh)
    z = jax.device_put(jnp.ones((batch, *plan.image_shape)), spread)
    cond = jax.device_put(jnp.zeros(batch, jnp.int32), spread)
    there = place(teacher, layout.of_teacher(teacher))
    level = plan.students[0].tables.teacher.at(jnp.full(batch, 100))

    def forward(network, z):
        return network(z, level, cond).x0

    def half(network, z):
        return network.with_features(("mid",))(z, level, cond)[1]["mid"]

    def both(network, z):
        prediction, features = network.with_features(("mid",))(z, level, cond)
        return jnp.sum(jnp.square(features["mid"])), prediction.x0

    def square(network, z):
        return jnp.sum(jnp.square(forward(network, z)))

    made = {
        "F": forward,
        "H": half,
        "B": lambda network, z: jax.grad(
            lambda p: square(dataclasses.replace(network, params=p), z)
        )(network.params),
        "V": lambda network, z: jax.grad(lambda z: both(network, z), has_aux=True)(z),
    }

    def make(name: str, function: Callable) -> Variant:
        run = jax.jit(function, compiler_options=compiler_options())
        return variant(name, lambda: jax.block_until_ready(run(there, z)))

    return {
        PART_NAMES[key]: functools.partial(make, PART_NAMES[key], function)
        for key, function in made.items()
    }


def show(v: Variant) -> str:
    low, high = (1e3 * x for x in np.percentile(v.seconds, [25, 75]))
    return f"{1e3 * statistics.median(v.seconds):.1f} ({low:.1f} to {high:.1f})"


HEADING = ["network", "batch", "what", "ms (middle half)", "compile s", "of its parts", "MiB"]


class Measured:
    """The parts and steps of one network.

    Attributes:
      name, batch: the network, its images a step.
      parts: by key of `PARTS`' values, forward and backward passes.
      steps: by key of `PARTS`, the step and a call that gives its MiB.
      students: K separate steps and one step of K students.
    """

    def __init__(self, name: str, dtype: str):
        image = {"digits": (8, 8, 1), "cifar": (32, 32, 3), "tiny": (4, 4, 1)}[name]
        self.name, self.image, self.dtype = name, image, dtype
        settings, self.batch = experiment(name, 1, dtype)
        self.plans = plans(settings, image)
        self.teacher = denoiser(self.plans["teacher"])
        self.made: list[Variant] = []
        self.students: list[Variant] = []
        self.memory: dict[str, float] = {}

    def prepare(self, deadline: Deadline, count: int, kinds: Sequence[str]) -> None:
        """Compiles steps, their parts, and the steps of `count` students; 0 for none."""
        needed = {PART_NAMES[part] for kind in kinds for part in PARTS[kind]}
        for kind in kinds:
            i = list(PARTS).index(kind)
            make = functools.partial(self._step, f"{kind} step", f"dm_{i}_k1")
            deadline.prepare(f"{self.name}, {kind} step", make, self.made)
        for key, make in parts(self.plans["dm_0_k1"], self.teacher, self.batch).items():
            if key in needed:
                deadline.prepare(f"{self.name}, {key}", make, self.made)
        for name in ("separate", "together") if count else ():
            make = functools.partial(self._students, name, count)
            deadline.prepare(f"{self.name}, {count} students {name}", make, self.students)

    def _step(self, name: str, stage: str) -> Variant:
        training = Training(self.plans[stage], self.teacher, self.batch)
        made = variant(name, training)
        self.memory[name] = training.memory()
        return made

    def _students(self, name: str, count: int) -> Variant:
        """DMD with pairs: K stages of one student, or one stage of K."""
        k = 1 if name == "separate" else count
        own = plans(experiment(self.name, k, self.dtype)[0], self.image)[f"dm_1_k{k}"]
        step = Training(own, self.teacher, self.batch)
        if name == "together":
            return variant(f"DMD, pairs: step of {count} students", step)

        def separate() -> None:
            for _ in range(count):
                step()

        return variant(f"DMD, pairs: {count} separate steps", separate)

    def rows(self) -> Iterator[list[str]]:
        """A row of the table for each variant that was timed."""
        timed = {v.name: v for v in self.made if v.seconds}
        for v in timed.values():
            kind = v.name.removesuffix(" step")
            ratio = self._of_parts(PARTS.get(kind, {}), v, timed)
            memory = f"{self.memory[v.name]:.0f}" if v.name in self.memory else ""
            yield [*self._begin(v), ratio, memory]
        students = [v for v in self.students if v.seconds]
        for i, v in enumerate(students):
            pairs = zip(students[0].seconds, v.seconds)
            ratio = f"{statistics.median(b / a for a, b in pairs):.2f} of separate" if i else ""
            yield [*self._begin(v), ratio, ""]

    def _begin(self, v: Variant) -> list[str]:
        return [self.name, str(self.batch), v.name, show(v), f"{v.compile_seconds:.0f}"]

    @staticmethod
    def _of_parts(needed: dict[str, int], step: Variant, timed: dict[str, Variant]) -> str:
        """A step's time in that of its parts; empty for a part, and where a part has no time."""
        found = [(n, timed.get(PART_NAMES[p])) for p, n in needed.items()]
        if not found or any(v is None for _, v in found):
            return ""
        rounds = min(len(step.seconds), *(len(v.seconds) for _, v in found if v))
        total = sum(n * np.array(v.seconds[:rounds]) for n, v in found if v)
        return f"{statistics.median(np.array(step.seconds[:rounds]) / total):.2f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="digits", help="of: digits, cifar, tiny")
    parser.add_argument("--students", type=int, default=4, help="K of the stacked run; 0 for none")
    parser.add_argument("--steps", default=";".join(PARTS), help="of: " + "; ".join(PARTS))
    parser.add_argument("--dtype", default="", help="of cifar; float32 on CPU, else bfloat16")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of rounds a network")
    parser.add_argument("--seconds", type=float, default=0.0, help="of all; 0: no limit")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)
    deadline = Deadline(args.seconds)
    use_quick_code(os.environ)
    use_cores_as_devices()
    print(f"{machine()}; {args.dtype or 'default dtype'}")
    done: list[Measured] = []

    def table() -> None:
        print_table([HEADING, *(row for one in done for row in one.rows())], args.markdown)

    deadline.watch(table)
    for name in args.networks.split(","):
        own = Measured(name, args.dtype)
        done.append(own)
        own.prepare(deadline, args.students, args.steps.split(";"))
        deadline.measure(own.made, args.rounds, args.limit)
        if own.students:
            deadline.measure(own.students, args.rounds, args.limit)
    deadline.close()
    table()


if __name__ == "__main__":
    main()
