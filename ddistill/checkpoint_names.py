"""Checkpoints of stages, as settings name them."""

from typing import NamedTuple


class Checkpoint(NamedTuple):
    """A checkpoint of a stage.

    Attributes:
      stage: name of the stage; "" for none.
      step: its step; None for the checkpoint that the stage hands on.
    """

    stage: str = ""
    step: int | None = None

    def __str__(self) -> str:
        return self.stage if self.step is None else f"{self.stage}@{self.step}"


def checkpoint_named(text: str) -> Checkpoint:
    """The checkpoint that "STAGE", "STAGE@last" or "STAGE@STEP" names.

    Planning refuses names with anything else behind the "@".
    """
    stage, _, step = text.partition("@")
    return Checkpoint(stage, int(step) if step.isdecimal() else None)
