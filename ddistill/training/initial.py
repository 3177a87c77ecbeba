"""The state of a stage at step 0: its shapes, and its values."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import PyTree

from ddistill.low_rank import draw_factors
from ddistill.networks.extras import parameter_names
from ddistill.networks.weights import Weights, variable_shapes
from ddistill.objectives.base import init_inputs, start_memory
from ddistill.optimizers import make_optimizer
from ddistill.planning.plan import StagePlan, StudentPlan
from ddistill.runtime.compilation import initialiser_options
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout, place
from ddistill.students import clone, stack
from ddistill.training.state import TrainState, new_state, state_shardings
from ddistill.typing import RandomKey

# The rank of a network's factors, and the layers that have them.
_Factors = tuple[int, tuple[str, ...]]


def optimizers(plan: StagePlan) -> dict[str, optax.GradientTransformation]:
    """The optimiser of every trained network of a stage."""
    return {n: make_optimizer(plan.settings.optimizer_of(n)) for n in plan.modules}


@dataclass(frozen=True)
class Start:
    """What a stage starts from; everything that is missing here is initialised at random.

    In a stage of many students every array has a leading student axis.

    Attributes:
      weights: by network.
      opt_state: by network, the state of its optimiser.
      ema: by rate (as text), the student's averages.
      targets: by name of an auxiliary network, the average that losses see.
      memory: by name, the objective's arrays.
      diverged: the students that diverged in the stage that is started from; they do not learn.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    opt_state: Mapping[str, optax.OptState] = field(default_factory=dict)
    ema: Mapping[str, PyTree] = field(default_factory=dict)
    targets: Mapping[str, PyTree] = field(default_factory=dict)
    memory: Mapping[str, jax.Array] = field(default_factory=dict)
    diverged: Sequence[int] = ()


def initial_state(
    plan: StagePlan, start: Start | None = None, layout: Layout | None = None
) -> TrainState:
    """The state at step 0."""
    start = start or Start()
    weights = dict(start.weights)
    for name, module in plan.modules.items():
        whole = not plan.settings.low_rank_of(name)
        if name in weights and not (whole and _missing(module, weights[name])):
            continue
        draw = _compiled_draw(**(initialiser_options(_abstract(plan, name)) or {}))
        drawn = [_drawn(plan, name, student_plan, draw) for student_plan in plan.students]
        fresh = stack(drawn) if plan.stacked else drawn[0]
        weights[name] = _completed(module, weights.get(name), fresh)
    # One program, in place of one for each shape and operation.
    options = initialiser_options(weights)
    make = jax.jit(functools.partial(_state, plan), compiler_options=options)
    state = make(weights, _memory(plan))
    state = dataclasses.replace(
        state,
        opt_state={**state.opt_state, **start.opt_state},
        ema={**state.ema, **start.ema},
        targets={**state.targets, **start.targets},
        memory={**state.memory, **start.memory},
    )
    if start.diverged:
        # As if the first update had diverged: such a student is not scored and has seen no images.
        diverged = state.diverged.at[jnp.array(start.diverged)].set(1)
        state = dataclasses.replace(state, diverged=diverged)
    return place(state, state_shardings(state, layout))


def _missing(module: nn.Module, weights: Weights) -> list[str]:
    """The parameters of extra inputs that weights lack, which come from a network without them."""
    names = parameter_names(getattr(module, "extras", ()))
    names = getattr(module, "extra_parameters", names)
    return [name for name in names if name not in weights.params]


def _completed(module: nn.Module, given: Weights | None, fresh: Weights) -> Weights:
    """The given weights with fresh ones for extra inputs, which have no effect before training."""
    if given is None:
        return fresh
    extras = {name: fresh.params[name] for name in _missing(module, given)}
    return dataclasses.replace(given, params={**given.params, **extras})


def abstract_state(plan: StagePlan, layout: Layout | None = None) -> TrainState:
    """Shapes and dtypes of the stage's state, for arrays to be placed by `layout`.

    Nothing is computed or compiled.
    """

    count = plan.settings.students.count

    def create(drawn: dict[str, Weights]) -> TrainState:
        stacked = {n: clone(w, count) if count else w for n, w in drawn.items()}
        return _state(plan, stacked, _memory(plan))

    shapes = jax.eval_shape(create, {name: _abstract(plan, name) for name in plan.modules})
    return jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
        shapes,
        state_shardings(shapes, layout),
    )


