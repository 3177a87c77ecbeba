"""The sampler runs of an evaluation: which network is sampled, with which sampler and levels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flax import linen as nn

from ddistill.errors import ConfigError, check_choice
from ddistill.evaluation.records.names import METHODS
from ddistill.evaluation.records.sampler_runs import REFERENCE_TEACHER
from ddistill.evaluation.student_samplers import (
    check_fits,
    check_mid_levels,
    check_sample_guidance,
)
from ddistill.networks.extras import EXTRAS
from ddistill.planning.lineage import distillation
from ddistill.planning.plan import StagePlan, StudentPlan
from ddistill.samplers import SAMPLERS, get_sampler, nfe
from ddistill.schedules import Schedule, edm_sampling, make_grid, subsequence
from ddistill.settings import Settings


@dataclass(frozen=True)
class SamplerRun:
    """One sampler run of one network.

    Attributes:
      key: short name, unique in the evaluation; name of the file of samples.
      label: name in tables and plots.
      plan: the stage of the sampled network.
      method: method name of the rows.
      sampler: name in `SAMPLERS`.
      grid: `[N+1]` rows of the schedule; with `spacing` "edm" the rows nearest to the levels.
      levels: `[N+1]` levels of the sampler, with the times that this network receives.
      role: "reference_teacher" (the teacher at its full number of steps), "teacher" or "student".
      series: name of the line in plots that joins the same students at several step counts; of a
        teacher "" for that of its method.
      variant: distinguishes the rows from other sampler runs of the method.
      student: index of the student in a sweep; None if the stage is one network.
      guidance: scale of classifier-free guidance; 1 for none.
      spacing: "trailing" for levels from the table, "edm" for the sigmas of EDM.
      inputs: by name, the values of the network's extra inputs that are equal for all steps.
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
    inputs: Mapping[str, float] = field(default_factory=dict)

    @property
    def sampler_name(self) -> str:
        """Name of the sampler, for protocols, with the levels that a setting has chosen.

        "heun-edm" for levels of EDM, "renoise-mid-0.821" for `mid_levels` of the stage.
        """
        mid = self.plan.settings.mid_levels if self.role == "student" else ()
        chosen = "-".join(f"{level:g}" for level in mid) if self.steps == len(mid) + 1 else ""
        if chosen and get_sampler(self.sampler).rows is None:
            return f"{self.sampler}-mid-{chosen}"
        return self.sampler + ("-edm" if self.spacing == "edm" else "")

    @property
    def steps(self) -> int:
        """Number of sampler steps N."""
        return len(self.grid) - 1

    @property
    def nfe(self) -> int:
        """Network evaluations per image; guidance doubles them."""
        return nfe(self.sampler, self.steps) * (1 if self.guidance == 1.0 else 2)

    @property
    def scale_of_guidance(self) -> float | None:
        """The scale of guidance, also where it is an input of the network; None for none."""
        return self.inputs.get("guidance", None if self.guidance == 1.0 else self.guidance)

    @property
    def width(self) -> int:
        """Channels of the outermost level of a network, or of its tokens."""
        return base_width(self.plan.module)

    @property
    def students(self) -> int:
        """Number of students K behind the samples; 0 for the teacher."""
        if self.role != "student":
            return 0
        return self.plan.settings.students.count if self.plan.partition is not None else 1

    @property
    def student_plan(self) -> StudentPlan:
        """Plan of the sampled student."""
        return self.plan.students[self.student or 0]


def base_width(module: nn.Module) -> int:
    """Base channels of a U-Net, width of a transformer; 0 for a network without them."""
    widths = getattr(module, "widths", (0,))  # of networks with channels level by level
    return int(getattr(module, "channels", getattr(module, "width", widths[0])))


def planned_runs(settings: Settings, plans: list[StagePlan]) -> list[SamplerRun]:
    """Lists all sampler runs: the reference teacher, the teacher at few steps, then students.

    There are none without `evaluation.teacher`.

    Raises:
      ConfigError: a sampler or stage is unknown, or a step count is out of range.
    """
    e, by_name = settings.evaluation, {plan.name: plan for plan in plans}
    if not e.teacher:
        return []
    check_choice("config.evaluation.teacher", e.teacher, by_name)
    check_choice("config.evaluation.full_sampler", e.full_sampler, SAMPLERS)
    check_choice("config.evaluation.student_sampler", e.student_sampler, SAMPLERS)
    teacher = by_name[e.teacher]
    full_steps = e.full_steps or teacher.levels.num_steps
    check_choice("config.evaluation.teacher_spacing", e.teacher_spacing, TEACHER_SPACINGS)
    runs = [_teacher_run(teacher, settings, e.full_sampler, full_steps, REFERENCE_TEACHER)]
    for scale in e.guidances:
        if scale != e.guidance:
            runs.append(_of_guidance(runs[0], scale))
    for sampler, counts in e.teacher_samplers.items():
        check_choice("config.evaluation.teacher_samplers", sampler, SAMPLERS)
        for steps in counts:
            if (sampler, steps) != (e.full_sampler, full_steps):
                runs.append(_teacher_run(teacher, settings, sampler, steps, "teacher"))
    for plan in plans:
        if plan.settings.method and distillation(plan, e.teacher, plans):
            runs += _student_runs(plan, e.student_sampler)
    return [with_inputs(run, e.guidance) for run in runs]


