"""What a run samples: every sampler from the same noise bank, kept on disk, timed.

Samples lie in `samples/NAME.npz` with the digest of everything that they depend on, so that an
evaluation that was stopped goes on, and one that is repeated samples nothing.
"""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.denoiser import with_guidance
from ddistill.errors import ConfigError, check_choice
from ddistill.runtime.files import read_arrays, write_arrays
from ddistill.samplers import SAMPLERS, get_sampler, nfe
from ddistill.schedules import Schedule, edm_sampling, make_grid, subsequence
from ddistill.settings import EvaluationSettings, Settings
from ddistill.students import in_groups
from ddistill.training.interrupt import StopRequest
from ddistill.training.lineage import distillation
from ddistill.training.members import Member
from ddistill.training.progress import Reporter
from ddistill.training.sharding import data_mesh, over_data, replicate
from ddistill.training.stages import StagePlan
from ddistill.training.state import stream_key
from ddistill.training.weights import Networks


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
    def member(self) -> Member:
        """The student of a sweep, or what the stage trains."""
        return self.plan.members[self.student or 0]


@dataclass(frozen=True)
class Samples:
    """Images `[N, H, W, C]` in about [-1, 1] and the sampler's milliseconds an image."""

    images: np.ndarray
    ms_per_image: float


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
    for k, member in enumerate(plan.members if plan.partition is None else plan.members[:1]):
        student = k if plan.stacked and plan.partition is None else None
        whose = f"stage '{plan.name}'"
        ways = [
            (name, steps, _sampler_grid(member.levels, name, steps, whose))
            for name, counts in plan.settings.samplers.items()
            for steps in counts
        ] or [(member.objective.sampler or sampler, 0, np.arange(member.levels.num_steps + 1))]
        for name, steps, grid in ways:
            calls.append(_student_call(plan, name, steps, grid, student, sampler))
    return calls


def _student_call(
    plan: StagePlan, sampler: str, steps: int, grid: np.ndarray, student: int | None, usual: str
) -> Call:
    """The call of one student; `steps` is 0 where it is sampled on all of its levels."""
    from ddistill.evaluation.vocabulary import METHODS

    s, member = plan.settings, plan.members[student or 0]
    other = SAMPLER_LABELS.get(sampler, sampler) if sampler != usual else ""
    swept = "" if set(s.students.sweep) <= {"grid_steps"} else member.label
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
        grid=member.indices[grid],
        levels=subsequence(member.levels, grid),
        role="student",
        series=series,
        variant=variant,
        student=student,
    )


def _count(steps: int) -> str:
    return f"{steps} step{'s' if steps != 1 else ''}"


def noise_bank(settings: EvaluationSettings, shape: tuple[int, int, int], start: int, count: int):
    """Noise `[count, H, W, C]` number `start` and after of the bank that all samplers share.

    Every image has its own key, so that the bank depends on neither the batch size nor the number
    of samples.
    """
    key = stream_key(settings.noise_seed, "noise bank")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(start, start + count))
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)


def conditions(call: Call, start: int, count: int) -> np.ndarray | None:
    """Labels of the bank's images: all classes in turn; None for an unconditional network."""
    known = call.member.process.classes
    if known is None:
        return None
    return np.arange(start, start + count, dtype=np.int32) % len(known)


def draw(
    call: Call,
    network: Any,
    settings: EvaluationSettings,
    start: int,
    count: int,
    trajectory: bool = False,
) -> jax.Array:
    """Runs the sampler on images `start` .. `start + count` of the bank, over all devices.

    Where students share out the classes, each makes the images of its own.

    Returns:
      `[count, H, W, C]`, or with `trajectory` all states, `[N+1, count, H, W, C]`.
    """
    noise = noise_bank(settings, call.plan.image_shape, start, count)
    key = jax.random.fold_in(stream_key(settings.noise_seed, "sampler"), start)
    cond = conditions(call, start, count)
    return run_call(call, network, noise, cond, key, settings.clip, trajectory)


