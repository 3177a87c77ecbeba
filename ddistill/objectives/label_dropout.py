"""Networks that also learn without their conditions, for guidance (arXiv 2207.12598)."""

from dataclasses import dataclass
from typing import Self

import jax

from ddistill.conditions import Condition, replace_where
from ddistill.errors import ConfigError
from ddistill.objectives.base import check_dropout
from ddistill.objectives.distillation import Distillation
from ddistill.objectives.inputs import Batch
from ddistill.objectives.parts import StageFacts


@dataclass(frozen=True)
class LabelDropout(Distillation):
    """A `Distillation` in which a share of the examples has the null condition.

    Attributes:
      label_dropout: share of examples whose class or text is replaced by the null condition, for
        guidance.
      null_class: id of the null class, which is the network's number of classes; texts have the
        empty text in its place.
    """

    label_dropout: float = 0.0
    null_class: int = -1

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ConfigError(f"objective.label_dropout={self.label_dropout} is not in [0, 1].")

    def condition(self, batch: Batch) -> Condition | None:
        """The conditions, a share of them replaced by the null condition."""
        if batch.cond is None or self.label_dropout == 0.0:
            return batch.cond
        keys = batch.key("label_dropout")
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        return replace_where(drop, batch.cond, batch.null_or(self.null_class))

    @property
    def null_class_share(self) -> float | None:
        """The share of dropped labels."""
        return self.label_dropout

    def prepare(self, facts: StageFacts) -> Self:
        """Refuses label dropout without conditions, and to anything but the null class."""
        known = facts.networks.num_classes
        if known and self.label_dropout and self.null_class != known:
            raise ConfigError(
                f"objective.null_class={self.null_class}, but the null class of a network with "
                f"{known} classes is {known}; a dropped label would be another class."
            )
        check_dropout(self, facts)
        return super().prepare(facts)
