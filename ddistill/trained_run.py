"""A finished run: opened from its folder without its data, and sampled from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np
from jaxtyping import Float, UInt8

from ddistill.data.facts import FACTS, DataFacts
from ddistill.errors import CheckpointError, ConfigError, check_choice, in_words
from ddistill.evaluation.any_steps import run_of_steps
from ddistill.evaluation.diverged import without_diverged
from ddistill.evaluation.metrics.paths import slerp
from ddistill.evaluation.prompts import texts_of
from ddistill.evaluation.sampling import Network
from ddistill.evaluation.sampling_plan import (
    SamplerRun,
    planned_runs,
    teacher_run,
)
from ddistill.generation import (
    Labels,
    Progress,
    Source,
    Trajectory,
    at_guidance,
    check_images,
    check_noise,
    check_prompts,
    class_labels,
    end_of_path,
    image_count,
    picture_shape,
    whole_number,
)
from ddistill.planning.manifests import STAGES, shared_stages
from ddistill.planning.opened import STAGES as STAGES_FILE
from ddistill.planning.opened import import_extensions, open_stages
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import Folders
from ddistill.run_files import given_path, read_run_file, read_run_settings
from ddistill.settings import Settings
from ddistill.text import is_utf8
from ddistill.training.folders import check_owner
from ddistill.training.trained import Networks


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A finished run; made by `load`.

    Attributes:
      folder: the folder of the run.
      settings: the settings of the run.
      data: what the run recorded about its data set.
      plans: the stages, in order.
      networks: the trained networks, read from disk on first use.
      stage: the stage that `sample` samples; "" for the students of the run.
    """

    folder: Path
    settings: Settings
    data: DataFacts
    plans: tuple[StagePlan, ...]
    networks: Networks
    stage: str = ""

    @cached_property
    def sampler_runs(self) -> tuple[SamplerRun, ...]:
        """The sampler runs of the evaluation, without students that diverged."""
        return tuple(without_diverged(planned_runs(self.settings, list(self.plans)))[0])

    @property
    def nfes(self) -> tuple[int, ...]:
        """The numbers of network evaluations per image that `sample` accepts."""
        runs = [r for r in self.sampler_runs if r.plan.name == self.stage or not self.stage]
        students = [r for r in runs if r.role == "student"] if not self.stage else runs
        return tuple(sorted({r.nfe for r in students or runs}))

    def plan(self, name: str) -> StagePlan:
        """The stage called `name`, which must exist."""
        return next(plan for plan in self.plans if plan.name == name)

    def network(self, run: SamplerRun) -> Network:
        """The network that `run` samples.

        Raises:
          CheckpointError: the stage is missing or not complete; the message says what to copy.
        """
        plan = run.plan
        if plan.manifest() is not None:
            return self.networks(plan, run.student)
        if plan.settings.shared:
            raise CheckpointError(
                f"Stage '{plan.name}' of {self.folder} is shared between runs, and it is not in "
                f"{plan.folder.parent}. If the run was moved, copy the folder {plan.folder.name} "
                "there from 'shared' beside the place where it was trained, or name that folder of "
                "shared stages: cache=FOLDER of ddistill.load, --cache=FOLDER of ddistill.export."
            )
        raise CheckpointError(
            f"Stage '{plan.name}' of {self.folder} is not complete, or its folder {plan.folder} "
            "was not copied. Copy it, or give the run's command again."
        )

    def sampler_run(self, stage: str | None = None, nfe: int | None = None) -> SamplerRun:
        """Selects a sampler run.

        Args:
          stage: the stage to sample; "" for the last student that has `nfe` evaluations, None for
            `self.stage`.
          nfe: network evaluations per image; None for the last sampler run of the stage. Students
            of consistency models and of two-time networks take any number.

        Raises:
          ConfigError: the stage does not exist or is not sampled, or no sampler run has that many
            evaluations; the message lists the allowed values.
        """
        stage = self.stage if stage is None else stage
        if stage:
            check_choice("stage", stage, [plan.name for plan in self.plans])
        teacher = self.settings.evaluation.teacher
        known = [r for r in self.sampler_runs if not stage or r.plan.name == stage]
        # Other scales of guidance are asked for as such.
        scale = self.settings.evaluation.guidance
        known = [r for r in known if r.role == "student" or r.guidance == scale]
        known = [r for r in known if stage or r.role == "student"] or known
        if not self.sampler_runs:
            raise ConfigError(
                f"{self.folder}: the run has no stage that generates images. Open one with a "
                "teacher (config.evaluation.teacher)."
            )
        if not known:
            names = dict.fromkeys(r.plan.name for r in self.sampler_runs)
            diverged = bool(stage) and bool(self.plan(stage).diverged_students())
            why = "has students that diverged" if diverged else "is not sampled"
            raise ConfigError(f"stage={stage!r} {why}. Allowed: {', '.join(names)}.")
        found = [r for r in known if nfe in (None, r.nfe)]
        if found:
            return found[0] if stage == teacher and nfe is None else found[-1]
        if stage == teacher and nfe is not None:
            return teacher_run(self.settings, self.plan(teacher), nfe)
        for own in reversed(known):
            if nfe is not None and own.role == "student" and own.student_plan.objective.any_steps:
                return run_of_steps(self.settings, own, nfe)
        allowed = ", ".join(f"{r.nfe} ({r.key})" for r in known)
        more = f" The teacher takes any number: stage={teacher!r}." if not stage else ""
        raise ConfigError(f"nfe={nfe}: the students of this run have {allowed}.{more}")

    @overload
    def sample(
        self,
        n: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
        nfe: int | None = None,
        batch_size: int = 256,
        *,
        noise: np.ndarray | None = None,
        guidance: float | None = None,
        prompts: str | Sequence[str] | None = None,
        trajectory: Literal[False] = False,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "n H W C"]: ...

    @overload
    def sample(
        self,
        n: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
        nfe: int | None = None,
        batch_size: int = 256,
        *,
        noise: np.ndarray | None = None,
        guidance: float | None = None,
        prompts: str | Sequence[str] | None = None,
        trajectory: Literal[True],
        progress: Progress | None = None,
    ) -> Trajectory: ...

    def sample(
        self,
        n: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
        nfe: int | None = None,
        batch_size: int = 256,
        *,
        noise: np.ndarray | None = None,
        guidance: float | None = None,
        prompts: str | Sequence[str] | None = None,
        trajectory: bool = False,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "n H W C"] | Trajectory:
        """Generates images.

        With samplers that draw no noise in their steps (ddim, heun, dpm_solver_pp, or one step of
        any sampler), image i depends only on the seed and i, up to rounding, and not on `n` or
        `batch_size`; with `seed` = `config.evaluation.noise_seed` the images are those that the
        evaluation scored. Other samplers draw the noise of their steps for a whole batch.

        Args:
          n: number of images; None for that of `noise` or `prompts`, otherwise 1.
          labels: one class, or `[n]` classes; None to cycle through the classes. Must be None for
            an unconditional network.
          seed: seed of the noise, 0 or more.
          nfe: network evaluations per image, one of `nfes`, or any number up to that of the levels
            for teachers and for students of any number of steps; None for the last student.
          batch_size: images per batch.
          noise: `[n, H, W, C]` standard normal floats to start from; None for noise of the seed.
          guidance: for students with this input, and for networks that read texts. None is the
            stage's `sample_guidance`, or `config.evaluation.guidance` for teachers and the input.
          prompts: one text or several, for networks that read texts; image i is of text i modulo
            their number, which is the default of `n`.
          trajectory: whether to return the states of all steps too.
          progress: called as `progress(done, total)` with the number of sampler steps, over all
            batches; for students of groups of classes once per batch.

        Returns:
          `[n, H, W, C]` uint8; with `trajectory` a `Trajectory` with the states
          `[N+1, n, H, W, C]`.

        Raises:
          ConfigError: an argument is out of range, or no student has `nfe` evaluations.
          CheckpointError: the stage is not complete.
        """
        run = self.sampler_run(nfe=None if nfe is None else whole_number("nfe", nfe, 1))
        run = at_guidance(run, guidance)
        shape = run.plan.image_shape
        given = None if noise is None else check_noise(noise, (image_count(n, noise), *shape))
        ids = check_prompts(run.plan, prompts, self.networks)
        n = len(ids) if n is None and ids is not None else n
        count = whole_number("n", n if given is None else len(given), 1)
        seed, size = whole_number("seed", seed), whole_number("batch_size", batch_size, 1)
        classes = class_labels(run, labels, count)
        texts = None if ids is None else texts_of(run.plan, self.networks, ids)
        source = Source(
            run,
            self.network(run),
            self.settings.evaluation,
            seed,
            size,
            texts,
            self.networks.decoder(run.plan),
        )
        start_at = source.noise if given is None else given.__getitem__
        draw = source.trajectory if trajectory else source.generate
        return draw(count, start_at, classes, progress)

    def interpolate(
        self,
        a: int | np.ndarray,
        b: int | np.ndarray,
        steps: int = 8,
        label: int | None = None,
        nfe: int | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        guidance: float | None = None,
    ) -> UInt8[np.ndarray, "S H W C"]:
        """Images along a path between two noises.

        The noises lie on the great circle through both ends (spherical interpolation), so that each
        is as likely as the ends.

        Args:
          a, b: the ends: noise `[H, W, C]`, or the seed of the first image of `sample(n, seed=a)`.
          steps: number of images with both ends, 2 or more.
          label: the class of all images; None for an unconditional network, else for class 0.
          nfe, prompts, guidance: as of `sample`.

        Returns:
          `[steps, H, W, C]` uint8, from `a` to `b`.

        Raises:
          ConfigError: an argument is out of range, or the sampler draws noise in its steps.
          CheckpointError: the stage is not complete.
        """
        run = self.sampler_run(nfe=None if nfe is None else whole_number("nfe", nfe, 1))
        steps = whole_number("steps", steps, 2)
        source = self._deterministic(at_guidance(run, guidance), "interpolate", prompts)
        first = class_labels(run, label, 1)
        classes = None if first is None else np.repeat(first, steps)
        ends = (end_of_path("a", a, source), end_of_path("b", b, source))
        path = slerp(*ends, np.linspace(0.0, 1.0, steps))
        return source.generate(steps, path.__getitem__, classes)

    def invert(
        self,
        images: np.ndarray,
        labels: Labels | None = None,
        nfe: int | None = None,
        iterations: int = 1,
        *,
        prompts: str | Sequence[str] | None = None,
        guidance: float | None = None,
    ) -> Float[np.ndarray, "n H W C"]:
        """The noise from which deterministic sampling makes given images (DDIM inversion).

        The probability-flow ODE is followed from the images to noise in as many steps as `nfe`
        means. The result is as good as these steps are small: use a teacher with many steps, and
        `iterations` above 1 for fewer. `sample(noise=...)` with the same `nfe` reverses it.

        Args:
          images: `[n, H, W, C]` uint8, or floats in [-1, 1].
          labels: as of `sample`.
          nfe: as of `sample`; inversion takes `iterations` network evaluations a sampler step.
          iterations: fixed-point iterations of each step, which solve DDIM's step for its start.
          prompts, guidance: as of `sample`. Scales of guidance above 1 need many steps.

        Returns:
          `[n, H, W, C]` float32, in the shape of the latents for networks on latents; standard
          normal for images that are likely under the model.

        Raises:
          ConfigError: an argument is out of range, or the sampler draws noise in its steps or does
            not call the network at all levels.
          CheckpointError: the stage is not complete.
        """
        run = self.sampler_run(nfe=None if nfe is None else whole_number("nfe", nfe, 1))
        iterations = whole_number("iterations", iterations, 1)
        given = check_images(images, picture_shape(run.plan))
        classes = class_labels(run, labels, len(given))
        source = self._deterministic(at_guidance(run, guidance), "invert", prompts)
        source.check_invertible()
        return source.invert(given, classes, iterations)

    def _deterministic(
        self, run: SamplerRun, call: str, prompts: str | Sequence[str] | None
    ) -> Source:
        ids = check_prompts(run.plan, prompts, self.networks)
        texts = None if ids is None else texts_of(run.plan, self.networks, ids)
        decode = self.networks.decoder(run.plan)
        settings = self.settings.evaluation
        source = Source(run, self.network(run), settings, texts=texts, decode=decode)
        source.check_deterministic(call)
        return source

    def __repr__(self) -> str:
        stages = ", ".join(plan.name for plan in self.plans)
        chosen = f", stage '{self.stage}'" if self.stage else ""
        try:
            nfes = f"; nfe {in_words(self.nfes)}"
        except ConfigError:  # nothing of the run can be sampled
            nfes = ""
        return f"TrainedRun({str(self.folder)!r}{chosen}: {stages}{nfes})"


