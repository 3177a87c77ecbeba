"""The state of a stage: fresh, in the abstract, and read from a complete stage."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from ddistill.compilation import initialiser_options
from ddistill.errors import CheckpointError
from ddistill.networks.weights import Weights
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.optimizers import make_optimizer
from ddistill.training.stages import StagePlan, incomplete
from ddistill.training.state import TrainState, create_state, stream_key


def optimizers(plan: StagePlan) -> dict[str, optax.GradientTransformation]:
    """The optimiser of every trained network of a stage."""
    return {n: make_optimizer(plan.settings.optimizer) for n in plan.modules}


def initial_state(
    plan: StagePlan, start: Weights | None = None, sharding: jax.sharding.Sharding | None = None
) -> TrainState:
    """The state at step 0; the student from the weights `start`, if given, else fresh."""
    options = initialiser_options()
    weights = {}
    for name, module in plan.modules.items():
        if start is not None and name == "student":
            weights[name] = start
        else:
            draw = jax.jit(module.init, compiler_options=options)
            weights[name] = _weights(draw(*_init_arguments(plan, name)))
    return _state(plan, weights, sharding)


def abstract_state(plan: StagePlan, sharding: jax.sharding.Sharding | None = None) -> TrainState:
    """Shapes and dtypes of the stage's state, for arrays to be placed by `sharding`.

    Nothing is computed or compiled.
    """

    def create():
        drawn = {n: m.init(*_init_arguments(plan, n)) for n, m in plan.modules.items()}
        return _state(plan, {n: _weights(variables) for n, variables in drawn.items()})

    place = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), jax.eval_shape(create)
    )


def _weights(variables: Mapping[str, Any]) -> Weights:
    return Weights(variables["params"], variables.get("batch_stats"))


def _state(
    plan: StagePlan,
    weights: Mapping[str, Weights],
    sharding: jax.sharding.Sharding | None = None,
) -> TrainState:
    return create_state(
        {name: w.params for name, w in weights.items()},
        optimizers(plan),
        plan.settings.ema,
        sharding,
        {name: w.statistics for name, w in weights.items() if w.statistics is not None},
    )


def memory_budget(state: TrainState) -> str:
    """What a stage holds in memory from step to step, in words; activations come on top.

    Args:
      state: the state or its shapes.
    """

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    weights = sum(x.size for x in jax.tree.leaves(state.params))
    total = size(state) + size(state.params)
    return (
        f"{weights / 1e6:.2f} M parameters; {total / 2**20:.0f} MiB a device for weights, "
        "gradients, optimiser and averages"
    )


def _init_arguments(plan: StagePlan, name: str) -> tuple[Any, ...]:
    key = stream_key(plan.seed, f"{plan.name}/init/{name}")
    return key, *plan.objective.init_inputs(plan.image_shape, plan.settings.conditional)


def load_weights(plan: StagePlan, rate: float | None = None) -> Weights:
    """The weights that a complete stage hands on, strictly loaded.

    Args:
      plan: the stage.
      rate: an EMA rate other than the first one, or 0 for the raw weights.

    Raises:
      CheckpointError: the stage is not complete or its checkpoint is missing or of another kind.
    """
    manifest = plan.manifest()
    if manifest is None:
        raise incomplete(plan)
    key = plan.ema_key() if rate is None else (str(rate) if rate else None)
    checkpoints = Checkpoints(plan.folder / "checkpoints", keep=1_000_000)
    found = checkpoints.restore(abstract_state(plan))
    checkpoints.close()
    if found is None or int(found[0].step) != manifest["steps"]:
        raise CheckpointError(
            f"The final checkpoint (step {manifest['steps']}) of stage '{plan.name}' in "
            f"{plan.folder} cannot be read. Delete {plan.manifest_path.name} there and run again "
            "to train on from the newest checkpoint that can."
        )
    state = found[0]
    if key is not None and key not in state.ema:
        raise CheckpointError(
            f"Stage '{plan.name}' keeps no EMA of rate {key}; it has {sorted(state.ema)}."
        )
    params = state.ema[key] if key is not None else state.params["student"]
    return Weights(params, state.statistics.get("student"))


def load_network(plan: StagePlan, rate: float | None = None) -> Any:
    """The trained network of a complete stage, bound to its parameters."""
    weights = load_weights(plan, rate)
    return plan.objective.bind(plan.module, weights, plan.settings.prediction)
