"""The loop of one stage: from its last checkpoint to its last step, or to a clean stop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from ddistill.data import Dataset, batch_indices, read_ahead
from ddistill.errors import TrainingError
from ddistill.settings import TrainingSettings
from ddistill.training.checkpoints import Checkpoints, write_json
from ddistill.training.interrupt import Interrupted, StopRequest
from ddistill.training.optimizers import learning_rates, update_rule
from ddistill.training.programs import Programs
from ddistill.training.progress import MetricsLog, Reporter
from ddistill.training.sharding import data_mesh, replicate, replicated
from ddistill.training.stages import StagePlan
from ddistill.training.state import TrainState, count_parameters, stream_key
from ddistill.training.step import Frozen, StepSettings
from ddistill.training.weights import abstract_state, initial_state, memory_budget, optimizers


@dataclass
class Clock:
    """Where the time of a stage went, in seconds; carried over from checkpoint to checkpoint."""

    train: float = 0.0
    compile: float = 0.0
    wait: float = 0.0


@dataclass
class Window:
    """Metrics of the steps since the last log line; they stay on the device until it is written."""

    rows: list[tuple[int, int, dict[str, jax.Array]]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    wait: float = 0.0

    def add(self, step: int, count: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of `count` steps, of which the first ends at `step` + 1."""
        self.rows.append((step, count, metrics))


class Feed:
    """Batches of a stage: batch s depends on (seed, s) alone.

    A data set that lies in memory is put on the devices once, by `place`, and a batch is a list of
    indices; a larger one is read ahead by a thread.
    """

    def __init__(self, dataset: Dataset, seed: int, batch: int, place: Sharding):
        self._dataset, self._seed, self._batch = dataset, seed, batch
        self.resident = isinstance(dataset.images, np.ndarray)
        self.images = jax.device_put(dataset.images, place) if self.resident else None
        self.labels = jax.device_put(dataset.labels, place)

    def _indices(self, step: int, count: int) -> np.ndarray:
        n = len(self._dataset)
        picks = [batch_indices(self._seed, s, self._batch, n) for s in range(step, step + count)]
        return np.stack(picks).astype(np.int32)

    def _load(self, step: int, count: int) -> tuple[Any, Any]:
        picks = self._indices(step, count)
        if self.resident:
            return None, picks
        return np.stack([self._dataset.take(p) for p in picks]), picks

    def batches(self, spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int, Any, Any]]:
        """Yields (step, count, images or None, indices) for spans of steps, read ahead."""
        return read_ahead(lambda span: (*span, *self._load(*span)), spans)


