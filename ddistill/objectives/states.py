"""The noisy images at which a loss compares predictions, and where they come from.

Forward noising makes them from images of the data. A sampler calls its network at other noisy
images: the network's own. So a share of the examples can be states of a rollout of the teacher or
of the student on the student's levels, or of a buffer of earlier rollouts of the student (DDIL,
arXiv 2410.11971). No gradient flows through a rollout.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from ddistill.conditions import Condition, named_leaves, with_leaves
from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import Prediction, add_noise, ddim_step, expand
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Networks
from ddistill.objectives.sampling import Law, draw_level, normal, uniform_index
from ddistill.schedules import Level, Schedule
from ddistill.typing import Images, Index, Keys, Labels, RandomKey
from ddistill.wrapped_denoiser import ClippedDenoiser


@struct.dataclass
class State:
    """Noisy images at levels of the student.

    Attributes:
      z: `[B, H, W, C]`.
      index: `[B]`, the rows of the student's levels, in 1 .. N.
      level: `[B]`, these levels, with the student's time inputs.
      teacher_level: `[B]`, the same levels, with the teacher's time inputs.
      cond: `[B]` class ids or texts, or None.
      data: the clean image and the noise of which forward noising made `z`; states of rollouts keep
        those of the example that they replace.
      teacher: the teacher's prediction at `z`, once it is computed.
      below: `[B]`, the rows of the target's levels, for methods that draw them.
      dropout_key: for networks with dropout; equal keys drop equal values in several calls.
      memory: new values of the objective's memory, where drawing the state has changed it.
    """

    z: Images
    index: Labels
    level: Level
    teacher_level: Level
    cond: Condition | None
    data: Prediction
    teacher: Prediction | None = None
    below: Labels | None = None
    dropout_key: RandomKey | None = None
    memory: Mapping[str, Array] = struct.field(default_factory=dict)


# Names of the buffer's arrays in the memory of an objective.
REPLAY_Z, REPLAY_INDEX, REPLAY_WRITTEN = "replay_z", "replay_index", "replay_written"
# Prefix of the names of the arrays of its conditions, such as "replay_class".
REPLAY_CONDITION = "replay_"


@dataclass(frozen=True)
class Rollouts:
    """Shares of the examples with states of rollouts; all others have states of forward noising.

    Attributes:
      teacher, student: the shares, in [0, 1], with a sum of at most 1.
      warmup: share of the training without states of rollouts.
      walk: steps of the student's rollout; 0 for all of its levels.
      renoise: whether a step of the student predicts the image and adds fresh noise, as in the
        sampler "renoise"; else it is a DDIM step.
      clip: whether predictions of x0 are clipped to [-1, 1] in rollouts.
      replay: share of the student's states that are taken from the buffer, in [0, 1); 0 for no
        buffer.
    """

    teacher: float = 0.0
    student: float = 0.0
    warmup: float = 0.0
    walk: int = 0
    renoise: bool = False
    clip: bool = False
    replay: float = 0.0


@struct.dataclass
class Walk:
    """The steps of a rollout.

    Attributes:
      steps: number of steps to the clean level; 0 for one step from each level to the next.
      keys: `[B]`, for the noise that is added after every step; None for DDIM steps.
    """

    steps: int = struct.field(pytree_node=False, default=0)
    keys: Keys | None = None


ALL_LEVELS = Walk()


def forward_state(batch: Batch, tables: LevelTables, law: Law, cond: Condition | None) -> State:
    """Noised images of the batch, at levels of the student that `law` draws."""
    return noised(batch, tables, draw_level(batch.key("level"), tables, law), cond)


def noised(batch: Batch, tables: LevelTables, index: Labels, cond: Condition | None) -> State:
    """Noised images of the batch, at the rows `index`, `[B]`, of the student's levels."""
    noise = normal(batch.key("noise"), batch.image)
    level = tables.student.at(index)
    return State(
        z=add_noise(batch.image, noise, level),
        index=index,
        level=level,
        teacher_level=tables.teacher.at(tables.grid[index]),
        cond=cond,
        data=Prediction(x0=batch.image, eps=noise),
        dropout_key=batch.dropout_key,
    )


def rolled_out(
    state: State,
    networks: Networks,
    batch: Batch,
    tables: LevelTables,
    shares: Rollouts,
) -> State:
    """The state with a share of its examples replaced by states of rollouts.

    A state of a fresh rollout has the level and condition of the example that it replaces; a state
    of the buffer has those that it was stored with.
    """
    start = state.data.eps * jnp.maximum(1.0, tables.student.at(tables.count).sigma)
    chosen = jax.vmap(jax.random.uniform)(batch.key("rollout"))
    if shares.warmup:  # no share reaches 2
        chosen = jnp.where(tables.progress < shares.warmup, 2.0, chosen)
    if shares.teacher:
        made = rollout(_clipped(networks["teacher"], shares), start, state, tables, "teacher")
        state = _replaced(state, dataclasses.replace(state, z=made), chosen < shares.teacher)
    if shares.student:
        keys = batch.key("rollout noise") if shares.renoise else None
        student = _clipped(networks["student"], shares)
        walk = Walk(shares.walk, keys)
        made = rollout(student, start, state, tables, "student", walk)
        own = dataclasses.replace(state, z=made)
        if shares.replay:
            own = replayed(own, batch, tables, shares.replay)
        low = shares.teacher
        picked = (chosen >= low) & (chosen < low + shares.student)
        state = dataclasses.replace(_replaced(state, own, picked), memory=own.memory)
    return state


