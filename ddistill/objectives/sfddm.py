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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from ddistill.diffusion import (
    Prediction,
    ddim_step,
    expand,
    fold_weight,
    from_x0,
    multistep_x0,
    output_of,
)
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import Metrics, Networks, Update, check_not_negative, predict
from ddistill.objectives.classifier_terms import ClassifierTerms
from ddistill.objectives.denoising import ERRORS, WEIGHTS, weighted_error
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.sampling import mean_per_example, noisy
from ddistill.schedules import Level

NORMS = ("l1", "l2")
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
class SFDDM(ClassifierTerms):
    """Single-fold distillation.

    With `classifier_weight` above 0 the hidden variable's target is compared in the classifier's
    feature space too.

    Attributes:
      output_weight: weight of the output distance.
      output: quantity compared by it: "x0", "eps" or "v" ("eps" for an eps-network as released).
      output_norm: "l1" (released) or "l2".
      output_level_weight: for "l2", a weight as in `weighted_error`.
      feature_weight: weight of the hidden-feature distance (L1).
      tap: name of the feature tap.
      hidden_weight: weight of the hidden-variable distance.
      substeps: k, teacher steps between two levels of the student; 0 = as many as there are
        teacher levels in the narrowest interval (c where N divides T).
      solver: how the teacher walks: "ddim", or "dpm_solver_pp" (2M, second order, equal cost).
      lookback: gives the multistep solver a past at the start of each interval, for one teacher
        call more: the teacher's prediction one sub-step up, at the state that DDIM inversion finds
        there. Without it every walk begins at first order. The noisiest level has no past.
      hidden_error, hidden_level_weight: error and weight of the hidden-variable distance.
    """

    needs_teacher: ClassVar[bool] = True

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
        super().__post_init__()
        check_not_negative(self, "output_weight", "feature_weight", "hidden_weight")
        check_choice("objective.output", self.output, ERRORS)
        check_choice("objective.output_norm", self.output_norm, NORMS)
        check_choice("objective.output_level_weight", self.output_level_weight, WEIGHTS)
        check_choice("objective.solver", self.solver, SOLVERS)
        check_choice("objective.hidden_error", self.hidden_error, ERRORS)
        check_choice("objective.hidden_level_weight", self.hidden_level_weight, WEIGHTS)
        weights = ("output_weight", "feature_weight", "hidden_weight", "classifier_weight")
        if not any(getattr(self, name) for name in weights):
            raise ConfigError(f"objective: {', '.join(weights)} are all 0; set one above 0.")
        if self.substeps < 0:
            raise ConfigError(f"objective.substeps={self.substeps} must be 0 (all) or more.")

    def prepare(self, grid: np.ndarray) -> "SFDDM":
        """Resolves `substeps` = 0 and refuses more sub-steps than there are teacher levels."""
        narrowest = int(np.min(np.diff(grid)))
        if self._has_target() and self.substeps > narrowest:
            raise ConfigError(
                f"objective.substeps={self.substeps}, but two neighbouring levels of the student's "
                f"grid {np.asarray(grid).tolist()[:12]} are only {narrowest} teacher levels apart. "
                f"Allowed: 1 to {narrowest}, or 0 for all of them."
            )
        return self.replace(substeps=self.substeps or narrowest)  # type: ignore[return-value]

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student."""
        return (Update("student", self.loss),)

    def numbers(self) -> Mapping[str, int | float]:
        """k, whether the solver looks back, and the weights of the terms in use."""
        weights = (f"{term}_weight" for term in ("output", "feature", "hidden", "classifier"))
        used = {name: getattr(self, name) for name in weights if getattr(self, name)}
        back = {"lookback": int(bool(self.lookback))} if self._multistep() else {}
        return {**used, "substeps": self.substeps, **back}

    def program(self) -> "SFDDM":
        """The terms in use with weight 1, and one sub-step."""
        blank = {name: type(value)(1) for name, value in self.numbers().items()}
        return self.replace(**blank)  # type: ignore[return-value]

    def taps(self) -> tuple[str, ...]:
        """The tap of the feature distance."""
        return (self.tap,) if self.feature_weight else ()

    def teacher_calls(self, each: int = 1) -> int:
        """k for the hidden variable and one for its past; other terms reuse its first call."""
        return each * (self.substeps + int(self._looks_back()) if self._has_target() else 1)

    def _has_target(self) -> bool:
        return self.hidden_weight > 0 or self.classifier_weight > 0

    def _multistep(self) -> bool:
        return self.solver == "dpm_solver_pp"

    def _looks_back(self) -> bool:
        return self.lookback and self._multistep()

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics]:
        """The weighted sum of the three distances at a student level drawn from 1 .. N."""
        index, level, z = noisy(batch, tables)
        teacher_level = tables.teacher.at(tables.grid[index])

        taps = self.taps()
        student, ours = predict(networks["student"], taps, z, level, batch.cond, batch.keys[0])
        teacher: Prediction | None = None
        theirs: dict[str, Array] = {}
        if self.output_weight or self.feature_weight:
            teacher, theirs = jax.lax.stop_gradient(
                predict(networks["teacher"], taps, z, teacher_level, batch.cond)
            )
        terms = {}
        if self.output_weight:
            terms["output"] = self._output_distance(student, teacher, z, level)
        if self.feature_weight:
            terms["feature"] = mean_per_example(jnp.abs(ours[self.tap] - theirs[self.tap]))
        if self._has_target():
            target = self.hidden_target(networks["teacher"], teacher, z, index, batch.cond, tables)
        if self.hidden_weight:
            terms["hidden"] = weighted_error(
                student, target, z, level, self.hidden_error, self.hidden_level_weight
            )
        metrics = {f"{name}_distance": jnp.mean(term) for name, term in terms.items()}
        if self.classifier_weight:
            terms["classifier"], found = self.classifier_distance(
                networks["classifier"], student.x0, target.x0
            )
            metrics |= found
        weighted = [self.value_of(f"{n}_weight", tables) * term for n, term in terms.items()]
        return jnp.sum(jnp.stack(weighted), axis=0), metrics

    def hidden_target(
        self,
        teacher: Any,
        first: Prediction | None,
        z: Array,
        index: Array,
        cond: Any,
        tables: LevelTables,
    ) -> Prediction:
        """The prediction whose one step from level `index` ends where the teacher's k steps end.

        The walk is one loop, so that the teacher is compiled once, and a loop whose length is a
        number, so that students of any k share the program. Its calls are the teacher's prediction
        at z, the one before it where the solver looks back, and those at the sub-steps 2 .. k.

        Args:
          teacher: the teacher denoiser.
          first: its prediction at z; None lets the loop ask for it.
          z: `[B, H, W, C]`, noisy images at student level `index`.
          index: `[B]`, in 1 .. N.
          cond: what the teacher is conditioned on.
          tables: the stage's levels.
        """
        back = jnp.asarray(self.value_of("lookback", tables), jnp.int32) if self._multistep() else 0
        x0 = jnp.zeros_like(z) if first is None else first.x0
        walk = _Walk(state=z, first=x0, previous=x0, used=x0, target=x0)

        def body(call, walk):
            return self._walk_on(teacher, walk, call, back, z, index, cond, tables)

        calls = back + self.value_of("substeps", tables)
        walk = jax.lax.fori_loop(0 if first is None else 1, calls, body, walk)
        level = self.sub_level(0, index, tables)
        return from_x0(jax.lax.stop_gradient(walk.target), z, level)

    def _walk_on(
        self,
        teacher: Any,
        walk: "_Walk",
        call: Array,
        back: Array | int,
        z: Array,
        index: Array,
        cond: Any,
        tables: LevelTables,
    ) -> "_Walk":
        """The teacher's call of this number, and what becomes of the walk.

        Call 0 is at z. With `back` = 1, call 1 is at the state one sub-step up. The others are at
        sub-step j = call - back, whose folds are those of `one_step_target`.
        """
        j = call - back
        is_first, is_past = call == 0, (call == 1) & (j == 0)

        def number(i):
            return self._sub_number(jnp.maximum(i, 0), index, tables)

        start, last, here, there = number(0), number(j - 1), number(j), number(j + 1)
        above = self._number_above(index, tables)
        before = jnp.where(is_past, above, last)
        at = tables.teacher.at
        asked = jnp.where(is_past, above, here)
        known, origin = jnp.where(is_past, walk.first, walk.used), jnp.where(is_past, start, last)
        source = jnp.where(is_past, z, walk.state)
        stepped = ddim_step(from_x0(known, source, at(origin)), source, at(origin), at(asked))
        state = jnp.where(is_first, z, stepped)
        x0 = teacher(state, at(asked), cond).x0

        newer, older = jnp.where(is_past, walk.first, x0), jnp.where(is_past, x0, walk.previous)
        used = x0
        if self._multistep():
            corrected = multistep_x0(newer, older, at(before), at(here), at(there))
            used = jnp.where(is_first, x0, corrected)
        w = expand(fold_weight(at(start), at(here), at(there)), x0)
        folded = jnp.where(is_first | is_past, used, w * used + (1.0 - w) * walk.target)
        first = jnp.where(is_first, x0, walk.first)
        return _Walk(
            state=jnp.where(is_past, z, state),
            first=first,
            previous=newer,
            used=used,
            target=folded,
        )

    def _number_above(self, index: Array, tables: LevelTables) -> Array:
        """The teacher level one sub-step noisier than phi_index, or the noisiest there is."""
        k = self.value_of("substeps", tables)
        top, bottom = tables.grid[index], tables.grid[index - 1]
        stride = (top - bottom + k // 2) // k
        return jnp.minimum(top + stride, tables.teacher.num_steps)

    def sub_level(self, j: Any, index: Array, tables: LevelTables) -> Level:
        """Teacher level j of the k+1 from phi_index (0) to phi_{index-1} (k), even in index."""
        return tables.teacher.at(self._sub_number(j, index, tables))

    def _sub_number(self, j: Any, index: Array, tables: LevelTables) -> Array:
        top, bottom = tables.grid[index], tables.grid[index - 1]
        k = self.value_of("substeps", tables)
        return (top * (k - j) + bottom * j + k // 2) // k

    def _output_distance(self, student, teacher, z: Array, level: Level) -> Float[Array, " B"]:
        if self.output_norm == "l2":
            return weighted_error(student, teacher, z, level, self.output, self.output_level_weight)
        difference = output_of(self.output, student, z, level) - output_of(
            self.output, teacher, z, level
        )
        return mean_per_example(jnp.abs(difference))
