"""Plans the stages of a run: resolves their settings, checks them, and builds what is trained.

Nothing is compiled or written while a run is planned. A stage is identified by a hash of everything
that its result depends on (`planning.identity`). Shared stages (a teacher, a classifier) have a
folder of that hash in a cache; the other stages have a folder in the run's own, which is refused,
and not overwritten, where it holds a stage of another hash.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import linen as nn

from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError, check_choice
from ddistill.interop.imported import Imported
from ddistill.interop.sources import is_there, read_noted, read_source
from ddistill.objectives import Objective, make_objective
from ddistill.objectives.base import trained_auxiliaries
from ddistill.objectives.parts import FeatureShapes, NetworkFacts, StageFacts
from ddistill.partitions import Partition
from ddistill.planning.build import build_module, resolve
from ddistill.planning.checks.imported import check_imported
from ddistill.planning.checks.levels import check_levels
from ddistill.planning.checks.low_rank import check_low_rank
from ddistill.planning.checks.networks import (
    check_classes,
    check_classifier_taps,
    check_network,
    check_optimizers,
)
from ddistill.planning.checks.pairs import check_pairs
from ddistill.planning.checks.settings import (
    check_accumulation,
    check_name,
    check_numbers,
    check_run,
    check_teacher,
)
from ddistill.planning.checks.sources import (
    check_classifier,
    check_copied,
    check_dropped,
    check_extras,
    check_guidance,
    check_guided_teacher,
    check_resume,
    check_sources,
)
from ddistill.planning.checks.students import (
    check_conditional,
    check_every_class,
    check_same_shares,
)
from ddistill.planning.checks.texts import check_texts
from ddistill.planning.context import StageContext
from ddistill.planning.identity import Inputs, digest_of, make_identity
from ddistill.planning.latents import check_latents, on_latents
from ddistill.planning.partitions import list_groups
from ddistill.planning.plan import StagePlan, StudentPlan
from ddistill.planning.students import plan_students
from ddistill.schedules import Schedule, build_schedule, make_schedule
from ddistill.settings import Settings

# Beside config.json: what is known of the networks of other projects that stages start from.
SOURCES = "sources.json"


@dataclass(frozen=True)
class Folders:
    """Where the stages of a run lie.

    Attributes:
      run: the folder of the run.
      shared: the folder of the stages that runs share.
    """

    run: Path
    shared: Path

    def of(self, name: str, digest: str, shared: bool) -> Path:
        """The folder of one stage."""
        return self.shared / f"{name}-{digest[:12]}" if shared else self.run / "stages" / name


def plan_stages(settings: Settings, data: DataFacts, workdir: Path, cache: Path) -> list[StagePlan]:
    """Checks every stage of `settings.pipeline` and returns their plans in order.

    Args:
      settings: the run's.
      data: its training images.
      workdir: its folder.
      cache: folder of shared stages.

    Raises:
      ConfigError: a setting that cannot work.
    """
    check_run(settings)
    schedule = run_schedule(settings)
    noted = read_noted(workdir / SOURCES)
    plans: dict[str, StagePlan] = {}
    for name in settings.pipeline:
        check_choice("config.pipeline", name, settings.stages)
        check_name("config.stages", name, folder=True)
        if name in plans:
            raise ConfigError(f"config.pipeline names '{name}' twice.")
        stage = settings.stages[name]
        imported = _imported(name, stage.source, noted)
        context = StageContext(name, stage, settings, schedule, data, plans, imported)
        plans[name] = _plan(_resolved(context), Folders(workdir, cache))
    for plan in plans.values():
        plan.layout(settings.training.mesh)
    return list(plans.values())


def _imported(name: str, source: str, noted: Mapping[str, tuple[str, Imported]]) -> Imported | None:
    """The network that a stage imports: read, or as the run has noted it if its files are gone.

    A model of the hub is read at the commit with which the run began.
    """
    setting, found = noted.get(name, ("", None))
    if found is None or setting != source:
        return read_source(source, f"config.stages.{name}.source") if source else None
    if not is_there(source, found.revision):
        return found
    return read_source(source, f"config.stages.{name}.source", found.revision)


def run_schedule(settings: Settings) -> Schedule:
    """The noise levels of a run.

    A diffusers teacher keeps the levels that it was trained on, also where they end before noise.
    """
    s = settings.schedule
    sources = [
        settings.stages[name].source for name in settings.pipeline if name in settings.stages
    ]
    theirs = any(source.startswith("diffusers:") for source in sources)
    return (build_schedule if theirs else make_schedule)(s.name, s.steps, **s.options)


def _resolved(context: StageContext) -> StageContext:
    """The context with every default of the stage's settings filled in."""
    context = dataclasses.replace(context, settings=resolve(context))
    return on_latents(dataclasses.replace(context, settings=list_groups(context)))


