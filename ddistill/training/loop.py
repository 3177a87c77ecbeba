"""The loop of one stage: from its last checkpoint to its last step, or to a clean stop."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Int

from ddistill.denoiser import Denoiser
from ddistill.errors import TrainingError
from ddistill.networks.latent_encoding import LatentEncoder
from ddistill.networks.text_encoding import TextEncoder
from ddistill.networks.weights import Weights
from ddistill.objectives.base import student_updates
from ddistill.objectives.distances import ClassifierLike
from ddistill.objectives.inputs import Pairs
from ddistill.parsing import to_plain
from ddistill.planning.manifests import TrainedManifest
from ddistill.planning.plan import StagePlan
from ddistill.runtime.files import write_json
from ddistill.runtime.hosts import agree, from_first, is_first, several, wait
from ddistill.runtime.interrupt import Interrupted
from ddistill.runtime.metrics_log import open_log
from ddistill.runtime.sharding import place, to_host
from ddistill.students import RoutedDenoiser
from ddistill.training.alarms import AlarmMonitor, overflow
from ddistill.training.batches import BatchReader, spans, student_rows
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.clock import Clock
from ddistill.training.initial import Start, abstract_state, initial_state, memory_budget
from ddistill.training.measured import Numbers, measure
from ddistill.training.metrics_buffer import MetricsBuffer, find_not_finite, mean_metrics
from ddistill.training.previews import StagePreviews
from ddistill.training.rounds import join_state, split, split_state
from ddistill.training.run_context import ALONE, RunContext, StagePlace
from ddistill.training.scores import Score
from ddistill.training.state import TrainState, count_parameters
from ddistill.training.step_inputs import StepInputs
from ddistill.training.stop_poll import StopPoll
from ddistill.training.timings import Pace
from ddistill.training.train_steps import TrainSteps
from ddistill.training.trained import handed_on, state_at
from ddistill.typing import Params
from ddistill.wrapped_denoiser import network_params


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What a stage learns from beside the data set.

    Attributes:
      teacher: the teacher's denoiser, or None.
      classifier: the classifier of its losses, or None.
      pairs: noise and images that its batches draw pairs from, or None.
      text_encoder: the encoder of its captions, or None.
      latent_encoder: the encoder of its images, or None.
      bases: by name, the parameters that networks of low rank are factors for.
      text_groups: `[N]`, for students of texts the group of every caption of the data, else None.
    """

    teacher: Denoiser | RoutedDenoiser | None = None
    classifier: ClassifierLike | None = None
    pairs: Pairs | None = None
    text_encoder: TextEncoder | None = None
    latent_encoder: LatentEncoder | None = None
    bases: Mapping[str, Params] = dataclasses.field(default_factory=dict)
    text_groups: Int[np.ndarray, " N"] | None = None


