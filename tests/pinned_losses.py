"""Numbers of every loss on fixed inputs, and the command that stores them.

A case of `pinned_cases` is an objective's settings and what its stage gives it. For each update of
the objective the stored file has the losses per example, the metrics, a summary of the gradient of
every trained network, and a summary of what the update hands to later ones. A change of the code
that is meant to keep every loss keeps these numbers.

Command: PYTHONPATH=. python tests/pinned_losses.py --write     (all cases)
         PYTHONPATH=. python tests/pinned_losses.py sfddm/      (compares cases by prefix)

`prepared`, `make_networks` and `make_batch` are all that knows how objectives, networks and batches
are put together. All losses run operation by operation: nothing is compiled for a single case. What
many cases call with equal shapes, such as a network, is one program for all of them.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pinned_cases import CASES, Case

from ddistill.denoiser import Denoiser
from ddistill.networks.weights import Weights
from ddistill.objectives import Batch, LevelTables, Objective, make_level_tables, make_objective
from ddistill.objectives.base import bind as bind_network
from ddistill.objectives.base import (
    init_inputs,
    start_memory,
    static_part,
    trained_auxiliaries,
)
from ddistill.objectives.classification import Classifier
from ddistill.objectives.inputs import Pairs, Share, student_levels
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.objectives.sampling import draw_pair
from ddistill.objectives.states import REPLAY_INDEX, REPLAY_WRITTEN
from ddistill.samplers import get_sampler
from ddistill.schedules import make_grid, make_schedule
from ddistill.wrapped_denoiser import with_guidance

NUMBERS = Path(__file__).with_name("pinned_losses.json")
# Relative to the largest of the numbers. Processors with other vector lengths differ by up to
# 1.3e-6.
TOLERANCE = 3e-6
ROUNDING = 5e-7
# Height, width and channels differ, so that a mean over the wrong axes is another number.
IMAGE = (3, 4, 2)
BATCH = 4
WIDTH = 5
MAP = (2, 1, 3)
PAIRS = 12
_PAIR_KEYS = 0x7061


class Small(nn.Module):
    """A denoiser of five matrices: time, class, dropout, a mix of neighbours, and all taps.

    One module without others, whose parameters are not checked at every call: that is most of what
    flax takes where nothing is compiled.
    """

    width: int = WIDTH
    num_classes: int = 0
    extras: tuple[str, ...] = ()

    def _weight(self, name: str, *shape: int) -> Any:
        if self.is_initializing():
            return self.param(name, lambda _: jnp.zeros(shape))
        return self.get_variable("params", name)

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=(), extra=None):
        channels, width = IMAGE[-1], self.width
        told = jnp.stack([time / 8, jnp.sin(time)], -1) @ self._weight("time", 2, width)
        h = x @ self._weight("in", channels, width) + told[:, None, None]
        if self.num_classes:
            table = self._weight("class", self.num_classes + 1, width)
            h = h + table[cond][:, None, None]
        if self.extras:
            extra = jnp.ones((len(x), len(self.extras))) if extra is None else extra
            told = extra @ self._weight("extra", len(self.extras), width)
            h = h + told[:, None, None]
        down = jnp.tanh(h + self._weight("bias", width))
        mid = jnp.tanh((down + 0.5 * jnp.roll(down, 1, axis=2)) @ self._weight("mid", width, width))
        kept = mid
        if train:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 0.75, mid.shape)
            kept = jnp.where(keep, mid / 0.75, 0.0)
        last = jnp.tanh(down + kept)
        out = last @ self._weight("out", width, channels) + self._weight("out_bias", channels)
        features = {"mid": mid, "last": last, "down_0": down}
        features |= {tap: down + i * mid for i, tap in enumerate(taps) if tap not in features}
        return (out, {tap: features[tap] for tap in taps}) if taps else out


class SmallClassifier(nn.Module):
    """Logits and features, by a batch norm and, in training, dropout; a map of two pixels."""

    classes: int = 3

    @nn.compact
    def __call__(self, images, *, train=False, taps=()):
        h = nn.Dense(6, name="in")(images.reshape(len(images), -1))
        h = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(h)
        h = nn.tanh(nn.Dropout(0.25, deterministic=not train)(h))
        # Features far enough from each other for a divergence of which rounding is a small part.
        answer = nn.Dense(self.classes, name="logits")(h), 3.0 * h
        return (*answer, {tap: h.reshape(-1, *MAP) for tap in taps}) if taps else answer


class SmallAutoencoder(nn.Module):
    """Moments of three channels, and images, by one matrix each."""

    def setup(self):
        self.to_moments, self.to_image = nn.Dense(6), nn.Dense(IMAGE[-1])

    def __call__(self, images):
        return self.decode(self.encode(images)[..., :3])

    def encode(self, images):
        return jnp.tanh(self.to_moments(images))

    def decode(self, latents):
        return jnp.tanh(self.to_image(latents))


def prepared(case: Case) -> tuple[Objective, LevelTables]:
    """The objective and its tables as a stage prepares them for the train step."""
    schedule = make_schedule(case.schedule, case.T)
    grid = make_grid(schedule, case.levels or case.T, case.spacing, explicit=case.grid or None)
    objective = make_objective(case.objective)
    taps = objective.taps
    networks = NetworkFacts(
        teacher=Small(num_classes=case.classes),
        prediction=case.prediction,
        student_features={tap: (*IMAGE[:2], case.student_width) for tap in taps.student},
        teacher_features={tap: (*IMAGE[:2], WIDTH) for tap in taps.teacher},
        classifier_features=dict.fromkeys(taps.classifier, MAP),
        num_classes=case.classes,
    )
    facts = StageFacts(grid, networks, 100, BATCH, IMAGE, case.classes > 0)
    objective = objective.prepare(facts)
    tables = make_level_tables(
        schedule,
        grid,
        case.time,
        share=Share(
            case.low,
            case.high,
            case.full_range_share,
            case.own or (range(case.classes) if case.classes else None),
            case.classes,
        ),
        values=objective.dynamic_hparams() if case.program else None,
    )
    return static_part(objective) if case.program else objective, tables


def make_networks(case: Case, objective: Objective) -> tuple[dict[str, Any], Any]:
    """Parameters of the trained networks by name, and `bind(params) -> networks`."""
    others = {"classifier": SmallClassifier(), "autoencoder": SmallAutoencoder()}
    denoiser = Small(case.student_width, case.classes, tuple(objective.extra_inputs))
    student = others.get(objective.trains.kind, denoiser)
    modules = {"student": student, **trained_auxiliaries(objective)}
    inputs = {name: init_inputs(objective, name, IMAGE, case.classes > 0) for name in modules}
    weights = {
        name: fixed_weights(name, module, inputs[name], seed)
        for seed, (name, module) in enumerate(sorted(modules.items()))
    }
    teacher = Small(num_classes=case.classes)
    arguments = (jnp.zeros((1, *IMAGE)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32))
    frozen = fixed_weights("teacher", teacher, arguments, 10)
    critic = fixed_weights("classifier", SmallClassifier(), arguments[:1], 11)
    fixed = {
        "teacher": with_guidance(
            Denoiser.from_module(teacher, frozen.params, case.prediction),
            case.guidance,
            case.classes,
        ),
        "classifier": Classifier(critic, SmallClassifier())
        if objective.requires.classifier
        else None,
    }

    # Averages have moved away from the student.
    for name, own in objective.auxiliaries.items():
        if own.start == "average":
            moved = fixed_weights(name, student, inputs["student"], 12)
            fixed[name] = bind_network(objective, name, student, moved, case.prediction)

    def bind(params: dict[str, Any]) -> dict[str, Any]:
        bound = {
            name: bind_network(
                objective,
                name,
                modules[name],
                Weights(own, weights[name].statistics),
                case.prediction,
            )
            for name, own in params.items()
        }
        return {**bound, **fixed}

    return {name: own.params for name, own in weights.items()}, bind


def make_batch(case: Case, objective: Objective, tables: LevelTables) -> Batch:
    """Images, labels, keys, and as many pairs where the objective needs any."""
    rng = np.random.default_rng(3)
    image = rng.uniform(-1, 1, (BATCH, *IMAGE)).astype(np.float32)
    label = rng.integers(0, case.classes or 3, BATCH).astype(np.int32)
    # With these keys examples are at levels of little and of much noise, whatever is drawn beside
    # them: weights that are equal at one of both ends are told apart.
    keys = jax.random.split(jax.random.key(7), BATCH)
    pairs = None
    if objective.requires.pairs:
        shape = (PAIRS, *IMAGE)
        table = Pairs(
            noise=rng.standard_normal(shape).astype(np.float32),
            label=(np.arange(PAIRS) % max(1, case.classes)).astype(np.int32),
            image=rng.uniform(-1, 1, shape).astype(np.float32),
        )
        draws = jax.vmap(lambda key: jax.random.fold_in(key, _PAIR_KEYS))(keys)
        rows = np.asarray(draw_pair(draws, PAIRS, tables, bool(objective.requires.own_pairs)))
        pairs = jax.tree.map(lambda x: jnp.asarray(x[rows]), table)
    labels = jnp.asarray(label)
    memory = start_memory(objective, jax.random.key(5))
    if REPLAY_WRITTEN in memory:  # a buffer of which one batch is written
        memory[REPLAY_WRITTEN] += 1
        memory[REPLAY_INDEX] = 1 + jnp.arange(len(memory[REPLAY_INDEX])) % tables.count
    cond = labels if case.classes else None
    return Batch(jnp.asarray(image), labels, cond, keys, pairs, memory=memory)


@functools.cache
def _shapes(name: str, module: nn.Module, inputs: Any) -> Any:
    del name
    tree, leaves = inputs
    arguments = jax.tree.unflatten(tree, [jnp.zeros(*leaf) for leaf in leaves])
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))


def fixed_weights(name: str, module: nn.Module, inputs: tuple[Any, ...], seed: int) -> Weights:
    """Weights of numpy's random numbers, which no version of flax's initialisers changes."""
    leaves, tree = jax.tree.flatten(inputs)
    structs = tuple((x.shape, x.dtype) for x in leaves)
    found = dict(_shapes(name, module, (tree, structs)))
    rng = np.random.default_rng([seed, 7])

    def draw(path: Any, x: Any) -> Any:
        values = 0.7 * rng.standard_normal(x.shape) / np.sqrt(x.shape[0] if x.ndim > 1 else 4)
        if "scale" in jax.tree_util.keystr(path):
            values = values + 1.0
        return jnp.asarray(values, jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, found["params"])
    statistics = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32), found.get("batch_stats")
    )
    return Weights(params, statistics)


def python_loop(lower: Any, upper: Any, body: Any, value: Any) -> Any:
    """`jax.lax.fori_loop` without a program of its own for every case."""
    for i in range(int(lower), int(upper)):
        value = body(i, value)
    return value


APPLY = nn.Module.apply
_KNOWN = ("train", "taps", "mutable", "method")


@functools.partial(jax.jit, static_argnums=0, static_argnames=_KNOWN)
def _applied(module: nn.Module, variables: Any, *args: Any, **options: Any) -> Any:
    return APPLY(module, variables, *args, **options)


def apply(module: nn.Module, variables: Any, *args: Any, mutable: Any = (), **options: Any) -> Any:
    """`nn.Module.apply` in one program for all cases with these shapes."""
    kept = {"mutable": tuple(mutable)} if mutable else {}
    return _applied(module, variables, *args, **options, **kept)


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Within it, loops are Python's, and networks are one program each for all cases."""
    with (
        mock.patch.object(jax.lax, "fori_loop", python_loop),
        mock.patch.object(nn.Module, "apply", apply),
    ):
        yield


