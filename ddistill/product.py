"""A finished run as a thing to use: opened from its folder, sampled from, without its data."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddistill.data.facts import FACTS, DataFacts
from ddistill.denoiser import Denoiser
from ddistill.errors import CheckpointError, ConfigError, check_choice
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.sampling import conditions, noise_bank, run_call
from ddistill.evaluation.sampling_plan import Call, planned_calls, teacher_call, without_diverged
from ddistill.planning.manifests import STAGES
from ddistill.planning.opened import STAGES as STAGES_FILE
from ddistill.planning.opened import open_stages
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import Folders
from ddistill.runtime.files import DamagedFile, expand, read_object
from ddistill.runtime.rng import stream_key
from ddistill.runtime.schemas import ANY, Schema
from ddistill.settings import Settings, kind_of, parse
from ddistill.students import RoutedDenoiser
from ddistill.text import is_utf8
from ddistill.training.folders import check_owner
from ddistill.training.trained import Networks

_AGAIN = "Give the run's command again: it writes the file anew and trains nothing anew."


@dataclass(frozen=True)
class Run:
    """The folder of a finished run.

    Attributes:
      folder: where it is.
      settings: its settings.
      data: its training images, as far as it knows them.
      plans: its stages, in order.
      networks: their weights, read when they are asked for.
    """

    folder: Path
    settings: Settings
    data: DataFacts
    plans: tuple[StagePlan, ...]
    networks: Networks

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Every way in which the run's evaluation samples, but of students that have diverged."""
        return tuple(without_diverged(planned_calls(self.settings, list(self.plans)))[0])

    def network(self, call: Call) -> Denoiser | RoutedDenoiser:
        """The network that a call samples.

        Raises:
          CheckpointError: its stage is not there; the message says what to copy.
        """
        plan = call.plan
        if plan.manifest() is not None:
            return self.networks(plan, call.student)
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

    def plan(self, name: str) -> StagePlan:
        """The stage of a name, which there is."""
        return next(plan for plan in self.plans if plan.name == name)

    def _has_diverged(self, stage: str) -> bool:
        return bool(stage) and bool(self.plan(stage).diverged_students())

    def call(self, stage: str = "", nfe: int | None = None) -> Call:
        """The call that is meant.

        Args:
          stage: the stage whose network is to be sampled; "" for the last one that fits `nfe`.
          nfe: network evaluations an image; None for the last call of the stage.

        Raises:
          ConfigError: there is no such stage or it is not sampled, or it does not come with that
            many evaluations; the message lists what there is.
        """
        if stage:
            check_choice("stage", stage, [plan.name for plan in self.plans])
        teacher = self.settings.evaluation.teacher
        known = [c for c in self.calls if not stage or c.plan.name == stage]
        known = [c for c in known if stage or c.role == "student"] or known
        if not known:
            names = dict.fromkeys(c.plan.name for c in self.calls)
            why = "has students that diverged and are frozen" if self._has_diverged(stage) else ""
            raise ConfigError(
                f"stage={stage!r} {why or 'is not sampled'}. Allowed: {', '.join(names)}."
            )
        found = [c for c in known if nfe in (None, c.nfe)]
        if found:
            return found[0] if stage == teacher and nfe is None else found[-1]
        if stage == teacher and nfe is not None:
            return teacher_call(self.settings, self.plan(teacher), nfe)
        there = ", ".join(f"{c.nfe} ({c.key})" for c in known)
        more = f" The teacher takes any number: stage={teacher!r}." if not stage else ""
        raise ConfigError(f"nfe={nfe}: the students of this run have {there}.{more}")


def open_run(folder: str | Path, cache: str | Path | None = None) -> Run:
    """Opens the folder of a finished run; its data are not needed.

    Args:
      folder: as given to `ddistill.main --workdir`.
      cache: folder of shared stages; by default `shared` beside the run.

    Raises:
      CheckpointError: it is no folder of a run, was trained by another version, or has stages of
        other settings.
      ConfigError: this version does not know its settings.
    """
    folder = _path("folder", folder)
    shared = _path("cache", cache) if cache else folder.parent / "shared"
    for path in (folder, shared):
        if not is_utf8(path.absolute()):
            raise CheckpointError(
                f"{path.absolute()} is not UTF-8, and checkpoints are read from folders of UTF-8 "
                "names alone. Rename the folder."
            )
    settings = _settings(folder / "config.json")
    facts = DataFacts.from_json(_read(folder / "data.json", FACTS))
    stages = _read(folder / STAGES_FILE, STAGES)
    try:
        plans = open_stages(settings, facts, Folders(folder, shared), stages)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    for plan in plans:
        check_owner(plan)
    return Run(folder, settings, facts, tuple(plans), Networks())


def _path(name: str, given: object) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{name}={given!r} is {kind_of(type(given))}; a path is needed.")
    return expand(given)


def _settings(path: Path) -> Settings:
    try:
        return parse(_read(path), Settings)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error} If another version of ddistill trained the run, train it again in "
            "another --workdir, or open it with that version."
        ) from None


