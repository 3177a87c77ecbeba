"""Stages: a run's trainings, checked before anything compiles, each with a folder and a manifest.

A stage is identified by a hash of everything that its result depends on (`training.identity`):
data, schedule, seed, its settings and the hashes of the stages that it starts or learns from.
Shared stages (a teacher, a classifier) live in a cache under that hash; the others in the run's own
folder, where a stage of another hash is refused and not overwritten.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from ddistill import networks
from ddistill.data import Dataset
from ddistill.errors import CheckpointError, ConfigError, check_choice
from ddistill.interop.imported import Imported
from ddistill.interop.sources import is_there, read_noted, read_source
from ddistill.objectives import Objective, Process, make_objective
from ddistill.objectives.base import FeatureShapes
from ddistill.objectives.pairs import MakePairs
from ddistill.partitions import Partition
from ddistill.runtime.files import read_object_or_none
from ddistill.schedules import Schedule, build_schedule, make_schedule
from ddistill.settings import MeshSettings, Settings, StageSettings
from ddistill.training.checks import (
    check_best,
    check_classes,
    check_classifier,
    check_copied,
    check_earlier,
    check_guidance,
    check_name,
    check_network,
    check_numbers,
    check_optimizers,
    check_resume,
    check_sources,
)
from ddistill.training.identity import digest_of, make_identity
from ddistill.training.level_checks import check_levels
from ddistill.training.manifests import PAIRS, TRAINED
from ddistill.training.members import Member, Table, plan_members
from ddistill.training.pair_checks import check_pairs
from ddistill.training.partitioning import check_every_class, check_same_shares, list_groups
from ddistill.training.sharding import Layout, plan_layout
from ddistill.training.source_checks import check_imported


@dataclass(frozen=True)
class StagePlan:
    """A stage that has passed every check.

    Attributes:
      name: its key in `config.stages`.
      settings: its settings.
      identity: everything that the result depends on.
      lineage: by name, the identities of the stages that it rests on, however far back.
      digest: the hash of its identity.
      folder: where checkpoints, metrics and the manifest lie.
      objective: the method, prepared for this grid.
      modules: networks by name: the student and whatever else the objective trains.
      members: what each student learns from; one, unless `settings.students.count` is above 1.
      partition: who answers for what, or None.
      image_shape: (H, W, C).
      seed: the run's seed.
      imported: the network of another project that the stage starts from, or None.
    """

    name: str
    settings: StageSettings
    identity: Mapping[str, Any]
    lineage: Mapping[str, Mapping[str, Any]]
    digest: str
    folder: Path
    objective: Objective
    modules: Mapping[str, nn.Module]
    members: tuple[Member, ...]
    partition: Partition | None
    image_shape: tuple[int, int, int]
    seed: int
    imported: Imported | None = None

    @property
    def stacked(self) -> bool:
        """Whether weights have a leading student axis."""
        return self.settings.students.count > 0

    @property
    def levels(self) -> Schedule:
        """`[N+1]`, the noise levels that a student is sampled on, with the times it is told.

        Those of the first student, where a sweep gives each its own.
        """
        return self.members[0].levels

    @property
    def indices(self) -> np.ndarray:
        """`[N+1]`, their rows in the run's schedule."""
        return self.members[0].indices

    @property
    def process(self) -> Process:
        """Levels as tables for the losses; with a leading student axis where weights have one."""
        if not self.stacked:
            return self.members[0].process
        return jax.tree.map(lambda *x: np.stack(x), *(m.process for m in self.members))

    @property
    def module(self) -> nn.Module:
        """The student's network."""
        return self.modules["student"]

    @property
    def manifest_path(self) -> Path:
        """The file that says that the stage is complete."""
        return self.folder / "complete.json"

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None while the stage is not complete.

        A damaged one is None too, and one that lacks what a manifest holds: training goes on at the
        last checkpoint, which writes it anew.

        Raises:
          CheckpointError: there is a folder in its place.
        """
        pairs = isinstance(self.objective, MakePairs)
        return read_object_or_none(self.manifest_path, PAIRS if pairs else TRAINED)

    def frozen(self) -> list[int]:
        """The students of a complete stage that diverged; none while it is not complete."""
        steps = (self.manifest() or {}).get("diverged", [])
        return [k for k, step in enumerate(steps) if step]

    def layout(self, mesh: MeshSettings) -> Layout:
        """Where its arrays lie; raises `ConfigError` for a mesh that does not fit."""
        s = self.settings
        path = f"stage '{self.name}', config.training.mesh"
        return plan_layout(mesh, s.students, s.batch_size // s.accumulate, path)

    def ema_key(self) -> str | None:
        """The average that the stage hands on; None means the raw weights."""
        return str(self.settings.ema[0]) if self.settings.ema else None


SOURCES = "sources.json"


def plan_stages(
    settings: Settings, dataset: Dataset, workdir: Path, cache: Path, reread: bool = True
) -> list[StagePlan]:
    """Checks every stage of `settings.pipeline` and returns their plans in order.

    Args:
      settings: the run's.
      dataset: its training images.
      workdir: its folder.
      cache: folder of shared stages.
      reread: whether networks of other projects are read again where their files are still there,
        or what the run has noted of them in `SOURCES` is enough, because their stages are complete.

    Raises:
      ConfigError: anything that cannot work; nothing has been compiled or written by then.
    """
    check_name("config.name", settings.name)
    _check_training(settings)
    schedule = _schedule(settings)
    plans: dict[str, StagePlan] = {}
    seen: dict[Hashable, FeatureShapes] = {}
    noted = read_noted(workdir / SOURCES)
    for name in settings.pipeline:
        check_choice("config.pipeline", name, settings.stages)
        check_name("config.stages", name, folder=True)
        if name in plans:
            raise ConfigError(f"config.pipeline names '{name}' twice.")
        imported = _imported(name, settings.stages[name].source, noted, reread)
        plans[name] = _plan(
            name, settings, schedule, dataset, workdir, cache, plans, seen, imported
        )
    for plan in plans.values():
        plan.layout(settings.training.mesh)
    return list(plans.values())


def _imported(
    name: str, source: str, noted: Mapping[str, tuple[str, Imported]], reread: bool
) -> Imported | None:
    """The network that a stage starts from, as it is noted or read."""
    setting, found = noted.get(name, ("", None))
    if found is not None and setting == source and not (reread and is_there(source)):
        return found
    return read_source(source, f"config.stages.{name}.source") if source else None


def _check_training(settings: Settings) -> None:
    lowest = {"log_every": 1, "checkpoint_every": 1, "keep": 1, "scan_steps": 0}
    for key, low in lowest.items():
        value = getattr(settings.training, key)
        if value < low:
            raise ConfigError(f"config.training.{key}={value} must be {low} or more.")
    for name in settings.pipeline:
        check_best(name, settings)
    if settings.seed < 0:
        raise ConfigError(f"config.seed={settings.seed} must be 0 or more.")


def _schedule(settings: Settings) -> Schedule:
    """The run's levels; those of a diffusers teacher are what it was trained on, noise or not."""
    s = settings.schedule
    sources = [
        settings.stages[name].source for name in settings.pipeline if name in settings.stages
    ]
    theirs = any(source.startswith("diffusers:") for source in sources)
    return (build_schedule if theirs else make_schedule)(s.name, s.steps, **s.options)


