"""The train step: batch in, state and metrics out; pure, jitted by the loop.

The step does what every method shares: flips, random keys, gradient accumulation with the global
batch fixed, the mean over examples, the optimiser and the moving averages.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array

from ddistill.data import random_flip, to_unit
from ddistill.networks.weights import Weights
from ddistill.objectives import Batch, LevelTables, Objective, Update
from ddistill.objectives.base import LossAux
from ddistill.objectives.inputs import Pairs
from ddistill.objectives.sampling import draw_pair
from ddistill.runtime.sharding import Layout, constrain, over_data
from ddistill.training.state import TrainState, update_ema


@struct.dataclass
class StepInputs:
    """What a step reads and never changes.

    Attributes:
      teacher: the teacher network, or None.
      tables: the levels of the stage.
      classifier: the network whose features are compared, or None.
      pairs: all pairs of the stage, of which every batch draws some, or None.
    """

    teacher: Any
    tables: LevelTables
    classifier: Any = None
    pairs: Pairs | None = None


# What of it has the student axis in a stage of many students.
STEP_INPUT_AXES = StepInputs(teacher=None, tables=0, classifier=None, pairs=None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepSettings:
    """The static part of a train step.

    Attributes:
      objective: the method.
      modules: Linen module by network name.
      prediction: prediction type of the networks.
      optimizers: by network name.
      accumulate: gradients of this many equal parts of the batch are averaged.
      ema_warmup: see `update_ema`.
      conditional: whether networks are given labels.
      flip: whether images are mirrored at random.
      unroll: True runs accumulation as straight code (CPU), False as a scan.
      layout: devices over which weights and batches are spread; None leaves them where they are.
      freeze: whether a student of many whose loss is no longer finite is left as it was.
    """

    objective: Objective
    modules: Mapping[str, nn.Module]
    prediction: str
    optimizers: Mapping[str, optax.GradientTransformation]
    accumulate: int = 1
    ema_warmup: bool = True
    conditional: bool = False
    flip: bool = False
    unroll: bool = True
    layout: Layout | None = None
    freeze: bool = False


_PAIRS = 0x7061
StepFn = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_step(s: StepSettings) -> StepFn:
    """Returns `step(state, frozen, images, labels, key, rates=None) -> (state, metrics)`.

    `images` are `[B, H, W, C]`, uint8 or floats in [-1, 1]; `labels` `[B]`; `key` is the stage's
    stream key, into which the step number is folded; `rates` holds by network this step's learning
    rate, for optimisers that are built with a rate of 1. Metrics are float32 scalars: one loss and
    one gradient norm per update and whatever the losses report. Those of an update that does not
    run at every step are 0 where it does not, and for each of them `ran/NAME` is 1 where it does.
    """

    def step(
        state: TrainState,
        inputs: StepInputs,
        images: Array,
        labels: Array,
        key: Array,
        rates: Mapping[str, Array] | None = None,
    ):
        batch = make_batch(s, images, labels, jax.random.fold_in(key, state.step))
        if inputs.pairs is not None:
            batch = _with_pairs(s, batch, inputs.pairs, inputs.tables)
        if s.layout is not None and s.layout.cuts_teacher:
            whole = constrain(inputs.teacher, s.layout.whole())
            inputs = dataclasses.replace(inputs, teacher=whole)
        trained = (dict(state.params), dict(state.opt_state), dict(state.statistics))
        metrics: dict[str, Array] = {}
        for update in s.objective.updates:
            trained, found, shared = _run(s, update, state.step, trained, inputs, batch, rates)
            metrics.update(found)
            batch = dataclasses.replace(batch, shared={**batch.shared, **shared})
        params, opt_state, statistics = trained
        ema = update_ema(state.ema, params["student"], state.step, s.ema_warmup)
        new = TrainState(state.step + 1, params, opt_state, statistics, ema, state.diverged)
        if state.diverged is None:
            return new, metrics
        if s.freeze:
            new, metrics = _freeze(state, new, metrics)
        return new, {**metrics, **_health(new)}

    return step


def _run(
    s: StepSettings,
    update: Update,
    step: Array,
    trained: tuple[Any, Any, Any],
    inputs: StepInputs,
    batch: Batch,
    rates: Any,
) -> tuple[tuple[Any, Any, Any], dict[str, Array], dict[str, Array]]:
    """An update where it is due: (parameters, optimiser states, statistics), metrics, what it made.

    Where it is not, the first is as it was and metrics are 0.
    """

    def apply(operands):
        params, opt_state, statistics = operands
        grads, found, aside = gradients(s, update, params, statistics, inputs, batch)
        learnt = _learn(s, grads, params, opt_state, rates)
        return (*learnt, {**statistics, **aside.statistics}), found, dict(aside.shared)

    if update.always:
        return apply(trained)
    shapes = jax.eval_shape(apply, trained)[1]

    def skip(operands):
        found = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return operands, found, _fallback(s, update, operands, inputs, batch)

    due = update.due(step)
    trained, found, made = jax.lax.cond(due, apply, skip, trained)
    ran = due.astype(jnp.float32)
    return trained, {**found, **{f"ran/{name}": ran for name in found}}, made


def _fallback(
    s: StepSettings, update: Update, trained: Any, inputs: StepInputs, batch: Batch
) -> dict[str, Array]:
    if update.fallback is None:
        return {}
    make = update.fallback
    params, _, statistics = trained
    networks = _networks(s, _whole(s, params), statistics, inputs)
    return _accumulate(s, lambda part: ({}, dict(make(networks, part, inputs.tables))), batch)[1]


def _learn(s: StepSettings, grads: Any, params: Any, opt_state: Any, rates: Any):
    """Parameters and optimiser states after each network of `grads` has followed its own."""
    params, opt_state = dict(params), dict(opt_state)
    for name, own in grads.items():
        changes, opt_state[name] = s.optimizers[name].update(own, opt_state[name], params[name])
        if rates is not None:
            changes = jax.tree.map(lambda x, rate=rates[name]: rate * x, changes)
        params[name] = optax.apply_updates(params[name], changes)
    return params, opt_state


def _freeze(old: TrainState, new: TrainState, metrics: dict[str, Array]):
    """One of many students: as it was, from the first step on that gives no finite number."""
    found = [*jax.tree.leaves(metrics), optax.tree.norm(new.params)]
    finite = jnp.all(jnp.stack([jnp.isfinite(x) for x in found]))
    learns = (old.diverged == 0) & finite
    diverged = jnp.where(learns | (old.diverged > 0), old.diverged, new.step)

    def keep(a, b):
        return jax.tree.map(lambda x, y: jnp.where(learns, x, y), a, b)

    kept = keep(new, old.replace(step=new.step))  # type: ignore[attr-defined]
    # Its metrics say nothing any more; the loop leaves a frozen student out of the means.
    metrics = keep(metrics, jax.tree.map(jnp.zeros_like, metrics))
    return kept.replace(step=new.step, diverged=diverged), metrics


def _health(state: TrainState) -> dict[str, Array]:
    """How far the first average is from the weights, relative to them, and whether it learns."""
    health = {"diverged": state.diverged.astype(jnp.float32)}
    for average in list(state.ema.values())[:1]:
        apart = jax.tree.map(jnp.subtract, state.params["student"], average)
        norms = [optax.tree.norm(tree) for tree in (apart, average)]
        health["ema_distance"] = norms[0] / jnp.maximum(norms[1], 1e-12)
    return health


def make_batch(s: StepSettings, images: Array, labels: Array, key: Array) -> Batch:
    """Normalises and flips images and gives every example its own random key."""
    flip_key, loss_key = jax.random.split(key)
    count = images.shape[0]
    x = to_unit(images)
    if s.flip:
        x = random_flip(jax.random.split(flip_key, count), x)
    keys = jax.random.split(loss_key, count)
    return _spread(s, Batch(x, labels, labels if s.conditional else None, keys))


def _with_pairs(s: StepSettings, batch: Batch, pairs: Pairs, tables: LevelTables) -> Batch:
    """The batch with as many pairs, each drawn by the key of an example."""
    # Small numbers folded in are the keys that losses split off.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _PAIRS))(batch.keys)
    rows = draw_pair(keys, len(pairs.label), tables, s.objective.filters_pairs)
    drawn = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), pairs)
    return _spread(s, dataclasses.replace(batch, pairs=drawn))


def _spread(s: StepSettings, batch: Batch, axis: int = 0) -> Batch:
    """Asks for dimension `axis` of the batch to be spread over the mesh."""
    return batch if s.layout is None else constrain(batch, over_data(s.layout.mesh, axis))


def _whole(s: StepSettings, params: Any) -> Any:
    """Students' weights, those that are cut over devices put together for use."""
    if s.layout is None or not s.layout.cuts_students:
        return params
    return constrain(params, s.layout.whole())


