"""A run: its stages, then its evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddistill import data
from ddistill.data import Dataset
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError, nearest
from ddistill.evaluation.checks import check_evaluation, check_real_images
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.evaluate_run import evaluate_run
from ddistill.interop.sources import write_noted
from ddistill.planning.checks.levels import notes
from ddistill.planning.opened import check_version, write_stages
from ddistill.planning.partitions import note_groups
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import SOURCES, plan_stages
from ddistill.runtime import hosts
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import write_json
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.leftovers import remove_leftovers
from ddistill.settings import Settings, parse, plain
from ddistill.training.folders import check_folders
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.trained import Networks


def note_run(workdir: Path, config: Any, facts: DataFacts, plans: Sequence[StagePlan]) -> None:
    """Writes the files from which a finished run is opened: settings, data, stages, sources.

    Args:
      workdir: the run's folder.
      config: `ConfigDict` or dictionary of `ddistill.settings.Settings`.
      facts: its training images.
      plans: its stages.
    """
    groups = note_groups(plain(config), {plan.name: plan.settings for plan in plans})
    # First, because it says which version has written the others.
    write_stages(workdir, parse(config, Settings), plans)
    write_json(workdir / "config.json", groups)
    write_json(workdir / "data.json", facts.to_json())
    noted = {p.name: (p.settings.source, p.imported) for p in plans if p.imported is not None}
    if noted:
        write_noted(workdir / SOURCES, noted)


def run(
    config: Any,
    workdir: Path,
    cache: Path,
    stage: str,
    command: str,
    dataset: Dataset | None = None,
) -> int:
    """Runs the stages of a config and then the evaluation.

    Args:
      config: `ConfigDict` or dictionary of `ddistill.settings.Settings`.
      workdir: the run's folder.
      cache: folder of shared stages.
      stage: one stage to run alone, "evaluate", or "" for everything.
      command: the command as the user gave it, for the results.
      dataset: the training images, where they have been opened already.

    Returns:
      The exit status: 0, or that of a run that a signal has stopped (`StopRequest.status`).
    """
    settings = parse(config, Settings)
    dataset = data.load(settings.data, "train") if dataset is None else dataset
    facts = DataFacts.of(dataset)
    plans = plan_stages(settings, facts, workdir, cache)
    check_evaluation(settings, plans)
    choice = check_real_images(settings, dataset)
    names = [plan.name for plan in plans]
    if stage and stage not in (*names, "evaluate"):
        raise ConfigError(
            f"--stage={stage} is not a stage of this config.{nearest(stage, [*names, 'evaluate'])} "
            f"Stages: {', '.join(names)}, evaluate."
        )
    check_folders(plans, stage)
    hosts.from_first(lambda: check_version(workdir))
    hosts.from_first(lambda: workdir.mkdir(parents=True, exist_ok=True))
    # No other folders: the user may have named one full of files of their own. Stages see to theirs
    # when they hold their locks.
    hosts.from_first(lambda: remove_leftovers(workdir, workdir / "samples"))
    hosts.from_first(lambda: note_run(workdir, config, facts, plans))
    hosts.check_shared(workdir / "config.json")
    reporter = Reporter()
    reporter.say("\n".join(data.summary(dataset)))
    for note in [*notes(plans, settings, facts), *([choice.note] if choice.note else [])]:
        reporter.say(f"note: {note}")
    networks = Networks()
    status, waits, first = 0, False, hosts.is_first()
    with StopRequest(speaks=hosts.is_first()) as stop:
        try:
            if stage != "evaluate":
                context = RunContext(settings, dataset, reporter, stop, networks=networks)
                run_stages(plans, context, stage)
            waits = stage in ("", "evaluate") and settings.evaluation.enabled
            if waits:
                if hosts.several():  # reading a checkpoint takes all of them
                    networks.read(plans)
                if hosts.is_first():
                    evaluate_run(
                        Evaluation(
                            settings, plans, dataset, networks, workdir, reporter, stop, command
                        )
                    )
        except Interrupted as where:
            status = stop.status
            reporter.say(
                f"Stopped by {stop.name or 'request'} in {where}; everything up to there is saved. "
                f"To go on, give the same command again:\n  {command}"
            )
        hosts.leave()
        if waits and not first and not (workdir / "evaluation.json").exists():
            status = status or stop.status  # the first process was stopped in its evaluation
    return status
