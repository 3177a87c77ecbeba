"""Operations and time of a train step of each method, against the calls that it consists of.

    python benchmarks/method_steps.py --rounds=12 --markdown

A row is a stage of a shipped config, with its network and batch. Parts are calls of the networks:
a method cannot do without them, and their sum is the cost of a step in which nothing is computed
twice and nothing else is there, such as the optimiser and the averages of weights. Operations are
XLA's count for the lowered programs, before optimisation. With `--rounds`, programs run too, each
row's step and parts interleaved on one device.
"""

import argparse
import functools
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cost import chunk_of, loop_calls, lowered
from shapes import arguments, network, plan_all, read_settings
from timing import Deadline, Variant, machine, print_table

from ddistill.data import Dataset
from ddistill.denoiser import forward_mode
from ddistill.errors import check_choice
from ddistill.planning.plan import StagePlan
from ddistill.runtime.compilation import compiler_options
from ddistill.runtime.cpu import use_quick_code
from ddistill.runtime.sharding import Layout, data_mesh

CONFIGS = Path(__file__).parents[1] / "configs"
PART_NAMES = {
    "T": "teacher",
    "S": "student",
    "B": "student, forward and backward",
    "J": "student, with its derivative along the path, and backward",
    "C": "classifier",
    "I": "classifier, forward and backward by the image",
}
# By row: config, stage, and the number of calls of each part for an example.
ROWS: dict[str, tuple[str, str, dict[str, float]]] = {
    "denoising": ("cd_digits", "teacher", {"B": 1}),
    "PD": ("pd_digits", "pd_n4", {"T": 2, "B": 1}),
    "RCFD": ("rcfd_digits", "rcfd_n4", {"T": 2, "B": 1, "C": 1, "I": 1}),
    "RDD": ("rdd_digits", "rdd_n4", {"T": 2, "B": 1, "C": 1, "I": 1}),
    "CD, Heun": ("cd_digits", "cd", {"T": 2, "S": 1, "B": 1}),
    "LCM, DDIM": ("cd_digits", "lcm", {"T": 1, "S": 1, "B": 1}),
    "LCM, guidance as an input": ("guided_digits", "lcm", {"T": 2, "S": 1, "B": 1}),
    "CT": ("ct_digits", "ct", {"S": 1, "B": 1}),
    "BOOT": ("boot_digits", "boot", {"T": 2, "S": 1, "B": 2}),
    "PID": ("pid_digits", "pid", {"T": 1, "B": 2}),
    "SFD, 4 steps": ("sfd_digits", "sfd_n4", {"T": 16, "B": 4}),
    "Catch-Up, RK-1": ("cud_digits", "catch_up", {"S": 1, "B": 1}),
    "Catch-Up, RK-2": ("cud_digits", "catch_up_rk2", {"S": 3, "B": 1}),
    "shortcut": ("shortcut_digits", "shortcut", {"S": 0.25, "B": 1}),
    "MeanFlow": ("meanflow_digits", "meanflow", {"J": 1}),
    "MeanFlow, distilled": ("meanflow_digits", "meanflow_distilled", {"T": 1, "J": 1}),
    "sCD": ("scm_digits", "scd", {"T": 1, "J": 1}),
    "sCT": ("scm_digits", "sct", {"J": 1}),
}
HEADING = ["method", "batch", "calls", "MFLOP an image", "of its parts"]
TIMED = ["ms (middle half)", "of the time of its parts"]


@dataclass
class Program:
    """A step or a part: its operations on a batch, and how it runs."""

    flops: float
    start: Callable[[], Callable[[], None]]
    variant: Variant | None = None


@dataclass
class Row:
    """The step of a method and its parts."""

    name: str
    batch: int
    calls: dict[str, float]
    step: Program
    parts: dict[str, Program] = field(default_factory=dict)

    def flops(self) -> float:
        """Of the parts, on a batch."""
        return sum(n * self.parts[part].flops for part, n in self.calls.items())

    def variants(self) -> list[Variant]:
        """The step and its parts, compiled when they are first asked for."""
        programs = [self.step, *self.parts.values()]
        for program in programs:
            if program.variant is None:
                program.variant = Variant(self.name, program.start(), 0.0)
        return [program.variant for program in programs if program.variant]

    def cells(self) -> list[str]:
        """The cells of the table."""
        calls = ", ".join(f"{n:g} {part}" for part, n in self.calls.items())
        ratio = f"{self.step.flops / self.flops():.2f}"
        found = [self.name, str(self.batch), calls, f"{self.step.flops / self.batch / 1e6:.1f}"]
        step = self.step.variant
        if step is None or not step.seconds:
            return [*found, ratio]
        low, high = (1e3 * x for x in np.percentile(step.seconds, [25, 75]))
        spent: np.ndarray = np.zeros(len(step.seconds))
        for part, n in self.calls.items():
            variant = self.parts[part].variant
            assert variant is not None
            spent += n * np.array(variant.seconds)
        whole = 1e3 * statistics.median(step.seconds)
        share = statistics.median(np.array(step.seconds) / spent)
        return [*found, ratio, f"{whole:.1f} ({low:.1f} to {high:.1f})", f"{share:.2f}"]