def spans(start: int, end: int, size: int, borders: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cuts start .. end into (step, count) of at most `size` that cross no multiple of a border."""
    step = start
    while step < end:
        stop = min([step + size, end] + [(step // b + 1) * b for b in borders])
        yield step, stop - step
        step = stop


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
        self.mesh = data_mesh(plan.settings.batch_size // plan.settings.accumulate)
        self.checkpoints = Checkpoints(plan.folder / "checkpoints", training.keep)
        self.clock = Clock()
        self.loss = math.nan

    def run(self, teacher: Any, start: Any, classifier: Any = None) -> dict[str, Any]:
        """Trains to the last step and returns the manifest.

        Args:
          teacher: the frozen teacher network, or None.
          start: parameters that the student starts from, or None for fresh ones.
          classifier: the frozen classifier, or None.

        Raises:
          Interrupted: a stop was asked for; the state is on disk.
          TrainingError: a metric is no longer finite.
        """
        plan = self.plan
        state, step = self._open(start)
        frozen = replicate(self.mesh, Frozen(teacher, plan.process, classifier))
        self.log = MetricsLog(plan.folder, plan.name, step, self.training.tensorboard)
        self.reporter.begin(plan.name, plan.settings.steps, step)
        try:
            state = self._train(state, step, frozen)
            if plan.settings.steps not in self.checkpoints.steps():
                self._save(plan.settings.steps, state)
            self.checkpoints.wait()
        finally:
            self.reporter.end()
            self.log.close()
            self.checkpoints.close()
        return self._finish(state)

    def _open(self, start: Any) -> tuple[TrainState, int]:
        place = replicated(self.mesh)
        # Shapes are enough to restore: what does not fit is found before anything compiles.
        shapes = abstract_state(self.plan, place)
        self.reporter.say(f"{self.plan.name}: {memory_budget(shapes)}")
        found = self.checkpoints.restore(shapes)
        if found is None:
            return initial_state(self.plan, start, place), 0
        state, record = found
        self.clock = Clock(**record["clock"])
        self.loss = record["loss"]
        step = int(state.step)
        self.reporter.say(f"{self.plan.name}: going on from the checkpoint at step {step}")
        return state, step

    def _step_settings(self) -> StepSettings:
        s = self.plan.settings
        return StepSettings(
            objective=self.plan.objective,
            modules=self.plan.modules,
            prediction=s.prediction,
            optimizers=optimizers(self.plan),
            accumulate=s.accumulate,
            ema_warmup=s.ema_warmup,
            conditional=s.conditional,
            flip=self.dataset.hflip,
            unroll=self.on_cpu,
            mesh=self.mesh,
        )

    def _train(self, state: TrainState, step: int, frozen: Frozen) -> TrainState:
        settings, every = self.plan.settings, self.training
        feed = Feed(self.dataset, self.plan.seed, settings.batch_size, replicated(self.mesh))
        key = stream_key(self.plan.seed, f"{self.plan.name}/train")
        rates = learning_rates(settings.optimizer, settings.steps)
        chunks: dict[int, Callable] = {}
        window = Window()
        cuts = spans(step, settings.steps, self.scan, (every.log_every, every.checkpoint_every))
        asked = time.perf_counter()
        for step, count, images, picks in feed.batches(cuts):
            window.wait += time.perf_counter() - asked
            images = feed.images if feed.resident else images
            new = False
            if count not in chunks:
                shapes = (state, frozen, images, feed.labels, picks)
                chunks[count], new = self.programs(
                    self._step_settings(),
                    update_rule(settings.optimizer),
                    count,
                    feed.resident,
                    shapes,
                )
            now = {name: rates[step : step + count] for name in self.plan.modules}
            begun = time.perf_counter()
            state, metrics = chunks[count](state, frozen, images, feed.labels, picks, key, now)
            if new:
                jax.block_until_ready(state)
                took = time.perf_counter() - begun
                self.clock.compile += took
                window.since += took
            window.add(step, count, metrics)
            step += count
            # Asked once: a signal between two looks would end the stage without its checkpoint.
            stopping = bool(self.stop)
            ends = step == settings.steps or stopping
            if step % every.log_every == 0 or step % every.checkpoint_every == 0 or ends:
                window = self._flush(window, step)
            if step % every.checkpoint_every == 0 or ends:
                self._save(step, state)
            if stopping and step < settings.steps:
                self.checkpoints.wait()
                raise Interrupted(f"stage '{self.plan.name}' at step {step}")
            asked = time.perf_counter()
        return state

    def _flush(self, window: Window, step: int) -> Window:
        """Brings the window's metrics to the host, checks them and writes their means."""
        rows = jax.device_get([metrics for _, _, metrics in window.rows])
        seconds = max(1e-9, time.perf_counter() - window.since)
        self.clock.train += seconds
        self.clock.wait += window.wait
        for (begin, count, _), metrics in zip(window.rows, rows):
            self._check_finite(begin, count, metrics)
        values = {k: float(np.mean(np.concatenate([r[k] for r in rows]))) for k in rows[0]}
        done = sum(count for _, count, _ in window.rows)
        rate = done * self.plan.settings.batch_size / seconds
        self.loss = values["loss"]
        extra = {
            "images_per_second": rate,
            "data_wait_share": min(1.0, window.wait / seconds),
            "seconds": self.clock.train,
            "compile_seconds": self.clock.compile,
        }
        self.log.write(step, {**values, **extra})
        self.reporter.advance(
            step,
            f"loss {self.loss:.4g}  {rate:.0f} images/s  data wait {extra['data_wait_share']:.0%}"
            f"  compiled in {self.clock.compile:.0f} s",
        )
        return Window()

    def _check_finite(self, begin: int, count: int, metrics: dict[str, np.ndarray]) -> None:
        for offset in range(count):
            bad = sorted(name for name, v in metrics.items() if not np.isfinite(v[offset]))
            if bad:
                value = metrics[bad[0]][offset]
                raise self._diverged(
                    begin + offset + 1, f"{', '.join(bad)} is not finite ({bad[0]} = {value})"
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
        for name, tree in state.params.items():
            for path, x in jax.tree_util.tree_leaves_with_path(tree):
                if not np.isfinite(np.asarray(x)).all():
                    where = f"parameter {jax.tree_util.keystr(path)} of the {name}"
                    raise self._diverged(step, f"{where} is not finite")

    def _save(self, step: int, state: TrainState) -> None:
        self._check_parameters(step, state)
        record = {
            "clock": vars(self.clock),
            "loss": self.loss,
            "digest": self.plan.digest,
            "settings": json_ready(self.plan.settings),
        }
        self.checkpoints.save(step, state, record, self.loss)

    def _finish(self, state: TrainState) -> dict[str, Any]:
        settings = self.plan.settings
        calls = settings.steps * settings.batch_size * self.plan.objective.teacher_calls()
        manifest = {
            "stage": self.plan.name,
            "digest": self.plan.digest,
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "parameters": count_parameters(state.params["student"]),
            "ema": list(settings.ema),
            "teacher_calls": calls,
            "train_seconds": self.clock.train,
            "compile_seconds": self.clock.compile,
            "data_wait_seconds": self.clock.wait,
            "final_loss": self.loss,
        }
        write_json(self.plan.manifest_path, manifest)
        return manifest


def json_ready(settings: Any) -> Any:
    """A settings dataclass as plain JSON values."""
    import dataclasses

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    return plain(dataclasses.asdict(settings))
