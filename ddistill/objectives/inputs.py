"""What a loss is given beside networks: a batch, and the levels of its stage as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from ddistill.conditions import Condition, Null
from ddistill.runtime.rng import named_keys
from ddistill.schedules import Schedule, index_time, subsequence
from ddistill.typing import Images, Index, Keys, Labels, RandomKey, Scalar


@struct.dataclass
class Batch:
    """A training batch.

    Attributes:
      image: `[B, H, W, C]` in [-1, 1]; zeros for an objective that learns from noise alone.
      label: `[B]` class ids.
      cond: what conditional networks are given: the classes (`label`) or the texts; None for
        unconditional ones.
      pairs: noise and the teacher's images from it, as many as images; None where none are needed.
      null: for texts, the condition of the empty text for every example; None for classes, of which
        the networks know the null class.
      shared: arrays `[B, ...]`, or trees of them, that earlier updates of the same step have
        computed (`LossAux`).
      memory: arrays that the objective carries from step to step, by name (`Objective.memory`).
      keys: `[B]` random keys, one for each example, so that the draws of an example depend neither
        on gradient accumulation nor on the layout of the batch on devices. Losses take named keys
        (`key`) and never these.
    """

    image: Images
    label: Labels
    cond: Condition | None
    keys: Keys
    pairs: "Pairs | None" = None
    null: Condition | None = None
    shared: Mapping[str, PyTree] = struct.field(default_factory=dict)
    memory: Mapping[str, Array] = struct.field(default_factory=dict)

    def key(self, name: str) -> Keys:
        """The keys of a named use, such as "noise", independent of all other names."""
        return named_keys(self.keys, name)

    def null_or(self, null_class: int) -> Null:
        """The null condition: that of texts, or the given class id."""
        return null_class if self.null is None else self.null

    @property
    def dropout_key(self) -> RandomKey:
        """The key of dropout, which is drawn once for all examples of a part of the batch."""
        return self.key("dropout")[0]


@struct.dataclass
class Pairs:
    """Where a teacher's deterministic sampler leads from noise.

    Attributes:
      noise: `[B, H, W, C]` standard normal; the sampler starts at noise * max(1, sigma_T).
      label: `[B]` class ids.
      image: `[B, H, W, C]`, what the sampler made of it.
      text: captions, for networks that read texts: token ids, which the train step encodes.
    """

    noise: Float[Array | np.ndarray, "B H W C"]
    label: Int[Array | np.ndarray, " B"]
    image: Float[Array | np.ndarray, "B H W C"]
    text: Condition | None = None

    @property
    def cond(self) -> Condition:
        """What conditional networks are given."""
        return jnp.asarray(self.label) if self.text is None else self.text


@struct.dataclass
class LevelTables:
    """The noise levels of a stage; make it with `make_level_tables`.

    Tables are filled up to one length by repeating their last row, so that students of different N,
    and a chain of them, are one compiled program.

    Attributes:
      teacher: `[rows]`, the levels that the teacher knows, with its own time inputs.
      student: `[rows]`, the teacher's levels at `grid`, with the student's own times; rows 0 .. N
        count.
      grid: `[rows]` indices of `teacher`, 0 = phi_0 < ... < phi_N, then repeated.
      count: N, the student's steps.
      low, high: the student is trained on levels low .. high of 1 .. N.
      full_range_share: the share of examples that are drawn from all of 1 .. N instead; None for
        none.
      classes: `[C]`, the classes that the student answers for, filled up; None where networks are
        not conditional.
      class_count: how many of them count.
      values: by name, the hyperparameters of the objective that are arguments of the compiled
        program: other values do not compile again.
      step: train steps done, filled in by the train step.
      steps: train steps of the stage.
    """

    teacher: Schedule
    student: Schedule
    grid: Int[Array, " T_1"]
    count: Int[Array, ""]
    low: Int[Array, ""]
    high: Int[Array, ""]
    full_range_share: Float[Array, ""] | None = None
    classes: Int[Array, " C"] | None = None
    class_count: Int[Array, ""] | None = None
    values: Mapping[str, Array] = struct.field(default_factory=dict)
    step: Index | np.ndarray = struct.field(default_factory=lambda: np.int32(0))
    steps: Index | np.ndarray = struct.field(default_factory=lambda: np.int32(1))

    @property
    def progress(self) -> Scalar:
        """The share of the training that is done, in [0, 1), for curricula."""
        return jnp.asarray(self.step, jnp.float32) / jnp.maximum(1, self.steps)

    def with_steps(self, steps: int) -> "LevelTables":
        """The tables for a stage of `steps` train steps."""
        return self.replace(steps=_integer(steps))  # type: ignore[attr-defined, no-any-return]


def student_levels(schedule: Schedule, grid: np.ndarray, time: str = "mapped") -> Schedule:
    """A student's `[N+1]` levels: the teacher's at a grid.

    Args:
      schedule: the teacher's, `[T+1]`.
      grid: `[N+1]` increasing indices of it, from 0.
      time: the time input of the student: "mapped" (the teacher's time) or "index" (0 .. N-1).
    """
    levels = subsequence(schedule, grid)
    return index_time(levels) if time == "index" else levels


@dataclass(frozen=True)
class Share:
    """The levels and classes that one student is trained on.

    Attributes:
      low, high: levels low .. high of 1 .. N; high 0 for N.
      full_range_share: share of the examples that are drawn from all of 1 .. N; None for none.
      classes: class ids; None where networks are not conditional.
      num_classes: classes of the data, the length of the table of classes.
    """

    low: int = 1
    high: int = 0
    full_range_share: float | None = None
    classes: Sequence[int] | None = None
    num_classes: int = 0


def make_level_tables(
    schedule: Schedule,
    grid: np.ndarray,
    time: str = "mapped",
    rows: int = 0,
    share: Share = Share(),
    values: Mapping[str, float] | None = None,
) -> LevelTables:
    """The levels of a stage as tables, at step 0 of 1.

    Args:
      schedule, grid, time: as in `student_levels`.
      rows: length of the tables, at least T+1; 0 for T+1.
      share: the levels and classes of the student.
      values: dynamic hyperparameters, see `LevelTables`.
    """
    student = student_levels(schedule, grid, time)
    rows = rows or schedule.num_steps + 1
    classes, outside = share.classes, share.full_range_share

    def fill(row):
        return np.concatenate([row, np.repeat(row[-1:], rows - len(row))])

    # Unlike jnp.asarray, device_put compiles nothing: plans are made before anything may.
    return LevelTables(
        teacher=jax.device_put(jax.tree.map(fill, schedule)),
        student=jax.device_put(jax.tree.map(fill, student)),
        grid=jax.device_put(fill(np.asarray(grid, np.int32))),
        count=_integer(len(grid) - 1),
        low=_integer(share.low),
        high=_integer(share.high or len(grid) - 1),
        full_range_share=None if outside is None else jax.device_put(np.float32(outside)),
        classes=None if classes is None else jax.device_put(_filled(classes, share.num_classes)),
        class_count=None if classes is None else _integer(len(classes)),
        values={
            k: jax.device_put(np.asarray(v, np.int32 if isinstance(v, int) else np.float32))
            for k, v in (values or {}).items()
        },
        step=_integer(0),
        steps=_integer(1),
    )


def _integer(value: int) -> Index:
    return jax.device_put(np.int32(value))


def _filled(classes: Sequence[int], length: int) -> Int[np.ndarray, " C"]:
    return np.append(classes, [classes[-1]] * (length - len(classes))).astype(np.int32)
