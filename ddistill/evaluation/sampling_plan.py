"""Which sampler runs an evaluation consists of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddistill.errors import ConfigError, check_choice, in_words
from ddistill.evaluation.records.names import METHODS
from ddistill.planning.lineage import distillation
from ddistill.planning.plan import StagePlan, StudentPlan
from ddistill.samplers import SAMPLERS, nfe
from ddistill.schedules import Schedule, edm_sampling, make_grid, subsequence
from ddistill.settings import Settings


@dataclass(frozen=True)
class Call:
    """One sampler run of one network.

    Attributes:
      key: short name, unique in the run; the file's name.
      label: for people.
      plan: the stage whose network is sampled.
      method: method name of the rows.
      sampler: name in `SAMPLERS`.
      grid: `[N+1]` rows of the run's schedule; with `spacing` "edm" the rows nearest to its levels.
      levels: `[N+1]`, the levels that the sampler visits, with the times that this network is told.
      role: "full" (the teacher at its full steps), "teacher" or "student".
      series: for people: what it has in common with the same students at other step counts.
      variant: sets its rows apart from those of other calls of the method.
      student: which student of a sweep; None where the stage is one network.
      guidance: scale of classifier-free guidance; 1 for none.
      spacing: where the levels are from: "trailing" rows of the table, or "edm".
    """

    key: str
    label: str
    plan: StagePlan
    method: str
    sampler: str
    grid: np.ndarray
    levels: Schedule
    role: str
    series: str = ""
    variant: str = ""
    student: int | None = None
    guidance: float = 1.0
    spacing: str = "trailing"

    @property
    def sampler_name(self) -> str:
        """The sampler, and its levels where they are not rows of the table: "heun", "heun-edm"."""
        return self.sampler + ("-edm" if self.spacing == "edm" else "")

    @property
    def steps(self) -> int:
        """Sampler steps."""
        return len(self.grid) - 1

    @property
    def nfe(self) -> int:
        """Network evaluations an image; guidance makes two of each."""
        return nfe(self.sampler, self.steps) * (1 if self.guidance == 1.0 else 2)

    @property
    def width(self) -> int:
        """Base channels of the network; 0 for one that has no such number."""
        return int(getattr(self.plan.module, "channels", 0))

    @property
    def students(self) -> int:
        """K, the students behind the call; 0 for the teacher."""
        if self.role != "student":
            return 0
        return self.plan.settings.students.count if self.plan.partition is not None else 1

    @property
    def student_plan(self) -> StudentPlan:
        """The student of a sweep, or what the stage trains."""
        return self.plan.students[self.student or 0]


def planned_calls(settings: Settings, plans: list[StagePlan]) -> list[Call]:
    """Every sampler run of the evaluation: the full teacher, the teacher at few steps, students.

    Raises:
      ConfigError: an unknown sampler, stage or step count.
    """
    e, by_name = settings.evaluation, {plan.name: plan for plan in plans}
    check_choice("config.evaluation.teacher", e.teacher, by_name)
    check_choice("config.evaluation.full_sampler", e.full_sampler, SAMPLERS)
    check_choice("config.evaluation.student_sampler", e.student_sampler, SAMPLERS)
    teacher = by_name[e.teacher]
    full_steps = e.full_steps or teacher.levels.num_steps
    check_choice("config.evaluation.teacher_spacing", e.teacher_spacing, TEACHER_SPACINGS)
    calls = [_teacher_call(teacher, settings, e.full_sampler, full_steps, "full")]
    for sampler, counts in e.teacher_samplers.items():
        check_choice("config.evaluation.teacher_samplers", sampler, SAMPLERS)
        for steps in counts:
            if (sampler, steps) != (e.full_sampler, full_steps):
                calls.append(_teacher_call(teacher, settings, sampler, steps, "teacher"))
    for plan in plans:
        if plan.settings.method and distillation(plan, e.teacher, plans):
            calls += _student_calls(plan, e.student_sampler)
    return calls


def experiment_of(settings: Settings, call: Call) -> str:
    """What the rows of a call are filed under: the run's name, and what sets the call apart."""
    return f"{settings.name}/{call.variant}" if call.variant else settings.name


SAMPLER_LABELS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "heun": "Heun",
    "dpm_solver_pp": "DPM-Solver++",
    "renoise": "renoising",
}


TEACHER_SPACINGS = ("trailing", "edm")


