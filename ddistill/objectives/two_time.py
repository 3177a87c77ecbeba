"""What methods of two-time networks share: networks that are told where their step ends.

A two-time network predicts, at a noisy image of level t, the mean velocity u(z, t, r) of
z / (alpha + sigma) on the way to the cleaner level r, so that a single DDIM step leads there. It is
given the time input of r as the extra input "end_time"; samplers give it step by step. Where r is
t, u is the velocity of the path itself, and any number of steps is possible with one network.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import Prediction
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import Objective
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Alarm, Networks, Range, Requirements, Update
from ddistill.objectives.states import State
from ddistill.schedules import Level
from ddistill.typing import Labels, Metrics, PerExample, Scalar

END_TIME = "end_time"
VELOCITIES = ("data", "teacher")


@dataclass(frozen=True)
class TwoTime(Objective):
    """The members that methods of two-time networks share.

    Attributes:
      velocity_from: what the velocity of the path is taken from: "data", eps - x0 of the noisy
        image's own noise and image, with which no teacher is needed, or "teacher", the teacher's
        prediction, which has no variance and is guided where the stage sets `guidance`.
    """

    velocity_from: str = "data"

    def __post_init__(self):
        check_choice("objective.velocity_from", self.velocity_from, VELOCITIES)

    @property
    def extra_inputs(self) -> Mapping[str, Range]:
        """The time input of the level where a step ends."""
        return {END_TIME: Range(-np.inf, np.inf)}

    @property
    def requires(self) -> Requirements:
        """All levels, and the teacher, if velocities are taken from it."""
        from_teacher = "objective.velocity_from='teacher' takes the velocity of the path from it"
        return Requirements(
            teacher=from_teacher if self.velocity_from == "teacher" else "",
            all_levels="a step of a two-time network crosses levels of every range",
        )

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student."""
        return (Update("student", self.loss),)

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The loss of an example, and metrics."""
        raise TypeError(f"{type(self).__name__} does not define its loss.")

    @property
    def sampler(self) -> str:
        """A DDIM step goes along the mean velocity."""
        return "ddim"

    @property
    def any_steps(self) -> bool:
        """The student is told where every step ends."""
        return True

    def teacher_calls(self, each: int = 1) -> int:
        """One where the velocity is the teacher's."""
        return each if self.velocity_from == "teacher" else 0

    def direction(self, networks: Networks, state: State) -> Prediction:
        """The prediction with the velocity of the path at a state, a constant."""
        if self.velocity_from == "data":
            return state.data
        teacher = at_once(networks["teacher"], state.teacher_level)
        found: Prediction = jax.lax.stop_gradient(teacher(state.z, state.teacher_level, state.cond))
        return found


def at_once(network: NetworkDenoiser, level: Level) -> NetworkDenoiser:
    """A network for the velocity itself: a two-time network with the end of its step at `level`."""
    if END_TIME not in network.extras:
        return network
    return network.given(end_time=level.time)


def check_prediction(kind: str) -> None:
    """Raises `ConfigError` for a student whose velocity divides its output by alpha or sigma."""
    divided = {"eps": "alpha, nearly 0 in noise", "x0": "sigma, nearly 0 at the clean end"}
    if kind in divided:
        raise ConfigError(
            f"prediction={kind!r}: the velocity eps - x0 divides its error by {divided[kind]}. "
            "Allowed: flow, v, edm."
        )


def mean_of(values: PerExample, chosen: Bool[Array, " B"]) -> Scalar:
    """The mean over the chosen examples; 0 without any."""
    return jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)


def told(network: NetworkDenoiser, tables: LevelTables, end: Labels) -> NetworkDenoiser:
    """The network with steps that end at rows `end`, `[B]`, of the student's levels."""
    return network.given(end_time=jnp.asarray(tables.student.time)[end])


# Of the root mean square of a tangent, usually below 2; a student that diverged had 5 early on.
LARGE_TANGENT, FATAL_TANGENT = 4.0, 100.0


def tangent_alarms(means: Mapping[str, float]) -> tuple[Alarm, ...]:
    """The alarm of a derivative in time that grows.

    Args:
      means: mean metrics of a log interval, with `tangent_rms`.
    """
    size = means.get("tangent_rms", 0.0)
    if size <= LARGE_TANGENT:
        return ()
    text = (
        f"tangent_rms {size:.3g} is the size of the network's derivative along the path (above "
        f"{LARGE_TANGENT:g}): lower the learning rate, or the time_scale of the network"
    )
    return (Alarm("tangent", text, size > FATAL_TANGENT),)
