"""Toy of multi-student distillation."""

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

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction, expand, from_x0
from ddistill.objectives import make_objective, make_process
from ddistill.objectives.process import Pairs
from ddistill.partitions import condition_partition
from ddistill.samplers import ddim, heun
from ddistill.schedules import Level, karras, make_grid, subsequence
from ddistill.students import RoutedDenoiser, clone, in_groups, stack
from ddistill.training.programs import Chunk
from ddistill.training.sharding import Layout, make_mesh, place
from ddistill.training.state import create_state, stream_key
from ddistill.training.step import Frozen, StepSettings, make_step

CLASSES = 16
COUNTS = (1, 2, 4, 8)
SCHEDULE = karras(64, sigma_min=0.02, sigma_max=20.0)
ONE_STEP = subsequence(SCHEDULE, make_grid(SCHEDULE, 1))
RATE = "0.997"


@dataclass(frozen=True)
class Size:
    warm: int = 3000
    steps: int = 4000
    batch: int = 128
    each: int = 1000
    chunk: int = 250


class PointNet(nn.Module):
    width: int = 10
    depth: int = 2
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=()):
        del train
        waves = time[:, None] * jnp.asarray([1.0, 2.0, 4.0])
        told = [jnp.sin(waves), jnp.cos(waves), jax.nn.one_hot(cond, self.num_classes)]
        h = jnp.concatenate([x.reshape(len(x), -1), *told], axis=-1)
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width)(h))
        out = nn.Dense(x.shape[-1], name="final")(h).reshape(x.shape)
        return (out, {"last": h}) if taps else out


@struct.dataclass
class MixtureDenoiser:
    means: Any
    std: Any

    def __call__(self, z, level: Level, cond=None, *, key=None) -> Prediction:
        del key
        alpha, sigma = expand(level.alpha, z), expand(level.sigma, z)
        variance = (alpha * self.std) ** 2 + sigma**2
        means = jnp.asarray(self.means)[cond]
        apart = z.reshape(len(z), 1, -1) - expand(level.alpha, means) * means
        logits = -jnp.sum(apart**2, -1) / (2 * variance.reshape(-1, 1))
        mean = jnp.einsum("bm,bmd->bd", jax.nn.softmax(logits), means).reshape(z.shape)
        x0 = mean + alpha * self.std**2 / variance * (z - alpha * mean)
        return from_x0(x0, z, level)


