"""Alarms of a training: said when they begin, fatal when they stay."""

from collections.abc import Callable, Mapping

from ddistill.training.stages import StagePlan

# A fatal alarm stops a stage that shows it in this many log intervals in a row.
PATIENCE = 3


class Watch:
    """Listens to a stage's metrics for the objective's alarms, student by student.

    Args:
      plan: the stage.
      say: where an alarm is told, once until it is over.
      stop: `(step, what) -> error`, for an alarm that stays.
    """

    def __init__(
        self,
        plan: StagePlan,
        say: Callable[[str], None],
        stop: Callable[[int, str], Exception],
    ):
        self._plan, self._say, self._stop = plan, say, stop
        self._seen: dict[tuple[str, str], int] = {}

    def __call__(self, means: Mapping[str, float], step: int) -> None:
        """Takes the means of a log interval that ends at `step`.

        Raises:
          TrainingError: a fatal alarm has stayed.
        """
        now: dict[tuple[str, str], int] = {}
        for who, own in self._by_student(means):
            for alarm in self._plan.objective.alarms(own):
                kind = (who, alarm.name)
                now[kind] = self._seen.get(kind, 0) + 1
                if now[kind] == 1:
                    self._say(f"alarm at step {step}{who}: {alarm.text}")
                if alarm.fatal and now[kind] >= PATIENCE:
                    raise self._stop(step, f"{alarm.text}{who}, for {PATIENCE} log intervals")
        self._seen = now

    def _by_student(self, means: Mapping[str, float]) -> list[tuple[str, Mapping[str, float]]]:
        if not self._plan.stacked:
            return [("", means)]
        students: list[tuple[str, Mapping[str, float]]] = []
        for k, member in enumerate(self._plan.members):
            end = f"/{k}"
            own = {n.removesuffix(end): v for n, v in means.items() if n.endswith(end)}
            label = f" ({member.label})" if member.label else ""
            students.append((f" of student {k}{label}", own))
        return students
