"""The loop of one stage: from its last checkpoint to its last step, or to a clean stop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ddistill.data import Dataset, batch_indices, read_ahead
from ddistill.errors import TrainingError
from ddistill.mapping import resolve
from ddistill.networks.weights import Weights
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
from ddistill.training.weights import (
    abstract_state,
    handed_on,
    initial_state,
    memory_budget,
    optimizers,
)


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
    indices; a larger one is read ahead by a thread. With several `seeds` every batch is one for
    each, along an axis of its own; `stacked` adds that axis for a single one too.
    """

    def __init__(
        self, dataset: Dataset, seeds: tuple[int, ...], batch: int, place: Sharding, stacked: bool
    ):
        self._dataset, self._seeds, self._batch, self._stacked = dataset, seeds, batch, stacked
        self.resident = isinstance(dataset.images, np.ndarray)
        self.images = jax.device_put(dataset.images, place) if self.resident else None
        self.labels = jax.device_put(dataset.labels, place)

    def _indices(self, step: int, count: int) -> np.ndarray:
        n = len(self._dataset)
        picks = [
            [batch_indices(seed, s, self._batch, n) for seed in self._seeds]
            for s in range(step, step + count)
        ]
        indices = np.array(picks, np.int32)
        return indices if self._stacked else indices[:, 0]

    def _load(self, step: int, count: int) -> tuple[Any, Any]:
        picks = self._indices(step, count)
        if self.resident:
            return None, picks
        images = self._dataset.take(picks.reshape(-1))
        return images.reshape(*picks.shape, *images.shape[1:]), picks

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
        self.frozen: set[int] = set()

    def run(
        self, teacher: Any, start: Any, classifier: Any = None
    ) -> tuple[dict[str, Any], Weights]:
        """Trains to the last step and returns the manifest and the weights that are handed on.

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
        return self._finish(state), handed_on(state, plan.ema_key())

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
            objective=self.plan.objective.program(),
            modules=self.plan.modules,
            prediction=s.prediction,
            optimizers=optimizers(self.plan),
            accumulate=s.accumulate,
            ema_warmup=s.ema_warmup,
            conditional=s.conditional,
            flip=self.dataset.hflip,
            unroll=self.on_cpu,
            mesh=self.mesh,
            freeze=s.students.on_divergence == "freeze",
        )

    def _keys(self) -> jax.Array:
        """The stream key of the stage, or one for each student."""
        plan = self.plan
        keys = [stream_key(m.seed, f"{plan.name}/train{m.stream}") for m in plan.members]
        return jnp.stack(keys) if plan.stacked else keys[0]

    def _rates(self) -> np.ndarray:
        """The learning rate of every step, `[steps]`, or `[steps, K]`."""
        plan = self.plan
        rates = [learning_rates(m.optimizer, plan.settings.steps) for m in plan.members]
        return np.stack(rates, axis=1) if plan.stacked else rates[0]

    def _train(self, state: TrainState, step: int, frozen: Frozen) -> TrainState:
        settings, every = self.plan.settings, self.training
        seeds = tuple(m.data_seed for m in self.plan.members)
        place, stacked = replicated(self.mesh), self.plan.stacked
        feed = Feed(self.dataset, seeds, settings.batch_size, place, stacked)
        key, rates = self._keys(), self._rates()
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
                    settings.students.count,
                    resolve(settings.students.mapping),
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
        values = self._means({k: np.concatenate([r[k] for r in rows]) for k in rows[0]}, step)
        done = sum(count for _, count, _ in window.rows)
        rate = done * self.plan.settings.batch_size * len(self.plan.members) / seconds
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

    def _means(self, metrics: dict[str, np.ndarray], step: int) -> dict[str, float]:
        """Means over the steps of a window, over the students that learn, and of each student."""
        if not self.plan.stacked:
            return {name: float(np.mean(v)) for name, v in metrics.items()}
        diverged = metrics.pop("diverged")
        self._tell_frozen(diverged[-1], step)
        learns = diverged == 0
        means = {name: float(np.mean(v[learns])) for name, v in metrics.items()}
        for k in range(len(self.plan.members)):
            last = int(diverged[-1, k]) or step + 1
            means[f"images/{k}"] = float(min(step, last - 1) * self.plan.settings.batch_size)
            for name in ("loss", "grad_norm", "ema_distance"):
                if name in metrics and learns[:, k].any():
                    means[f"{name}/{k}"] = float(np.mean(metrics[name][learns[:, k], k]))
        return means

    def _tell_frozen(self, diverged: np.ndarray, step: int) -> None:
        """Names the students that have stopped to learn; raises when none is left."""
        for k in np.flatnonzero(diverged):
            if k not in self.frozen:
                self.frozen.add(int(k))
                self.reporter.say(
                    f"{self.plan.name}: {self._who(k)} diverged at step {int(diverged[k])} and is "
                    "frozen at its last finite weights; the others go on"
                )
        if np.all(diverged):
            raise self._diverged(step, "every student has diverged and is frozen")

    def _who(self, k: Any) -> str:
        label = self.plan.members[int(k)].label
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
        for name, tree in state.params.items():
            for path, x in jax.tree_util.tree_leaves_with_path(tree):
                if not np.isfinite(np.asarray(x)).all():
                    where = f"parameter {jax.tree_util.keystr(path)} of the {name}"
                    if self.plan.stacked:
                        own = np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1)
                        where += f" ({self._who(np.argmin(own))})"
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
        per_image = sum(m.objective.teacher_calls() for m in self.plan.members)
        calls = settings.steps * settings.batch_size * per_image
        every = count_parameters(state.params["student"])
        manifest = {
            "stage": self.plan.name,
            "digest": self.plan.digest,
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "students": len(self.plan.members),
            "parameters": every // (settings.students.count or 1),
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