def with_inputs(run: SamplerRun, guidance: float) -> SamplerRun:
    """The run with values of its network's extra inputs.

    Args:
      run: a sampler run.
      guidance: the value of the input "guidance", for networks that have it.

    Raises:
      ConfigError: a value is out of the range that the network was trained on.
    """
    offered = {"guidance": guidance, "step_count": float(run.steps)}
    inputs: dict[str, float] = {}
    for name, trained in run.plan.objective.extra_inputs.items():
        if EXTRAS[name].of_step is not None:
            continue
        if name not in offered:
            raise ConfigError(
                f"stage '{run.plan.name}' is given {name}, for which sampling has no value. Known: "
                f"{', '.join(offered)}, and inputs that differ from step to step."
            )
        value = inputs[name] = offered[name]
        if not trained.holds(value):
            setting = {
                "guidance": " (config.evaluation.guidance, or guidance=)",
                "step_count": f" (config.stages.{run.plan.name}.samplers, or nfe=)",
            }[name]
            raise ConfigError(
                f"{name}={value:g}{setting}: stage '{run.plan.name}' was trained with {name} "
                f"{trained}."
            )
    return replace(run, inputs=inputs) if inputs else run


def experiment_of(settings: Settings, run: SamplerRun) -> str:
    """Name of the experiment in the rows: NAME, or NAME/VARIANT for a variant."""
    return f"{settings.name}/{run.variant}" if run.variant else settings.name


TEACHER_SPACINGS = ("trailing", "edm")


