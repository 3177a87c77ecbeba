"""Multi-student distillation in the plane: one teacher, K = 1, 2, 4, 8 one-step students.

    python benchmarks/msd_toy.py
    python benchmarks/msd_toy.py --method=all_pairs
    python benchmarks/msd_toy.py --method=scores

The toy of arXiv 2410.23274 with this library's pieces. A point is an image of 1 x 1 pixels with two
channels. The data are 16 classes, each a bent line of narrow Gaussians, so that the teacher's
denoiser is known in closed form and has no error. A student answers for 16 / K consecutive classes;
all students have the same small network. They begin as one network that was matched to the teacher
on all classes (TSM) and are trained by distribution matching, with or without regression on pairs.

All students of all K and all seeds are one stack, trained by one program, so that they get equal
updates; what K students of a K-th of the updates each have learnt is read off on the way. Prints a
Markdown table and draws a picture; docs/msd_toy.md has both, measured on two CPU cores.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from timing import machine, print_table

from ddistill.denoiser import Denoiser, DenoiserLike
from ddistill.diffusion import Prediction, expand, from_x0
from ddistill.evaluation.figures.style import (
    LIGHT,
    Line,
    draw_line,
    new_figure,
    nfe_axis,
    png,
    styled,
)
from ddistill.objectives import LevelTables, Objective, make_level_tables, make_objective
from ddistill.objectives.inputs import Pairs, Share
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.partitions import ConditionPartition, condition_partition
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout, make_mesh, place
from ddistill.samplers import ddim, heun
from ddistill.schedules import Level, karras, make_grid, subsequence
from ddistill.students import RoutedDenoiser, in_groups, stack, take
from ddistill.training.compiled import Chunk
from ddistill.training.state import count_parameters, create_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings
from ddistill.typing import Options, Params

CLASSES = 16
SCHEDULE = karras(64, sigma_min=0.02, sigma_max=20.0)
ONE_STEP = make_grid(SCHEDULE, 1)
PREDICTION = "edm"
AVERAGE = 0.997
RATES = {"tsm": 2e-3, "student": 5e-3, "fake": 5e-3}
# What the students learn from beside the teacher's scores: nothing, pairs (noise, what the
# teacher's deterministic sampler makes of it) of their own classes, or of all classes.
METHODS: dict[str, Options] = {
    "own_pairs": {"regression_weight": 20.0, "filter_pairs": True},
    "all_pairs": {"regression_weight": 20.0, "filter_pairs": False},
    "scores": {"regression_weight": 0.0},
}
MEASURES = ("L1", "sliced W1")
BUDGETS = ("equal updates a student", "equal updates in all")


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    Attributes:
      counts: values of K; the largest has to divide `steps` into multiples of `chunk`.
      warm: TSM's steps; with 0 networks begin fresh.
      steps: updates of a student.
      batch: points of an update.
      pairs: how many there are, a multiple of the number of classes.
      each: points of a class that are compared.
      chunk: steps of a dispatch.
    """

    counts: tuple[int, ...] = (1, 2, 4, 8)
    warm: int = 800
    steps: int = 3200
    batch: int = 128
    pairs: int = 2**15
    each: int = 1000
    chunk: int = 400


FULL = Size()
QUICK = Size(counts=(1, 4), warm=0, steps=800, batch=64, pairs=2**12, each=2**8, chunk=200)


# -------------------------------------------------------------------------- teacher and networks


@struct.dataclass
class MixtureDenoiser:
    """The exact denoiser of a mixture of equal round Gaussians for every class.

    Attributes:
      means: `[C, M, D]`.
      std: of every Gaussian.
    """

    means: np.ndarray | jax.Array
    std: Any

    def __call__(self, z, level: Level, cond=None, *, key=None) -> Prediction:
        """The posterior mean of images of D values; arguments as of `Denoiser`."""
        del key
        alpha, sigma = expand(level.alpha, z), expand(level.sigma, z)
        variance = (alpha * self.std) ** 2 + sigma**2
        means = jnp.asarray(self.means)[cond]
        apart = z.reshape(len(z), 1, -1) - expand(level.alpha, means) * means
        share = jax.nn.softmax(-jnp.sum(apart**2, -1) / (2 * variance.reshape(-1, 1)))
        mean = jnp.einsum("bm,bmd->bd", share, means).reshape(z.shape)
        return from_x0(mean + alpha * self.std**2 / variance * (z - alpha * mean), z, level)


