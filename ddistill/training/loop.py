"""The loop of one stage: from its last checkpoint to its last step, or to a clean stop."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.data import Dataset
from ddistill.errors import TrainingError
from ddistill.networks.weights import Weights
from ddistill.objectives.base import student_updates
from ddistill.objectives.inputs import Pairs
from ddistill.optimizers import learning_rates, update_rule
from ddistill.planning.plan import StagePlan
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import write_json
from ddistill.runtime.hosts import agree, from_first, is_first, several, wait
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.metrics_log import open_log
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import place, to_host
from ddistill.settings import TrainingSettings, to_plain
from ddistill.training.alarms import AlarmMonitor, overflow
from ddistill.training.batches import BatchReader, spans
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.clock import Clock
from ddistill.training.compiled import Chunk, Programs, step_settings
from ddistill.training.initial import Start, abstract_state, initial_state, memory_budget
from ddistill.training.metrics_buffer import MetricsBuffer
from ddistill.training.rounds import advance, join_state, split, split_state
from ddistill.training.scores import Score
from ddistill.training.state import TrainState, count_parameters
from ddistill.training.step import StepInputs
from ddistill.training.trained import handed_on, state_at

# On several hosts: how long a signal may wait until all processes know of it.
_SECONDS_BETWEEN_ASKING = 3.0


class StageRun:
    """One stage being trained."""

    def __init__(
        self,
        plan: StagePlan,
        dataset: Dataset,
        training: TrainingSettings,
        reporter: Reporter,
        stop: StopRequest,
        programs: Programs,
    ):
        self.programs = programs
        self.plan, self.training, self.reporter, self.stop = plan, training, reporter, stop
        self.dataset = dataset
        self.on_cpu = jax.default_backend() == "cpu"
        self.scan = training.scan_steps or (1 if self.on_cpu else 8)
        self.layout = plan.layout(training.mesh)
        self.checkpoints = Checkpoints(plan.folder / "checkpoints", training.keep)
        self.clock = Clock()
        self.loss, self.score = math.nan, Score(plan.objective.quality_metric)
        self.frozen: set[int] = set()
        self.alarms = AlarmMonitor(plan, training.log_every, self._say, self._diverged)
        self._ask_every, self._unasked = 1, 0

    def run(
        self,
        teacher: Any,
        start: Start | None,
        classifier: Any = None,
        pairs: Pairs | None = None,
    ) -> tuple[dict[str, Any], Weights]:
        """Trains to the last step and returns the manifest and the weights that are handed on.

        Args:
          teacher: the frozen teacher network, or None.
          start: what the networks start from; None for fresh ones.
          classifier: the frozen classifier, or None.
          pairs: what the stage's batches draw pairs from, or None.

        Raises:
          Interrupted: a stop was asked for; the state is on disk.
          TrainingError: a metric is no longer finite.
        """
        plan = self.plan
        state, step = self._open(start)
        self.log = open_log(plan.folder, plan.name, step, self.training.tensorboard)
        self.reporter.begin(plan.name, plan.settings.steps, step)
        together = not several()
        try:
            state = self._train(state, step, self._frozen(teacher, classifier, pairs))
            if plan.settings.steps not in self.checkpoints.steps():
                self._save(plan.settings.steps, state)
            self.checkpoints.wait()
            state = self._chosen(state)
            together = True
        except Interrupted:
            together = True
            raise
        finally:
            self.reporter.end()
            self.log.close()
            if together:  # else other hosts may be elsewhere, and closing would wait for them
                self.checkpoints.close()
        return self._finish(state), handed_on(state, plan.ema_key())

    def _chosen(self, state: TrainState) -> TrainState:
        """The state that the stage hands on: the last step's, which is given, or the best one."""
        best = (
            from_first(self.checkpoints.best)
            if self.plan.settings.select_checkpoint == "best"
            else None
        )
        if best in (None, int(state.step)):
            return state
        self.reporter.say(f"{self.plan.name}: the best checkpoint, of step {best}, is handed on")
        return state_at(self.checkpoints, self.plan, best, self.layout)

    def _open(self, start: Start | None) -> tuple[TrainState, int]:
        # Shapes are enough to restore: what does not fit is found before anything compiles.
        shapes = abstract_state(self.plan, self.layout)
        self.reporter.say(f"{self.plan.name}: {memory_budget(shapes)}")
        found = self.checkpoints.restore(shapes)
        if found is None:
            return initial_state(self.plan, start, self.layout), 0
        state, record = found
        self.clock = Clock(**{name: record["clock"][name] for name in vars(Clock())})
        self.loss = math.nan if record["loss"] is None else record["loss"]
        self.score.restore(record["scores"])
        self.alarms.restore(record["alarms"])
        step = int(state.step)
        self.reporter.say(f"{self.plan.name}: going on from the checkpoint at step {step}")
        return state, step

    def _frozen(self, teacher: Any, classifier: Any, pairs: Pairs | None) -> list[StepInputs]:
        """What a step reads, by turn."""
        layout = self.layout
        teacher = place(teacher, layout.of_teacher(teacher))
        classifier, pairs = (place(x, layout.whole()) for x in (classifier, pairs))
        lies = layout.by_student() if layout.in_turn else layout.whole()
        return [
            StepInputs(teacher, place(tables, lies), classifier, pairs)
            for tables in split(layout, self.plan.tables)
        ]

    def _keys(self) -> list[jax.Array]:
        """The stream key of the stage, or one for each student; by turn."""
        plan = self.plan
        keys = [stream_key(m.seed, f"{plan.name}/train{m.stream}") for m in plan.students]
        return split(self.layout, jnp.stack(keys) if plan.stacked else keys[0])

    def _rates(self) -> dict[str, np.ndarray]:
        """By network the learning rate of every step, `[steps]`, or `[steps, K]`."""
        settings, every = self.plan.settings, {}
        for name in self.plan.modules:
            used = [settings.optimizers.get(name, m.optimizer) for m in self.plan.students]
            rates = [learning_rates(o, settings.steps) for o in used]
            every[name] = np.stack(rates, axis=1) if self.plan.stacked else rates[0]
        return every

    def _train(self, state: TrainState, step: int, frozen: list[StepInputs]) -> TrainState:
        settings, every = self.plan.settings, self.training
        reader = BatchReader(
            self.dataset,
            self.plan.students,
            settings.batch_size,
            self.layout,
            images=bool(self.plan.objective.requires.images),
        )
        steps = _Steps(self, reader, frozen)
        rounds = split_state(self.layout, state)
        del state  # its buffers are the turns' or are not needed
        window = MetricsBuffer()
        cuts = spans(step, settings.steps, self.scan, (every.log_every, every.checkpoint_every))
        asked = time.perf_counter()
        for step, count, images, batch_indices in reader.batches(cuts):
            window.wait += time.perf_counter() - asked
            rounds, metrics, took = steps(rounds, step, count, images, batch_indices)
            self.clock.compile += took
            window.add(step, count, metrics, took)
            step += count
            # Asked once: a signal between two looks would end the stage without its checkpoint.
            stopping = self._is_asked_to_stop()
            ends = step == settings.steps or stopping
            if step % every.log_every == 0 or step % every.checkpoint_every == 0 or ends:
                window = self._flush(window, step)
            if step % every.checkpoint_every == 0 or ends:
                self.log.sync()
                self._save(step, join_state(self.layout, rounds))
            if stopping and step < settings.steps:
                self.checkpoints.wait()
                raise Interrupted(f"stage '{self.plan.name}' at step {step}")
            asked = time.perf_counter()
        return join_state(self.layout, rounds)

    def _is_asked_to_stop(self) -> bool:
        """Whether a stop was asked for, of any process.

        Asking the others waits for the devices, so that it is done every few seconds only.
        """
        if not several():
            return bool(self.stop)
        self._unasked += 1
        if self._unasked < self._ask_every:
            return False
        self._unasked = 0
        return agree(bool(self.stop))

    def _flush(self, window: MetricsBuffer, step: int) -> MetricsBuffer:
        """Brings the window's metrics to the host, checks them and writes their means."""
        rows = to_host([metrics for _, _, metrics in window.rows])
        seconds = window.seconds()
        self.clock.train += seconds
        self.clock.wait += window.wait
        for (begin, count, _), metrics in zip(window.rows, rows):
            self._check_finite(begin, count, metrics)
        every = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
        self.score.add(every)
        values = self._means(every, step)
        dispatches = len(window.rows)
        self._ask_every = from_first(
            lambda: max(1, int(_SECONDS_BETWEEN_ASKING * dispatches / seconds))
        )
        images = window.timed * self.plan.settings.batch_size * len(self.plan.students)
        rate = {"images_per_second": images / seconds} if images else {}
        self.loss = values.get("loss", self.loss)
        share = {"data_wait_share": min(1.0, window.wait / seconds)}
        spent = {"seconds": self.clock.train, "compile_seconds": self.clock.compile}
        extra = {**rate, **share, **spent}
        self.log.write(step, {**values, **extra})
        self.alarms(values, step)
        self.reporter.advance(
            step,
            f"loss {self.loss:.4g}"
            + "".join(f"  {value:.{0 if value > 10 else 1}f} images/s" for value in rate.values())
            + f"  data wait {share['data_wait_share']:.0%}",
        )
        return MetricsBuffer()

    def _means(self, metrics: dict[str, np.ndarray], step: int) -> dict[str, float]:
        """Means over the steps of a window, over the students that learn, and of each student.

        A metric of an update is averaged over the steps at which the update ran.
        """
        counts = {n: metrics.pop(f"ran/{n}") for n in list(metrics) if f"ran/{n}" in metrics}
        diverged = metrics.pop("diverged", None)
        learns = np.ones(len(next(iter(metrics.values()))), bool)
        if diverged is not None:
            ended = diverged[-1]
            self._tell_frozen(ended, step)
            learns = diverged == 0

        def mean(name: str, chosen: Any) -> dict[str, float]:
            used = learns[chosen]
            if name in counts:
                used = used & (counts[name][chosen] > 0)
            return {name: float(np.mean(metrics[name][chosen][used]))} if used.any() else {}

        means = {name: m for n in metrics for name, m in mean(n, slice(None)).items()}
        for k in range(len(self.plan.students) if diverged is not None else 0):
            last = int(ended[k]) or step + 1
            means[f"images/{k}"] = float(min(step, last - 1) * self.plan.settings.batch_size)
            for name in metrics:
                means |= {f"{n}/{k}": m for n, m in mean(name, (slice(None), k)).items()}
        return means

    def _tell_frozen(self, diverged: np.ndarray, step: int) -> None:
        """Names the students that have stopped to learn; raises when none is left."""
        for k in np.flatnonzero(diverged):
            if k not in self.frozen:
                self.frozen.add(int(k))
                self.reporter.say(
                    f"{self.plan.name}: {self._who(k)} diverged at step {int(diverged[k])} and is "
                    "frozen as it was then; the others go on, and it will not be scored"
                )
        if np.all(diverged):
            raise self._diverged(step, "every student has diverged and is frozen")

    def _say(self, text: str) -> None:
        self.reporter.say(f"{self.plan.name}: {text}")

    def _who(self, k: Any) -> str:
        label = self.plan.students[int(k)].label
        return f"student {int(k)}" + (f" ({label})" if label else "")

    def _check_finite(self, begin: int, count: int, metrics: dict[str, np.ndarray]) -> None:
        for offset in range(count):
            bad = sorted(n for n, v in metrics.items() if not np.all(np.isfinite(v[offset])))
            if bad:
                values = np.atleast_1d(metrics[bad[0]][offset])
                k = int(np.argmin(np.isfinite(values)))
                whose = f" of {self._who(k)}" if self.plan.stacked else ""
                raise self._diverged(
                    begin + offset + 1,
                    f"{', '.join(bad)}{whose} is not finite ({bad[0]} = {values[k]})",
                )

    def _diverged(self, step: int, what: str) -> TrainingError:
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        return TrainingError(
            f"Stage '{self.plan.name}', step {step}: {what}. Training has stopped; "
            + (f"the checkpoint at step {kept[-1]} is kept. " if kept else "")
            + "Lower the learning rate or set optimizer.clip, and choose another --workdir "
            "(or delete the stage's folder) to begin again."
        )

    def _check_parameters(self, step: int, state: TrainState) -> None:
        """Keeps an update that has just overflowed, which no metric has seen yet, off the disk."""
        where, student = overflow(state.params, self.plan.stacked)
        where += "" if student is None else f" ({self._who(student)})"
        if agree(bool(where)):
            raise self._diverged(step, f"{where or 'a parameter on another host'} is not finite")

    def _save(self, step: int, state: TrainState) -> None:
        self._check_parameters(step, state)
        # Not one that is there because the run was stopped: a run that is not has none there.
        regular = step % self.training.checkpoint_every == 0 or step == self.plan.settings.steps
        score = self.score.take() if regular else None
        record = {
            "clock": vars(self.clock),
            "loss": self.loss,
            "score": score,
            "scores": self.score.record(),
            "alarms": self.alarms.record(),
            "digest": self.plan.digest,
            "settings": to_plain(dataclasses.asdict(self.plan.settings)),
        }
        self.checkpoints.save(step, state, record, score)

    def _finish(self, state: TrainState) -> dict[str, Any]:
        settings = self.plan.settings
        # Guidance asks the teacher twice.
        each = 1 if settings.guidance == 1.0 else 2
        examples = settings.steps * settings.batch_size
        calls = [round(examples * m.objective.teacher_calls(each)) for m in self.plan.students]
        every = count_parameters(state.params["student"])
        manifest = {
            "stage": self.plan.name,
            "digest": self.plan.digest,
            "steps": settings.steps,
            "updates": student_updates(self.plan.objective, settings.steps),
            "batch_size": settings.batch_size,
            "students": len(self.plan.students),
            "parameters": every // (settings.students.count or 1),
            "ema": list(settings.ema),
            "teacher_calls": sum(calls),
            "teacher_calls_of_each": calls,
            "diverged": np.asarray(to_host(state.diverged)).tolist() if self.plan.stacked else [],
            "train_seconds": self.clock.train,
            "compile_seconds": self.clock.compile,
            "data_wait_seconds": self.clock.wait,
            "final_loss": self.loss,
            "handed_on": int(state.step),
        }
        if is_first():
            write_json(self.plan.manifest_path, manifest)
        wait(f"{self.plan.name} is complete")
        return manifest