def _plan(context: StageContext, folders: Folders) -> StagePlan:
    objective = make_objective(context.settings.objective, f"{context.path}.objective")
    _check_settings(context, objective)
    student = build_module(context.settings.network, f"{context.path}.network")
    check_texts(context, objective, student)
    students, partition = plan_students(context, objective, _facts(context, objective, student))
    check_levels(context, objective, students)
    check_same_shares(context, students, partition)
    prepared = students[0].objective
    check_copied(context, prepared)
    check_low_rank(context, prepared, student)
    beside = trained_auxiliaries(prepared)
    modules = {"student": student, **beside}
    check_optimizers(context, beside)
    check_resume(context, modules)
    check_every_class(context, prepared, students)
    return _build(context, prepared, modules, (students, partition), folders)


def _check_settings(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` for settings that work on no levels and with no network."""
    check_numbers(context)
    check_imported(context, objective)
    check_extras(context, objective)
    check_sources(context)
    check_latents(context, objective)
    check_classifier(context, objective)
    check_pairs(context, objective)
    check_guidance(context, objective)
    check_dropped(context, objective)
    check_guided_teacher(context, objective)
    check_accumulation(context, objective)
    check_conditional(context)
    check_teacher(context, objective)


def _facts(context: StageContext, objective: Objective, student: nn.Module) -> StageFacts:
    """Checks the networks; what an objective is prepared with, on all levels of its teacher."""
    teacher, taps, conditional = context.teacher, objective.taps, context.settings.conditional
    networks = NetworkFacts(
        student_prediction=context.settings.prediction,
        student_features=check_network(context, objective, student, taps.student),
        classifier_features=check_classifier_taps(context, taps.classifier),
        num_classes=getattr(student, "num_classes", 0) if conditional else 0,
    )
    if teacher is not None:
        theirs: FeatureShapes = {}
        if taps.teacher:
            theirs = check_network(context, objective, teacher.module, taps.teacher)
        networks = dataclasses.replace(
            networks,
            teacher=teacher.module,
            prediction=teacher.settings.prediction,
            teacher_features=theirs,
        )
    # Before the objective looks at classes: the network's number of them is what has to change.
    check_classes(context, objective, student)
    return StageFacts(
        np.arange(context.table.levels.num_steps + 1),
        networks,
        context.settings.steps,
        context.settings.batch_size,
        context.data.image_shape,
        conditional,
        context.text_leaves(student),
    )


def _build(
    context: StageContext,
    objective: Objective,
    modules: Mapping[str, nn.Module],
    planned: tuple[tuple[StudentPlan, ...], Partition | None],
    folders: Folders,
) -> StagePlan:
    """The plan of a stage that has passed every check."""
    stage = context.settings
    digests = {name: context.earlier[name].digest for name in stage.sources}
    files = context.imported.digest if context.imported else ""
    inputs = Inputs(context.data.identity, digests, files)
    identity = make_identity(context.name, stage, objective, context.run, inputs)
    digest = digest_of(identity)
    students, partition = planned
    return StagePlan(
        name=context.name,
        settings=stage,
        identity=identity,
        lineage=_lineage(context),
        digest=digest,
        folder=folders.of(context.name, digest, stage.shared),
        objective=objective,
        modules=modules,
        students=students,
        partition=partition,
        image_shape=context.data.image_shape,
        seed=context.run.seed,
        imported=context.imported,
        base=context.base,
        **context.text_facts,
    )


def _lineage(context: StageContext) -> dict[str, Mapping[str, object]]:
    """By name, the identities of all stages that a stage rests on, directly or not."""
    found: dict[str, Mapping[str, object]] = {}
    for plan in (context.earlier[name] for name in context.settings.sources):
        found |= {**plan.lineage, plan.name: plan.identity}
    return found
