"""The compiled train steps of a run, shared by the stages whose programs are equal.

Levels, learning rates and the teacher's weights are arguments of a step. The stages of a chain of
halvings therefore share one program, whatever their numbers of levels and updates, and so do all
students of a stage.
"""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from ddistill.mapping import lift, shard
from ddistill.networks.convolution import for_platform
from ddistill.objectives.base import static_part
from ddistill.planning.plan import StagePlan
from ddistill.runtime.compilation import compiler_options, is_wide
from ddistill.runtime.sharding import Layout, constrain, over_data
from ddistill.training.initial import optimizers
from ddistill.training.state import STATE_AXES
from ddistill.training.step import StepFn, make_step
from ddistill.training.step_inputs import STEP_INPUT_AXES, StepSettings
from ddistill.typing import Metrics

# Dispatches of a program that may be unfinished. With 32 programs of a device in flight, XLA's CPU
# client waits for one of them in a thread that other devices need for an exchange of gradients, and
# no device goes on.
AHEAD = 4


def step_settings(plan: StagePlan, layout: Layout, flip: bool) -> StepSettings:
    """The static part of a stage's train step.

    Args:
      plan: the stage.
      layout: where it runs.
      flip: whether images are mirrored at random.
    """
    s = plan.settings
    vmapped = plan.stacked and layout.mapping == "vmap"
    return StepSettings(
        objective=static_part(plan.objective),
        modules={n: for_platform(m, layout.platform, vmapped) for n, m in plan.modules.items()},
        prediction=s.prediction,
        optimizers=optimizers(plan),
        accumulate=s.accumulate,
        # Averages that are taken over have seen more than this stage's steps.
        ema_warmup=s.ema_warmup and not s.resume,
        conditional=s.conditional,
        flip=flip,
        # XLA's convolutions are slow in the loops of a CPU.
        unroll=layout.platform == "cpu",
        layout=layout,
        freeze=s.students.on_divergence == "freeze",
        image_shape=plan.image_shape,
        encoder=plan.encoder,
        null_tokens=plan.tokenizer.null if plan.tokenizer else (),
        low_rank=tuple(n for n in plan.modules if s.low_rank_of(n)),
    )


class Chunk:
    """`count` train steps in one dispatch; compiled when it is first called.

    Its arguments are (state, inputs, images, conditions, indices `[count, B]`, key, rates).
    `images` is the whole data set if it is resident, else `[count, B, H, W, C]`, or None for an
    objective without images; `conditions` are those of the whole data set; `rates` holds by network
    `[count]` learning rates, or is None. It returns the state, on the same devices, and stacked
    metrics, a student's on its own devices.

    The layout is that of one round, see `Layout.one_round`. If it has students, the state, the
    tables in `inputs` and the keys have a leading student axis, and indices, batches, rates and
    metrics have one after `count`.
    """

    def __init__(self, step: StepFn, count: int, resident: bool, layout: Layout):
        layout = layout.one_round()
        self._steps = _steps(
            _lifted(_one(step, resident, layout), resident, layout), count, resident
        )
        self._layout = layout
        self._jitted: Any = None
        self._unfinished: deque[Metrics] = deque()

    def _jit(self, state: Any) -> Any:
        if self._jitted is None:
            stays = jax.tree.map(lambda x: x.sharding, state)
            self._jitted = jax.jit(
                self._steps,
                donate_argnums=0,
                out_shardings=(stays, self._layout.of_metrics()),
                compiler_options=compiler_options(self._layout.platform, is_wide(state.params)),
            )
        return self._jitted

    def __call__(self, state, inputs, images, conditions, batch_indices, key, rates=None):
        """The new state and the metrics of the steps; `state` is given away.

        Returns before the steps are done, but not before those of `AHEAD` calls ago are.
        """
        run = self._jit(state)
        state, metrics = run(state, inputs, images, conditions, batch_indices, key, rates)
        self._unfinished.append(metrics)
        if len(self._unfinished) > AHEAD:
            jax.block_until_ready(self._unfinished.popleft())
        return state, metrics

    def lower(self, state, *args: Any) -> Any:
        """`jax.jit(...).lower`, for arrays or for shapes that say where they lie."""
        return self._jit(state).lower(state, *args)


def _one(step: StepFn, resident: bool, layout: Layout) -> Callable:
    """A step of one student from the indices of its batch."""

    def one(state, inputs, images, conditions, batch_indices, key, rates):
        batch_indices = constrain(batch_indices, over_data(layout.mesh))
        if resident and images is not None:
            images = jnp.take(images, batch_indices, axis=0)
        own = jax.tree.map(lambda x: jnp.take(x, batch_indices, axis=0), conditions)
        return step(state, inputs, images, own, key, rates)

    return one


def _lifted(one: Callable, resident: bool, layout: Layout) -> Callable:
    """`one` for all students of a round."""
    if not layout.students:
        return one
    ins = (STATE_AXES, STEP_INPUT_AXES, None if resident else 0, None, 0, 0, 0)
    outs = (STATE_AXES, 0)
    local = lift(one, layout.students // layout.spread, layout.mapping, ins, outs)
    return local if layout.spread == 1 else shard(local, layout.mesh, ins, outs)


def _steps(one: Callable, count: int, resident: bool) -> Callable:
    """`count` steps of `one` after another."""
    if count == 1:

        def chunk(state, inputs, images, conditions, batch_indices, key, rates):
            images = images if resident else images[0]
            rates = jax.tree.map(lambda x: x[0], rates)
            state, metrics = one(state, inputs, images, conditions, batch_indices[0], key, rates)
            return state, jax.tree.map(lambda x: x[None], metrics)

    else:

        def chunk(state, inputs, images, conditions, batch_indices, key, rates):
            def body(state, xs):
                batch, pick, rate = xs
                x = images if resident else batch
                return one(state, inputs, x, conditions, pick, key, rate)

            return jax.lax.scan(body, state, (None if resident else images, batch_indices, rates))

    return chunk


class Programs:
    """Chunks by what they compute; one object serves a whole run."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Chunk] = {}

    def __call__(
        self, s: StepSettings, recipe: Hashable, count: int, resident: bool, shapes: Any
    ) -> tuple[Chunk, bool]:
        """The chunk, and whether it is new and will compile when it is first called.

        Args:
          s: the step's settings.
          recipe: stands for `s.optimizers`, which cannot be compared.
          count, resident: as in `Chunk`.
          shapes: state, inputs and the batch of a round, for their structure, shapes and dtypes.
        """
        if s.layout is None:
            raise ValueError(
                "Programs spread their arrays over devices; StepSettings.layout is None."
            )
        leaves, structure = jax.tree.flatten(shapes)
        # The number of rounds is not part of a program's identity.
        layout = s.layout.one_round()
        key = (
            s.objective,
            tuple(sorted(s.modules.items())),
            s.prediction,
            recipe,
            (s.accumulate, s.ema_warmup, s.conditional, s.flip, s.unroll, layout, s.freeze),
            (s.image_shape, s.encoder, s.null_tokens, s.low_rank),
            (count, resident),
            structure,
            tuple((x.shape, str(x.dtype)) for x in leaves),
        )
        made = self._made.get(key)
        if made is not None:
            return made, False
        chunk = Chunk(make_step(s), count, resident, layout)
        self._made[key] = chunk
        return chunk, True
