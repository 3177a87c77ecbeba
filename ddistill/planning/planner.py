"""Stages: a run's trainings, checked before anything compiles, each with a folder and a manifest.

A stage is identified by a hash of everything that its result depends on (`training.identity`):
data, schedule, seed, its settings and the hashes of the stages that it starts or learns from.
Shared stages (a teacher, a classifier) live in a cache under that hash; the others in the run's own
folder, where a stage of another hash is refused and not overwritten.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from ddistill.data import Dataset
from ddistill.errors import ConfigError, check_choice
from ddistill.interop.imported import Imported
from ddistill.interop.sources import is_there, read_noted, read_source
from ddistill.objectives import Objective, make_objective
from ddistill.objectives.base import FeatureShapes
from ddistill.planning.build import _nameless, build_module, resolve
from ddistill.planning.checks.imported import check_imported
from ddistill.planning.checks.levels import check_levels
from ddistill.planning.checks.pairs import check_pairs
from ddistill.planning.checks.stage import (
    check_best,
    check_classes,
    check_classifier,
    check_copied,
    check_guidance,
    check_name,
    check_network,
    check_numbers,
    check_optimizers,
    check_resume,
    check_sources,
)
from ddistill.planning.checks.students import check_every_class, check_same_shares
from ddistill.planning.identity import digest_of, make_identity
from ddistill.planning.partitions import list_groups
from ddistill.planning.plan import LevelTable, StagePlan
from ddistill.planning.students import plan_students
from ddistill.schedules import Schedule, build_schedule, make_schedule
from ddistill.settings import Settings, StageSettings

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
    table = (
        LevelTable(above.levels, above.indices, made) if above else LevelTable.whole(schedule, made)
    )
    students, partition = plan_students(
        stage, table, schedule.num_steps + 1, settings.seed, objective, dataset, f"{path}.students"
    )
    check_levels(stage, objective, students, table, path)
    check_same_shares(stage, students[0].levels, partition, dataset.num_classes, path, earlier)
    student, shape = build_module(stage.network, f"{path}.network"), dataset.image_shape
    prepared = students[0].objective
    if above:
        check_copied(prepared, above, path)
        prepared = prepared.prepare_networks(above.module, above.settings.prediction)
    prepared = _prepare_features(
        prepared, student, above.module if above else None, stage, shape, path, seen
    )
    check_optimizers(stage, prepared, path)
    check_resume(stage, {"student": student, **prepared.networks()}, path, earlier)
    check_classes(prepared, student, stage, dataset.num_classes, path)
    check_every_class(prepared, students, dataset, path)
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
        students=students,
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