def run_call(
    call: Call,
    network: Any,
    noise: jax.Array,
    cond: np.ndarray | None,
    key: jax.Array,
    clip: float,
    trajectory: bool = False,
) -> jax.Array:
    """Runs the sampler of a call from given noise, over all devices.

    Args:
      call: the sampler and its levels.
      network: the call's denoiser.
      noise: `[B, H, W, C]`.
      cond: `[B]` classes on the host, or None.
      key: random key of samplers that draw noise.
      clip: bound of x0 predictions; 0 for none.
      trajectory: return all states instead of the images.
    """
    count = noise.shape[0]

    def sample(denoiser: Any, rows: np.ndarray) -> jax.Array:
        mesh = data_mesh(len(rows))
        place = over_data(mesh)
        made = get_sampler(call.sampler)(
            replicate(mesh, with_guidance(denoiser, call.guidance, _null_class(call))),
            call.levels,
            jax.device_put(noise[rows], place),
            key if rows[0] == 0 else jax.random.fold_in(key, int(rows[0])),
            cond=None if cond is None else jax.device_put(cond[rows], place),
            clip=clip or None,
            trajectory=trajectory,
        )
        return jnp.swapaxes(made[1], 0, 1) if trajectory else made

    made = in_groups(network, cond, count, sample)
    return jnp.swapaxes(made, 0, 1) if trajectory else made


def _null_class(call: Call) -> int:
    return int(getattr(call.plan.module, "num_classes", 0))


def call_digest(call: Call, settings: EvaluationSettings) -> str:
    """Digest of everything that the samples of a call depend on."""
    content = {
        "stage": call.plan.digest,
        "sampler": call.sampler,
        "grid": call.grid.tolist(),
        "ema": call.plan.ema_key(),
        "samples": settings.samples,
        "batch": settings.batch_size,
        "seed": settings.noise_seed,
        "clip": settings.clip,
    }
    if call.student is not None:
        content["student"] = call.student
    if call.spacing != "trailing":
        content["sigma"] = [float(x) for x in call.levels.sigma]
    if call.guidance != 1.0:
        content["guidance"] = call.guidance
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def collect(
    call: Call,
    networks: Networks,
    settings: EvaluationSettings,
    folder: Path,
    reporter: Reporter,
    stop: StopRequest,
) -> Samples:
    """The samples of a call, from disk if they are there.

    Raises:
      Interrupted: a stop was asked for; finished calls stay on disk.
    """
    path = folder / f"{call.key}.npz"
    found = _read(path, call_digest(call, settings))
    if found is not None:
        return found
    network = networks(call.plan, call.student)
    images, seconds = [], []
    reporter.begin(f"sampling {call.label}", settings.samples)
    try:
        for start in range(0, settings.samples, settings.batch_size):
            stop.check(f"the evaluation ({call.label})")
            begun = time.perf_counter()
            batch = np.asarray(draw(call, network, settings, start, settings.batch_size))
            seconds.append(time.perf_counter() - begun)
            images.append(batch)
            done = min(start + settings.batch_size, settings.samples)
            first = f"the first batch in {seconds[0]:.1f} s, compiling included"
            rate = f"{settings.batch_size / seconds[-1]:.0f} images/s"
            reporter.advance(done, rate if seconds[1:] else first)
    finally:
        reporter.end()
    # The first batch compiles; the fastest of the others is the sampler's own speed.
    best = min(seconds[1:] or seconds)
    samples = Samples(np.concatenate(images)[: settings.samples], 1e3 * best / settings.batch_size)
    _write(path, samples, call_digest(call, settings))
    return samples


def _write(path: Path, samples: Samples, digest: str) -> None:
    write_arrays(path, digest=digest, **dataclasses.asdict(samples))


def _read(path: Path, digest: str) -> Samples | None:
    found = read_arrays(path, ("digest", "images", "ms_per_image"))
    if found is None or str(found["digest"]) != digest:
        return None  # not there, damaged or of other settings: it is drawn again
    return Samples(found["images"], float(found["ms_per_image"]))