def abstract_weights(plan: StagePlan) -> Weights:
    """Shapes and dtypes of the weights that a stage trains and hands on, on the first device.

    Nothing is computed or compiled.
    """
    own, count = _abstract(plan, "student"), plan.settings.students.count
    return jax.eval_shape(lambda weights: clone(weights, count), own) if count else own


def _abstract(plan: StagePlan, name: str) -> Weights:
    """Shapes and dtypes of the first weights of a network, without a student axis."""
    inputs = jax.eval_shape(lambda: _inputs(plan, name))
    found = variable_shapes(plan.modules[name], *inputs)
    if factors := _factors(plan, name):
        return jax.eval_shape(
            lambda: Weights(draw_factors(jax.random.key(0), found["params"], *factors))
        )
    return Weights(found["params"], found.get("batch_stats"))


def _drawn(
    plan: StagePlan, name: str, student_plan: StudentPlan, draw: Callable[..., Weights]
) -> Weights:
    """The first weights of a network, or of its factors where it has a low rank."""
    key = stream_key(student_plan.seed, f"{plan.name}/init/{name}{student_plan.stream}")
    return draw(plan.modules[name], _factors(plan, name), key, *_inputs(plan, name))


@functools.cache
def _compiled_draw(**options: str | bool | int) -> Callable[..., Weights]:
    """`_draw` as a program, which equal networks share."""
    return jax.jit(_draw, static_argnums=(0, 1), compiler_options=options or None)


def _draw(module: nn.Module, factors: _Factors | None, key: RandomKey, *inputs: PyTree) -> Weights:
    if factors:
        return Weights(draw_factors(key, variable_shapes(module, *inputs)["params"], *factors))
    variables = module.init(key, *inputs)
    return Weights(variables["params"], variables.get("batch_stats"))


def _factors(plan: StagePlan, name: str) -> _Factors | None:
    """The rank and the targets of a network's factors; None for a network that is trained whole."""
    rank = plan.settings.low_rank_of(name)
    return (rank, tuple(plan.settings.low_rank.targets)) if rank else None


def _memory(plan: StagePlan) -> dict[str, jax.Array]:
    """The objective's memory before the first step, of every student."""
    found = []
    for one in plan.students:
        key = stream_key(one.seed, f"{plan.name}/init/memory{one.stream}")
        # The stage's objective knows its networks and sizes, those of its students only a grid.
        found.append(start_memory(plan.objective, key))
    return stack(found) if plan.stacked else found[0]


def _state(
    plan: StagePlan, weights: Mapping[str, Weights], memory: dict[str, jax.Array]
) -> TrainState:
    state = new_state(
        {name: w.params for name, w in weights.items()},
        optimizers(plan),
        plan.settings.ema,
        {name: w.statistics for name, w in weights.items() if w.statistics is not None},
        plan.settings.students.count,
    )
    student = state.params["student"]
    # An average of rate 0 is the student itself and needs no copy.
    targets = {
        name: jax.tree.map(lambda x: jnp.array(x, copy=True), student)
        for name, own in plan.objective.auxiliaries.items()
        if own.start == "average" and own.rate != 0.0
    }
    return dataclasses.replace(state, targets=targets, memory=memory)


def memory_budget(state: TrainState) -> str:
    """The memory of a stage's own networks between steps, in words.

    Activations, the teacher, a classifier, and data and pairs on the devices are not counted.

    Args:
      state: the state or its shapes.
    """

    def size(tree: PyTree) -> int:
        shapes = [(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)]
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)

    weights = sum(x.size for x in jax.tree.leaves(state.params))
    total = size(state) + size(state.params)
    return (
        f"{weights / 1e6:.2f} M parameters; {total / 2**20:.0f} MiB a device for weights, "
        "gradients, optimiser and averages"
    )


def _inputs(plan: StagePlan, name: str) -> tuple[PyTree, ...]:
    """Arguments, after the random key, that initialise a network."""
    module, conditional = plan.modules[name], plan.settings.conditional
    return init_inputs(plan.objective, name, plan.image_shape, conditional, module)
