"""Alarms of a training: told when they begin, and where they are fatal and stay, its end."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ddistill.planning.plan import StagePlan

# A fatal alarm that stays for as many steps as this many log intervals have stops the stage.
PATIENCE = 3


class AlarmMonitor:
    """Listens to a stage's metrics for the objective's alarms, student by student.

    Args:
      plan: the stage.
      every: steps of a log interval.
      say: where an alarm is told, once until it is over.
      stop: `(step, what) -> error`, for an alarm that stays.
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
        # Signs that a student was born with and has not lost yet.
        self._born: set[tuple[str, str]] = set()

    def __call__(self, means: Mapping[str, float], step: int) -> None:
        """Takes the means of the steps up to `step` since the last call.

        An alarm of which an interval says nothing, because the update that measures it did not run,
        is neither over nor told nor counted again.

        Raises:
          TrainingError: a fatal alarm has stayed.
        """
        now: dict[tuple[str, str], int] = {}
        passed, self._step = step - self._step, step
        for who, own in self._by_student(means):
            measured = {alarm.name for alarm in self._plan.objective.alarms(own)}
            is_new = who not in self._known
            known = self._known[who] = {**self._known.get(who, {}), **own}
            for alarm in self._plan.objective.alarms(known):
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

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed training is stopped where it would be."""
        return {
            "step": self._step,
            "known": self._known,
            "fatal": [[*kind, steps] for kind, steps in self._fatal.items()],
            "born": sorted(map(list, self._born)),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
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


def overflow(params: Mapping[str, Any], stacked: bool) -> tuple[str, int | None]:
    """The first parameter on this process's devices that is not finite, and whose it is.

    Args:
      params: by network.
      stacked: whether they are those of many students, `[K, ...]`.

    Returns:
      What it is called, "" if all are finite, and of many students the one that has it.
    """
    for name, tree in params.items():
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            for shard in x.addressable_shards:
                if shard.replica_id:  # looked at where it is the first
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