class StageRun:
    """One stage being trained."""

    def __init__(self, plan: StagePlan, context: RunContext, place: StagePlace = ALONE):
        self.plan, self.context, self.place = plan, context, place
        self.training, self.reporter = context.settings.training, context.reporter
        # Convolutions in a loop body are slow on CPU.
        self.scan = self.training.scan_steps or (1 if jax.default_backend() == "cpu" else 8)
        self.layout = plan.layout(self.training.mesh)
        self.checkpoints = Checkpoints(
            plan.folder / "checkpoints", self.training.keep, every=plan.settings.keep_every
        )
        self.clock = Clock()
        self.loss, self.score = math.nan, Score(plan.objective.diagnostics.quality_metric)
        self.diverged: set[int] = set()
        self.alarms = AlarmMonitor(plan, self.training.log_every, self._say, self._failed)
        self.stopping = StopPoll(context.stop)
        self.pace = Pace(context.timings.step_seconds(plan))
        self.previews = StagePreviews(
            plan, self.layout, context.previews, self.training.preview_every, self._say
        )

    def run(
        self, start: Start | None = None, learnt: Learnt = Learnt()
    ) -> tuple[TrainedManifest, Weights]:
        """Trains to the last step and returns the manifest and the selected weights.

        Args:
          start: what the networks start from; None for fresh ones.
          learnt: teacher, classifier, pairs and encoders.

        Raises:
          Interrupted: a stop was requested; the state is on disk.
          TrainingError: a metric is not finite any more, or an alarm is fatal.
        """
        plan, self.base = self.plan, learnt.bases.get("student")
        self.previews.base = self.base
        state, step = self._open(start)
        self.log = open_log(plan.folder, plan.name, step)
        self.loggers = self.context.loggers.open(plan.name, step)
        self.info = self.place.info(plan, step, self.context.stop)
        together = not several()
        try:
            self.context.call_back(lambda callback: callback.on_stage_begin(self.info))
            after = self.context.timings.left(self.place.later)
            self.reporter.begin(self.place.title(plan), plan.settings.steps, step, after)
            self.text_groups = learnt.text_groups
            state = self._train(state, step, self._inputs(learnt))
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
            self.loggers.close()
            if together:  # else other hosts may be elsewhere, and closing would wait for them
                self.checkpoints.close()
        weights = dataclasses.replace(handed_on(state, plan.ema_key()), base=self.base)
        manifest = self._finish(state, measure(plan, weights, self.context.dataset, self._say))
        self.context.call_back(lambda callback: callback.on_stage_end(self.info, manifest))
        return manifest, weights

    def _chosen(self, state: TrainState) -> TrainState:
        """The state that the stage hands on: at its last step, or at its best checkpoint."""
        best = (
            from_first(self.checkpoints.best)
            if self.plan.settings.select_checkpoint == "best"
            else None
        )
        if best in (None, int(state.step)):
            return state
        self._say(f"the best checkpoint, of step {best}, is the result of the stage")
        return state_at(self.checkpoints, self.plan, best, self.layout)

    def _open(self, start: Start | None) -> tuple[TrainState, int]:
        # Shapes are enough to restore: a state that does not fit is found before anything compiles.
        shapes = abstract_state(self.plan, self.layout)
        self._say(memory_budget(shapes))
        found = self.checkpoints.restore(shapes)
        if found is None:
            return initial_state(self.plan, start, self.layout), 0
        state, record = found
        self.clock = Clock(**{name: record["clock"][name] for name in vars(Clock())})
        self.loss = math.nan if record["loss"] is None else record["loss"]
        self.score.restore(record["scores"])
        self.alarms.restore(record["alarms"])
        step = int(state.step)
        self._say(f"going on from the checkpoint at step {step}")
        return state, step

    def _inputs(self, learnt: Learnt) -> list[StepInputs]:
        """By round, what a step reads beside state and batch."""
        layout = self.layout
        teacher = place(learnt.teacher, layout.of_teacher(learnt.teacher))
        classifier = place(learnt.classifier, layout.whole())
        pairs = place(learnt.pairs, layout.whole())
        text_encoder = place(learnt.text_encoder, layout.of_teacher(learnt.text_encoder))
        latent_encoder = place(learnt.latent_encoder, layout.of_teacher(learnt.latent_encoder))
        own = apart_from_teacher(learnt)
        bases = place(own, layout.of_teacher(own))
        lies = layout.by_student() if layout.one_by_one else layout.whole()
        frozen = (classifier, pairs, text_encoder, latent_encoder, bases)
        return [
            StepInputs(teacher, place(tables, lies), *frozen)
            for tables in split(layout, self.plan.tables)
        ]

    def _train(self, state: TrainState, step: int, inputs: list[StepInputs]) -> TrainState:
        plan, every, end = self.plan, self.training, self.plan.settings.steps
        reader = BatchReader(
            self.context.dataset,
            student_rows(self.context.dataset, plan, self.text_groups),
            plan.settings.batch_size,
            self.layout,
            images=bool(plan.objective.requires.images),
            texts=plan.tokenizer is not None,
        )
        timings = self.context.timings
        steps = TrainSteps(plan, self.layout, self.context.programs, reader, inputs, timings)
        rounds = split_state(self.layout, state)
        del state  # the rounds hold its buffers, or the buffers are free
        if self.previews.missing(step):
            self._preview(step, rounds)
        buffer = MetricsBuffer()
        kept = plan.settings.keep_every
        borders = (every.log_every, every.checkpoint_every, every.preview_every, kept)
        cuts = spans(step, end, self.scan, tuple(border for border in borders if border))
        waiting_since = time.perf_counter()
        for step, count, images, indices in reader.batches(cuts):
            buffer.wait += time.perf_counter() - waiting_since
            rounds, metrics, took = steps(rounds, (step, count), (images, indices), self._say)
            self.clock.compile += took
            buffer.add(step, count, metrics, took)
            step += count
            # Polled once: a signal between two polls would end the stage without its checkpoint.
            stopping = self.stopping()
            ends = step == end or stopping
            saves = ends or any(step % n == 0 for n in (every.checkpoint_every, kept) if n)
            if step % every.log_every == 0 or saves:
                self._flush(buffer, step)
                buffer = MetricsBuffer()
            if saves:
                self.log.sync()
                self._save(step, join_state(self.layout, rounds))
            if stopping and step < end:
                self.checkpoints.wait()
                raise Interrupted(f"stage '{plan.name}' at step {step}")
            # After the checkpoint: a process that goes on from it makes a preview that is missing.
            if self.previews.due(step):
                buffer.since += self._preview(step, rounds)
            waiting_since = time.perf_counter()
        return join_state(self.layout, rounds)

    def _preview(self, step: int, rounds: Sequence[TrainState]) -> float:
        """Samples the stage as it is, for the run's folder and the loggers; returns the seconds."""
        jax.block_until_ready(rounds)  # train steps that still run are no part of the seconds
        begun = time.perf_counter()
        picture = self.previews(step, rounds)
        if picture is not None:
            self.loggers.images(step, {"preview": picture})
        return time.perf_counter() - begun

    def _flush(self, buffer: MetricsBuffer, step: int) -> None:
        """Brings the metrics of an interval to the host, checks them and writes their means."""
        metrics = buffer.to_host()
        seconds = buffer.seconds()
        self.clock.train += seconds
        self.clock.wait += buffer.wait
        self._check_finite(buffer.rows[0][0], metrics)
        self.score.add(metrics)
        values = self._means(metrics, step)
        self.stopping.set_pace(len(buffer.rows), seconds)
        images = buffer.timed * self.plan.settings.batch_size * len(self.plan.students)
        rate = {"images_per_second": images / seconds} if images else {}
        self.loss = values.get("loss", self.loss)
        share = {"data_wait_share": min(1.0, buffer.wait / seconds)}
        spent = {"seconds": self.clock.train, "compile_seconds": self.clock.compile}
        logged = {**values, **rate, **share, **spent}
        self.log.write(step, logged)
        self.loggers.scalars(step, logged)
        self.pace.add(buffer.timed, seconds)
        self.context.call_back(lambda callback: callback.on_log(self.info, step, logged))
        self.alarms(values, step)
        self.reporter.advance(
            step,
            f"loss {self.loss:.4g}"
            + "".join(f"  {value:.{0 if value > 10 else 1}f} images/s" for value in rate.values())
            + f"  data wait {share['data_wait_share']:.0%}",
            self.pace.left(self.plan.settings.steps - step),
        )

    def _means(self, metrics: dict[str, np.ndarray], step: int) -> dict[str, float]:
        """Means over the steps of an interval, over all students and, as "NAME/K", of each one."""
        if "diverged" not in metrics:
            return mean_metrics(metrics)[0]
        diverged = metrics["diverged"][-1]
        self._tell_diverged(diverged, step)
        means, of_students = mean_metrics(metrics)
        for k, own in enumerate(of_students):
            last = int(diverged[k]) or step + 1
            means[f"images/{k}"] = float(min(step, last - 1) * self.plan.settings.batch_size)
            means |= {f"{name}/{k}": value for name, value in own.items()}
        return means

    def _tell_diverged(self, diverged: np.ndarray, step: int) -> None:
        """Tells of students that diverged in the interval; raises when all have."""
        for k in map(int, np.flatnonzero(diverged)):
            if k not in self.diverged:
                self.diverged.add(k)
                self._say(
                    f"{self._who(k)} diverged at step {int(diverged[k])} and keeps its weights "
                    "from before; the others go on, and it will not be scored"
                )
        if np.all(diverged):
            raise self._failed(step, "every student has diverged")

    def _say(self, text: str) -> None:
        self.reporter.say(f"{self.plan.name}: {text}")

    def _who(self, k: int) -> str:
        label = self.plan.students[k].label
        return f"student {k}" + (f" ({label})" if label else "")

    def _check_finite(self, begin: int, metrics: dict[str, np.ndarray]) -> None:
        found = find_not_finite(begin, metrics)
        if found is not None:
            whose = f" of {self._who(found.student)}" if self.plan.stacked else ""
            raise self._failed(
                found.step,
                f"{', '.join(found.names)}{whose} is not finite ({found.names[0]} = {found.value})",
            )

    def _failed(self, step: int, what: str) -> TrainingError:
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        return TrainingError(
            f"Stage '{self.plan.name}', step {step}: {what}. Training has stopped; "
            + (f"the checkpoint at step {kept[-1]} is kept. " if kept else "")
            + "Lower the learning rate or set optimizer.clip, and choose another --workdir "
            "(or delete the stage's folder) to begin again."
        )

    def _check_parameters(self, step: int, state: TrainState) -> None:
        """Raises after an update that overflowed, which no metric shows yet, before it is saved."""
        where, student = overflow(state.params, self.plan.stacked)
        where += "" if student is None else f" ({self._who(student)})"
        if agree(bool(where)):
            raise self._failed(step, f"{where or 'a parameter on another host'} is not finite")

    def _save(self, step: int, state: TrainState) -> None:
        self._check_parameters(step, state)
        # A checkpoint at a stop is not chosen from: an uninterrupted run does not have it.
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

    def _finish(self, state: TrainState, measured: Sequence[Numbers]) -> TrainedManifest:
        plan, settings = self.plan, self.plan.settings
        examples = settings.steps * settings.batch_size
        calls = [
            round(examples * m.objective.teacher_calls(plan.teacher_passes)) for m in plan.students
        ]
        of_one = count_parameters(state.params["student"]) // (settings.students.count or 1)
        diverged = np.asarray(to_host(state.diverged)).tolist() if plan.stacked else []
        manifest = TrainedManifest(
            stage=plan.name,
            digest=plan.digest,
            steps=settings.steps,
            updates=student_updates(plan.objective, settings.steps),
            batch_size=settings.batch_size,
            students=len(plan.students),
            parameters=of_one if self.base is None else count_parameters(self.base),
            teacher_calls=sum(calls),
            train_seconds=self.clock.train,
            compile_seconds=self.clock.compile,
            ema=settings.ema,
            teacher_calls_of_each=tuple(calls),
            diverged=tuple(diverged),
            data_wait_seconds=self.clock.wait,
            final_loss=self.loss,
            handed_on=int(state.step),
            measured=tuple(measured),
        )
        if self.pace.measured is not None:
            self.context.timings.note_step(plan, self.pace.measured)
        if is_first():
            write_json(plan.manifest_path, manifest.to_json())
        wait(f"{plan.name} is complete")
        return manifest


def apart_from_teacher(learnt: Learnt) -> dict[str, Params]:
    """The bases that are not the teacher's parameters, of which the devices hold one copy."""
    teacher = learnt.teacher
    if teacher is None or isinstance(teacher, RoutedDenoiser):
        return dict(learnt.bases)
    theirs = network_params(teacher)
    return {name: base for name, base in learnt.bases.items() if base is not theirs}