class PointNet(nn.Module):
    """A perceptron that is told time and class at its input.

    Attributes:
      width, depth: of the hidden layers.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=()):
        """As every network: `[B, 1, 1, 2]` in and out."""
        waves = time[:, None] * jnp.asarray([1.0, 2.0, 4.0])
        told = [jnp.sin(waves), jnp.cos(waves), jax.nn.one_hot(cond, CLASSES)]
        h = jnp.concatenate([x.reshape(len(x), -1), *told], axis=-1)
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width)(h))
        out = nn.Dense(x.shape[-1], name="final")(h).reshape(x.shape)
        return (out, {"last": h}) if taps else out


STUDENT, FAKE = PointNet(10, 3), PointNet(40, 3)


def make_teacher(points: int = 24) -> MixtureDenoiser:
    """Arcs and waves, each turned at random, at the places of a 4 x 4 grid."""
    u, rng = np.linspace(-1, 1, points), np.random.default_rng(0)
    arc = np.stack([np.sin(0.75 * np.pi * u), np.cos(0.75 * np.pi * u)])
    wave = np.stack([1.2 * u, 0.6 * np.sin(np.pi * u)])
    means = []
    for c in range(CLASSES):
        turn = rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = 0.46 * (np.array([c % 4, c // 4]) - 1.5)
        means.append(0.19 * (rotation @ (arc if c % 2 else wave)).T + centre)
    return MixtureDenoiser(np.stack(means).astype(np.float32), np.float32(0.025))


def draw_data(teacher: MixtureDenoiser, count: int = 2**16) -> tuple[np.ndarray, np.ndarray]:
    """Points `[count, 1, 1, 2]` and their classes, which go round."""
    rng, labels = np.random.default_rng(1), np.arange(count, dtype=np.int32) % CLASSES
    points = teacher.means[labels, rng.integers(0, teacher.means.shape[1], count)]
    points = points + teacher.std * rng.normal(size=points.shape)
    return points.astype(np.float32)[:, None, None], labels


def noise_of(seed: int, count: int) -> np.ndarray:
    """Standard normal points."""
    return np.asarray(jax.random.normal(jax.random.key(seed), (count, 1, 1, 2)))


def teach(teacher: MixtureDenoiser, noise: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the teacher's deterministic sampler makes of noise."""
    return np.asarray(heun(teacher, SCHEDULE, noise, cond=labels, loop="scan"))


# ------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Member:
    """One of the students that are trained together: number `k` of `count`, of a seed."""

    seed: int
    count: int
    k: int

    def tables(self, grid: np.ndarray) -> LevelTables:
        """Its levels and classes."""
        own = condition_partition(CLASSES, self.count).owned_classes(CLASSES)[self.k]
        return make_level_tables(
            SCHEDULE, grid, share=Share(classes=np.flatnonzero(own), num_classes=CLASSES)
        )


@dataclass(frozen=True)
class Problem:
    """What is trained.

    Attributes:
      objective: its loss.
      modules: networks by name.
      rates: learning rates by name of the network.
      grid: the students' levels.
      teacher: the teacher, whose samples are the data.
      pairs: noise and the teacher's images, for regression.
    """

    objective: Objective
    modules: dict[str, nn.Module]
    rates: dict[str, float]
    grid: np.ndarray
    teacher: MixtureDenoiser
    pairs: Pairs | None = None


def train(
    problem: Problem, params: dict[str, Params], members: Sequence[Member], steps: int, size: Size
) -> dict[int, Params]:
    """Trains all members as one stack; their averaged weights `[len(members), ...]` by step."""
    layout = Layout(make_mesh((1, 1, 1)), students=len(members), mapping="vmap")
    settings = StepSettings(
        objective=problem.objective,
        modules=problem.modules,
        prediction=PREDICTION,
        optimizers={name: optax.adam(problem.rates[name]) for name in problem.modules},
        conditional=True,
        layout=layout,
    )
    state = create_state(params, settings.optimizers, (AVERAGE,), layout, students=len(members))
    tables = jax.tree.map(lambda *x: np.stack(x), *(m.tables(problem.grid) for m in members))
    images, labels = draw_data(problem.teacher)
    inputs = StepInputs(problem.teacher, tables, pairs=problem.pairs)
    inputs, images, labels = place((inputs, images, labels), layout.whole())
    keys = jnp.stack([stream_key(m.seed, f"train {m.k} of {m.count}") for m in members])
    generators = [np.random.default_rng((m.seed, m.count, m.k)) for m in members]
    chunk, kept = Chunk(make_step(settings), size.chunk, True, layout), {}
    for done in range(size.chunk, steps + 1, size.chunk):
        shape = (size.chunk, size.batch)
        batch_indices = np.stack([g.integers(0, len(labels), shape) for g in generators], axis=1)
        state, _ = chunk(state, inputs, images, labels, batch_indices.astype(np.int32), keys)
        kept[done] = jax.device_get(state.ema[str(AVERAGE)])
    return kept


