"""PID: a one-step student whose path satisfies the teacher's ODE, as a physics-informed network.

Source: arXiv 2411.08378, with the settings of its released code. In EDM's variables the student's
path is x_s = s e + (1 - s / s_T) y_s with s = sigma / alpha and the signal y of `from_noise`, so
that it begins at the noise s_T e exactly. Its residual at two neighbouring levels,

    d( x_i - s_i (x_i - x_j) / (s_i - s_j),  x_T(x_i, s_i) ),

is the distance of the ODE's x0, by finite differences, from the teacher's; the gradient goes
through both evaluations of the student and not through the teacher. Terms in the noise cancel
exactly and are left out, because s is large.
"""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from ddistill.diffusion import expand
from ddistill.objectives.from_noise import FromNoise, Path
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Networks, Requirements, Update
from ddistill.objectives.sampling import uniform_index
from ddistill.schedules import Level
from ddistill.typing import Images, Metrics, PerExample


@dataclass(frozen=True)
class PID(FromNoise):
    """PID (arXiv 2411.08378): a one-step student whose path satisfies the teacher's ODE."""

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student."""
        return (Update("student", self.loss),)

    @property
    def requires(self) -> Requirements:
        """An image in the noisiest level beside what both methods need."""
        reason = "the path of this objective is measured in sigma / alpha"
        return dataclasses.replace(super().requires, last_image=reason)

    def teacher_calls(self, each: int = 1) -> int:
        """One on the path."""
        return each

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The residual at a random level and its cleaner neighbour."""
        path = Path.of(batch, tables)
        index = uniform_index(batch.key("level"), 1, tables.count)
        # The cleanest level has no cleaner neighbour that networks know.
        beside = jnp.where(index > 1, index - 1, 2)
        here, there = tables.student.at(index), tables.student.at(beside)
        top = tables.student.at(tables.count)
        own = tied(path.signal(networks["student"], index), here, top)
        other = tied(path.signal(networks["student"], beside), there, top)
        wanted = path.teacher(networks["teacher"], own, index).x0
        values = self.distances_of(networks, ode_x0(own, other, here, there), wanted)
        return values, {"residual": jnp.mean(values)}


def tied(signal: Images, level: Level, top: Level) -> Images:
    """The signal scaled to 0 at the noisiest level, (1 - s / s_T) y."""
    return signal * expand(1.0 - _noise(level) / _noise(top), signal)


def ode_x0(own: Images, other: Images, here: Level, there: Level) -> Images:
    """The x0 that a path says by its slope, x - s dx/ds, from two of its signals.

    Args:
      own, other: `[B, H, W, C]`, x - s e at `here` and `there`.
      here, there: `[]` or `[B]`, unlike levels.
    """
    s, beside = _noise(here), _noise(there)
    return own - expand(s / (s - beside), own) * (own - other)


def _noise(level: Level) -> Array:
    return level.sigma / level.alpha