def make_row(name: str) -> Row:
    """The programs of a row, lowered."""
    config, stage, calls = ROWS[name]
    plans, dataset = plan_all(read_settings(CONFIGS / f"{config}.py"), lambda _, stage: stage)
    plan, mesh = plans[stage], data_mesh(1, jax.devices()[:1])
    batch = plan.settings.batch_size
    flops = lowered(plan, plans, dataset, mesh).cost_analysis()["flops"]
    row = Row(
        name, batch, calls, Program(flops, functools.partial(_start_step, plan, plans, dataset))
    )
    for part in calls:
        function, given = _part(part, plan, plans)
        shapes = [*given, *_inputs(plan)]
        made = jax.jit(function, compiler_options=compiler_options())
        counted = made.lower(*shapes).cost_analysis()["flops"]
        row.parts[part] = Program(counted, functools.partial(_start_part, made, shapes))
    if extra := loop_calls(plan):
        row.step.flops += extra * row.parts["T"].flops
    return row


def _inputs(plan: StagePlan) -> list[Any]:
    """Shapes of a batch of images, classes and rows of the table of levels."""
    size = plan.settings.batch_size
    images = jax.ShapeDtypeStruct((size, *plan.image_shape), np.float32)
    whole = jax.ShapeDtypeStruct((size,), np.int32)
    return [images, whole if plan.settings.conditional else None, whole]


def _part(part: str, plan: StagePlan, plans: dict[str, StagePlan]) -> tuple[Callable, list[Any]]:
    """A part as a function of a network and `_inputs`, and the network's shapes."""
    layout, tables = Layout(data_mesh(1, jax.devices()[:1])), plan.students[0].tables
    if part in "CI":
        classifier = network(plans[plan.settings.classifier], lambda _: layout.whole())
        return {"C": _features, "I": _by_image(_features)}[part], [classifier]
    if part == "T":
        teacher = network(plans[plan.settings.teacher_stage], layout.of_teacher)
        return _image_at(tables.teacher), [teacher]
    made = {
        "S": _image_at(tables.student),
        "B": _by_weights(_image_at(tables.student)),
        "J": _by_weights(_with_slope(tables.student)),
    }
    return made[part], [network(plan, lambda _: layout.whole())]


def _image_at(levels: Any) -> Callable:
    def call(denoiser: Any, z: Any, cond: Any, index: Any) -> Any:
        given = denoiser.given(**dict.fromkeys(denoiser.extras, 1.0))
        return given(z, levels.at(index), cond).x0

    return call


def _features(classifier: Any, z: Any, cond: Any, index: Any) -> Any:
    del cond, index
    return classifier(z)[1]


def _with_slope(levels: Any) -> Callable:
    """The distance of an image from a target that has its derivative in image and level."""

    def call(denoiser: Any, z: Any, cond: Any, index: Any) -> Any:
        level = levels.at(index)
        given = forward_mode(denoiser.given(**dict.fromkeys(denoiser.extras, 1.0)))

        def answer(z: Any, level: Any) -> Any:
            return given(z, level, cond).x0

        found, slope = jax.jvp(answer, (z, level), (z, level))
        return found - jax.lax.stop_gradient(found + slope)

    return call


def _by_weights(call: Callable) -> Callable:
    def gradient(denoiser: Any, *given: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.sum(jnp.square(call(replace(denoiser, params=params), *given)))

        return jax.grad(loss)(denoiser.params)

    return gradient


def _by_image(call: Callable) -> Callable:
    def gradient(denoiser: Any, z: Any, *given: Any) -> Any:
        return jax.grad(lambda z: jnp.sum(jnp.square(call(denoiser, z, *given))))(z)

    return gradient


def _filled(shapes: Any) -> Any:
    """Arrays of the shapes: keys of seed 0, zeros for integers, small numbers for the rest."""

    def fill(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), x.shape) if x.shape else jax.random.key(0)
        if jnp.issubdtype(x.dtype, jnp.floating):
            draws = np.random.default_rng(x.size).normal(size=x.shape)
            return jnp.asarray(0.05 * draws, x.dtype)
        return jnp.ones(x.shape, x.dtype)

    return jax.tree.map(fill, shapes)


def _start_part(made: Any, shapes: list[Any]) -> Callable[[], None]:
    given = _filled(shapes)
    return lambda: jax.block_until_ready(made(*given))


def _start_step(
    plan: StagePlan, plans: dict[str, StagePlan], dataset: Dataset
) -> Callable[[], None]:
    layout = Layout(data_mesh(1, jax.devices()[:1]))
    chunk = chunk_of(plan, dataset, layout)
    state, *rest = _filled(arguments(plan, plans, dataset, layout))
    kept = [state]

    def step() -> None:
        kept[0], metrics = chunk(kept[0], *rest)
        jax.block_until_ready((kept[0], metrics))

    return step


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=";".join(ROWS), help="of: " + "; ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=0, help="0: operations alone")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)
    use_quick_code(os.environ)
    print(machine())
    print("; ".join(f"{key}: {name}" for key, name in PART_NAMES.items()))
    table = [[*HEADING, *(TIMED if args.rounds else [])]]
    names = args.methods.split(";")
    for name in names:
        check_choice("--methods", name, ROWS)
    for name in names:
        row = make_row(name)
        if args.rounds:
            Deadline(0).measure(row.variants(), args.rounds, 60.0)
        table.append(row.cells())
        print("  ".join(table[-1]), flush=True)
    print_table(table, args.markdown)


if __name__ == "__main__":
    main()
