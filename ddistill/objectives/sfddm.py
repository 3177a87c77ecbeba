"""SFDDM: one fold from a T-step teacher to a student on any increasing subset of its levels.

Source: arXiv 2405.14961. The student's forward process is the teacher's, read at the levels
phi_1 < ... < phi_N of the stage's grid, so that student state i and teacher state phi_i can be the
same sample (the paper's aligned chain). Three distances are offered, each with its weight:

* output: the student's prediction against the teacher's at the same noisy image (released code: L1
  on the network's own output);
* feature: activations at a named tap of both networks (released code: L1, the last block);
* hidden variable: the student's single step from x'_t against the teacher's own state at
  phi_{t-1}. The teacher walks k deterministic steps between the two levels; the walk is folded
  into the x0 that one student step needs to land where the teacher landed (`one_step_target`), so
  nothing is divided by a short step. k = 1 is output matching in x0; larger k teaches the student
  the teacher's integral, which output matching cannot.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import (
    WEIGHTS,
    Prediction,
    ddim_step,
    expand,
    fold_weight,
    from_x0,
    multistep_x0,
)
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import hparam
from ddistill.objectives.distances import ERRORS, NORMS, PredictionDistance
from ddistill.objectives.distillation import Distillation
from ddistill.objectives.inputs import LevelTables
from ddistill.objectives.parts import (
    Networks,
    StageFacts,
    Taps,
)
from ddistill.objectives.states import State
from ddistill.schedules import Level

SOLVERS = ("ddim", "dpm_solver_pp")


@struct.dataclass
class _Walk:
    """What the teacher's walk carries from call to call; all `[B, H, W, C]`.

    Attributes:
      state: where the last call was, z after a look back.
      first: the prediction of x0 at z.
      previous: that of the last call but the one before z.
      used: x0 of the next step, corrected to second order where there is a past.
      target: x0 with which one step from z lands where the walk is to arrive.
    """

    state: Array
    first: Array
    previous: Array
    used: Array
    target: Array


@dataclass(frozen=True)
class SFDDM(Distillation):
    """SFDDM (arXiv 2405.14961): one fold from T teacher steps to any number of steps.

    With `classifier_weight` above 0 the hidden variable's target is compared in the classifier's
    feature space too.

    Attributes:
      output_weight: weight of the output distance.
      output: quantity compared by it: "x0", "eps" or "v" ("eps" for an eps-network as released).
      output_norm: "l1" (released) or "l2".
      output_level_weight: for "l2", a weight as in `PredictionDistance`.
      feature_weight: weight of the hidden-feature distance (L1).
      tap: name of the feature tap.
      hidden_weight: weight of the hidden-variable distance.
      substeps: k, teacher steps between two levels of the student; 0 = as many as there are
        teacher levels in the narrowest interval.
      solver: how the teacher walks: "ddim", or "dpm_solver_pp" (2M, second order, equal cost).
      lookback: gives the multistep solver a past at the start of each interval, for one teacher
        call more: the teacher's prediction one sub-step up, at the state that DDIM inversion finds
        there. Without it every walk begins with a first-order step. The noisiest level has no past.
      hidden_error, hidden_level_weight: error and weight of the hidden-variable distance.
    """

    teacher_reason: ClassVar[str] = "its targets are the teacher's"
    feature_norm: ClassVar[str] = "l1"

    output_weight: float = 0.0
    output: str = "v"
    output_norm: str = "l2"
    output_level_weight: str = "truncated_snr"
    feature_weight: float = 0.0
    tap: str = "last"
    hidden_weight: float = 1.0
    substeps: int = 8
    solver: str = "dpm_solver_pp"
    lookback: bool = True
    hidden_error: str = "v"
    hidden_level_weight: str = "truncated_snr"

    def __post_init__(self):
        check_choice("objective.output", self.output, ERRORS)
        check_choice("objective.output_norm", self.output_norm, NORMS)
        check_choice("objective.output_level_weight", self.output_level_weight, WEIGHTS)
        check_choice("objective.solver", self.solver, SOLVERS)
        check_choice("objective.hidden_error", self.hidden_error, ERRORS)
        check_choice("objective.hidden_level_weight", self.hidden_level_weight, WEIGHTS)
        super().__post_init__()
        if self.substeps < 0:
            raise ConfigError(f"objective.substeps={self.substeps} must be 0 (all) or more.")

    def prepare(self, facts: StageFacts) -> Self:
        """Resolves `substeps` = 0 and refuses more sub-steps than there are teacher levels."""
        grid = facts.grid
        narrowest = int(np.min(np.diff(grid)))
        if self._has_target() and self.substeps > narrowest:
            raise ConfigError(
                f"objective.substeps={self.substeps}, but two neighbouring levels of the student's "
                f"grid {np.asarray(grid).tolist()[:12]} are only {narrowest} teacher levels apart. "
                f"Allowed: 1 to {narrowest}, or 0 for all of them."
            )
        own = super().prepare(facts)
        return dataclasses.replace(own, substeps=self.substeps or narrowest)

    def distances(self) -> Mapping[str, tuple[str, PredictionDistance]]:
        """The distances of the student's output and of the hidden variable."""
        weight = self.output_level_weight if self.output_norm == "l2" else "uniform"
        return {
            "output": ("teacher", PredictionDistance(self.output, weight, self.output_norm)),
            "hidden": ("target", PredictionDistance(self.hidden_error, self.hidden_level_weight)),
        }

    def dynamic_hparams(self) -> Mapping[str, int | float]:
        """k, whether the solver looks back, and the weights of the terms in use."""
        weights = (f"{term}_weight" for term in ("output", "feature", "hidden", "classifier"))
        used = {name: getattr(self, name) for name in weights if getattr(self, name)}
        back = {"lookback": int(bool(self.lookback))} if self._multistep() else {}
        return {**used, "substeps": self.substeps, **back}

    @property
    def taps(self) -> Taps:
        """The tap of the feature distance."""
        used = (self.tap,) if self.feature_weight else ()
        return Taps(used, used)

    def teacher_calls(self, each: int = 1) -> int:
        """k for the hidden variable and one for its past; other terms reuse its first call."""
        own = self.substeps + int(self._looks_back()) if self._has_target() else 1
        return each * own + self.rollout_calls(each)

    def _has_target(self) -> bool:
        return self.hidden_weight > 0 or self.classifier_weight > 0

    def _multistep(self) -> bool:
        return self.solver == "dpm_solver_pp"

    def _looks_back(self) -> bool:
        return self.lookback and self._multistep()

    def target(self, networks: Networks, state: State, tables: LevelTables) -> Prediction:
        """The prediction whose one step from `state` ends where the teacher's k steps end.

        The walk is one loop, so that the teacher is compiled once, and the length of the loop is an
        argument, so that students of any k share the program. Its calls are the teacher's
        prediction at z (unless `state` has it), the one before it where the solver looks back, and
        the ones at the sub-steps 2 .. k.
        """
        back = jnp.asarray(hparam(self, "lookback", tables), jnp.int32) if self._multistep() else 0
        first = state.teacher
        x0 = jnp.zeros_like(state.z) if first is None else first.x0
        walk = _Walk(state=state.z, first=x0, previous=x0, used=x0, target=x0)
        teacher = networks["teacher"]

        def body(call: Array, walk: _Walk) -> _Walk:
            return self._walk_on(teacher, walk, (call, call - back), state, tables)

        calls = back + hparam(self, "substeps", tables)
        walk = jax.lax.fori_loop(0 if first is None else 1, calls, body, walk)
        level = self.sub_level(0, state.index, tables)
        return from_x0(jax.lax.stop_gradient(walk.target), state.z, level)

    def _walk_on(
        self,
        teacher: NetworkDenoiser,
        walk: _Walk,
        numbers: tuple[Array, Array],
        state: State,
        tables: LevelTables,
    ) -> _Walk:
        """One call of the teacher, and the walk after it.

        `numbers` are the call's number and its sub-step j. Call 0 is at z. With a look back, call 1
        is at the state one sub-step up. The others are at sub-step j, folded as in
        `one_step_target`.
        """
        (call, j), z, index = numbers, state.z, state.index
        is_first, is_past = call == 0, (call == 1) & (j == 0)

        def number(i):
            return self._sub_number(jnp.maximum(i, 0), index, tables)

        start, last, here, there = number(0), number(j - 1), number(j), number(j + 1)
        above = self._number_above(index, tables)
        before = jnp.where(is_past, above, last)
        at = tables.teacher.at
        level = at(jnp.where(is_past, above, here))
        known, origin = jnp.where(is_past, walk.first, walk.used), jnp.where(is_past, start, last)
        source = jnp.where(is_past, z, walk.state)
        stepped = ddim_step(from_x0(known, source, at(origin)), source, at(origin), level)
        now = jnp.where(is_first, z, stepped)
        x0 = teacher(now, level, state.cond).x0

        newer, older = jnp.where(is_past, walk.first, x0), jnp.where(is_past, x0, walk.previous)
        used = x0
        if self._multistep():
            corrected = multistep_x0(newer, older, at(before), at(here), at(there))
            used = jnp.where(is_first, x0, corrected)
        w = expand(fold_weight(at(start), at(here), at(there)), x0)
        folded = jnp.where(is_first | is_past, used, w * used + (1.0 - w) * walk.target)
        first = jnp.where(is_first, x0, walk.first)
        return _Walk(
            state=jnp.where(is_past, z, now),
            first=first,
            previous=newer,
            used=used,
            target=folded,
        )

    def _number_above(self, index: Array, tables: LevelTables) -> Array:
        """The teacher level one sub-step noisier than phi_index, or the noisiest there is."""
        k = hparam(self, "substeps", tables)
        top, bottom = tables.grid[index], tables.grid[index - 1]
        stride = (top - bottom + k // 2) // k
        return jnp.minimum(top + stride, tables.teacher.num_steps)

    def sub_level(self, j: Array | int, index: Array, tables: LevelTables) -> Level:
        """Teacher level j of the k+1 from phi_index (0) to phi_{index-1} (k), even in index."""
        return tables.teacher.at(self._sub_number(j, index, tables))

    def _sub_number(self, j: Array | int, index: Array, tables: LevelTables) -> Array:
        top, bottom = tables.grid[index], tables.grid[index - 1]
        k = hparam(self, "substeps", tables)
        return (top * (k - j) + bottom * j + k // 2) // k
