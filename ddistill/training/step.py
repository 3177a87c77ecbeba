"""The train step: batch in, state and metrics out; pure, jitted by the loop.

The step does what every method shares: flips, random keys, gradient accumulation with the global
batch fixed, the mean over examples, the optimiser and the moving averages.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, PyTree

from ddistill.conditions import Tokens
from ddistill.networks.weights import Weights
from ddistill.objectives import Batch, LevelTables, Update
from ddistill.objectives.base import bind, target_rate
from ddistill.objectives.parts import LossAux, Networks
from ddistill.runtime.sharding import constrain
from ddistill.training.state import TrainState, update_ema
from ddistill.training.step_inputs import (
    StepInputs,
    StepSettings,
    make_batch,
    spread,
    with_latents,
    with_pairs,
    with_texts,
)
from ddistill.typing import Labels, Metrics, Params
from ddistill.wrapped_denoiser import network_params

StepFn = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_step(s: StepSettings) -> StepFn:
    """Returns `step(state, inputs, images, conditions, key, rates=None) -> (state, metrics)`.

    `images` are `[B, H, W, C]`, uint8 or floats in [-1, 1], or what an encoder has made of images,
    or None for an objective that learns from noise alone; `conditions` are class ids `[B]`, for
    networks that read texts the pair of class ids and `Tokens`; `key` is the stage's stream key,
    into which the step number is folded; `rates` holds by network this step's learning rate, for
    optimisers that are built with a rate of 1. Metrics are float32 scalars: one loss and one
    gradient norm per update and the losses' own. The metrics of an update that does not run at
    every step are 0 where it does not, and for each of them `ran/NAME` is 1 where it does.
    """

    def step(
        state: TrainState,
        inputs: StepInputs,
        images: Array | None,
        conditions: Labels | tuple[Labels, Tokens],
        key: Array,
        rates: Mapping[str, Array] | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        inputs = _at_step(s, inputs, state.step)
        batch = make_batch(s, images, conditions, jax.random.fold_in(key, state.step))
        if inputs.latent_encoder is not None and images is not None:
            batch = with_latents(s, batch, inputs.latent_encoder)
        if inputs.text_encoder is not None:
            batch = with_texts(s, batch, inputs.text_encoder)
        if inputs.pairs is not None:
            batch = with_pairs(s, batch, inputs)
        # Last, because memory has no batch axis to be spread over devices.
        batch = dataclasses.replace(batch, memory=state.memory)
        learning = _Learning(
            dict(state.params), dict(state.opt_state), dict(state.statistics), dict(state.memory)
        )
        once = _Once(inputs, batch, state.targets, state.step, rates)
        found: list[dict[str, Array]] = []
        for update in s.objective.updates:
            learning, own, shared = _run(s, update, learning, once)
            found.append(own)
            batch = dataclasses.replace(
                once.batch, shared={**once.batch.shared, **shared}, memory=learning.memory
            )
            once = dataclasses.replace(once, batch=batch)
        metrics = _joined(found)
        new = _next_state(s, state, learning, inputs.tables)
        if state.diverged is None:
            return new, metrics
        if s.freeze:
            new, metrics = _freeze(state, new, metrics)
        return new, {**metrics, **_training_signs(new)}

    return step


def _joined(found: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The metrics of all updates; the mean of the metrics of one name of updates that ran."""
    values: dict[str, list[Array]] = {}
    for own in found:
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    joined = {k: v[0] if len(v) == 1 else jnp.mean(jnp.stack(v)) for k, v in values.items()}
    for name in [k for k, v in values.items() if len(v) > 1 and f"ran/{k}" in values]:
        always = len(values[name]) - len(values[f"ran/{name}"])
        ran = jnp.sum(jnp.stack(values[f"ran/{name}"])) + always
        joined[name] = jnp.sum(jnp.stack(values[name])) / jnp.maximum(ran, 1.0)
        joined[f"ran/{name}"] = jnp.minimum(ran, 1.0)
    return joined


@struct.dataclass
class _Learning:
    """What the updates of a step change, by name."""

    params: dict[str, Params]
    opt_state: dict[str, PyTree]
    statistics: dict[str, PyTree]
    memory: dict[str, Array]


