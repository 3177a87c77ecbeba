"""The compiled train steps of a run, shared by the stages whose programs are equal.

What a step computes with stands in its arguments: levels, learning rates, teacher. So the stages of
a chain of halvings, however many steps they have and however long they train, are one program, and
so are all students of a stage.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ddistill.compilation import compiler_options
from ddistill.mapping import lift, pick
from ddistill.students import put, take
from ddistill.training.sharding import over_data, replicated
from ddistill.training.state import STATE_AXES
from ddistill.training.step import FROZEN_AXES, StepFn, StepSettings, make_step


def make_chunk(
    step: StepFn, count: int, resident: bool, mesh: Mesh, students: int = 0, mapping: str = "vmap"
) -> Callable:
    """A function that runs `count` train steps in one dispatch and returns stacked metrics.

    Its arguments are (state, frozen, images, labels, indices `[count, B]`, key, rates); `images`
    are the whole set when it is resident, else the batches `[count, B, H, W, C]`; `rates` holds by
    network `[count]` learning rates, or is None. Examples are spread over the data axis of the
    mesh; the state lies whole on each of its devices.

    With `students` = K the state, the process in `frozen` and the keys have a leading student axis,
    indices, batches, rates and metrics one after `count`; `mapping` says how it is compiled, see
    `ddistill.mapping.lift`. "loop" dispatches one student's steps K times.
    """

    def one(state, frozen, images, labels, picks, key, rates):
        picks = jax.lax.with_sharding_constraint(picks, over_data(mesh))
        if resident:
            images = jnp.take(images, picks, axis=0)
        return step(state, frozen, images, jnp.take(labels, picks, axis=0), key, rates)

    if students and mapping == "loop":
        return _in_turn(_steps(one, count, resident), students, resident, mesh)
    if students:
        stacked_images = None if resident else 0
        axes = (STATE_AXES, FROZEN_AXES, stacked_images, None, 0, 0, 0)
        one = lift(one, students, mapping, axes, (STATE_AXES, 0))
    return _jit(_steps(one, count, resident), mesh)


def _jit(chunk: Callable, mesh: Mesh) -> Callable:
    return jax.jit(
        chunk,
        donate_argnums=0,
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(),
    )


def _steps(one: Callable, count: int, resident: bool) -> Callable:
    """`count` steps of `one` after another."""
    if count == 1:

        def chunk(state, frozen, images, labels, picks, key, rates=None):
            images = images if resident else images[0]
            rates = jax.tree.map(lambda x: x[0], rates)
            state, metrics = one(state, frozen, images, labels, picks[0], key, rates)
            return state, jax.tree.map(lambda x: x[None], metrics)

    else:

        def chunk(state, frozen, images, labels, picks, key, rates=None):
            def body(state, xs):
                batch, pick, rate = xs
                return one(state, frozen, images if resident else batch, labels, pick, key, rate)

            return jax.lax.scan(body, state, (None if resident else images, picks, rates))

    return chunk


def _in_turn(chunk: Callable, students: int, resident: bool, mesh: Mesh) -> Callable:
    """One program of one student, dispatched once for each; it changes its slice in place."""

    def turn(state, k, frozen, images, labels, picks, keys, rates):
        own = pick(state, STATE_AXES, k)
        after = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, 1, False), (picks, rates))
        if not resident:
            images = jax.lax.dynamic_index_in_dim(images, k, 1, False)
        new, metrics = chunk(
            own, pick(frozen, FROZEN_AXES, k), images, labels, after[0], take(keys, k), after[1]
        )
        # The step goes on when all have made it.
        step = jnp.where(k == students - 1, new.step, state.step)
        parts = [state.replace(step=None), new.replace(step=None)]
        return put(parts[0], k, parts[1]).replace(step=step), metrics

    compiled = _jit(turn, mesh)
    together = jax.jit(lambda *rows: jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rows))

    def every(state, frozen, images, labels, picks, keys, rates=None):
        rows = []
        for k in range(students):
            state, metrics = compiled(state, k, frozen, images, labels, picks, keys, rates)
            rows.append(metrics)
        return state, together(*rows)

    return every


class Programs:
    """Chunks by what they compute; one object serves a whole run."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Callable] = {}

    def __call__(
        self,
        s: StepSettings,
        recipe: Hashable,
        count: int,
        resident: bool,
        shapes: Any,
        students: int = 0,
        mapping: str = "vmap",
    ) -> tuple[Callable, bool]:
        """The chunk, and whether it is new and will compile when it is first called.

        Args:
          s: the step's settings.
          recipe: stands for `s.optimizers`, which cannot be compared.
          count, resident, students, mapping: as in `make_chunk`.
          shapes: state, frozen and the batch, for their structure, shapes and dtypes.
        """
        if s.mesh is None:
            raise ValueError(
                "Programs spread their batches over a mesh; StepSettings.mesh is None."
            )
        leaves, structure = jax.tree.flatten(shapes)
        key = (
            s.objective,
            tuple(sorted(s.modules.items())),
            s.prediction,
            recipe,
            (s.accumulate, s.ema_warmup, s.conditional, s.flip, s.unroll, s.mesh, s.freeze),
            (count, resident, students, mapping),
            structure,
            tuple((x.shape, str(x.dtype)) for x in leaves),
        )
        made = self._made.get(key)
        if made is not None:
            return made, False
        chunk = make_chunk(make_step(s), count, resident, s.mesh, students, mapping)
        self._made[key] = chunk
        return chunk, True