def shapes(points: int = 24) -> np.ndarray:
    u = np.linspace(-1, 1, points)
    rng = np.random.default_rng(0)
    found = []
    for c in range(CLASSES):
        bend, turn = 0.75 * np.pi, rng.uniform(0, 2 * np.pi)
        if c % 2:
            shape = np.stack([np.sin(bend * u), np.cos(bend * u)], -1)
        else:
            shape = np.stack([1.2 * u, 0.6 * np.sin(np.pi * u)], -1)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = 0.46 * (np.array([c % 4, c // 4]) - 1.5)
        found.append(0.19 * shape @ rotation.T + centre)
    return np.stack(found).astype(np.float32)


def data(teacher, count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    picked = np.asarray(teacher.means)[labels, rng.integers(0, teacher.means.shape[1], count)]
    points = picked + teacher.std * rng.normal(size=picked.shape)
    return points.astype(np.float32)[:, None, None], labels.astype(np.int32)


def train(objective, modules, params, processes, teacher, steps, size, seed, snaps=(), rates=None, pairs=None):
    count = len(processes)
    layout = Layout(make_mesh((1, 1, 1)), students=count, mapping=MAPPING)
    rates = rates or {}
    s = StepSettings(
        objective=objective, modules=modules, prediction="edm",
        optimizers={n: optax.adam(rates.get(n, 2e-3)) for n in modules},
        conditional=True, layout=layout, unroll=False,
    )
    state = create_state(params, s.optimizers, (float(RATE),), layout, students=count)
    process = place(jax.tree.map(lambda *x: np.stack(x), *processes), layout.whole())
    frozen = Frozen(place(teacher, layout.whole()), process, pairs=None if pairs is None else place(pairs, layout.whole()))
    images, labels = place(data(teacher, 2**16, 1), layout.whole())
    keys = jnp.stack([stream_key(seed, f"{k}") for k in range(count)])
    chunk = Chunk(make_step(s), size.chunk, True, layout)
    rng = np.random.default_rng(seed)
    kept = {}
    t0 = time.time()
    for done in range(0, steps, size.chunk):
        picks = rng.integers(0, 2**16, (size.chunk, count, size.batch)).astype(np.int32)
        state, metrics = chunk(state, frozen, images, labels, picks, keys)
        if done == 0:
            jax.block_until_ready(state); t1 = time.time()
        if done + size.chunk in snaps or done + size.chunk == steps:
            kept[done + size.chunk] = jax.device_get((state.ema[RATE], state.params["student"]))
    print({k: float(v.mean()) for k, v in jax.device_get(metrics).items()}, file=sys.stderr)
    print("first", t1 - t0, "ms/step/student", 1e3 * (time.time() - t1) / max(1, steps - size.chunk) / count, file=sys.stderr)
    return kept


MAPPING = "vmap"


def sliced(a, b, directions=32):
    angle = np.pi * np.arange(directions) / directions
    axes = np.stack([np.cos(angle), np.sin(angle)])
    return np.abs(np.sort(a @ axes, 0) - np.sort(b @ axes, 0)).mean()


def main():
    global MAPPING
    p = argparse.ArgumentParser()
    p.add_argument("--seeds", default="0")
    p.add_argument("--width", type=int, default=10)
    p.add_argument("--depth", type=int, default=2)
    p.add_argument("--fake", type=int, default=64)
    p.add_argument("--steps", type=int, default=4000)
    p.add_argument("--warm", type=int, default=3000)
    p.add_argument("--rate", type=float, default=5e-4)
    p.add_argument("--fake_rate", type=float, default=2e-3)
    p.add_argument("--reg", type=float, default=0.0)
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--filter", type=int, default=0)
    p.add_argument("--mapping", default="vmap")
    a = p.parse_args()
    MAPPING = a.mapping
    seeds = [int(x) for x in a.seeds.split(",")]
    size = Size(steps=a.steps, warm=a.warm)
    teacher = MixtureDenoiser(shapes(), np.float32(0.025))
    x, y = data(teacher, 16000, 0)
    print("std", x.std(axis=0).ravel(), file=sys.stderr)
    small, big = PointNet(a.width, a.depth), PointNet(a.fake, 3)
    init = lambda m, s: m.init(jax.random.key(s), jnp.zeros((1, 1, 1, 2)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]
    full = make_grid(SCHEDULE, 64)
    everything = [make_process(SCHEDULE, full, classes=range(CLASSES), num_classes=CLASSES) for _ in seeds]
    start = {}
    for name, m in (("student", small), ("fake", big)):
        kept = train(make_objective({"name": "tsm"}), {"student": m}, {"student": stack([init(m, s) for s in seeds])}, everything, teacher, a.warm, size, 7)
        start[name] = kept[a.warm][0]
        print(name, sum(v.size for v in jax.tree.leaves(start[name])) // len(seeds), file=sys.stderr)
    grid = make_grid(SCHEDULE, 1)
    objective = make_objective({"name": "dmd", "regression_weight": a.reg, "filter_pairs": bool(a.filter), "student_every": a.every}).prepare(grid).prepare_networks(big, "edm")
    members, processes = [], []
    for i, s in enumerate(seeds):
        for K in COUNTS:
            own = condition_partition(CLASSES, K).owned_classes(CLASSES)
            for k in range(K):
                members.append(i)
                processes.append(make_process(SCHEDULE, grid, classes=np.flatnonzero(own[k]), num_classes=CLASSES))
    params = {n: jax.tree.map(lambda v: v[np.array(members)], start[n]) for n in start}
    pairs = None
    if a.reg:
        label = np.arange(2**15).astype(np.int32) % CLASSES
        noise = np.asarray(jax.random.normal(jax.random.key(99), (len(label), 1, 1, 2)))
        pairs = Pairs(noise, label, np.asarray(heun(teacher, SCHEDULE, noise, cond=label, loop="scan")))
    snaps = [a.steps // K for K in COUNTS]
    kept = train(objective, {"student": small, "fake": big}, params, processes, teacher, a.steps, size, 8, snaps, {"student": a.rate, "fake": a.fake_rate}, pairs)
    cond = np.arange(CLASSES * size.each).astype(np.int32) % CLASSES
    noise, other = (np.asarray(jax.random.normal(jax.random.key(s), (len(cond), 1, 1, 2))) for s in (100, 101))
    wanted, again = (np.asarray(heun(teacher, SCHEDULE, n, cond=cond, loop="scan")) for n in (noise, other))
    def score(made):
        l1 = np.abs(made - wanted).mean()
        return l1, np.mean([sliced(made[cond == c, 0, 0], again[cond == c, 0, 0]) for c in range(CLASSES)])
    print("floor", score(wanted), "data", )
    for which in (0, 1):
        for budget in ("each", "total"):
            for K in COUNTS:
                rows = []
                for i in range(len(seeds)):
                    first = i * sum(COUNTS) + sum(c for c in COUNTS if c < K)
                    at = a.steps if budget == "each" else a.steps // K
                    own = jax.tree.map(lambda v: v[first : first + K], kept[at][which])
                    net = RoutedDenoiser(Denoiser.from_module(small, own, "edm"), condition_partition(CLASSES, K))
                    made = in_groups(net, cond, len(cond), lambda d, r: ddim(d, ONE_STEP, noise[r], cond=cond[r]))
                    rows.append(score(np.asarray(made)))
                print(("ema", "raw")[which], budget, K, np.round(np.mean(rows, 0), 4), np.round(np.std(rows, 0), 4))
    for n in ("warm",):
        net = Denoiser.from_module(small, jax.tree.map(lambda v: v[0], start["student"]), "edm")
        print("tsm start", score(np.asarray(ddim(net, ONE_STEP, noise, cond=cond))))


main()