def _cut(s: StepSettings, grads: Any) -> Any:
    """Gradients, each device keeping the part that belongs to its weights."""
    if s.layout is None or not s.layout.cuts_students:
        return grads
    return jax.tree.map(constrain, grads, s.layout.of_weights(grads, stacked=False))


def gradients(
    s: StepSettings, update: Update, params: Any, statistics: Any, inputs: StepInputs, batch: Batch
):
    """Mean gradient over the batch, taken in `s.accumulate` equal parts, mean metrics, and `LossAux`.

    Gradients are by name of the trained networks.
    """
    first = update.trained[0]
    suffix = "" if first == "student" else f"_{first}"

    params = _whole(s, params)

    def loss(trained: Any, part: Batch):
        networks = _networks(s, {**params, **trained}, statistics, inputs)
        values, metrics, *rest = update.loss(networks, part, inputs.tables)
        chex.assert_shape(values, (part.image.shape[0],))
        value = jnp.mean(values)
        return value, ({f"loss{suffix}": value, **metrics}, rest[0] if rest else LossAux())

    grad = jax.grad(loss, has_aux=True)
    trained = {n: params[n] for n in update.trained}

    def compute(part: Batch):
        grads, (metrics, aside) = grad(trained, part)
        return (grads, metrics, aside.statistics), dict(aside.shared)

    (grads, metrics, seen), made = _accumulate(s, compute, batch)
    metrics[f"grad_norm{suffix}"] = optax.tree.norm(grads)
    return _cut(s, grads), metrics, LossAux(seen, made)