def open_run(folder: str | Path, cache: str | Path | None = None) -> TrainedRun:
    """Opens the folder of a finished run, without its data set.

    Args:
      folder: the folder of the run, `--workdir` of ddistill.main.
      cache: folder of shared stages; by default `shared` in a packed run, and beside others.

    Raises:
      CheckpointError: the folder is not that of a run, another version trained the run, or its
        stages belong to other settings.
      ConfigError: this version does not accept the settings of the run.
    """
    folder = given_path("folder", folder)
    shared = given_path("cache", cache) if cache else shared_stages(folder)
    for path in (folder, shared):
        if not is_utf8(path.absolute()):
            raise CheckpointError(
                f"{path.absolute()} is not UTF-8, and checkpoints are read from folders of UTF-8 "
                "names alone. Rename the folder."
            )
    import_extensions(folder)
    settings = read_run_settings(folder / "config.json")
    facts = DataFacts.from_json(read_run_file(folder / "data.json", FACTS))
    stages = read_run_file(folder / STAGES_FILE, STAGES)
    try:
        plans = open_stages(settings, facts, Folders(folder, shared), stages)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    for plan in plans:
        check_owner(plan)
    return TrainedRun(folder, settings, facts, tuple(plans), Networks())


def load(folder: str | Path, stage: str = "", cache: str | Path | None = None) -> TrainedRun:
    """Opens a finished run to sample from it.

        ddistill.load("runs/msd_digits").sample(16, labels=[3] * 16, nfe=1)

    Args:
      folder: the folder of the run.
      stage: the stage to sample, for example "teacher"; "" for the students of the run.
      cache: folder of shared stages; by default `shared` in a packed run, and beside others.

    Raises:
      CheckpointError, ConfigError: see `open_run`; also if `stage` is unknown or not sampled.
    """
    run = replace(open_run(folder, cache), stage=stage)
    run.sampler_run()
    return run
