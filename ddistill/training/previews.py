"""Previews of a stage while it is trained: when they are due, and what happens if they fail.

How a stage is sampled is the business of a `PreviewMaker`, which the run provides: training itself
knows no samplers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from ddistill.networks.weights import Weights
from ddistill.planning.plan import StagePlan
from ddistill.runtime.hosts import from_first, is_first
from ddistill.runtime.loggers.protocol import Picture
from ddistill.runtime.sharding import Layout, to_host
from ddistill.text import one_line
from ddistill.training.rounds import join
from ddistill.training.state import TrainState
from ddistill.training.trained import handed_on
from ddistill.typing import Params


class PreviewMaker(Protocol):
    """Samples stages that are being trained, and keeps the pictures."""

    def obstacle(self, plan: StagePlan) -> str:
        """Why a stage cannot be sampled, to follow "because"; "" where it can."""
        ...

    def exists(self, plan: StagePlan, step: int) -> bool:
        """Whether the preview of this step is on disk."""
        ...

    def make(self, plan: StagePlan, weights: Weights, step: int) -> Picture:
        """Samples a stage and writes the picture.

        Args:
          plan: the stage.
          weights: the weights that it would hand on at this step, on the host, of all students.
          step: the number of train steps done.

        Returns:
          The picture, `[H, W, 3]` uint8.
        """
        ...


class StagePreviews:
    """The previews of one stage.

    All processes take part in bringing the weights to the host; the first one samples. After a
    failure it samples no more previews of the stage, and the training continues.
    """

    def __init__(
        self,
        plan: StagePlan,
        layout: Layout,
        maker: PreviewMaker | None,
        every: int,
        say: Callable[[str], None],
    ):
        """Samples nothing yet, and tells where a stage has no previews.

        Args:
          plan: the stage.
          layout: where its arrays lie.
          maker: samples the stage; None for no previews.
          every: steps between two previews; 0 for none.
          say: receives one line where previews are not possible or fail.
        """
        self._plan, self._layout, self._say = plan, layout, say
        self._maker = maker if 0 < every <= plan.settings.steps else None
        self._every, self._failed = every, False
        # Of a student of low rank, the parameters that its weights are factors for.
        self.base: Params | None = None
        if self._maker is not None and (obstacle := self._maker.obstacle(plan)):
            say(f"no previews, because {obstacle}")
            self._maker = None

    def due(self, step: int) -> bool:
        """Whether this step has a preview."""
        return self._maker is not None and step > 0 and step % self._every == 0

    def missing(self, step: int) -> bool:
        """Whether this step has a preview that an earlier process left out; on all processes."""
        maker = self._maker
        if maker is None or not self.due(step):
            return False
        return from_first(lambda: not maker.exists(self._plan, step))

    def __call__(self, step: int, rounds: Sequence[TrainState]) -> Picture | None:
        """Makes the preview of a step that has one.

        Args:
          step: the number of train steps done.
          rounds: by round, the states of its students.

        Returns:
          The picture; None after a failure and on other processes than the first.
        """
        key = self._plan.ema_key()
        weights = to_host(join(self._layout, [handed_on(state, key) for state in rounds]))
        weights = dataclasses.replace(weights, base=self.base)
        if self._failed or self._maker is None or not is_first():
            return None
        try:
            return self._maker.make(self._plan, weights, step)
        except Exception as error:
            self._failed = True
            reason = one_line(error) or type(error).__name__
            self._say(f"warning: no more previews, because that of step {step} failed: {reason}")
            return None
