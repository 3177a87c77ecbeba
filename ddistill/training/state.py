"""The state of a stage and the random streams that it never has to store."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from ddistill.runtime.sharding import Layout, place


@struct.dataclass
class TrainState:
    """Everything that a stage needs to go on, apart from its settings and data.

    Attributes:
      step: number of train steps done.
      params: parameters by network name.
      opt_state: optimiser state by network name.
      statistics: by name of a network with batch norm, its running means and variances.
      ema: by rate (as text), the moving average of the student's parameters.
      diverged: in a stage of many students, the step at which each one's loss was no longer finite
        and it was frozen, 0 while it learns; None elsewhere.
      targets: by name of an auxiliary network, the average of the student's parameters that losses
        see.
      memory: by name, the arrays that the objective carries from step to step.

    In a stage of many students everything but the step has a leading student axis, `[K, ...]`.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    statistics: dict[str, Any]
    ema: dict[str, Any]
    diverged: Any = None
    targets: dict[str, Any] = struct.field(default_factory=dict)
    memory: dict[str, Any] = struct.field(default_factory=dict)


# The vmap axes of `TrainState`, a prefix of its tree, as `ddistill.mapping.lift` takes it.
STATE_AXES = TrainState(
    step=None,  # type: ignore[arg-type]
    params=0,  # type: ignore[arg-type]
    opt_state=0,  # type: ignore[arg-type]
    statistics=0,  # type: ignore[arg-type]
    ema=0,  # type: ignore[arg-type]
    diverged=0,
    targets=0,  # type: ignore[arg-type]
    memory=0,  # type: ignore[arg-type]
)


def create_state(
    params: Mapping[str, Any],
    optimizers: Mapping[str, optax.GradientTransformation],
    ema_rates: tuple[float, ...],
    layout: Layout | None = None,
    statistics: Mapping[str, Any] | None = None,
    students: int = 0,
) -> TrainState:
    """A state at step 0, placed by `layout`, or on the first device; see `new_state`."""
    state = new_state(params, optimizers, ema_rates, statistics, students)
    # Committed to devices, as what a step returns is: otherwise step 2 would compile again.
    return place(state, state_shardings(state, layout))


def new_state(
    params: Mapping[str, Any],
    optimizers: Mapping[str, optax.GradientTransformation],
    ema_rates: tuple[float, ...],
    statistics: Mapping[str, Any] | None = None,
    students: int = 0,
) -> TrainState:
    """A state at step 0; the averages start at the parameters.

    With `students` above 0 params and statistics are stacked, `[students, ...]`.

    Every array is a fresh copy, because train steps donate the state and a student that starts from
    its teacher must not give the teacher's buffers away.
    """

    def copy(tree):
        return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)

    def start(name, tree):
        init = optimizers[name].init
        return jax.vmap(init)(tree) if students else init(tree)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params={name: copy(tree) for name, tree in params.items()},
        opt_state={name: copy(start(name, tree)) for name, tree in params.items()},
        statistics={name: copy(tree) for name, tree in (statistics or {}).items()},
        ema={str(rate): copy(params["student"]) for rate in ema_rates},
        diverged=jnp.zeros((students,), jnp.int32) if students else None,
    )


def state_shardings(state: TrainState, layout: Layout | None) -> TrainState:
    """Where every array of a state lies.

    Args:
      state: the state, with a student axis if the layout has students, or its shapes.
      layout: None for the first device.
    """
    if layout is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda _: here, state)
    placed = layout.of_weights(state.replace(step=None), layout.students > 0)  # type: ignore[attr-defined]
    return placed.replace(step=layout.whole())


def update_ema(
    ema: Mapping[str, Any], params: Any, step: Int[Array, ""], warmup: bool
) -> dict[str, Any]:
    """Moves every average towards `params`.

    With `warmup` the rate at step s is min(rate, (1 + s) / (10 + s)), so that the average forgets
    the initial weights early in training.
    """
    out = {}
    for name, average in ema.items():
        rate = jnp.float32(float(name))
        if warmup:
            rate = jnp.minimum(rate, (1.0 + step) / (10.0 + step))
        out[name] = optax.incremental_update(params, average, 1.0 - rate)
    return out


def count_parameters(params: Any) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))