class _Steps:
    """The train steps of one stage, of all its students, on batches as its feed gives them."""

    def __init__(self, run: StageRun, reader: BatchReader, frozen: list[StepInputs]):
        self._run, self._feed, self._frozen = run, reader, frozen
        self._keys, self._rates = run._keys(), run._rates()
        self._chunks: dict[int, Chunk] = {}

    def __call__(
        self, rounds: list[TrainState], step: int, count: int, images: list, batch_indices: list
    ) -> tuple[list[TrainState], dict[str, jax.Array], float]:
        """States and metrics of `count` steps after `step`, and seconds that compiling took."""
        run, labels, new = self._run, self._feed.labels, False
        if count not in self._chunks:
            shapes = (rounds[0], self._frozen[0], images[0], labels, batch_indices[0])
            settings = run.plan.settings
            rule = tuple(update_rule(settings.optimizer_of(name)) for name in run.plan.modules)
            wanted = step_settings(run.plan, run.layout, run.dataset.hflip)
            made = run.programs(wanted, rule, count, self._feed.resident, shapes)
            self._chunks[count], new = made
        now = {name: rates[step : step + count] for name, rates in self._rates.items()}
        rates = split(run.layout, now, axis=1)
        chunk, frozen, keys = self._chunks[count], self._frozen, self._keys
        if new:
            run._say("compiling the train step")
        begun = time.perf_counter()
        rounds, metrics = advance(
            run.layout, chunk, rounds, frozen, images, labels, batch_indices, keys, rates
        )
        if not new:
            return rounds, metrics, 0.0
        jax.block_until_ready(rounds)
        seconds = time.perf_counter() - begun
        run._say(f"compiled in {seconds:.1f} s")
        return rounds, metrics, seconds