def numbers(name: str) -> dict[str, Any]:
    """What the case `name` gives today, in the form of the stored file."""
    case = CASES[name]
    with shared_programs():
        objective, tables = prepared(case)
        params, bind = make_networks(case, objective)
        if objective.trains.kind == "pairs":
            return {"pairs": _made_pairs(case, objective, bind(params)["teacher"])}
        batch = make_batch(case, objective, tables)
        found: dict[str, Any] = {}
        for update in objective.updates:
            own, shared = _of_update(update, params, bind, batch, tables)
            found["+".join(update.trained)] = own
            batch = batch.replace(shared={**batch.shared, **shared})  # type: ignore[attr-defined]
        panels = objective.diagnostics.panels
        if panels and case.panels:
            drawn = panels.draw(bind(params), batch.image, tables, batch.cond)
            found["panels"] = [summary(x) for x in drawn]
    return found


def _of_update(update: Any, params: Any, bind: Any, batch: Batch, tables: LevelTables):
    """The numbers of one update, and what it makes for later ones."""

    def total(trained: Any):
        values, metrics, *rest = update.loss(bind({**params, **trained}), batch, tables)
        return jnp.mean(values), (values, metrics, rest[0] if rest else None)

    trained = {name: params[name] for name in update.trained}
    gradients, (values, metrics, aside) = jax.grad(total, has_aux=True)(trained)
    found: dict[str, Any] = {
        "every": update.every,
        "skip": update.skip,
        "values": [_digits(x) for x in values],
        "metrics": {name: _digits(x) for name, x in sorted(metrics.items())},
        "gradients": {name: summary(x) for name, x in gradients.items()},
    }
    for kind in ("statistics", "shared", "memory"):
        if own := getattr(aside, kind, None):
            found[kind] = {name: summary(x) for name, x in own.items()}
    if update.fallback is not None:
        shared = update.fallback(bind(params), batch, tables)
        found["fallback"] = {name: summary(x) for name, x in shared.items()}
    return found, {} if aside is None else aside.shared


