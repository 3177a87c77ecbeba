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
from ddistill.networks.weights import Weights
from ddistill.objectives.base import init_inputs, start_memory
from ddistill.optimizers import make_optimizer
from ddistill.planning.plan import StagePlan, StudentPlan
from ddistill.runtime.compilation import initialiser_options
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout, place
from ddistill.students import clone, stack
from ddistill.training.state import TrainState, new_state, state_shardings
from ddistill.typing import RandomKey


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
    options = initialiser_options()
    start = start or Start()
    weights = dict(start.weights)
    for name, module in plan.modules.items():
        whole = not plan.settings.low_rank_of(name)
        if name in weights and not (whole and _missing(module, weights[name])):
            continue
        draw = jax.jit(_initialiser(plan, name), compiler_options=options)
        drawn = [draw(*_init_arguments(plan, name, m)) for m in plan.students]
        fresh = stack(drawn) if plan.stacked else drawn[0]
        weights[name] = _completed(module, weights.get(name), fresh)
    # One program, in place of one for each shape and operation.
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

    def create():
        drawn = {
            n: _initialiser(plan, n)(*_init_arguments(plan, n, plan.students[0]))
            for n in plan.modules
        }
        count = plan.settings.students.count
        stacked = {n: clone(w, count) if count else w for n, w in drawn.items()}
        return _state(plan, stacked, _memory(plan))

    shapes = jax.eval_shape(create)
    return jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
        shapes,
        state_shardings(shapes, layout),
    )


def abstract_weights(plan: StagePlan) -> Weights:
    """Shapes and dtypes of the weights that a stage trains and hands on, on the first device.

    Nothing is computed or compiled.
    """
    count = plan.settings.students.count

    def create() -> Weights:
        own = _initialiser(plan, "student")(*_init_arguments(plan, "student", plan.students[0]))
        return clone(own, count) if count else own

    return jax.eval_shape(create)


def _initialiser(plan: StagePlan, name: str) -> Callable[..., Weights]:
    """`(key, *inputs) -> Weights` of a network, of its factors where it has a low rank."""
    module, rank = plan.modules[name], plan.settings.low_rank_of(name)

    def init(key: RandomKey, *inputs: PyTree) -> Weights:
        if rank:
            shapes = jax.eval_shape(module.init, key, *inputs)["params"]
            return Weights(draw_factors(key, shapes, rank, plan.settings.low_rank.targets))
        variables = module.init(key, *inputs)
        return Weights(variables["params"], variables.get("batch_stats"))

    return init


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


def _init_arguments(plan: StagePlan, name: str, student_plan: StudentPlan) -> tuple[PyTree, ...]:
    key = stream_key(student_plan.seed, f"{plan.name}/init/{name}{student_plan.stream}")
    return key, *init_inputs(
        plan.objective,
        name,
        plan.image_shape,
        plan.settings.conditional,
        plan.modules[name],
    )