def _plan(
    name: str,
    settings: Settings,
    schedule: Schedule,
    dataset: Dataset,
    workdir: Path,
    cache: Path,
    earlier: Mapping[str, StagePlan],
    seen: dict[Hashable, FeatureShapes],
    imported: Imported | None,
) -> StagePlan:
    path = f"config.stages.{name}"
    if settings.stages[name].network and "name" not in settings.stages[name].network:
        raise _nameless(f"{path}.network")
    stage = resolve(settings.stages[name], path, earlier, imported)
    stage = list_groups(stage, dataset, settings.seed, path)
    check_numbers(stage, path)
    if imported is not None:
        check_imported(stage, imported, schedule, dataset, path)
    check_sources(stage, path, earlier)
    objective = make_objective(stage.objective, f"{path}.objective")
    check_classifier(stage, objective, path, earlier)
    check_pairs(stage, objective, path, earlier)
    check_guidance(stage, path, earlier)
    if objective.needs_whole_batch and stage.accumulate > 1:
        dropped = {"gamma": "gamma=1", "divergence": "divergence='rkl'"}
        ways = [f"objective.{value}" for key, value in dropped.items() if hasattr(objective, key)]
        raise ConfigError(
            f"{path}.accumulate={stage.accumulate}, but the objective needs a mean over the whole "
            "batch at once (the classifier's diversity, or a divergence's weights): set "
            f"accumulate=1, or {' or '.join(ways)} to drop it."
        )
    if objective.needs_teacher and not stage.teacher:
        raise ConfigError(f"{path}.teacher is empty, but '{stage.objective['name']}' needs one.")
    check_choice(f"{path}.grid.time", stage.grid.time, ("mapped", "index"))
    above = earlier[stage.teacher] if stage.teacher else None
    made = settings.schedule
    table = Table(above.levels, above.indices, made) if above else Table.whole(schedule, made)
    members, partition = plan_members(
        stage, table, schedule.num_steps + 1, settings.seed, objective, dataset, f"{path}.students"
    )
    check_levels(stage, objective, members, table, path)
    check_same_shares(stage, members[0].levels, partition, dataset.num_classes, path, earlier)
    student, shape = build_module(stage.network, f"{path}.network"), dataset.image_shape
    prepared = members[0].objective
    if above:
        check_copied(prepared, above, path)
        prepared = prepared.prepare_networks(above.module, above.settings.prediction)
    prepared = _prepare_features(
        prepared, student, above.module if above else None, stage, shape, path, seen
    )
    check_optimizers(stage, prepared, path)
    check_resume(stage, {"student": student, **prepared.networks()}, path, earlier)
    check_classes(prepared, student, stage, dataset.num_classes, path)
    check_every_class(prepared, members, dataset, path)
    content = imported.digest if imported else ""
    sources = {other: earlier[other].digest for other in stage.sources}
    identity = make_identity(name, stage, prepared, settings, dataset, sources, content)
    digest = digest_of(identity)
    folder = cache / f"{name}-{digest[:12]}" if stage.shared else workdir / "stages" / name
    return StagePlan(
        name=name,
        settings=stage,
        identity=identity,
        lineage=_lineage(stage, earlier),
        digest=digest,
        folder=folder,
        objective=prepared,
        modules={"student": student, **prepared.networks()},
        members=members,
        partition=partition,
        image_shape=shape,
        seed=settings.seed,
        imported=imported,
    )