def _teacher_run(
    plan: StagePlan, settings: Settings, sampler: str, steps: int, role: str
) -> SamplerRun:
    e, made = settings.evaluation, settings.schedule
    if get_sampler(sampler).rows is not None:
        raise ConfigError(
            f"config.evaluation: '{sampler}' is for students that are trained for it, and not for "
            "the teacher."
        )
    grid = _sampler_grid(plan.levels, sampler, steps, "the teacher")
    levels = subsequence(plan.levels, grid)
    if e.teacher_spacing == "edm":
        key = "config.evaluation.teacher_spacing"
        levels, grid = edm_sampling(made.name, made.options, plan.levels, steps, key)
    label = f"teacher {get_sampler(sampler).label}, {steps_in_words(sampler, steps)}"
    return SamplerRun(
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


def _of_guidance(run: SamplerRun, scale: float) -> SamplerRun:
    """The run of the reference teacher with another scale of guidance."""
    return replace(
        run,
        key=f"{run.key}_guidance_{scale:g}",
        label=f"{run.label}, guidance {scale:g}",
        role="teacher",
        series=f"{METHODS[run.method].label}, guidance {scale:g}",
        guidance=scale,
    )


def teacher_run(settings: Settings, plan: StagePlan, count: int) -> SamplerRun:
    """Returns the run of the teacher's full sampler with `count` network evaluations per image.

    Raises:
      ConfigError: no number of steps gives `count` evaluations, or the teacher has too few levels.
    """
    e = settings.evaluation
    heun, guided = e.full_sampler in ("heun", "heun_flow"), e.guidance != 1.0
    each = count / 2 if guided else count
    steps = get_sampler(e.full_sampler).steps_for(int(each)) if each == int(each) else None
    if steps is None:
        rules = [f"a run of {e.full_sampler} has an odd number of evaluations"] * heun
        rules += ["guidance doubles the number of evaluations"] * guided
        raise ConfigError(
            f"nfe={count} is not possible with the teacher's sampler {e.full_sampler}: "
            f"{' and '.join(rules)}."
        )
    run = _teacher_run(plan, settings, e.full_sampler, int(steps), "teacher")
    return with_inputs(run, e.guidance)


def _sampler_grid(levels: Schedule, sampler: str, steps: int, network: str) -> np.ndarray:
    if not 1 <= steps <= levels.num_steps:
        raise ConfigError(
            f"config.evaluation: {sampler} with {steps} steps; {network} has {levels.num_steps} "
            "levels."
        )
    return make_grid(levels, steps, "trailing")


def student_grid(plan: StagePlan, levels: Schedule, sampler: str, steps: int) -> np.ndarray:
    """`[N+1]` rows of a student's levels for a sampler of `steps` steps."""
    fixed = get_sampler(sampler).rows
    if fixed is not None:
        return np.asarray(fixed(levels.num_steps))
    even = _sampler_grid(levels, sampler, steps, f"stage '{plan.name}'")
    mid = plan.settings.mid_levels
    if steps != len(mid) + 1:
        return even
    with np.errstate(divide="ignore"):  # infinite where no image is left
        noise = np.asarray(levels.sigma, np.float64) / np.asarray(levels.alpha, np.float64)
    distance = np.abs(np.log(np.maximum(noise, 1e-12)) - np.log(np.asarray(mid)[:, None]))
    rows = distance.argmin(axis=1)
    grid = np.concatenate([[0], rows[::-1], even[-1:]])
    if np.any(np.diff(grid) <= 0):
        allowed = ", ".join(f"{x:.3g}" for x in noise[[levels.num_steps - 1, 1]])
        raise ConfigError(
            f"config.stages.{plan.name}.mid_levels={mid}: the levels nearest to them are rows "
            f"{rows.tolist()} of the student's 0 to {levels.num_steps}. They must decrease and "
            f"differ, between {allowed}."
        )
    return grid


def _student_runs(plan: StagePlan, sampler: str) -> list[SamplerRun]:
    """Lists the sampler runs of a stage: every student of a sweep with every chosen sampler."""
    path = f"config.stages.{plan.name}.samplers"
    for name in plan.settings.samplers:
        check_choice(path, name, SAMPLERS)
    check_mid_levels(plan)
    check_sample_guidance(plan)
    runs = []
    for k, student_plan in enumerate(
        plan.students if plan.partition is None else plan.students[:1]
    ):
        student = k if plan.stacked and plan.partition is None else None
        samplers = [
            (name, steps, student_grid(plan, student_plan.levels, name, steps))
            for name, counts in plan.settings.samplers.items()
            for steps in counts
        ] or [_usual(student_plan, sampler)]
        for name, steps, _ in samplers:
            check_fits(plan, student_plan.objective.sampler, name, steps)
        for name, steps, grid in samplers:
            runs.append(student_run(plan, name, steps, grid, student, sampler))
    return runs


def _usual(student_plan: StudentPlan, sampler: str) -> tuple[str, int, np.ndarray]:
    """The sampler of a stage that names none, its steps (0 for all levels), and its rows."""
    name, count = student_plan.objective.sampler or sampler, student_plan.levels.num_steps
    fixed = get_sampler(name).rows
    return name, 0, np.arange(count + 1) if fixed is None else np.asarray(fixed(count))


def student_run(
    plan: StagePlan, sampler: str, steps: int, grid: np.ndarray, student: int | None, usual: str
) -> SamplerRun:
    """The sampler run of one student; `steps` is 0 if the sampler visits all its levels."""
    s, student_plan = plan.settings, plan.students[student or 0]
    other = get_sampler(sampler).label if sampler != usual else ""
    guided = f"guidance {s.sample_guidance:g}" if s.sample_guidance != 1.0 else ""
    swept = "" if set(s.students.sweep) <= {"grid_steps"} else student_plan.label
    variant = ", ".join(text for text in (s.variant, swept, other, guided) if text)
    known = METHODS[s.method].label if s.method in METHODS else s.method
    if plan.partition is not None:
        known += f", K={s.students.count}, width {base_width(plan.module)}"
    series = known + (f" ({variant})" if variant else "")
    key = plan.name + (f"_{student}" if student is not None else "")
    return SamplerRun(
        key=key + (f"_{sampler}_{steps}" if steps else ""),
        label=f"{series}, {steps_in_words(sampler, len(grid) - 1)}",
        plan=plan,
        method=s.method,
        sampler=sampler,
        grid=student_plan.indices[grid],
        levels=subsequence(student_plan.levels, grid),
        role="student",
        series=series,
        variant=variant,
        student=student,
        guidance=s.sample_guidance,
    )


def short_runs(settings: Settings, plan: StagePlan, most: int) -> list[SamplerRun]:
    """One sampler run of at most `most` steps for a network, or for each student of a sweep.

    It is the planned run of the most steps that fits, or else the shortest one on fewer levels. The
    stage need not be complete, and need not be a stage that the evaluation samples.
    """
    e = settings.evaluation
    if plan.name == e.teacher:
        steps = min(most, plan.levels.num_steps)
        return [
            with_inputs(_teacher_run(plan, settings, e.full_sampler, steps, "teacher"), e.guidance)
        ]
    of_students: dict[int | None, list[SamplerRun]] = {}
    for run in _student_runs(plan, e.student_sampler):
        of_students.setdefault(run.student, []).append(run)
    found = []
    for student, runs in of_students.items():
        fitting = [run for run in runs if run.steps <= most]
        run = max(fitting, key=lambda r: r.steps) if fitting else min(runs, key=lambda r: r.steps)
        if not fitting:
            grid = make_grid(run.student_plan.levels, most, "trailing")
            run = student_run(plan, run.sampler, most, grid, student, e.student_sampler)
        found.append(with_inputs(run, e.guidance))
    return found


def steps_in_words(sampler: str, steps: int) -> str:
    """The number of steps; for samplers of fixed rows that of their calls, which are fewer."""
    count = steps if get_sampler(sampler).rows is None else nfe(sampler, steps)
    return f"{count} step{'s' if count != 1 else ''}"