def _teacher_call(plan: StagePlan, settings: Settings, sampler: str, steps: int, role: str) -> Call:
    e, made = settings.evaluation, settings.schedule
    grid = _sampler_grid(plan.levels, sampler, steps, "the teacher")
    levels = subsequence(plan.levels, grid)
    if e.teacher_spacing == "edm":
        key = "config.evaluation.teacher_spacing"
        levels, grid = edm_sampling(made.name, made.options, plan.levels, steps, key)
    label = f"teacher {SAMPLER_LABELS.get(sampler, sampler)}, {_count(steps)}"
    return Call(
        f"teacher_{sampler}_{steps}",
        label,
        plan,
        sampler,
        sampler,
        grid,
        levels,
        role,
        guidance=e.guidance,
        spacing=e.teacher_spacing,
    )


def teacher_call(settings: Settings, plan: StagePlan, count: int) -> Call:
    """The teacher at any number of network evaluations, with the sampler of its full steps.

    Raises:
      ConfigError: that sampler does not come out at `count`, or the teacher has too few levels.
    """
    e = settings.evaluation
    each = count if e.guidance == 1.0 else count / 2
    steps = (each + 1) / 2 if e.full_sampler == "heun" else each
    if steps != int(steps):
        raise ConfigError(
            f"nfe={count}: {e.full_sampler} of the teacher"
            + (" (an odd number of evaluations)" if e.full_sampler == "heun" else "")
            + (" with guidance (twice as many)" if e.guidance != 1.0 else "")
            + " cannot have that number."
        )
    return _teacher_call(plan, settings, e.full_sampler, int(steps), "teacher")


def _sampler_grid(levels: Schedule, sampler: str, steps: int, whose: str) -> np.ndarray:
    if not 1 <= steps <= levels.num_steps:
        raise ConfigError(
            f"config.evaluation: {sampler} with {steps} steps; {whose} has {levels.num_steps} "
            "levels."
        )
    return make_grid(levels, steps, "trailing")


def _student_calls(plan: StagePlan, sampler: str) -> list[Call]:
    """Every student of a sweep, or the stage's one sampler, by each way that is asked for."""
    path = f"config.stages.{plan.name}.samplers"
    for name in plan.settings.samplers:
        check_choice(path, name, SAMPLERS)
    calls = []
    for k, student_plan in enumerate(
        plan.students if plan.partition is None else plan.students[:1]
    ):
        student = k if plan.stacked and plan.partition is None else None
        whose = f"stage '{plan.name}'"
        ways = [
            (name, steps, _sampler_grid(student_plan.levels, name, steps, whose))
            for name, counts in plan.settings.samplers.items()
            for steps in counts
        ] or [
            (
                student_plan.objective.sampler or sampler,
                0,
                np.arange(student_plan.levels.num_steps + 1),
            )
        ]
        for name, steps, grid in ways:
            calls.append(_student_call(plan, name, steps, grid, student, sampler))
    return calls


def _student_call(
    plan: StagePlan, sampler: str, steps: int, grid: np.ndarray, student: int | None, usual: str
) -> Call:
    """The call of one student; `steps` is 0 where it is sampled on all of its levels."""
    s, student_plan = plan.settings, plan.students[student or 0]
    other = SAMPLER_LABELS.get(sampler, sampler) if sampler != usual else ""
    swept = "" if set(s.students.sweep) <= {"grid_steps"} else student_plan.label
    variant = ", ".join(text for text in (s.variant, swept, other) if text)
    known = METHODS[s.method].label if s.method in METHODS else s.method
    if plan.partition is not None:
        known += f", K={s.students.count}, width {getattr(plan.module, 'channels', '?')}"
    series = known + (f" ({variant})" if variant else "")
    key = plan.name + (f"_{student}" if student is not None else "")
    return Call(
        key=key + (f"_{sampler}_{steps}" if steps else ""),
        label=f"{series}, {_count(len(grid) - 1)}",
        plan=plan,
        method=s.method,
        sampler=sampler,
        grid=student_plan.indices[grid],
        levels=subsequence(student_plan.levels, grid),
        role="student",
        series=series,
        variant=variant,
        student=student,
    )


def _count(steps: int) -> str:
    return f"{steps} step{'s' if steps != 1 else ''}"


def without_diverged(calls: Sequence[Call]) -> tuple[list[Call], list[str]]:
    """The calls whose students are sound, and what there is to say of the others.

    A student of a sweep is left out by itself; students of a partition make images together, so
    that one of them spoils all.
    """
    sound, left_out = [], []
    for call in calls:
        frozen = call.plan.diverged_students()
        if call.student is not None:
            frozen = [k for k in frozen if k == call.student]
        if frozen:
            left_out.append(
                f"{call.label}: not scored, because student {in_words(frozen)} of stage "
                f"'{call.plan.name}' diverged and is frozen"
            )
        else:
            sound.append(call)
    return sound, left_out