def match(teacher: MixtureDenoiser, module: nn.Module, seeds: Sequence[int], size: Size) -> Params:
    """Networks that predict as the teacher for noisy points of all classes, one per seed."""
    inputs = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
    init = jax.jit(module.init)
    fresh = stack([init(jax.random.key(seed), *inputs)["params"] for seed in seeds])
    if not size.warm:
        return fresh
    members = [Member(seed, 1, 0) for seed in seeds]
    every = make_grid(SCHEDULE, SCHEDULE.num_steps)
    objective = make_objective({"name": "tsm"})
    problem = Problem(objective, {"student": module}, {"student": RATES["tsm"]}, every, teacher)
    return train(problem, {"student": fresh}, members, size.warm, size)[size.warm]


def distill(
    teacher: MixtureDenoiser, method: str, seeds: Sequence[int], size: Size
) -> tuple[list[Member], dict[int, Params]]:
    """Students of all K and seeds, and their weights by step."""
    modules = {"student": STUDENT, "fake": FAKE}
    begin = {name: match(teacher, module, seeds, size) for name, module in modules.items()}
    members = [Member(s, count, k) for s in seeds for count in size.counts for k in range(count)]
    mine = np.array([seeds.index(m.seed) for m in members])
    params = jax.tree.map(lambda x: x[mine], begin)
    objective = make_objective({"name": "dmd", **METHODS[method]})
    objective = objective.prepare(StageFacts(ONE_STEP, NetworkFacts(FAKE, PREDICTION)))
    pairs = None
    if objective.requires.pairs:
        noise, labels = noise_of(99, size.pairs), np.arange(size.pairs, dtype=np.int32) % CLASSES
        pairs = Pairs(noise, labels, teach(teacher, noise, labels))
    problem = Problem(objective, modules, RATES, ONE_STEP, teacher, pairs)
    return members, train(problem, params, members, size.steps, size)


# ------------------------------------------------------------------------------------ measuring


@dataclass
class Outcome:
    """What was measured.

    Attributes:
      scores: by budget `[K, seed, measure]`.
      floor: sliced W1 between two sets of the teacher's samples.
      samples: by label, points `[n, 2]` and who made each, for the picture.
      counts: K.
    """

    scores: dict[str, np.ndarray]
    floor: float
    samples: dict[str, tuple[np.ndarray, np.ndarray]]
    counts: tuple[int, ...]


def sliced(ours: np.ndarray, theirs: np.ndarray, directions: int = 32) -> float:
    """Wasserstein-1 distance of two sets `[n, 2]` along a line, the mean over directions."""
    angle = np.pi * np.arange(directions) / directions
    lines = np.stack([np.cos(angle), np.sin(angle)])
    return float(np.abs(np.sort(ours @ lines, axis=0) - np.sort(theirs @ lines, axis=0)).mean())


