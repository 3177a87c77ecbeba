"""The state of a stage: fresh, in the abstract, and read from a complete stage."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddistill.compilation import initialiser_options
from ddistill.errors import CheckpointError
from ddistill.networks.weights import Weights
from ddistill.students import clone, route, stack, take
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.members import Member
from ddistill.training.optimizers import make_optimizer
from ddistill.training.sharding import Layout, place, to_host
from ddistill.training.stages import StagePlan, incomplete
from ddistill.training.state import TrainState, new_state, state_shardings, stream_key


def optimizers(plan: StagePlan) -> dict[str, optax.GradientTransformation]:
    """The optimiser of every trained network of a stage."""
    return {n: make_optimizer(plan.settings.optimizer_of(n)) for n in plan.modules}


@dataclass(frozen=True)
class Start:
    """What a stage starts from; what is not here starts fresh.

    Where the stage is one of many students, everything is a stack of as many.

    Attributes:
      weights: by network.
      opt_state: by network, the state of its optimiser.
      ema: by rate (as text), the student's averages.
      frozen: the students that diverged in the stage that is started from; they do not learn.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    opt_state: Mapping[str, Any] = field(default_factory=dict)
    ema: Mapping[str, Any] = field(default_factory=dict)
    frozen: Sequence[int] = ()


def resumed(plan: StagePlan, source: StagePlan) -> Start:
    """Everything of a complete stage that `plan` trains on: raw weights, optimisers, averages.

    Students in a stage of many each go on from the one student of a stage that has no more.
    """
    state = load_state(source)
    if plan.stacked and not source.stacked:
        state = clone(state, len(plan.members))
    names = plan.modules.keys() & state.params.keys()
    return Start(
        {n: Weights(state.params[n], state.statistics.get(n)) for n in names},
        {n: state.opt_state[n] for n in names},
        {rate: tree for rate, tree in state.ema.items() if float(rate) in plan.settings.ema},
    )


def initial_state(
    plan: StagePlan, start: Start | None = None, layout: Layout | None = None
) -> TrainState:
    """The state at step 0."""
    options = initialiser_options()
    start = start or Start()
    weights = dict(start.weights)
    for name, module in plan.modules.items():
        if name not in weights:
            draw = jax.jit(module.init, compiler_options=options)
            drawn = [_weights(draw(*_init_arguments(plan, name, m))) for m in plan.members]
            weights[name] = stack(drawn) if plan.stacked else drawn[0]
    state = _state(plan, weights)
    state = dataclasses.replace(
        state,
        opt_state={**state.opt_state, **start.opt_state},
        ema={**state.ema, **start.ema},
    )
    if start.frozen:
        # As if its first update had diverged: it is not scored, nor is it charged with images.
        frozen = state.diverged.at[jnp.array(start.frozen)].set(1)
        state = dataclasses.replace(state, diverged=frozen)
    return place(state, state_shardings(state, layout))


def abstract_state(plan: StagePlan, layout: Layout | None = None) -> TrainState:
    """Shapes and dtypes of the stage's state, for arrays to be placed by `layout`.

    Nothing is computed or compiled.
    """

    def create():
        drawn = {
            n: _weights(m.init(*_init_arguments(plan, n, plan.members[0])))
            for n, m in plan.modules.items()
        }
        count = plan.settings.students.count
        return _state(plan, {n: clone(w, count) if count else w for n, w in drawn.items()})

    shapes = jax.eval_shape(create)
    return jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
        shapes,
        state_shardings(shapes, layout),
    )


def _weights(variables: Mapping[str, Any]) -> Weights:
    return Weights(variables["params"], variables.get("batch_stats"))


def _state(plan: StagePlan, weights: Mapping[str, Weights]) -> TrainState:
    return new_state(
        {name: w.params for name, w in weights.items()},
        optimizers(plan),
        plan.settings.ema,
        {name: w.statistics for name, w in weights.items() if w.statistics is not None},
        plan.settings.students.count,
    )


def memory_budget(state: TrainState) -> str:
    """What a stage's own networks hold in memory from step to step, in words.

    Activations come on top, and so do the teacher, a classifier, and data and pairs where they are
    kept on the devices.

    Args:
      state: the state or its shapes.
    """

    def size(tree: Any) -> int:
        shapes = [(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)]
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)

    weights = sum(x.size for x in jax.tree.leaves(state.params))
    total = size(state) + size(state.params)
    return (
        f"{weights / 1e6:.2f} M parameters; {total / 2**20:.0f} MiB a device for weights, "
        "gradients, optimiser and averages"
    )