def _made_pairs(case: Case, objective: Any, teacher: Any) -> list[float]:
    """A summary of the teacher's images from noise, as a stage of pairs makes them."""
    schedule = make_schedule(case.schedule, case.T)
    grid = make_grid(schedule, case.levels or case.T, case.spacing, explicit=case.grid or None)
    levels = student_levels(schedule, grid, case.time)
    noise = np.random.default_rng(3).standard_normal((BATCH, *IMAGE)).astype(np.float32)
    cond = jnp.arange(BATCH) % case.classes if case.classes else None
    sample = get_sampler(objective.sampler)
    return summary(
        sample(teacher, levels, jnp.asarray(noise), cond=cond, clip=objective.clip or None)
    )


def summary(tree: Any) -> list[float]:
    """The norm of all values of a tree and their products with three fixed random vectors."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    flat = np.concatenate(leaves)
    vectors = np.random.default_rng(11).standard_normal((3, len(flat)))
    return [_digits(x) for x in (np.linalg.norm(flat), *(vectors @ flat))]


def _digits(x: Any) -> float:
    return float(f"{float(x):.9g}")


def differences(stored: Any, found: Any, path: str = "") -> list[str]:
    """Where two results differ, one line each; none where they agree to `TOLERANCE`.

    The numbers of a list are compared relative to the largest of them; losses and metrics may
    differ by `ROUNDING` besides.
    """
    if isinstance(stored, dict):
        if not isinstance(found, dict) or set(stored) != set(found):
            return [f"{path}: stored {sorted(stored)}, found {sorted(found)}"]
        return [
            line for key in stored for line in differences(stored[key], found[key], f"{path}/{key}")
        ]
    if isinstance(stored, list) and stored and isinstance(stored[0], list):
        rows = range(max(len(stored), len(found)))
        if len(stored) != len(found):
            return [f"{path}: stored {len(stored)} rows, found {len(found)}"]
        return [line for i in rows for line in differences(stored[i], found[i], f"{path}/{i}")]
    a, b = np.atleast_1d(np.asarray(stored, float)), np.atleast_1d(np.asarray(found, float))
    if a.shape != b.shape:
        return [f"{path}: stored {len(a)} values, found {len(b)}"]
    # Losses and metrics may be small differences of numbers of about 1, gradients are not.
    floor = ROUNDING if "/values" in path or "/metrics/" in path else 0.0
    bound = TOLERANCE * np.max(np.abs(a), initial=0.0) + floor
    apart = np.max(np.abs(a - b), initial=0.0)
    if apart <= bound:
        return []
    return [f"{path}: stored {stored}, found {found}, apart {apart:.3g}, allowed {bound:.3g}"]


def read() -> dict[str, Any]:
    """The stored numbers by case."""
    return json.loads(NUMBERS.read_text())


def write(found: dict[str, Any]) -> None:
    """Stores the numbers, one case a line."""
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in found.items()]
    NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(arguments: list[str]) -> None:
    """Writes or compares, see above."""
    prefixes = tuple(a for a in arguments if a != "--write") or ("",)
    begun = time.perf_counter()
    found = {}
    for name in CASES:
        if name.startswith(prefixes):
            at = time.perf_counter()
            found[name] = numbers(name)
            print(f"{time.perf_counter() - at:6.2f} s  {name}", flush=True)
    print(f"{len(found)} cases, {time.perf_counter() - begun:.1f} s")
    if "--write" in arguments:
        before = read() if NUMBERS.exists() else {}
        write({name: (before | found)[name] for name in CASES if name in before or name in found})
        return
    stored = read() if NUMBERS.exists() else {}
    for name, own in found.items():
        print(*differences(stored.get(name, {}), own, name), sep="\n", end="")


if __name__ == "__main__":
    main(sys.argv[1:])