def _read(path: Path, schema: Schema = ANY) -> Mapping[str, Any]:
    if not path.is_file():
        there = "has no" if path.parent.is_dir() else "does not exist; it should hold"
        raise CheckpointError(
            f"{path.parent} {there} {path.name}. Give the folder of a run (--workdir of "
            "ddistill.main). A run of this version writes the file when its command is given "
            "again, without training anew; train a run of another version again."
        )
    try:
        return read_object(path, schema)
    except DamagedFile as error:
        raise CheckpointError(f"{error}. {_AGAIN}") from None


@dataclass(frozen=True)
class Product:
    """A network of a run with its sampler; made by `load`.

    Attributes:
      run: the run.
      stage: the stage that is meant where `sample` is given no other; "" for the last student.
    """

    run: Run
    stage: str = ""

    @property
    def nfes(self) -> tuple[int, ...]:
        """The numbers of network evaluations that `sample` can be asked for."""
        calls = [c for c in self.run.calls if c.plan.name == self.stage or not self.stage]
        students = [c for c in calls if c.role == "student"] if not self.stage else calls
        return tuple(sorted({c.nfe for c in students or calls}))

    def sample(
        self,
        n: int,
        labels: int | Sequence[int] | np.ndarray | None = None,
        seed: int = 0,
        nfe: int | None = None,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Draws images.

        Where the sampler draws no noise after the first (ddim, heun, dpm_solver_pp, one step),
        image i depends on the seed and i alone, up to rounding, however many are drawn at once;
        with `seed` = `config.evaluation.noise_seed` they are those that the run was scored on.
        Samplers that draw noise in every step draw it for a whole batch.

        Args:
          n: how many.
          labels: a class, or one for each image; None for all classes in turn. Must be None where
            the network is unconditional.
          seed: of the noise, 0 or more.
          nfe: network evaluations an image, one of `nfes`; None for the last student of the run.
          batch_size: how many are drawn at once.

        Returns:
          `[n, H, W, C]` uint8.

        Raises:
          ConfigError: an argument that does not fit, or no such student.
          CheckpointError: the stage is not complete.
        """
        n, seed, batch_size = (
            _whole("n", n, 1),
            _whole("seed", seed),
            _whole("batch_size", batch_size, 1),
        )
        call = self.run.call(self.stage, None if nfe is None else _whole("nfe", nfe, 1))
        classes = _labels(call, labels, n)
        network = self.run.network(call)
        settings = replace(self.run.settings.evaluation, noise_seed=seed)
        size = min(n, batch_size)
        images = []
        for start in range(0, n, size):
            # The last batch is filled up, so that nothing compiles twice.
            rows = np.minimum(np.arange(start, start + size), n - 1)
            noise = noise_bank(settings, call.plan.image_shape, start, size)
            key = jax.random.fold_in(stream_key(seed, "sampler"), start)
            cond = None if classes is None else classes[rows]
            images.append(np.asarray(run_call(call, network, noise, cond, key, settings.clip)))
        return quantise(np.concatenate(images)[:n])


def _whole(name: str, value: object, lowest: int = 0) -> int:
    """A whole number, also one of numpy, in the range of a random seed.

    Raises:
      ConfigError: it is something else, or too small or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name}={value!r} is {kind_of(type(value))}; a whole number is needed.")
    if not lowest <= value < 2**32:
        bound = f"{lowest} or more" if value < lowest else "less than 2**32"
        raise ConfigError(f"{name}={value} must be {bound}.")
    return int(value)


def _labels(call: Call, labels: Any, n: int) -> np.ndarray | None:
    """`[n]` classes, or None for an unconditional network."""
    every, known = conditions(call, 0, n), call.student_plan.tables.classes
    if every is None or known is None:
        if labels is not None:
            raise ConfigError(
                f"labels were given, but stage '{call.plan.name}' is unconditional; leave them out."
            )
        return None
    if labels is None:
        return every
    try:
        given = np.asarray(labels)
    except ValueError:
        raise ConfigError(f"labels={labels!r}: {n} integers or one are needed.") from None
    if given.dtype.kind not in "iu" or given.shape not in ((), (n,)):
        raise ConfigError(
            f"labels of shape {given.shape} and type {given.dtype}; {n} integers or one are needed."
        )
    if given.min() < 0 or given.max() >= len(known):
        raise ConfigError(
            f"labels go from {given.min()} to {given.max()}; classes are 0 to {len(known) - 1}."
        )
    return np.broadcast_to(given, (n,)).astype(np.int32)


def load(folder: str | Path, stage: str = "", cache: str | Path | None = None) -> Product:
    """A finished run, ready to be sampled from.

        ddistill.load("runs/msd_digits").sample(16, labels=[3] * 16, nfe=1)

    Args:
      folder: of the run.
      stage: whose network is meant, for example "teacher"; "" for the run's students.
      cache: folder of shared stages; by default `shared` beside the run.

    Raises:
      CheckpointError, ConfigError: as `open_run`; an unknown stage.
    """
    run = open_run(folder, cache)
    run.call(stage)
    return Product(run, stage)
