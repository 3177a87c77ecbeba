"""The compiled train steps of a run, shared by the stages whose programs are equal.

What a step computes with stands in its arguments: levels, learning rates, teacher. So the stages of
a chain of halvings, however many steps they have and however long they train, are one program.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ddistill.compilation import compiler_options
from ddistill.training.sharding import over_data, replicated
from ddistill.training.step import StepFn, StepSettings, make_step


def make_chunk(step: StepFn, count: int, resident: bool, mesh: Mesh) -> Callable:
    """A function that runs `count` train steps in one dispatch and returns stacked metrics.

    Its arguments are (state, frozen, images, labels, indices `[count, B]`, key, rates); `images`
    are the whole set when it is resident, else the batches `[count, B, H, W, C]`; `rates` holds by
    network `[count]` learning rates, or is None. Examples are spread over the data axis of the
    mesh; the state lies whole on each of its devices.
    """

    def one(state, frozen, images, labels, pick, key, rates):
        pick = jax.lax.with_sharding_constraint(pick, over_data(mesh))
        if resident:
            images = jnp.take(images, pick, axis=0)
        return step(state, frozen, images, jnp.take(labels, pick, axis=0), key, rates)

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

    return jax.jit(
        chunk,
        donate_argnums=0,
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(),
    )


class Programs:
    """Chunks by what they compute; one object serves a whole run."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Callable] = {}

    def __call__(
        self, s: StepSettings, recipe: Hashable, count: int, resident: bool, shapes: Any
    ) -> tuple[Callable, bool]:
        """The chunk, and whether it is new and will compile when it is first called.

        Args:
          s: the step's settings.
          recipe: stands for `s.optimizers`, which cannot be compared.
          count, resident: as in `make_chunk`.
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
            (s.accumulate, s.ema_warmup, s.conditional, s.flip, s.unroll, s.mesh),
            (count, resident),
            structure,
            tuple((x.shape, str(x.dtype)) for x in leaves),
        )
        made = self._made.get(key)
        if made is not None:
            return made, False
        self._made[key] = make_chunk(make_step(s), count, resident, s.mesh)
        return self._made[key], True
