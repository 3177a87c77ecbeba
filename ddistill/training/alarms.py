"""Alarms of a training: shown when they begin; a fatal alarm that persists ends the stage."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from ddistill.planning.plan import StagePlan

# Log intervals a fatal alarm must persist before the stage stops.
PATIENCE = 3


class AlarmMonitor:
    """Checks a stage's metrics for the objective's alarms, student by student.

    Args:
      plan: the stage.
      every: steps of a log interval.
      say: shows an alarm to the user, once until it is over.
      stop: `(step, what) -> error`, for a fatal alarm that persists.
    """

    def __init__(
        self,
        plan: StagePlan,
        every: int,
        say: Callable[[str], None],
        stop: Callable[[int, str], Exception],
    ):
        self._plan, self._say, self._stop = plan, say, stop
        self._patience, self._step = PATIENCE * every, 0
        # By student, the last known value of every metric; by student and alarm, for how many steps
        # it has been fatal.
        self._known: dict[str, dict[str, float]] = {}
        self._fatal: dict[tuple[str, str], int] = {}
        # Alarms that a student has had since its first interval.
        self._born: set[tuple[str, str]] = set()

    def __call__(self, means: Mapping[str, float], step: int) -> None:
        """Takes the means of the steps up to `step` since the last call.

        An alarm that an interval did not measure, because its update did not run, stays as it is.

        Raises:
          TrainingError: a fatal alarm has persisted.
        """
        now: dict[tuple[str, str], int] = {}
        passed, self._step = step - self._step, step
        for who, own in self._by_student(means):
            measured = {alarm.name for alarm in self._plan.objective.diagnostics.alarms(own)}
            is_new = who not in self._known
            known = self._known[who] = {**self._known.get(who, {}), **own}
            for alarm in self._plan.objective.diagnostics.alarms(known):
                kind = (who, alarm.name)
                now[kind] = before = self._fatal.get(kind, 0)
                if alarm.name not in measured:
                    continue
                if kind not in self._fatal:
                    self._say(f"alarm at step {step}{who}: {alarm.text}")
                if alarm.fatal and alarm.at_birth and is_new:
                    self._born.add(kind)
                elif not alarm.fatal:
                    self._born.discard(kind)
                now[kind] = before + passed if alarm.fatal and kind not in self._born else 0
                if now[kind] >= self._patience:
                    raise self._stop(step, f"{alarm.text}{who}, for {now[kind]} steps")
        self._fatal = now
        self._born &= now.keys()

    def record(self) -> dict[str, object]:
        """The values that a checkpoint keeps, so that a resumed training stops at the same step."""
        return {
            "step": self._step,
            "known": self._known,
            "fatal": [[*kind, steps] for kind, steps in self._fatal.items()],
            "born": sorted(map(list, self._born)),
        }

    def restore(self, record: Mapping) -> None:
        """Goes on from a `record`."""
        self._step = record["step"]
        self._known = {who: dict(known) for who, known in record["known"].items()}
        self._fatal = {(who, name): steps for who, name, steps in record["fatal"]}
        self._born = {(who, name) for who, name in record["born"]}

    def _by_student(self, means: Mapping[str, float]) -> list[tuple[str, Mapping[str, float]]]:
        if not self._plan.stacked:
            return [("", means)]
        students: list[tuple[str, Mapping[str, float]]] = []
        for k, student_plan in enumerate(self._plan.students):
            end = f"/{k}"
            own = {n.removesuffix(end): v for n, v in means.items() if n.endswith(end)}
            label = f" ({student_plan.label})" if student_plan.label else ""
            students.append((f" of student {k}{label}", own))
        return students


def overflow(params: Mapping[str, PyTree], stacked: bool) -> tuple[str, int | None]:
    """The first parameter on this process's devices that is not finite.

    Args:
      params: by network.
      stacked: whether they have a leading student axis, `[K, ...]`.

    Returns:
      Its name, "" if all are finite; and its student, None unless `stacked`.
    """
    for name, tree in params.items():
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            for shard in x.addressable_shards:
                if shard.replica_id:  # the device of replica 0 checks it
                    continue
                finite = np.isfinite(np.asarray(shard.data))
                if finite.all():
                    continue
                where = f"parameter {jax.tree_util.keystr(path)} of the {name}"
                if not stacked:
                    return where, None
                own = finite.reshape(len(finite), -1).all(axis=1)
                return where, (shard.index[0].start or 0) + int(np.argmin(own))
    return "", None
