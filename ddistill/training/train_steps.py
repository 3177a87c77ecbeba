"""The compiled train steps of a stage, dispatched round by round."""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.optimizers import learning_rates, update_rule
from ddistill.planning.plan import StagePlan
from ddistill.runtime.console import duration
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout
from ddistill.training.batches import BatchReader
from ddistill.training.compiled import Chunk, Programs, step_settings
from ddistill.training.rounds import advance, split
from ddistill.training.state import TrainState
from ddistill.training.step_inputs import StepInputs
from ddistill.training.timings import Timings


class TrainSteps:
    """The train steps of one stage, of all its students, on batches of a reader."""

    def __init__(
        self,
        plan: StagePlan,
        layout: Layout,
        programs: Programs,
        reader: BatchReader,
        inputs: Sequence[StepInputs],
        timings: Timings | None = None,
    ):
        """Compiles nothing yet.

        Args:
          plan: the stage.
          layout: where its arrays lie.
          programs: the compiled programs of the run.
          reader: of the batches.
          inputs: by round, what a step reads beside state and batch.
          timings: durations of earlier compilations; receives those of this stage.
        """
        self._timings = timings or Timings()
        self._plan, self._layout, self._programs = plan, layout, programs
        self._reader, self._inputs = reader, list(inputs)
        self._keys = split(layout, _keys(plan))
        self._rates = _rates(plan)
        self._chunks: dict[int, Chunk] = {}

    def __call__(
        self,
        rounds: list[TrainState],
        span: tuple[int, int],
        batches: tuple[list, list],
        say: Callable[[str], None],
    ) -> tuple[list[TrainState], dict[str, jax.Array], float]:
        """Trains on one span of steps.

        Args:
          rounds: by round, the states of its students.
          span: the step before the first one, and the number of steps.
          batches: by round, images and indices, as the reader gives them.
          say: told when a program is compiled.

        Returns:
          The states, by name the metrics of the steps, and the seconds that compiling took.
        """
        (step, count), (images, indices) = span, batches
        layout, conditions, new = self._layout, self._reader.conditions, False
        if count not in self._chunks:
            shapes = (rounds[0], self._inputs[0], images[0], conditions, indices[0])
            settings = self._plan.settings
            rule = tuple(update_rule(settings.optimizer_of(name)) for name in self._plan.modules)
            wanted = step_settings(self._plan, layout, self._reader.hflip)
            resident = self._reader.resident
            self._chunks[count], new = self._programs(wanted, rule, count, resident, shapes)
        now = {name: rates[step : step + count] for name, rates in self._rates.items()}
        if new:
            known = self._timings.compile_seconds(self._plan, count)
            last = "" if known is None else f" (about {duration(known)} last time)"
            say(f"compiling the train step{last}")
        begun = time.perf_counter()
        chunk, inputs, keys = self._chunks[count], self._inputs, self._keys
        rates = split(layout, now, axis=1)
        rounds, metrics = advance(
            layout, chunk, rounds, inputs, images, conditions, indices, keys, rates
        )
        if not new:
            return rounds, metrics, 0.0
        jax.block_until_ready(rounds)
        seconds = time.perf_counter() - begun
        say(f"compiled in {seconds:.1f} s")
        self._timings.note_compilation(self._plan, count, seconds)
        return rounds, metrics, seconds


def _keys(plan: StagePlan) -> jax.Array:
    """The stream key of the stage, or `[K]`, one for each student."""
    keys = [stream_key(m.seed, f"{plan.name}/train{m.stream}") for m in plan.students]
    return jnp.stack(keys) if plan.stacked else keys[0]


def _rates(plan: StagePlan) -> dict[str, np.ndarray]:
    """By network the learning rate of every step, `[steps]`, or `[steps, K]`."""
    settings, every = plan.settings, {}
    for name in plan.modules:
        used = [settings.optimizers.get(name, m.optimizer) for m in plan.students]
        rates = [learning_rates(o, settings.steps) for o in used]
        every[name] = np.stack(rates, axis=1) if plan.stacked else rates[0]
    return every