def measure(
    teacher: MixtureDenoiser, members: Sequence[Member], kept: dict[int, Params], size: Size
) -> Outcome:
    """Compares students with the teacher, from the same noise and as distributions."""
    labels = np.arange(CLASSES * size.each, dtype=np.int32) % CLASSES
    noise, other = noise_of(100, len(labels)), noise_of(101, len(labels))
    wanted, fresh = (teach(teacher, n, labels) for n in (noise, other))

    def apart(made: np.ndarray) -> float:
        own = [(made[labels == c, 0, 0], fresh[labels == c, 0, 0]) for c in range(CLASSES)]
        return float(np.mean([sliced(*both) for both in own]))

    def sample(denoiser: DenoiserLike, rows: np.ndarray) -> jax.Array:
        return ddim(denoiser, subsequence(SCHEDULE, ONE_STEP), noise[rows], cond=labels[rows])

    seeds = list(dict.fromkeys(m.seed for m in members))
    scores = {budget: np.zeros((len(size.counts), len(seeds), 2)) for budget in BUDGETS}
    few = slice(0, CLASSES * 100)
    samples = {"teacher": (wanted[few, 0, 0], labels[few] * 0)}
    for i, count in enumerate(size.counts):
        partition = condition_partition(CLASSES, count)
        for j, seed in enumerate(seeds):
            first = members.index(Member(seed, count, 0))
            for budget, step in zip(BUDGETS, (size.steps, size.steps // count)):
                students = _network(kept[step], first, partition)
                made = np.asarray(in_groups(students, labels, len(labels), sample))
                scores[budget][i, j] = np.abs(made - wanted).mean(), apart(made)
                if not j and budget == BUDGETS[0]:
                    samples[f"K = {count}"] = made[few, 0, 0], partition.group(labels[few])
    return Outcome(scores, apart(wanted), samples, size.counts)


def _network(
    params: Params, first: int, partition: ConditionPartition
) -> Denoiser | RoutedDenoiser:
    """The students from number `first` of a stack on, as one denoiser."""
    if partition.count == 1:
        return Denoiser.from_module(STUDENT, take(params, first), PREDICTION)
    own = jax.tree.map(lambda x: x[first : first + partition.count], params)
    return RoutedDenoiser(Denoiser.from_module(STUDENT, own, PREDICTION), partition)


def table(outcome: Outcome) -> list[list[str]]:
    """Mean and standard deviation over seeds, the heading first."""
    rows = [["K", *(f"{m}, {b}" for b in BUDGETS for m in MEASURES)]]
    for i, count in enumerate(outcome.counts):
        cells = [
            f"{x[:, m].mean():.4f} ± {x[:, m].std(ddof=min(1, len(x) - 1)):.4f}"
            for x in (outcome.scores[b][i] for b in BUDGETS)
            for m in range(len(MEASURES))
        ]
        rows.append([str(count), *cells])
    return rows


def picture(outcome: Outcome) -> bytes:
    """PNG: samples coloured by student, and below them both distances against K."""
    with styled(LIGHT):
        figure = new_figure(11.0, 5.6, LIGHT)
        grid = figure.add_gridspec(
            2,
            1,
            height_ratios=(1, 1.15),
            left=0.075,
            right=0.985,
            bottom=0.09,
            top=0.95,
            hspace=0.2,
        )
        upper = grid[0].subgridspec(1, len(outcome.samples), wspace=0.04)
        for i, (label, (points, maker)) in enumerate(outcome.samples.items()):
            axes = figure.add_subplot(upper[i])
            colors = np.array(LIGHT.students if i else LIGHT.teachers)[maker]
            axes.scatter(*points.T, s=1.2, lw=0, c=colors)
            axes.set_title(label, fontsize=10.5)
            axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_visible(False)
        lower = grid[1].subgridspec(1, 2, wspace=0.19)
        for m, measured in enumerate(MEASURES):
            axes = figure.add_subplot(lower[m])
            for index, budget in enumerate(BUDGETS):
                found = outcome.scores[budget][:, :, m]
                spread = found.std(axis=1, ddof=min(1, found.shape[1] - 1))
                mean = found.mean(axis=1)
                ranges = tuple(zip(mean - spread, mean + spread))
                line = Line(budget, outcome.counts, mean, ranges)
                draw_line(axes, line, index, LIGHT)
            axes.set_xscale("log", base=2)
            nfe_axis(axes, outcome.counts)
            if m == 1:
                axes.axhline(outcome.floor, color=LIGHT.ink, lw=1, ls=(0, (1, 2)))
                axes.annotate(
                    "teacher against teacher", (0.01, outcome.floor),
                    xycoords=("axes fraction", "data"), xytext=(2, 4),
                    textcoords="offset points", fontsize=9,
                )  # fmt: skip
            axes.set_ylim(bottom=0)
            axes.set_xlabel("students, K")
            axes.set_ylabel(f"{measured} to the teacher")
            axes.grid(True, axis="y")
            if not m:
                axes.legend(loc="lower left")
        return png(figure)


def run(method: str, seeds: Sequence[int], size: Size) -> Outcome:
    """Trains and measures all students."""
    teacher = make_teacher()
    members, kept = distill(teacher, method, list(seeds), size)
    return measure(teacher, members, kept, size)


def main(argv: Sequence[str] | None = None) -> Outcome:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="docs/images", help="folder of the picture")
    parser.add_argument("--method", default="own_pairs", choices=METHODS)
    parser.add_argument("--quick", action="store_true", help="K = 1, 4, less training, no TSM")
    args = parser.parse_args(argv)
    size, start = QUICK if args.quick else FULL, time.perf_counter()
    outcome = run(args.method, [int(seed) for seed in args.seeds.split(",")], size)
    inputs = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
    sizes = [count_parameters(m.init(jax.random.key(0), *inputs)) for m in (STUDENT, FAKE)]
    print(f"{machine()}; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(f"student: {sizes[0]} parameters, fake denoiser: {sizes[1]}", file=sys.stderr)
    print(f"method {args.method}, seeds {args.seeds}, {size}\n")
    print_table(table(outcome), True)
    print(f"\nsliced W1 of the teacher to itself: {outcome.floor:.4f}")
    suffix = "" if args.method == "own_pairs" else f"_{args.method}"
    path = Path(args.out) / f"msd_toy{suffix}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(outcome))
    print(f"wrote {path}", file=sys.stderr)
    return outcome


if __name__ == "__main__":
    main()