def _clipped(network: NetworkDenoiser, shares: Rollouts) -> NetworkDenoiser:
    return ClippedDenoiser(network) if shares.clip else network


def _replaced(state: State, other: State, picked: Bool[Array, " B"]) -> State:
    """The state with the picked examples taken from `other`; `data` and the rest stay."""

    def pick(ours: Array, theirs: Array) -> Array:
        return jnp.where(expand(picked, ours), theirs, ours)

    names = ("z", "index", "level", "teacher_level", "cond")
    changes = {n: jax.tree.map(pick, getattr(state, n), getattr(other, n)) for n in names}
    return dataclasses.replace(state, **changes)


def replayed(made: State, batch: Batch, tables: LevelTables, share: float) -> State:
    """Replaces a share of fresh states by states of the buffer, and writes the fresh ones to it.

    Args:
      made: fresh states of the student; the buffer has room for a multiple of this batch.
      batch: its memory has the buffer, see `ddistill.objectives.mixing.MixedStates`.
      tables: the levels.
      share: probability of a state of the buffer, in [0, 1); 0 while the buffer is empty.

    Returns:
      The states, with the new buffer as `memory`.
    """
    memory = batch.memory
    size, rows = made.z.shape[0], memory[REPLAY_Z].shape[0]
    written = memory[REPLAY_WRITTEN]  # number of batches so far
    filled = jnp.minimum(written, rows // size) * size
    row = uniform_index(batch.key("replay row"), 0, jnp.maximum(filled, 1) - 1)
    old = jax.vmap(jax.random.uniform)(batch.key("replay")) < jnp.where(filled > 0, share, 0.0)
    index, leaves = memory[REPLAY_INDEX][row], named_leaves(made.cond)
    found = dataclasses.replace(
        made,
        z=memory[REPLAY_Z][row],
        index=index,
        level=tables.student.at(index),
        teacher_level=tables.teacher.at(tables.grid[index]),
        cond=with_leaves(
            made.cond,
            {n: memory[REPLAY_CONDITION + n][row].astype(x.dtype) for n, x in leaves.items()},
        ),
    )
    at = written % (rows // size) * size

    def write(name: str, values: Array) -> Array:
        buffer = memory[name]
        return jax.lax.dynamic_update_slice_in_dim(buffer, values.astype(buffer.dtype), at, axis=0)

    new = {
        REPLAY_Z: write(REPLAY_Z, made.z),
        REPLAY_INDEX: write(REPLAY_INDEX, made.index),
        REPLAY_WRITTEN: written + 1,
        **{REPLAY_CONDITION + n: write(REPLAY_CONDITION + n, x) for n, x in leaves.items()},
    }
    return dataclasses.replace(_replaced(made, found, old), memory=new)


def rollout(
    network: NetworkDenoiser,
    start: Images,
    state: State,
    tables: LevelTables,
    times: str,
    walk: Walk = ALL_LEVELS,
) -> Images:
    """The network's own states at the levels of `state`, on its way down from noise.

    A level between two levels of the walk is reached by a single step from the noisier one.

    Args:
      network: the teacher or the student.
      start: `[B, H, W, C]`, noise at the student's noisiest level.
      state: gives the levels and conditions.
      tables: the levels.
      times: "teacher" or "student", the time inputs that the network is given.
      walk: the steps.
    """
    levels: Schedule = tables.student
    steps = walk.steps or tables.count

    def at(i: Index | Int[Array, " B"]) -> Level:
        i = jnp.broadcast_to(i, state.index.shape)
        return levels.at(i) if times == "student" else tables.teacher.at(tables.grid[i])

    def row(step: Array) -> Index:
        """The row after so many steps, rounded as the grids of samplers are (`uniform_grid`)."""
        return (2 * tables.count * (steps - step) + steps) // (2 * steps)

    def body(step: Array, carry: tuple[Images, Images]) -> tuple[Images, Images]:
        z, found = carry
        top, bottom = row(step), row(step + 1)
        prediction = network(z, at(top), state.cond)

        def moved(to: Index | Int[Array, " B"]) -> Images:
            if walk.keys is None:
                return ddim_step(prediction, z, at(top), at(to))
            keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(walk.keys)
            return add_noise(prediction.x0, normal(keys, z), at(to))

        inside = (state.index >= bottom) & (state.index < top)
        wanted = moved(jnp.where(inside, state.index, bottom))
        return moved(bottom), jnp.where(expand(inside, z), wanted, found)

    # Where the last step begins at level 1, no state lies below its start.
    calls = steps - (row(jnp.asarray(steps - 1)) <= 1)
    _, found = jax.lax.fori_loop(0, calls, body, (start, start))
    return jax.lax.stop_gradient(found)
