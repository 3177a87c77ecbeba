"""The stages of a finished run, opened from the files in its folder.

A run notes the digest of every stage in stages.json. With config.json and data.json that is enough
to sample its networks: nothing is checked, traced or hashed again, and no images are read.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ddistill.data.facts import DataFacts
from ddistill.errors import CheckpointError, ConfigError
from ddistill.extensions import import_noted, in_use
from ddistill.interop.sources import read_noted
from ddistill.objectives import make_objective
from ddistill.objectives.parts import StageFacts
from ddistill.planning.build import build_module, resolve
from ddistill.planning.context import StageContext
from ddistill.planning.identity import FORMAT
from ddistill.planning.latents import on_latents
from ddistill.planning.manifests import STAGES as STAGES_SCHEMA
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import SOURCES, Folders, run_schedule
from ddistill.planning.students import plan_students
from ddistill.runtime.files import read_object_or_none, write_json
from ddistill.settings import Settings

STAGES = "stages.json"


def write_stages(workdir: Path, settings: Settings, plans: Sequence[StagePlan]) -> None:
    """Notes in a run's folder the digests of its stages and the modules that extend the package."""
    found: dict[str, object] = {
        "format": FORMAT,
        "digests": {plan.name: plan.digest for plan in plans},
    }
    modules = {f"{e.kind} {e.name}": e.module for e in in_use(_names(settings, plans))}
    if modules:
        found["extensions"] = modules
    write_json(workdir / STAGES, found)


def check_version(workdir: Path) -> None:
    """Raises `CheckpointError` where a run of another version has its results in a folder.

    A damaged stages.json is written anew.
    """
    path = workdir / STAGES
    noted = read_object_or_none(path, STAGES_SCHEMA)
    ours = noted is not None and noted["format"] == FORMAT
    if ours or (noted is None and (path.exists() or not (workdir / "config.json").exists())):
        return
    raise CheckpointError(
        f"{workdir} holds a run of another version of ddistill, whose stages would be trained anew "
        "and whose results would be replaced. Choose another --workdir, or move that folder away."
    )


def _names(settings: Settings, plans: Sequence[StagePlan]) -> dict[str, set[str]]:
    """The names in a run's settings that extensions may have added, by kind."""
    stages, e = [plan.settings for plan in plans], settings.evaluation
    samplers = {e.full_sampler, e.student_sampler, *e.teacher_samplers}
    return {
        "objective": {str(stage.objective["name"]) for stage in stages},
        "network": {str(stage.network["name"]) for stage in stages},
        "data": {str(settings.data.get("name", ""))},
        "sampler": samplers.union(
            *(stage.samplers for stage in stages), (plan.objective.sampler for plan in plans)
        ),
    }


def import_extensions(folder: Path) -> None:
    """Imports the modules that a run has noted, which register what its settings name.

    Args:
      folder: of a run; nothing happens where it has noted none.

    Raises:
      ConfigError: a module cannot be imported or does not register what the run names.
    """
    noted = read_object_or_none(folder / STAGES, STAGES_SCHEMA)
    try:
        import_noted((noted or {}).get("extensions", {}), importlib.import_module)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def open_stages(
    settings: Settings, data: DataFacts, folders: Folders, noted: Mapping
) -> list[StagePlan]:
    """The stages of a finished run, in order.

    Their plans hold what sampling needs: settings, levels, partition and the student's network.
    They have no identity, no lineage and no auxiliary networks, and cannot be trained.

    Args:
      settings: of the run, as noted in config.json.
      data: its training images, as noted in data.json.
      folders: where its stages lie.
      noted: the object in stages.json, as `planning.manifests.STAGES` describes it.

    Raises:
      CheckpointError: the run was trained by another version, or lacks a stage.
      ConfigError: settings from which no stage follows.
    """
    again = "Train it again in another --workdir, or open it with the version that trained it."
    if noted["format"] != FORMAT:
        raise CheckpointError(
            f"{folders.run / STAGES}: the run was trained by another version of ddistill (format "
            f"{noted['format']}; this version reads format {FORMAT}). {again}"
        )
    schedule, imported = run_schedule(settings), read_noted(folders.run / SOURCES)
    plans: dict[str, StagePlan] = {}
    for name in settings.pipeline:
        if name not in noted["digests"] or name not in settings.stages:
            raise CheckpointError(
                f"{folders.run}: stage '{name}' of config.json is not in {STAGES}. Give the run's "
                "command again: it writes both files anew and trains nothing anew."
            )
        stage, (_, source) = settings.stages[name], imported.get(name, ("", None))
        if stage.source and source is None:
            raise CheckpointError(
                f"{folders.run}: {SOURCES} lacks stage '{name}', whose network is imported. Give "
                "the run's command again: it writes the file anew and trains nothing anew."
            )
        context = StageContext(name, stage, settings, schedule, data, plans, source)
        context = on_latents(dataclasses.replace(context, settings=resolve(context)))
        plans[name] = _open(context, folders, noted["digests"][name])
    return list(plans.values())


def _open(context: StageContext, folders: Folders, digest: str) -> StagePlan:
    stage, path = context.settings, context.path
    objective = make_objective(stage.objective, f"{path}.objective")
    students, partition = plan_students(context, objective, StageFacts(np.arange(2)))
    return StagePlan(
        name=context.name,
        settings=stage,
        identity={},
        lineage={},
        digest=digest,
        folder=folders.of(context.name, digest, stage.shared),
        objective=students[0].objective,
        modules={"student": build_module(stage.network, f"{path}.network")},
        students=students,
        partition=partition,
        image_shape=context.data.image_shape,
        seed=context.run.seed,
        imported=context.imported,
        base=context.base,
        **context.text_facts,
    )