def _init_arguments(plan: StagePlan, name: str, member: Member) -> tuple[Any, ...]:
    key = stream_key(member.seed, f"{plan.name}/init/{name}{member.stream}")
    return key, *plan.objective.init_inputs(name, plan.image_shape, plan.settings.conditional)


def load_weights(plan: StagePlan, rate: float | None = None) -> Weights:
    """The weights that a complete stage hands on, strictly loaded.

    Args:
      plan: the stage.
      rate: an EMA rate other than the first one, or 0 for the raw weights.

    Raises:
      CheckpointError: as `load_state`, or there is no average of that rate.
    """
    key = plan.ema_key() if rate is None else (str(rate) if rate else None)
    state = load_state(plan)
    if key is not None and key not in state.ema:
        raise CheckpointError(
            f"Stage '{plan.name}' keeps no EMA of rate {key}; it has {sorted(state.ema)}."
        )
    return handed_on(state, key)


def load_state(plan: StagePlan) -> TrainState:
    """The state that a complete stage hands on, strictly loaded.

    Raises:
      CheckpointError: the stage is not complete or its checkpoint is missing or of another kind.
    """
    manifest = plan.manifest()
    if manifest is None:
        raise incomplete(plan)
    folder = plan.folder / "checkpoints"
    if not folder.is_dir():
        raise _no_checkpoint(plan, manifest["handed_on"])
    checkpoints = Checkpoints(folder, keep=1_000_000, read_only=True)
    try:
        return state_at(checkpoints, plan, manifest["handed_on"])
    finally:
        checkpoints.close()


def state_at(
    checkpoints: Checkpoints, plan: StagePlan, step: int, layout: Layout | None = None
) -> TrainState:
    """The state in the checkpoint that a stage hands on; errors as of `load_state`."""
    found = checkpoints.restore(abstract_state(plan, layout), step)
    if found is None:
        raise _no_checkpoint(plan, step)
    return found[0]


def _no_checkpoint(plan: StagePlan, step: int) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint at step {step}, which stage '{plan.name}' hands on, in {plan.folder} "
        f"is missing or damaged. Delete {plan.manifest_path.name} there and give the run's command "
        "again to train on from the newest checkpoint that is whole."
    )


def handed_on(state: TrainState, ema: str | None) -> Weights:
    """The student's weights, or their average of the rate `ema` (as text)."""
    params = state.ema[ema] if ema is not None else state.params["student"]
    return Weights(params, state.statistics.get("student"))


class Networks:
    """The trained networks of a run's complete stages, read from disk at most once.

    What has just been trained is not read at all. Weights lie on the host.
    """

    def __init__(self) -> None:
        self._weights: dict[str, Weights] = {}
        self._params: dict[str, Any] = {}

    def add(self, plan: StagePlan, weights: Weights) -> None:
        """Keeps the weights that a stage hands on."""
        self._weights[plan.name] = to_host(weights)

    def weights(self, plan: StagePlan) -> Weights:
        """The weights that a complete stage hands on; errors as `load_weights`."""
        if plan.name not in self._weights:
            self.add(plan, load_weights(plan))
        return self._weights[plan.name]

    def read(self, plans: Iterable[StagePlan]) -> None:
        """Reads the weights of these stages, as far as they are not in memory."""
        for plan in plans:
            if not plan.objective.makes_pairs:
                self.weights(plan)
            if plan.objective.panels:
                self.params(plan)

    def params(self, plan: StagePlan) -> Any:
        """By name the raw parameters of a complete stage's networks; errors as `load_state`."""
        if plan.name not in self._params:
            self._params[plan.name] = to_host(load_state(plan).params)
        return self._params[plan.name]

    def __call__(self, plan: StagePlan, student: int | None = None) -> Any:
        """The network of a stage, or one of its students alone, as `load_network` gives it."""
        return bind(plan, self.weights(plan), student)


def load_network(plan: StagePlan, rate: float | None = None, student: int | None = None) -> Any:
    """The trained network of a complete stage, bound to its parameters.

    The students of a partition are one denoiser, which asks the owner of a level; `student` picks
    one alone.

    Raises:
      ValueError: the stage is a sweep, whose students are networks of their own, and none is named.
    """
    return bind(plan, load_weights(plan, rate), student)


def bind(plan: StagePlan, weights: Weights, student: int | None = None) -> Any:
    """Weights of a stage as a network; arguments and errors as of `load_network`."""
    if student is not None:
        weights = take(weights, student)
    elif plan.stacked and plan.partition is None:
        raise ValueError(f"Stage '{plan.name}' is a sweep; say which student is wanted.")
    network = plan.objective.bind("student", plan.module, weights, plan.settings.prediction)
    return network if student is not None else route(network, plan.partition)