@struct.dataclass
class _Once:
    """What all updates of a step read."""

    inputs: StepInputs
    batch: Batch
    targets: Mapping[str, Params]
    step: Array
    rates: Mapping[str, Array] | None


def _at_step(s: StepSettings, inputs: StepInputs, step: Array) -> StepInputs:
    """The inputs with the step number in the tables, and with the teacher's weights gathered."""
    tables = dataclasses.replace(inputs.tables, step=step)
    if s.layout is not None and s.layout.cuts_teacher:
        frozen = constrain((inputs.teacher, inputs.bases), s.layout.whole())
        inputs = dataclasses.replace(inputs, teacher=frozen[0], bases=frozen[1])
    return dataclasses.replace(inputs, tables=tables)


def _next_state(
    s: StepSettings, state: TrainState, learning: _Learning, tables: LevelTables
) -> TrainState:
    """The state after a step, with its averages moved."""
    student = learning.params["student"]
    targets = {
        name: optax.incremental_update(
            student, average, 1.0 - target_rate(s.objective.auxiliaries[name], tables.progress)
        )
        for name, average in state.targets.items()
    }
    return TrainState(
        step=state.step + 1,
        params=learning.params,
        opt_state=learning.opt_state,
        statistics=learning.statistics,
        ema=update_ema(state.ema, student, state.step, s.ema_warmup),
        diverged=state.diverged,
        targets=targets,
        memory=learning.memory,
    )


def _run(
    s: StepSettings, update: Update, learning: _Learning, once: _Once
) -> tuple[_Learning, dict[str, Array], dict[str, Array]]:
    """An update where it is due: the networks after it, its metrics, and what it shares.

    Where it is not due, the networks are unchanged and its metrics are 0.
    """

    def apply(learning: _Learning) -> tuple[_Learning, dict[str, Array], dict[str, Array]]:
        grads, found, aux = gradients(s, update, learning, once)
        params, opt_state = _learn(s, grads, learning.params, learning.opt_state, once.rates)
        statistics = {**learning.statistics, **aux.statistics}
        memory = {**learning.memory, **aux.memory}
        return _Learning(params, opt_state, statistics, memory), found, dict(aux.shared)

    if update.always:
        return apply(learning)
    shapes = jax.eval_shape(apply, learning)[1]

    def skip(learning: _Learning) -> tuple[_Learning, dict[str, Array], dict[str, Array]]:
        found = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return learning, found, _fallback(s, update, learning, once)

    due = update.due(once.step)
    learning, found, shared = jax.lax.cond(due, apply, skip, learning)
    ran = due.astype(jnp.float32)
    return learning, {**found, **{f"ran/{name}": ran for name in found}}, shared


