"""Students in rounds: a stack of K students as the smaller stacks that one program is run on.

With the mapping "loop" a step of K students is K / S dispatches of one program, S the number of
students that the mesh has devices for. Weights live apart while they are trained, one tree a round,
and are joined where all are wanted at once: in a checkpoint and at the end.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.runtime.sharding import Layout
from ddistill.training.state import TrainState
from ddistill.typing import Tree


def split(layout: Layout, tree: Any, axis: int = 0) -> list[Any]:
    """The parts of a tree by round.

    Args:
      layout: gives the number of rounds.
      tree: arrays, all of them on the host or on one device, with K students on `axis`.

    Returns:
      One tree for each round, in which `axis` has the students that run together,
      and is gone where that is one.
    """
    if not layout.in_rounds:
        return [tree]
    return [
        jax.tree.map(lambda x, j=j: _part(layout, x, j, axis), tree) for j in range(layout.rounds)
    ]


def _part(layout: Layout, x: Any, j: int, axis: int) -> Any:
    apart = x.reshape(*x.shape[:axis], layout.spread, layout.rounds, *x.shape[axis + 1 :])
    before = (slice(None),) * axis
    chosen = apart[(*before, slice(None), j)]
    return chosen if layout.spread > 1 else chosen[(*before, 0)]


def split_state(layout: Layout, state: TrainState) -> list[TrainState]:
    """The states of the rounds, each in buffers of its own, because train steps donate them."""
    if not layout.in_rounds:
        return [state]
    stacks = state.replace(step=None)  # type: ignore[attr-defined]
    return [
        jax.tree.map(lambda x, j=j: _cut(layout, x, j), stacks).replace(
            step=_assemble(
                state.step.shape, layout.whole(), _rows([state.step], lambda data: data[0])
            )
        )
        for j in range(layout.rounds)
    ]


def join_state(layout: Layout, rounds: Sequence[TrainState]) -> TrainState:
    """The state of all students, `[K, ...]`, from the states of the rounds."""
    if not layout.in_rounds:
        return rounds[0]
    stacks = [state.replace(step=None) for state in rounds]  # type: ignore[attr-defined]
    return join(layout, stacks).replace(step=rounds[0].step)


def join(layout: Layout, rounds: Sequence[Tree]) -> Tree:
    """Arrays of all students, `[K, ...]`, from their parts by round, as of `split_state`."""
    if not layout.in_rounds:
        return rounds[0]
    return jax.tree.map(lambda *parts: _joined(layout, parts), *rounds)


def _cut(layout: Layout, x: jax.Array, j: int) -> jax.Array:
    """Turn j of a placed stack: every device cuts what it holds."""
    wide = layout.spread > 1
    like = jax.ShapeDtypeStruct((layout.spread, *x.shape[1:]) if wide else x.shape[1:], x.dtype)
    rows = _rows([x], lambda data: data[0][j : j + 1] if wide else data[0][j])
    return _assemble(like.shape, layout.of_weights(like, wide), rows)


def _joined(layout: Layout, parts: Sequence[jax.Array]) -> jax.Array:
    wide = layout.spread > 1
    shape = (layout.students, *parts[0].shape[int(wide) :])
    rows = _rows(parts, np.concatenate if wide else np.stack)
    place = layout.of_weights(jax.ShapeDtypeStruct(shape, parts[0].dtype), True)
    return _assemble(shape, place, rows)


def _rows(parts: Sequence[jax.Array], merge: Callable) -> dict[jax.Device, np.ndarray]:
    """What each device of this process holds of `parts`, merged."""
    shards = zip(*(x.addressable_shards for x in parts))
    return {own[0].device: merge([np.asarray(s.data) for s in own]) for own in shards}


def _assemble(shape: tuple[int, ...], place: Any, rows: dict[jax.Device, np.ndarray]) -> jax.Array:
    arrays = [jax.device_put(row, device, may_alias=False) for device, row in rows.items()]
    return jax.make_array_from_single_device_arrays(shape, place, arrays)


def advance(
    layout: Layout,
    chunk: Callable,
    states: Sequence[TrainState],
    inputs: Sequence[Any],
    images: Sequence[Any],
    conditions: Any,
    batch_indices: Sequence[Any],
    keys: Sequence[Any],
    rates: Sequence[Any],
) -> tuple[list[TrainState], dict[str, jax.Array]]:
    """The steps of `chunk` for every round: the new states, and metrics `[count]` or `[count, K]`.

    Args:
      layout: gives the number of rounds; all sequences are as long.
      chunk: see `ddistill.training.compiled.Chunk`, for the other arguments too.
    """
    found = [
        chunk(state, *rest[:2], conditions, *rest[2:])
        for state, *rest in zip(states, inputs, images, batch_indices, keys, rates)
    ]
    return [state for state, _ in found], join_metrics(layout, [rows for _, rows in found])


def join_metrics(layout: Layout, rows: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Metrics `[count, K]` from the metrics of the rounds, `[count]` or `[count, S]`."""
    if not layout.in_rounds:
        return rows[0]
    return _stack_metrics(*rows)


@jax.jit
def _stack_metrics(*rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def join(*x: jax.Array) -> jax.Array:
        return jnp.stack(x, axis=-1).reshape(x[0].shape[0], -1)

    return jax.tree.map(join, *rows)
