"""The setting of methods that learn at states of rollouts beside forward noising.

DDIL (arXiv 2410.11971) changes no loss: it changes where the noisy images come from. Any method
that draws them with `ddistill.objectives.states` has these hyperparameters.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ddistill.conditions import CLASS_LEAVES, Leaf
from ddistill.errors import ConfigError
from ddistill.objectives.base import Objective, check_not_negative, check_unused, filled_in
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Memory, Networks, StageFacts
from ddistill.objectives.states import (
    REPLAY_CONDITION,
    REPLAY_INDEX,
    REPLAY_WRITTEN,
    REPLAY_Z,
    Rollouts,
    State,
    rolled_out,
)

# Hyperparameters that are off at 0.
_OF_STATES = (
    "teacher_states",
    "student_states",
    "state_warmup",
    "student_walk",
    "replay_batches",
)
# Hyperparameters without effect where no state comes from a rollout of the student.
_OF_STUDENT = ("student_walk", "replay_batches", "replay_share")


@dataclass(frozen=True)
class MixedStates(Objective):
    """Shares of the noisy images that come from rollouts (DDIL, arXiv 2410.11971).

    The paper does not state its shares and its buffer clearly; `ddistill.recipes.DDIL` has ours.

    Attributes:
      teacher_states, student_states: shares of the examples whose noisy image comes from a rollout
        of the teacher (DDIM on the student's levels) or of the student (as its sampler makes
        images); the rest is forward noising.
      state_warmup: share of the training, from its start, in which all states are forward noising.
      student_walk: steps of a rollout of the student; 0 for all of its levels. A level between two
        of these steps is reached by one step from above.
      replay_batches: size of the buffer of earlier states of the student, in batches; 0 for none.
      replay_share: share of the student's states that is drawn from the buffer.
      clip_x0: whether x0 is clipped to [-1, 1] in rollouts and in the targets of regression.
      rollout_steps: steps of a rollout of the teacher, for its cost.
      replay_shape: (states, H, W, C) of the buffer.
      replay_leaves: the arrays of the conditions of its states.
    """

    teacher_states: float = 0.0
    student_states: float = 0.0
    state_warmup: float = 0.0
    student_walk: int = 0
    replay_batches: int = 0
    replay_share: float = 0.5
    clip_x0: bool = False
    rollout_steps: int = filled_in(1, in_program=False)
    replay_shape: tuple[int, ...] = filled_in(())
    replay_leaves: tuple[Leaf, ...] = filled_in(())

    def check_states(self) -> None:
        """Raises `ConfigError` for shares and sizes that cannot work."""
        check_not_negative(self, "teacher_states", "student_states")
        check_not_negative(self, "student_walk", "replay_batches")
        if self.teacher_states + self.student_states > 1:
            raise ConfigError(
                f"objective.teacher_states={self.teacher_states} and student_states="
                f"{self.student_states} are shares of the examples; their sum must be at most 1."
            )
        if not 0 <= self.state_warmup < 1:
            raise ConfigError(
                f"objective.state_warmup={self.state_warmup} is a share of the training; allowed: "
                "0 to below 1."
            )
        if not 0 < self.replay_share < 1:
            raise ConfigError(
                f"objective.replay_share={self.replay_share} must be above 0 and below 1; "
                "replay_batches=0 is no buffer."
            )
        if not self.student_states:
            check_unused(self, "objective.student_states is 0", *_OF_STUDENT)
        if not (self.teacher_states or self.student_states):
            reason = "objective.teacher_states and student_states are 0"
            check_unused(self, reason, "state_warmup")
        if not self.replay_batches:
            check_unused(self, "objective.replay_batches is 0", "replay_share")

    @property
    def mixes(self) -> bool:
        """Whether any state comes from a rollout."""
        return bool(self.teacher_states or self.student_states)

    @property
    def shares(self) -> Rollouts:
        """The shares as `rolled_out` reads them."""
        return Rollouts(
            self.teacher_states,
            self.student_states,
            self.state_warmup,
            self.student_walk,
            renoise=self.sampler == "renoise",
            clip=self.clip_x0,
            replay=self.replay_share if self.replay_batches else 0.0,
        )

    def mixed(self, state: State, networks: Networks, batch: Batch, tables: LevelTables) -> State:
        """The state with states of rollouts in their shares, and the buffer after them."""
        return rolled_out(state, networks, batch, tables, self.shares) if self.mixes else state

    @property
    def memory(self) -> Mapping[str, Memory]:
        """The buffer: noisy images, their levels and conditions, and the batches written so far."""
        if not self.replay_batches:
            return {}
        rows = self.replay_shape[:1]
        found = {
            REPLAY_Z: Memory(self.replay_shape),
            REPLAY_INDEX: Memory(rows, "int32"),
            REPLAY_WRITTEN: Memory((), "int32"),
        }
        return found | {
            REPLAY_CONDITION + name: Memory((*rows, *shape), dtype)
            for name, shape, dtype in self.replay_leaves
        }

    def prepare(self, facts: StageFacts) -> Self:
        """Notes the student's steps, which the teacher's rollouts take too, and the buffer's size.

        Raises:
          ConfigError: a walk longer than the grid, or a buffer that the stage cannot fill.
        """
        steps = facts.num_steps
        if self.student_walk > steps:
            raise ConfigError(
                f"objective.student_walk={self.student_walk}, but the student's grid has {steps} "
                f"levels. Allowed: 0 (all) to {steps}."
            )
        own = super().prepare(facts)
        if self.teacher_states:
            own = dataclasses.replace(own, rollout_steps=steps)
        if not (self.replay_batches and facts.steps):
            return own
        if self.replay_batches > facts.steps:
            raise ConfigError(
                f"objective.replay_batches={self.replay_batches}, but the stage has {facts.steps} "
                f"updates of the student, which add a batch each. Allowed: 0 to {facts.steps}."
            )
        return dataclasses.replace(
            own,
            replay_shape=(self.replay_batches * facts.batch_size, *facts.image_shape),
            replay_leaves=facts.condition or (CLASS_LEAVES if facts.conditional else ()),
        )

    def rollout_calls(self, each: int) -> int:
        """Teacher forward passes per example of its rollouts, which end above the clean level."""
        return each * (self.rollout_steps - 1) if self.teacher_states else 0

    def inert_hparams(self) -> tuple[str, ...]:
        """What is off: shares of 0, and the buffer's share without a buffer."""
        names = (*_OF_STATES, "clip_x0")
        idle = tuple(name for name in names if not getattr(self, name))
        return idle if self.replay_batches else (*idle, "replay_share")