def _fallback(
    s: StepSettings, update: Update, learning: _Learning, once: _Once
) -> dict[str, Array]:
    make = update.fallback
    if make is None:
        return {}
    networks = _networks(s, _whole(s, learning.params), learning.statistics, once)

    def compute(part: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
        return {}, dict(make(networks, part, once.inputs.tables))

    return _accumulate(s, compute, once.batch)[1]


def _learn(
    s: StepSettings,
    grads: Mapping[str, Params],
    params: Mapping[str, Params],
    opt_state: Mapping[str, PyTree],
    rates: Mapping[str, Array] | None,
) -> tuple[dict[str, Params], dict[str, PyTree]]:
    """Parameters and optimiser states after each network of `grads` has followed its own."""
    params, opt_state = dict(params), dict(opt_state)
    for name, own in grads.items():
        changes, opt_state[name] = s.optimizers[name].update(own, opt_state[name], params[name])
        if rates is not None:
            changes = jax.tree.map(lambda x, rate=rates[name]: rate * x, changes)
        params[name] = optax.apply_updates(params[name], changes)
    return params, opt_state


def _freeze(old: TrainState, new: TrainState, metrics: dict[str, Array]):
    """Keeps the last finite state of a student once its loss or weights are not finite."""
    found = [*jax.tree.leaves(metrics), optax.tree.norm(new.params)]
    finite = jnp.all(jnp.stack([jnp.isfinite(x) for x in found]))
    learns = (old.diverged == 0) & finite
    diverged = jnp.where(learns | (old.diverged > 0), old.diverged, new.step)

    def keep(a, b):
        return jax.tree.map(lambda x, y: jnp.where(learns, x, y), a, b)

    kept = keep(new, old.replace(step=new.step))  # type: ignore[attr-defined]
    # The loop leaves the metrics of a diverged student out of the means.
    metrics = keep(metrics, jax.tree.map(jnp.zeros_like, metrics))
    return kept.replace(step=new.step, diverged=diverged), metrics


def _training_signs(state: TrainState) -> dict[str, Array]:
    """How far the first average is from the weights, relative to them, and whether it learns."""
    signs = {"diverged": state.diverged.astype(jnp.float32)}
    for average in list(state.ema.values())[:1]:
        apart = jax.tree.map(jnp.subtract, state.params["student"], average)
        norms = [optax.tree.norm(tree) for tree in (apart, average)]
        signs["ema_distance"] = norms[0] / jnp.maximum(norms[1], 1e-12)
    return signs


def _whole(s: StepSettings, params: Params) -> Params:
    """The students' weights, gathered where they are cut over devices."""
    if s.layout is None or not s.layout.cuts_students:
        return params
    return constrain(params, s.layout.whole())


def _cut(s: StepSettings, grads: Params) -> Params:
    """Gradients, each device keeping the part that belongs to its weights."""
    if s.layout is None or not s.layout.cuts_students:
        return grads
    return jax.tree.map(constrain, grads, s.layout.of_weights(grads, stacked=False))


def gradients(
    s: StepSettings, update: Update, learning: _Learning, once: _Once
) -> tuple[dict[str, Params], dict[str, Array], LossAux]:
    """Gradients by trained network, the metrics, and what the loss returns beside them.

    Gradients and metrics are means over the batch, which is taken in `s.accumulate` equal parts.
    """
    first = update.trained[0]
    suffix = "" if first == "student" else f"_{first}"
    params = _whole(s, learning.params)

    def loss(trained: dict[str, Params], part: Batch) -> tuple[Array, tuple[Metrics, LossAux]]:
        networks = _networks(s, {**params, **trained}, learning.statistics, once)
        values, metrics, *rest = update.loss(networks, part, once.inputs.tables)
        chex.assert_shape(values, (part.image.shape[0],))
        value = jnp.mean(values)
        return value, ({f"loss{suffix}": value, **metrics}, rest[0] if rest else LossAux())

    grad = jax.grad(loss, has_aux=True)
    trained = {n: params[n] for n in update.trained}

    def compute(part: Batch) -> tuple[PyTree, dict[str, Array]]:
        grads, (metrics, aux) = grad(trained, part)
        return (grads, metrics, aux.statistics, dict(aux.memory)), dict(aux.shared)

    (grads, metrics, seen, memory), shared = _accumulate(s, compute, once.batch)
    metrics[f"grad_norm{suffix}"] = optax.tree.norm(grads)
    return _cut(s, grads), metrics, LossAux(seen, shared, memory)


def _networks(
    s: StepSettings, params: Mapping[str, Params], statistics: Mapping[str, PyTree], once: _Once
) -> Networks:
    """Every network by name, as losses call them."""
    bases = {
        n: once.inputs.bases[n] if n in once.inputs.bases else network_params(once.inputs.teacher)
        for n in s.low_rank
    }
    bound = {}
    for name, own_params in params.items():
        weights = Weights(own_params, statistics.get(name), bases.get(name))
        bound[name] = bind(s.objective, name, s.modules[name], weights, s.prediction)
    for name, own in s.objective.auxiliaries.items():
        if own.start == "average":
            average = jax.lax.stop_gradient(once.targets.get(name, params["student"]))
            weights = Weights(average, statistics.get("student"), bases.get("student"))
            bound[name] = bind(s.objective, name, s.modules["student"], weights, s.prediction)
    return bound | {"teacher": once.inputs.teacher, "classifier": once.inputs.classifier}


def _accumulate(
    s: StepSettings, compute: Callable[[Batch], tuple[PyTree, PyTree]], batch: Batch
) -> tuple[PyTree, PyTree]:
    """Computes micro-batches; averages the first result over them and concatenates the second."""
    if s.accumulate == 1:
        return compute(batch)
    size = batch.image.shape[0] // s.accumulate
    parts = jax.tree.map(lambda x: x.reshape(s.accumulate, size, *x.shape[1:]), batch)
    parts = spread(s, parts, axis=1)
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