def _lineage(
    stage: StageSettings, earlier: Mapping[str, StagePlan]
) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for plan in (earlier[name] for name in stage.sources):
        found |= {**plan.lineage, plan.name: plan.identity}
    return found


def _prepare_features(
    objective: Objective,
    student: nn.Module,
    teacher: nn.Module | None,
    stage: StageSettings,
    shape: tuple[int, int, int],
    path: str,
    seen: dict[Hashable, FeatureShapes],
) -> Objective:
    """Checks the networks; returns the objective, prepared for the features that it reads of them.

    `seen` holds what is known of the networks of earlier stages.
    """

    def look(module: nn.Module, taps: tuple[str, ...]) -> FeatureShapes:
        # Tracing takes a second: the equal networks of a chain are looked at once.
        asked = (module, taps, stage.conditional, stage.ema, stage.accumulate)
        if asked not in seen:
            seen[asked] = check_network(objective, module, taps, shape, stage, path)
        return seen[asked]

    ours = look(student, objective.taps())
    if teacher is None or not objective.teacher_taps():
        return objective
    theirs = look(teacher, objective.teacher_taps())
    try:
        return objective.prepare_features(ours, theirs)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from None


def resolve(
    stage: StageSettings,
    path: str,
    earlier: Mapping[str, StagePlan],
    imported: Imported | None = None,
) -> StageSettings:
    """Fills in what a stage leaves to its source or its teacher: network, prediction type, classes.

    What a source says and the stage says too is compared in `check_imported`.
    """
    if stage.teacher:
        check_earlier(f"{path}.teacher", stage.teacher, (), earlier)
    if imported is not None:
        return dataclasses.replace(
            stage,
            network=stage.network or imported.network,
            prediction=stage.prediction or imported.prediction,
            conditional=stage.conditional or imported.num_classes > 0,
        )
    if stage.network:
        return dataclasses.replace(stage, prediction=stage.prediction or "eps")
    if not stage.teacher:
        raise ConfigError(
            f"{path}.network is empty and there is no teacher to take it from. "
            f"Set {path}.network.name to one of {', '.join(sorted(networks.NETWORKS))}."
        )
    theirs = earlier[stage.teacher].settings
    if stage.prediction not in ("", theirs.prediction):
        raise ConfigError(
            f"{path}.prediction={stage.prediction!r}, but its network is that of "
            f"'{stage.teacher}', which predicts {theirs.prediction!r}. Leave prediction empty, or "
            f"set {path}.network."
        )
    return dataclasses.replace(
        stage,
        network=theirs.network,
        prediction=theirs.prediction,
        conditional=theirs.conditional,
    )


def build_module(described: Mapping[str, Any], path: str) -> nn.Module:
    """Builds the network that settings describe by name and options."""
    options = dict(described)
    if "name" not in options:
        raise _nameless(path)
    return networks.build(str(options.pop("name")), **options)


def _nameless(path: str) -> ConfigError:
    allowed = ", ".join(sorted(networks.NETWORKS))
    return ConfigError(f"{path}.name is missing. Allowed: {allowed}.")


def incomplete(plan: StagePlan) -> CheckpointError:
    """The error for a stage that is needed and not complete."""
    return CheckpointError(
        f"Stage '{plan.name}' in {plan.folder} is not complete; run it with "
        f"--stage={plan.name} first."
    )
