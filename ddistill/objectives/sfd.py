"""SFD: a student that retraces the teacher's path, one update for each of its steps.

Source: arXiv 2409.19681 (simple and fast distillation), with the settings of its released code. One
path of the teacher from noise to image serves all N steps of the student. The student takes its own
steps, each from where its step before has ended, and each is regressed onto the state of the
teacher's path at the same level; the next step starts from the new state as a constant. No image of
the data is seen.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import (
    analytic_prediction,
    ddim_step,
    from_x0,
    multistep_x0,
)
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import Objective, filled_in
from ddistill.objectives.distances import NORMS, mean_per_example
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Loss, LossAux, Networks, Requirements, Update
from ddistill.objectives.sampling import normal
from ddistill.typing import Images, Labels, Metrics, PerExample

SOLVERS = ("ddim", "dpm_solver_pp")
# Of the student's state and the teacher's path among the arrays that updates share.
_STATE, _PATH = "state", "path"


@dataclass(frozen=True)
class SFD(Objective):
    """SFD (arXiv 2409.19681): one update for each step along the teacher's path, without images.

    Attributes:
      substeps: teacher steps to one student step (the paper's M + 1).
      solver: of the teacher's steps: "ddim", or "dpm_solver_pp", second order (the paper's is of
        third order).
      state_norm: of the difference of states: "l1" (released) or "l2"; means over pixels.
      analytic_first: the first step is not the network's, but that of a Gaussian of unit variance,
        which saves its call; the student's sampler is then "ddim_afs".
      steps: N, the student's steps.
    """

    substeps: int = 4
    solver: str = "dpm_solver_pp"
    state_norm: str = "l1"
    analytic_first: bool = False
    steps: int = filled_in(1)

    def __post_init__(self):
        check_choice("objective.solver", self.solver, SOLVERS)
        check_choice("objective.state_norm", self.state_norm, NORMS)
        if self.substeps < 1:
            raise ConfigError(f"objective.substeps={self.substeps} must be 1 or more.")

    def prepare(self, grid: np.ndarray) -> Self:
        """Notes the student's steps, and refuses more sub-steps than there are teacher levels."""
        steps, narrowest = len(grid) - 1, int(np.min(np.diff(grid)))
        if self.substeps > narrowest:
            raise ConfigError(
                f"objective.substeps={self.substeps}, but two neighbouring levels of the student's "
                f"grid {np.asarray(grid).tolist()[:12]} are only {narrowest} teacher levels apart. "
                f"Allowed: 1 to {narrowest}."
            )
        if self.analytic_first and steps == 1:
            raise ConfigError(
                "objective.analytic_first=True with a grid of one step leaves the network no step. "
                "Set it to False, or grid.steps to 2 or more."
            )
        return dataclasses.replace(self, steps=steps)

    @property
    def requires(self) -> Requirements:
        """A teacher, all levels, and no images."""
        return Requirements(
            teacher="its targets lie on the teacher's path",
            images="",
            all_levels="a student of this objective walks all of its levels in training",
        )

    @property
    def sampler(self) -> str:
        """The sampler whose steps are trained."""
        return "ddim_afs" if self.analytic_first else "ddim"

    @property
    def updates(self) -> tuple[Update, ...]:
        """One for each step of the network, from the noisiest level down."""
        first = int(self.analytic_first)
        return tuple(Update("student", self.loss_of_step(n)) for n in range(first, self.steps))

    def loss_of_step(self, n: int) -> Loss:
        """The loss of step `n`, 0 at the noisiest level."""
        return functools.partial(self._loss, n)

    def teacher_calls(self, each: int = 1) -> int:
        """The teacher's path."""
        return each * self.substeps * self.steps

    def _loss(
        self, n: int, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics, LossAux]:
        if _PATH in batch.shared:
            z, path = batch.shared[_STATE], batch.shared[_PATH]
        else:
            z, path = self._begin(networks["teacher"], batch, tables)
        here = tables.student.at(_rows(tables.count - n, z))
        there = tables.student.at(_rows(tables.count - n - 1, z))
        key = {} if batch.dropout_key is None else {"key": batch.dropout_key}
        state = ddim_step(networks["student"](z, here, batch.cond, **key), z, here, there)
        difference = state - path[:, n]
        error = jnp.abs(difference) if self.state_norm == "l1" else jnp.square(difference)
        values = mean_per_example(error)
        shared = {_STATE: jax.lax.stop_gradient(state), _PATH: path}
        return values, {f"step_{n + 1}_distance": jnp.mean(values)}, LossAux(shared=shared)

    def _begin(
        self, teacher: NetworkDenoiser, batch: Batch, tables: LevelTables
    ) -> tuple[Images, Float[Array, "B N H W C"]]:
        """The state before the first update, and the teacher's states after each student step."""
        top = tables.student.at(tables.count)
        z = normal(batch.key("noise"), batch.image) * jnp.maximum(1.0, top.sigma)
        path = jax.lax.stop_gradient(
            teacher_path(self.walk(teacher, tables, batch.cond), z, self.steps, self.substeps)
        )
        if self.analytic_first:
            here = tables.student.at(_rows(tables.count, z))
            there = tables.student.at(_rows(tables.count - 1, z))
            z = ddim_step(analytic_prediction(z, here), z, here, there)
        return z, path

    def walk(
        self, teacher: NetworkDenoiser, tables: LevelTables, cond: Labels | None
    ) -> "TeacherStep":
        """The teacher's step `i` of N k, as a function of the states before."""
        count, k = tables.count, self.substeps

        def row(i: Array | int) -> Array:
            """The teacher's level after `i` of its steps."""
            i = jnp.clip(i, 0, count * k)
            coarse, j = count - i // k, i % k
            top, bottom = tables.grid[coarse], tables.grid[jnp.maximum(coarse - 1, 0)]
            return (top * (k - j) + bottom * j + k // 2) // k

        def step(i: Array | int, z: Images, previous: Images) -> tuple[Images, Images]:
            here, there = (tables.teacher.at(_rows(row(i + d), z)) for d in (0, 1))
            x0 = used = teacher(z, here, cond).x0
            if self.solver == "dpm_solver_pp":
                before = tables.teacher.at(_rows(row(i - 1), z))
                used = multistep_x0(x0, previous, before, here, there)
            return ddim_step(from_x0(used, z, here), z, here, there), x0

        return step


TeacherStep = Callable[[Array | int, Images, Images], tuple[Images, Images]]


def teacher_path(
    step: TeacherStep, z: Images, count: int, substeps: int
) -> Float[Array, "B N H W C"]:
    """The states after every `substeps` of a teacher's `count * substeps` steps from `z`.

    Args:
      step: `(i, z, previous x0) -> (z, x0)`, step `i` from 0.
      z: `[B, H, W, C]`, noise at the noisiest level.
      count: N.
      substeps: k.
    """

    def body(i: Array, carry: tuple[Images, Images, Array]) -> tuple[Images, Images, Array]:
        state, previous, path = carry
        state, previous = step(i, state, previous)
        # The last of the sub-steps stays.
        return state, previous, path.at[:, i // substeps].set(state)

    path = jnp.zeros((z.shape[0], count, *z.shape[1:]), z.dtype)
    return jax.lax.fori_loop(0, count * substeps, body, (z, jnp.zeros_like(z), path))[2]


def _rows(index: Array | int, z: Images) -> Labels:
    """One row of a table for every example."""
    return jnp.broadcast_to(jnp.asarray(index), (z.shape[0],))
