"""Shortcut models: one step equals two steps of half its length, for any number of steps.

Source: arXiv 2410.12557, with the settings of its released code. The student is told where its step
ends, here as the time of that level. Most examples are at the shortest step, one level, and learn
the velocity of the path as in flow matching. The others have a step of 2^k levels, and learn what
two steps of half that length do, taken by a moving average of the student.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ddistill.conditions import Condition
from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import ddim_step, expand, flow_time
from ddistill.errors import ConfigError
from ddistill.objectives.base import check_not_negative
from ddistill.objectives.distances import mean_per_example
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import (
    DENOISER,
    Auxiliary,
    Networks,
    StageFacts,
)
from ddistill.objectives.path_slopes import velocity
from ddistill.objectives.sampling import draw_index, uniform_index
from ddistill.objectives.states import noised
from ddistill.objectives.two_time import TwoTime, check_prediction, mean_of, told
from ddistill.schedules import Level
from ddistill.typing import Images, Labels, Metrics, PerExample

Tree = TypeVar("Tree", bound=PyTree)


@dataclass(frozen=True)
class Shortcut(TwoTime):
    """Shortcut models (arXiv 2410.12557): one step does what two steps of half its length do.

    Attributes:
      doubled_every: one example in this number has a step of 2 levels or more; the others have the
        shortest step.
      target_ema: rate of the moving average that takes the two half steps, the share that remains
        in a step; 0 is the student itself, as a constant.
      velocity_bound: bound on the mean velocity of two half steps, and on the image between them,
        per pixel on the straight path; 0 for none. The velocity of the path is not bounded, because
        a bound would change its mean.
    """

    doubled_every: int = 8
    target_ema: float = 0.999
    velocity_bound: float = 4.0

    def __post_init__(self):
        super().__post_init__()
        check_not_negative(self, "velocity_bound")
        if self.doubled_every < 2:
            raise ConfigError(
                f"objective.doubled_every={self.doubled_every} must be 2 or more: without examples "
                "of the shortest step nothing is learnt from data or teacher."
            )
        if not 0.0 <= self.target_ema < 1.0:
            raise ConfigError(
                f"objective.target_ema={self.target_ema} must be in [0, 1); 0 is no average."
            )

    def prepare(self, facts: StageFacts) -> Self:
        """As is.

        Raises:
          ConfigError: a number of levels that is no power of two, a prediction that divides, or a
            batch that is no multiple of `doubled_every`.
        """
        steps = facts.num_steps
        if steps < 2 or steps & (steps - 1):
            raise ConfigError(
                f"a grid of {steps} steps: steps of objective 'shortcut' double, from one level to "
                f"all of them. Set grid.steps to a power of two, such as "
                f"{max(2, 1 << steps.bit_length() - 1)}."
            )
        check_prediction(facts.networks.student_prediction)
        _check_batch(facts.batch_size, self.doubled_every)
        return super().prepare(facts)

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The network of the half steps."""
        return {"target": Auxiliary(DENOISER, start="average", rate=self.target_ema)}

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The squared distance to the velocity of the path, or to that of two half steps."""
        count = batch.image.shape[0]
        _check_batch(count, self.doubled_every)
        doubled = jnp.arange(count) % self.doubled_every == 0
        index, length = self.steps(batch, tables)
        index = jnp.where(doubled, index, draw_index(batch.key("level"), tables))
        length = jnp.where(doubled, length, 1)
        state = noised(batch, tables, index, batch.cond)
        plain = velocity(self.direction(networks, state))
        few = every(self.doubled_every, (state.z, index, length, state.cond))
        halves = self.half_steps(networks["target"], few, tables)
        target = plain.at[:: self.doubled_every].set(halves)
        student = told(networks["student"], tables, index - length)
        key = {} if state.dropout_key is None else {"key": state.dropout_key}
        found = velocity(student(state.z, state.level, state.cond, **key))
        values = mean_per_example(jnp.square(found - jax.lax.stop_gradient(target)))
        metrics = {
            "velocity_distance": mean_of(values, ~doubled),
            "doubled_distance": mean_of(values, doubled),
        }
        return values, metrics

    def steps(self, batch: Batch, tables: LevelTables) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """Rows where steps of 2^k levels begin, multiples of 2^k, and 2^k, of 2 .. N levels."""
        longest = jnp.round(jnp.log2(tables.count)).astype(jnp.int32)
        length = 1 << uniform_index(batch.key("length"), 1, longest)
        part = uniform_index(batch.key("doubled level"), 1, tables.count // length)
        return part * length, length

    def half_steps(
        self,
        network: NetworkDenoiser,
        few: tuple[Images, Labels, Labels, Condition | None],
        tables: LevelTables,
    ) -> Images:
        """The mean velocity `[b, H, W, C]` of two half steps, a constant.

        Args:
          network: takes the half steps.
          few: the noisy images, their rows, the lengths of the whole steps, and the conditions.
          tables: the levels.
        """
        z, index, length, cond = few
        rows = (index, index - length // 2, index - length)
        here, middle, there = (tables.student.at(row) for row in rows)
        first = told(network, tables, rows[1])(z, here, cond)
        between = self._bounded(ddim_step(first, z, here, middle), middle)
        second = told(network, tables, rows[2])(between, middle, cond)
        spans = [flow_time(a) - flow_time(b) for a, b in ((here, middle), (middle, there))]
        share = expand(spans[0] / (spans[0] + spans[1]), z)
        mean = share * velocity(first) + (1.0 - share) * velocity(second)
        if self.velocity_bound:
            mean = jnp.clip(mean, -self.velocity_bound, self.velocity_bound)
        return jax.lax.stop_gradient(mean)

    def _bounded(self, z: Images, level: Level) -> Images:
        """The image with `velocity_bound` on the straight path."""
        if not self.velocity_bound:
            return z
        bound = expand(self.velocity_bound * (level.alpha + level.sigma), z)
        return jnp.clip(z, -bound, bound)


def every(count: int, tree: Tree) -> Tree:
    """Every `count`-th example, from the first one on."""
    found: Tree = jax.tree.map(lambda x: x[::count], tree)
    return found


def _check_batch(size: int, each: int) -> None:
    if size % each:
        raise ConfigError(
            f"objective.doubled_every={each}, but {size} examples are seen at once (batch_size "
            "over the micro-batches): it must be a multiple."
        )
