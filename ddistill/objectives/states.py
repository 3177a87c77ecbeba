"""The noisy images at which a loss compares predictions, and where they come from.

Forward noising draws them from the data. A network that makes images step by step meets other
states; a share of the examples can come from a rollout of the teacher or of the student on the
student's own levels (DDIL, arXiv 2410.11971). Rollouts are deterministic and carry no gradient.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool

from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import Prediction, add_noise, ddim_step, expand
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Networks
from ddistill.objectives.sampling import Law, draw_level, normal
from ddistill.schedules import Level, Schedule
from ddistill.typing import Images, Labels, RandomKey


@struct.dataclass
class State:
    """Noisy images at levels of the student.

    Attributes:
      z: `[B, H, W, C]`.
      index: `[B]`, the rows of the student's levels, in 1 .. N.
      level: `[B]`, these levels, with the student's time inputs.
      teacher_level: `[B]`, the same levels, with the teacher's time inputs.
      cond: `[B]` class ids, or None.
      data: the clean image and the noise behind `z`, where forward noising made it.
      teacher: the teacher's prediction at `z`, once it is known.
      below: `[B]`, the rows of the levels of the target, for methods that choose them.
      dropout_key: for networks with dropout; equal keys drop equal values in several calls.
    """

    z: Images
    index: Labels
    level: Level
    teacher_level: Level
    cond: Labels | None
    data: Prediction
    teacher: Prediction | None = None
    below: Labels | None = None
    dropout_key: RandomKey | None = None


@struct.dataclass
class Rollouts:
    """Shares of the examples whose state comes from a rollout; the rest is forward noising.

    Attributes:
      teacher, student: in [0, 1], with a sum of at most 1.
    """

    teacher: float = struct.field(pytree_node=False, default=0.0)
    student: float = struct.field(pytree_node=False, default=0.0)


def forward_state(batch: Batch, tables: LevelTables, law: Law, cond: Labels | None) -> State:
    """Images of the batch at a level of the student, drawn by `law`."""
    return noised(batch, tables, draw_level(batch.key("level"), tables, law), cond)


def noised(batch: Batch, tables: LevelTables, index: Labels, cond: Labels | None) -> State:
    """Images of the batch at the levels `index`, `[B]` rows of the student's."""
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
    """The state with a share of its images replaced by images of rollouts, at the same levels."""
    start = state.data.eps * jnp.maximum(1.0, tables.student.at(tables.count).sigma)
    chosen = jax.vmap(jax.random.uniform)(batch.key("rollout"))
    z = state.z
    for name, low in (("teacher", 0.0), ("student", shares.teacher)):
        share = getattr(shares, name)
        if share:
            made = rollout(networks[name], start, state, tables, name)
            picked: Bool[Array, " B"] = (chosen >= low) & (chosen < low + share)
            z = jnp.where(expand(picked, z), made, z)
    return state.replace(z=z)  # type: ignore[attr-defined]


def rollout(
    network: NetworkDenoiser, start: Images, state: State, tables: LevelTables, whose: str
) -> Images:
    """The network's own states at the levels of `state`, on DDIM's way down from noise.

    Args:
      network: the teacher or the student.
      start: `[B, H, W, C]`, noise at the student's noisiest level.
      state: whose levels and classes are wanted.
      tables: the levels.
      whose: "teacher" or "student": the owner of the time inputs.
    """
    levels: Schedule = tables.student

    def at(i: Array) -> Level:
        i = jnp.broadcast_to(i, state.index.shape)
        return levels.at(i) if whose == "student" else tables.teacher.at(tables.grid[i])

    def body(step: Array, carry: tuple[Images, Images]) -> tuple[Images, Images]:
        z, found = carry
        i = tables.count - step
        z = ddim_step(network(z, at(i), state.cond), z, at(i), at(i - 1))
        return z, jnp.where(expand(state.index == i - 1, z), z, found)

    _, found = jax.lax.fori_loop(0, tables.count - 1, body, (start, start))
    return jax.lax.stop_gradient(found)
