"""SFD: a student that retraces the teacher's path, one update for each of its steps.

Source: arXiv 2409.19681 (simple and fast distillation), with the settings of its released code. One
path of the teacher from noise to image serves all N steps of the student. The student takes its own
steps, each from where its step before has ended, and each is regressed onto the state of the
teacher's path at the same level; the next step starts from the new state as a constant. No image of
the data is seen.

SFD-v is one student for several numbers of steps: train steps take the numbers one after another,
each on its own grid of the student's levels, and the student is given the number.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddistill.conditions import Condition
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
from ddistill.objectives.parts import (
    Loss,
    LossAux,
    Networks,
    Range,
    Requirements,
    StageFacts,
    Update,
)
from ddistill.objectives.sampling import normal
from ddistill.schedules import uniform_grid
from ddistill.typing import Images, Labels, Metrics, PerExample

SOLVERS = ("ddim", "dpm_solver_pp")
STEP_COUNT = "step_count"
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
      step_counts: the student's numbers of steps (SFD-v), of which train steps take one after
        another; the student is given the number as the extra input "step_count". The levels of
        each number are rows of the stage's grid at even distances; grid.steps=0 has all levels of
        the teacher. Empty: the number of steps of the grid.
      steps: N, the student's steps; the largest number of several.
      count_rows: by number of steps, the rows of the student's levels, first the noisiest one.
    """

    substeps: int = 4
    solver: str = "dpm_solver_pp"
    state_norm: str = "l1"
    analytic_first: bool = False
    step_counts: tuple[int, ...] = ()
    steps: int = filled_in(1)
    count_rows: tuple[tuple[int, ...], ...] = filled_in(())

    def __post_init__(self):
        check_choice("objective.solver", self.solver, SOLVERS)
        check_choice("objective.state_norm", self.state_norm, NORMS)
        if self.substeps < 1:
            raise ConfigError(f"objective.substeps={self.substeps} must be 1 or more.")
        counts = tuple(self.step_counts)
        least = 2 if self.analytic_first else 1
        if len(set(counts)) < len(counts) or min(counts, default=least) < least:
            raise ConfigError(
                f"objective.step_counts={counts} must be different whole numbers of {least} or "
                "more, for example (2, 3, 4)."
            )
        # The largest number comes first, whatever their order is.
        object.__setattr__(self, "step_counts", tuple(sorted(counts, reverse=True)))

    def prepare(self, facts: StageFacts) -> Self:
        """Notes the student's steps, and refuses more sub-steps than there are teacher levels."""
        if self.step_counts:
            return self._prepare_counts(np.asarray(facts.grid))
        grid, steps = facts.grid, facts.num_steps
        narrowest = int(np.min(np.diff(grid)))
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

    def _prepare_counts(self, grid: np.ndarray) -> Self:
        """The grids of several numbers of steps on the student's levels."""
        levels, most = len(grid) - 1, max(self.step_counts)
        if most > levels:
            raise ConfigError(
                f"objective.step_counts={self.step_counts}, but the student's grid has {levels} "
                "steps. Set grid.steps to 0, for all of the teacher's levels."
            )
        rows = [uniform_grid(levels, count) for count in self.step_counts]
        narrowest = min(int(np.min(np.diff(grid[own]))) for own in rows)
        if self.substeps > narrowest:
            raise ConfigError(
                f"objective.substeps={self.substeps}, but neighbouring levels of a student of "
                f"{most} steps are only {narrowest} teacher levels apart. Allowed: 1 to "
                f"{narrowest}."
            )
        filled = tuple(
            tuple(int(x) for x in own[::-1]) + (0,) * (most - len(own) + 2) for own in rows
        )
        return dataclasses.replace(self, steps=most, count_rows=filled)

    @property
    def extra_inputs(self) -> Mapping[str, Range]:
        """The number of steps, where there are several."""
        if not self.step_counts:
            return {}
        counts = tuple(map(float, sorted(self.step_counts)))
        return {STEP_COUNT: Range(counts[0], counts[-1], counts)}

    def inert_hparams(self) -> tuple[str, ...]:
        """The numbers of steps, where the grid says the number."""
        return () if self.step_counts else ("step_counts",)

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
        return tuple(self._update(n) for n in range(first, self.steps))

    def _update(self, n: int) -> Update:
        """The update of step `n`, at train steps that have so many steps."""
        at = tuple(i for i, count in enumerate(self.step_counts) if count > n)
        if len(at) == len(self.step_counts):
            return Update("student", self.loss_of_step(n))
        loss, every = self.loss_of_step(n), len(self.step_counts)
        return Update("student", loss, every=every, at=at, fallback=_unchanged)

    def _count(self, tables: LevelTables) -> Array:
        """The student's number of steps in this train step."""
        if not self.step_counts:
            return tables.count
        return jnp.asarray(self.step_counts)[tables.step % len(self.step_counts)]

    def _row(self, n: Array | int, tables: LevelTables) -> Array:
        """The row of the student's level after `n` of its steps; 0 after the last one."""
        if not self.step_counts:
            return jnp.maximum(tables.count - n, 0)
        return jnp.asarray(self.count_rows)[tables.step % len(self.step_counts), n]

    def loss_of_step(self, n: int) -> Loss:
        """The loss of step `n`, 0 at the noisiest level."""
        return functools.partial(self._loss, n)

    def teacher_calls(self, each: int = 1) -> float:
        """The teacher's path, of the mean number of steps."""
        counts = self.step_counts or (self.steps,)
        return each * self.substeps * sum(counts) / len(counts)

    def _loss(
        self, n: int, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics, LossAux]:
        if _PATH in batch.shared:
            z, path = batch.shared[_STATE], batch.shared[_PATH]
        else:
            z, path = self._begin(networks["teacher"], batch, tables)
        here, there = (tables.student.at(_rows(self._row(i, tables), z)) for i in (n, n + 1))
        key = {} if batch.dropout_key is None else {"key": batch.dropout_key}
        student = networks["student"]
        if self.step_counts:
            student = student.given(step_count=self._count(tables))
        state = ddim_step(student(z, here, batch.cond, **key), z, here, there)
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
        walk = self.walk(teacher, tables, batch.cond)
        taken = self._count(tables) if self.step_counts else self.steps
        path = jax.lax.stop_gradient(teacher_path(walk, z, self.steps, self.substeps, taken))
        if self.analytic_first:
            here, there = (tables.student.at(_rows(self._row(i, tables), z)) for i in (0, 1))
            z = ddim_step(analytic_prediction(z, here), z, here, there)
        return z, path

    def walk(
        self, teacher: NetworkDenoiser, tables: LevelTables, cond: Condition | None
    ) -> "TeacherStep":
        """The teacher's step `i` of N k, as a function of the states before."""
        count, k = self._count(tables), self.substeps

        def row(i: Array | int) -> Array:
            """The teacher's level after `i` of its steps."""
            i = jnp.clip(i, 0, count * k)
            coarse, j = i // k, i % k
            top, bottom = (tables.grid[self._row(n, tables)] for n in (coarse, coarse + 1))
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
    step: TeacherStep, z: Images, count: int, substeps: int, taken: Array | int | None = None
) -> Float[Array, "B N H W C"]:
    """The states after every `substeps` of a teacher's `count * substeps` steps from `z`.

    Args:
      step: `(i, z, previous x0) -> (z, x0)`, step `i` from 0.
      z: `[B, H, W, C]`, noise at the noisiest level.
      count: N.
      substeps: k.
      taken: the number of student steps that are walked, where it is less than N.
    """

    def body(i: Array, carry: tuple[Images, Images, Array]) -> tuple[Images, Images, Array]:
        state, previous, path = carry
        state, previous = step(i, state, previous)
        # The last of the sub-steps stays.
        return state, previous, path.at[:, i // substeps].set(state)

    path = jnp.zeros((z.shape[0], count, *z.shape[1:]), z.dtype)
    end = (count if taken is None else taken) * substeps
    return jax.lax.fori_loop(0, end, body, (z, jnp.zeros_like(z), path))[2]


def _unchanged(networks: Networks, batch: Batch, tables: LevelTables) -> Mapping[str, Array]:
    """The state and the path of the updates before."""
    del networks, tables
    return {name: batch.shared[name] for name in (_STATE, _PATH)}


def _rows(index: Array | int, z: Images) -> Labels:
    """One row of a table for every example."""
    return jnp.broadcast_to(jnp.asarray(index), (z.shape[0],))
