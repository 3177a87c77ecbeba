"""Alarms of a training: told when they begin, and where they are fatal and stay, its end."""

from collections.abc import Callable, Mapping

from ddistill.training.stages import StagePlan

# A fatal alarm in this many log intervals in a row stops the stage.
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
        # By student, the last known value of every metric; by student and alarm, for how many log
        # intervals it has been fatal.
        self._known: dict[str, dict[str, float]] = {}
        self._fatal: dict[tuple[str, str], int] = {}
        # Signs that a student was born with and has not lost yet.
        self._born: set[tuple[str, str]] = set()

    def __call__(self, means: Mapping[str, float], step: int) -> None:
        """Takes the means of a log interval that ends at `step`.

        An alarm of which an interval says nothing, because the update that measures it did not run,
        is neither over nor told nor counted again.

        Raises:
          TrainingError: a fatal alarm has stayed.
        """
        now: dict[tuple[str, str], int] = {}
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
                now[kind] = before + 1 if alarm.fatal and kind not in self._born else 0
                if now[kind] >= PATIENCE:
                    raise self._stop(step, f"{alarm.text}{who}, for {PATIENCE} log intervals")
        self._fatal = now
        self._born &= now.keys()

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
