"""Guidance as an input of the student: one network for a range of guidance scales.

Sources: arXiv 2210.03142 (guided distillation) and 2310.04378 (LCM). Every example has a guidance
scale of its own, uniform on a range. The student is given the scale as an extra input, and its
target is computed by the teacher with classifier-free guidance of this scale. The teacher can be a
student of an earlier stage that has the same input; it is then given the scale, too.

At step 0 the student's output does not depend on the scale, because the last layer of an extra
input is zero: a student that starts from the teacher's weights is the teacher without guidance.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import jax
import numpy as np

from ddistill.errors import ConfigError
from ddistill.objectives.base import filled_in
from ddistill.objectives.distillation import Distillation
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import LossAux, Networks, Range, Requirements, StageFacts
from ddistill.typing import Metrics, PerExample
from ddistill.wrapped_denoiser import with_guidance

GUIDANCE = "guidance"


@dataclass(frozen=True)
class GuidedDistillation(Distillation):
    """A regression method with a target that can be computed at a guidance scale per example.

    Attributes:
      guidance_range: lowest and highest scale, which examples are drawn from and which the student
        is given; 1 is no guidance. Empty: the student has no such input, and the teacher the fixed
        scale of the stage's `guidance`.
      teacher_takes_guidance: whether the teacher has the same input.
      teacher_null_class: the class id that stands for "no class" in the teacher.
    """

    guidance_range: tuple[float, ...] = ()
    teacher_takes_guidance: bool = filled_in(False)
    teacher_null_class: int = filled_in(0)

    def __post_init__(self):
        scales = tuple(self.guidance_range)
        object.__setattr__(self, "guidance_range", scales)  # hashable, also where a list was given
        if scales and not (
            len(scales) == 2 and np.isfinite(scales).all() and 0 <= scales[0] < scales[1]
        ):
            raise ConfigError(
                f"objective.guidance_range={scales} must be empty, or the lowest and the highest "
                "guidance scale with 0 <= lowest < highest, for example (1.0, 4.0)."
            )
        super().__post_init__()

    def prepare(self, facts: StageFacts) -> Self:
        """Notes whether the teacher is given the guidance, and its null class."""
        found, teacher = super().prepare(facts), facts.networks.teacher
        if not self.guidance_range:
            return found
        return dataclasses.replace(
            found,
            teacher_takes_guidance=GUIDANCE in getattr(teacher, "extras", ()),
            teacher_null_class=int(getattr(teacher, "num_classes", 0)),
        )

    @property
    def extra_inputs(self) -> Mapping[str, Range]:
        """The guidance, where it has a range."""
        if not self.guidance_range:
            return {}
        low, high = self.guidance_range
        return {GUIDANCE: Range(low, high)}

    @property
    def requires(self) -> Requirements:
        """Also a teacher that can be guided, unless it is given the guidance."""
        guided = self.guidance_range and not self.teacher_takes_guidance
        reason = "objective.guidance_range guides it" if guided else ""
        return dataclasses.replace(super().requires, guided_teacher=reason)

    def inert_hparams(self) -> tuple[str, ...]:
        """The range, where there is none."""
        own = () if self.guidance_range else ("guidance_range",)
        return (*super().inert_hparams(), *own)

    def loss_and_memory(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics, LossAux]:
        """The loss of `Distillation`, with networks at the guidance scales of the examples.

        Scales are drawn anew for states of a replay buffer.
        """
        if self.guidance_range:
            networks = self.at_guidance(networks, batch)
        return super().loss_and_memory(networks, batch, tables)

    def at_guidance(self, networks: Networks, batch: Batch) -> Networks:
        """The student, its averages and the teacher, each example at its own guidance scale."""
        low, high = self.guidance_range
        keys = batch.key("guidance")
        scale = jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)
        averages = (n for n, own in self.auxiliaries.items() if own.start == "average")
        found = {name: networks[name].given(guidance=scale) for name in ("student", *averages)}
        teacher = networks["teacher"]
        if self.teacher_takes_guidance:
            found["teacher"] = teacher.given(guidance=scale)
        else:
            found["teacher"] = with_guidance(teacher, scale, batch.null_or(self.teacher_null_class))
        return {**networks, **found}
