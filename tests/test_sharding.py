"""Batches spread over devices: the same results as on one, and where the arrays lie."""

import os
import subprocess
import sys

import chex
import jax
import numpy as np
import optax
import pytest
import tiny

from ddistill.objectives import make_objective
from ddistill.objectives.parts import StageFacts
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import AXES, Layout, data_mesh, over_data, replicate, replicated
from ddistill.training.compiled import Chunk
from ddistill.training.state import create_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings


@pytest.mark.parametrize(
    ("batch", "devices", "expected"),
    [(8, 4, 4), (6, 4, 3), (7, 4, 1), (64, 3, 2), (1, 4, 1), (2, 4, 2), (12, 1, 1)],
)
def test_mesh_has_the_most_devices_that_divide_the_batch(batch, devices, expected):
    mesh = data_mesh(batch, jax.devices()[:devices])
    assert dict(mesh.shape) == dict(zip(AXES, (1, expected, 1)))


def trained(devices: int, steps: int = 3, count: int = 1, **changes):
    """State and metrics after `steps` dispatches of `count` SFDDM steps on that many devices."""
    tables = tiny.tables()
    objective = make_objective({"name": "sfddm", "substeps": 2})
    optimizer = {"student": optax.adam(1e-2)}
    mesh = data_mesh(8 // changes.get("accumulate", 1), jax.devices()[:devices])
    s = StepSettings(
        objective=objective.prepare(StageFacts(np.asarray(tables.grid)[:5])),
        modules={"student": tiny.TinyNet(dropout=0.2)},
        prediction="v",
        optimizers=optimizer,
        layout=Layout(mesh),
        flip=True,
        **changes,
    )
    state = create_state({"student": tiny.tiny_params(1)}, optimizer, (0.9,), s.layout)
    inputs = replicate(mesh, StepInputs(tiny.tiny_denoiser(0), tables))
    batch = tiny.batch(40)
    images, labels = replicate(mesh, (batch.image, batch.label))
    chunk = Chunk(make_step(s), count, True, s.layout)
    for i in range(steps):
        batch_indices = (np.arange(8 * count).reshape(count, 8) + i) % 40
        state, metrics = chunk(state, inputs, images, labels, batch_indices, stream_key(0, "train"))
    return mesh, state, metrics


@pytest.mark.parametrize(
    ("count", "changes"),
    [(1, {}), (1, {"accumulate": 2}), (3, {"accumulate": 2, "unroll": False})],
)
def test_four_devices_learn_what_one_learns(changes, count):
    _, one, metrics_one = trained(1, count=count, **changes)
    mesh, four, metrics_four = trained(4, count=count, **changes)
    assert mesh.size == 4
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(four), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(metrics_one, jax.device_get(metrics_four), rtol=1e-4)


def test_state_lies_whole_on_every_device():
    mesh, state, metrics = trained(4)
    for x in jax.tree.leaves((state, metrics)):
        assert x.sharding.is_equivalent_to(replicated(mesh), x.ndim)


def test_random_numbers_do_not_depend_on_the_devices():
    keys = jax.random.split(jax.random.key(3), 8)
    draw = jax.jit(jax.vmap(lambda k: jax.random.normal(k, (5,))))
    here = draw(keys)
    spread = draw(jax.device_put(keys, over_data(data_mesh(8))))
    assert len(spread.devices()) == 4
    np.testing.assert_array_equal(here, spread)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
        ({}, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8)),
    ],
)
def test_cores_are_devices_unless_the_user_chooses(variables, expected):
    code = (
        "from ddistill.runtime.sharding import use_cores_as_devices; use_cores_as_devices();"
        "import jax; print(len(jax.devices('cpu')))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == expected
