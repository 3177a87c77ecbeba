"""Stacks of tiny students and their batches, trained together and one after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.inputs import Share
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout, data_mesh, make_mesh, place, replicate
from ddistill.schedules import cosine, make_grid
from ddistill.students import stack
from ddistill.training.compiled import Chunk
from ddistill.training.rounds import advance, join_state, split, split_state
from ddistill.training.state import create_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings

RANGES = [(1, 3), (4, 8), (2, 6), (1, 8)]


def processes(count):
    grid = make_grid(cosine(32), 8, "trailing")
    return [
        make_level_tables(cosine(32), grid, share=Share(low, high)) for low, high in RANGES[:count]
    ]


def settings(devices=1, name="o2mkd", dropout=0.0, **changes):
    objective = make_objective({"name": name, **({"substeps": 2} if name == "sfddm" else {})})
    return StepSettings(
        objective=objective,
        modules={"student": tiny.TinyNet(dropout=dropout)},
        prediction="v",
        optimizers={"student": optax.adam(1.0)},
        layout=Layout(data_mesh(8, jax.devices()[:devices])),
        **changes,
    )


def feed(count, steps):
    """Images, labels, picks `[steps, K, 8]`, keys `[K]` and rates `[steps, K]` per network."""
    batch = tiny.batch(40)
    batch_indices = np.random.default_rng(0).integers(0, 40, (steps, count, 8)).astype(np.int32)
    keys = jnp.stack([stream_key(0, f"train{k}") for k in range(count)])
    rates = {"student": np.float32(0.01) * (1 + np.arange(count)) * np.ones((steps, 1), "f")}
    return batch.image, batch.label, batch_indices, keys, rates


def separate(s, count, steps=3):
    """The states and metrics of K trainings, one after the other."""
    images, labels, batch_indices, keys, rates = feed(count, steps)
    found = []
    for k, tables in enumerate(processes(count)):
        state = create_state({"student": tiny.tiny_params(k)}, s.optimizers, (0.9,), s.layout)
        inputs = replicate(s.layout.mesh, StepInputs(tiny.tiny_denoiser(9), tables))
        chunk = Chunk(make_step(s), 1, True, s.layout)
        for i in range(steps):
            now = {name: r[i : i + 1, k] for name, r in rates.items()}
            state, metrics = chunk(
                state, inputs, images, labels, batch_indices[i : i + 1, k], keys[k], now
            )
        found.append((state, metrics))
    return found


def train(
    s, weights, teacher, tables, data, batch_indices, keys, rates, *, step=None, scanned=1, **how
):
    """The state after all of `batch_indices`, and the metrics of each dispatch, in layout `s`.

    Where it has students, weights, tables, batch_indices, keys and rates are stacked.
    """
    layout, resident = s.layout, how.get("resident", True)
    state = create_state(weights, s.optimizers, (0.9,), layout, students=layout.students)
    teacher = place(teacher, layout.of_teacher(teacher))
    lies = layout.by_student() if layout.one_by_one else layout.whole()
    inputs = [StepInputs(teacher, place(own, lies)) for own in split(layout, tables)]
    chunk = Chunk(step or make_step(s), scanned, resident, layout)
    rounds, keys, rows = split_state(layout, state), split(layout, keys), []
    images, labels = data
    for i in range(0, len(batch_indices), scanned):
        now = split(layout, {name: r[i : i + scanned] for name, r in rates.items()}, axis=1)
        own = split(layout, batch_indices[i : i + scanned], axis=1)
        batch = [images if resident else images[x] for x in own]
        rounds, metrics = advance(layout, chunk, rounds, inputs, batch, labels, own, keys, now)
        rows.append(jax.device_get(metrics))
    return join_state(layout, rounds), rows


def with_students(s, count, mapping, mesh=None):
    """Step settings for `count` students, "shard" on devices of their own."""
    if mapping == "shard":
        mesh, mapping = mesh or make_mesh((count, 1, 1)), "unroll"
    mesh = mesh or s.layout.mesh
    layout = dataclasses.replace(s.layout, mesh=mesh, students=count, mapping=mapping)
    return dataclasses.replace(s, layout=layout)


def together(s, count, mapping, steps=3, params=None, mesh=None, **how):
    """The stacked state after `steps` and the metrics of the last dispatch."""
    images, labels, batch_indices, keys, rates = feed(count, steps)
    weights = {"student": stack(params or [tiny.tiny_params(k) for k in range(count)])}
    tables = jax.tree.map(lambda *x: np.stack(x), *processes(count))
    s, teacher = with_students(s, count, mapping, mesh), tiny.tiny_denoiser(9)
    state, rows = train(
        s, weights, teacher, tables, (images, labels), batch_indices, keys, rates, **how
    )
    return state, rows[-1]
