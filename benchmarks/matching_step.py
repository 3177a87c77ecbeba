"""Times the train step of distribution matching against its parts, and K students against K runs.

    python benchmarks/matching_step.py --markdown

The parts are what a step cannot do without: forward passes of the teacher and the fake denoiser,
forward and backward passes of the student and the fake denoiser. Their sum is what the step would
cost if nothing were computed twice and nothing else were there. Everything is interleaved in one
process and compared within a round.
"""

import argparse
import dataclasses
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import Variant, machine, measure, print_table

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
from ddistill.training.step import StepInputs, make_step

# Per update of the student, in forward passes (F), forward and backward passes by the weights (B),
# and forward passes through the teacher's first half with its gradient by the image (V).
PARTS = {
    "DMD": {"B": 2, "F": 2},
    "DMD, pairs": {"B": 3, "F": 2},
    "DMD2": {"B": 2, "F": 1, "V": 1, "H": 2},
}


def experiment(name: str, count: int) -> tuple[Settings, int]:
    """Settings with a stage for each row of `PARTS`, and a batch for this machine."""
    on_cpu = jax.default_backend() == "cpu"
    settings = recipes.digits_conditional(name, {})
    if name == "cifar":
        options = {"channels": 32 if on_cpu else 128, **EDM_CIFAR}
        options["blocks"] = 2 if on_cpu else EDM_CIFAR["blocks"]
        options["dtype"] = "float32" if on_cpu else "bfloat16"
        net = recipes.network("unet", **options)
        teacher = dataclasses.replace(settings.stages["teacher"], network=net)
        settings = dataclasses.replace(settings, stages={**settings.stages, "teacher": teacher})
    batch = {"digits": 64, "cifar": 8}[name] if on_cpu else 128
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


def parts(plan: StagePlan, teacher: Any, batch: int) -> dict[str, Variant]:
    """The parts of a step, on the devices and the share of the batch that a step has."""
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
    names = {
        "F": "forward",
        "H": "forward, first half",
        "B": "forward and backward, by the weights",
        "V": "forward, and backward by the image through the first half",
    }
    found = {}
    for key, function in made.items():
        run = jax.jit(function, compiler_options=compiler_options())
        found[key] = variant(names[key], lambda run=run: jax.block_until_ready(run(there, z)))
    return found


def show(v: Variant) -> str:
    low, high = (1e3 * x for x in np.percentile(v.seconds, [25, 75]))
    return f"{1e3 * statistics.median(v.seconds):.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="digits", help="of: digits, cifar")
    parser.add_argument("--students", type=int, default=4, help="K of the stacked run; 0 for none")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of rounds a network")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    use_quick_code(os.environ)
    use_cores_as_devices()
    print(machine())
    table = [["network", "batch", "what", "ms (middle half)", "compile s", "of its parts", "MiB"]]
    for name in args.networks.split(","):
        image = {"digits": (8, 8, 1), "cifar": (32, 32, 3)}[name]
        settings, batch = experiment(name, 1)
        made = plans(settings, image)
        teacher = denoiser(made["teacher"])
        pieces = parts(made["dm_0_k1"], teacher, batch)
        steps = {}
        for i, kind in enumerate(PARTS):
            training = Training(made[f"dm_{i}_k1"], teacher, batch)
            steps[kind] = variant(f"{kind} step", training), training.memory()
        measure([*pieces.values(), *(v for v, _ in steps.values())], args.rounds, args.limit)
        for v in pieces.values():
            table.append([name, str(batch), v.name, show(v), f"{v.compile_seconds:.0f}", "", ""])
        for kind, (v, memory) in steps.items():
            needed = sum(n * np.array(pieces[p].seconds) for p, n in PARTS[kind].items())
            ratio = f"{statistics.median(np.array(v.seconds) / needed):.2f}"
            row = [name, str(batch), v.name, show(v), f"{v.compile_seconds:.0f}", ratio]
            table.append([*row, f"{memory:.0f}"])
        if args.students:
            table += _stacked(name, args, image, teacher, batch)
    print_table(table, args.markdown)


def _stacked(name: str, args: Any, image: Any, teacher: Any, batch: int) -> list[list[str]]:
    """K students as one stage against K stages of one, for DMD with pairs."""
    count, rows = args.students, []
    alone, together = (
        Training(plans(experiment(name, k)[0], image)[f"dm_1_k{k}"], teacher, batch)
        for k in (1, count)
    )

    def separate() -> None:
        for _ in range(count):
            alone()

    variants = [
        variant(f"DMD, pairs: {count} separate steps", separate),
        variant(f"DMD, pairs: step of {count} students", together),
    ]
    measure(variants, args.rounds, args.limit)
    ratio = statistics.median(b / a for a, b in zip(*(v.seconds for v in variants)))
    for v in variants:
        rows.append([name, str(batch), v.name, show(v), f"{v.compile_seconds:.0f}", "", ""])
    rows[-1][-2] = f"{ratio:.2f} of separate"
    return rows


if __name__ == "__main__":
    main()