def _networks(s: StepSettings, params: Any, statistics: Any, inputs: StepInputs) -> dict[str, Any]:
    """Every network by name, as losses call them."""
    bound = {
        n: s.objective.bind(n, s.modules[n], Weights(p, statistics.get(n)), s.prediction)
        for n, p in params.items()
    }
    return bound | {"teacher": inputs.teacher, "classifier": inputs.classifier}


def _accumulate(s: StepSettings, compute: Callable[[Batch], tuple[Any, Any]], batch: Batch):
    """Of the two results of `compute` over equal parts of a batch the mean, and both joined."""
    if s.accumulate == 1:
        return compute(batch)
    size = batch.image.shape[0] // s.accumulate
    parts = jax.tree.map(lambda x: x.reshape(s.accumulate, size, *x.shape[1:]), batch)
    parts = _spread(s, parts, axis=1)
    if s.unroll:
        results = [compute(jax.tree.map(lambda x, i=i: x[i], parts)) for i in range(s.accumulate)]
        total = jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *(r[0] for r in results))
        joined = jax.tree.map(lambda *xs: jnp.concatenate(xs), *(r[1] for r in results))
    else:
        first = jax.eval_shape(compute, jax.tree.map(lambda x: x[0], parts))[0]
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

        def add(total, part):
            found, own = compute(part)
            return jax.tree.map(jnp.add, total, found), own

        total, joined = jax.lax.scan(add, zero, parts)
        joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), joined)
    return jax.tree.map(lambda x: x / s.accumulate, total), joined
