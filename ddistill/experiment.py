"""A run: its stages, then its evaluation."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddistill import data
from ddistill.data import Dataset
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError, nearest
from ddistill.evaluation.checks import check_decoders, check_evaluation, check_real_images
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.evaluate_run import evaluate_run
from ddistill.evaluation.feature_networks import FeatureChoice
from ddistill.evaluation.previews import Previews
from ddistill.interop.sources import write_noted
from ddistill.parsing import parse, plain
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
from ddistill.runtime.loggers import RunLoggers
from ddistill.settings import Settings
from ddistill.training.callbacks import Callback
from ddistill.training.folders import check_folders
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.timings import Timings
from ddistill.training.trained import Networks
from ddistill.workdir import file_settings


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


@dataclass(frozen=True)
class Experiment:
    """A run that has passed every check, with its folder.

    Attributes:
      settings: its settings.
      dataset: the training images.
      plans: its stages.
      workdir: its folder.
      cache: the folder of stages that runs share.
      features: the features that will score samples.
      networks: of its complete stages.
    """

    settings: Settings
    dataset: Dataset
    plans: list[StagePlan]
    workdir: Path
    cache: Path
    features: FeatureChoice
    networks: Networks = field(default_factory=Networks)


def prepare(
    config: Any, workdir: Path, cache: Path, stage: str = "", dataset: Dataset | None = None
) -> Experiment:
    """Plans a run, checks it and writes the files that say what it is; trains nothing.

    Args: as of `run`.

    Raises:
      ConfigError, DataError, CheckpointError: the run cannot work, or its folder has another run.
    """
    settings = parse(config, Settings)
    dataset = data.load(settings.data, "train") if dataset is None else dataset
    facts = DataFacts.of(dataset)
    plans = plan_stages(settings, facts, workdir, cache)
    check_evaluation(settings, plans)
    check_decoders(settings, plans, dataset)
    features = check_real_images(settings, dataset)
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
    return Experiment(settings, dataset, plans, workdir, cache, features)


def announce(experiment: Experiment, reporter: Reporter) -> None:
    """Tells about the data and the settings of a run."""
    settings, dataset = experiment.settings, experiment.dataset
    reporter.say("\n".join(data.summary(dataset)))
    found = [*notes(experiment.plans, settings, DataFacts.of(dataset)), experiment.features.note]
    for note in filter(None, found):
        reporter.say(f"note: {note}")


def train_stages(
    experiment: Experiment,
    reporter: Reporter,
    stop: StopRequest,
    stage: str = "",
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains the stages that are not complete, or one of them; raises as `run_stages`."""
    settings, workdir = experiment.settings, experiment.workdir
    context = RunContext(
        settings,
        experiment.dataset,
        reporter,
        stop,
        networks=experiment.networks,
        loggers=RunLoggers(
            settings.training.loggers,
            settings.name,
            workdir,
            plain(dataclasses.asdict(settings)),
            reporter.say,
        ),
        previews=Previews(settings, workdir, experiment.networks, experiment.dataset),
        timings=Timings(experiment.cache),
        callbacks=callbacks,
    )
    run_stages(experiment.plans, context, stage)


def evaluate_stages(
    experiment: Experiment, reporter: Reporter, stop: StopRequest, command: str = ""
) -> None:
    """Samples and scores a run on the first process, if its stages are complete."""
    e = experiment
    if hosts.several():  # reading a checkpoint takes all of them
        e.networks.read(e.plans)
    if hosts.is_first():
        evaluate_run(
            Evaluation(
                e.settings,
                e.plans,
                e.dataset.as_pictures(),
                e.networks,
                e.workdir,
                reporter,
                stop,
                command,
                file_settings(command),
            )
        )


def run(
    config: Any,
    workdir: Path,
    cache: Path,
    stage: str,
    command: str,
    dataset: Dataset | None = None,
) -> int:
    """Runs the stages of a config and then the evaluation, as a command.

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
    experiment = prepare(config, workdir, cache, stage, dataset)
    reporter = Reporter()
    announce(experiment, reporter)
    status, waits, first = 0, False, hosts.is_first()
    with StopRequest(speaks=hosts.is_first()) as stop:
        try:
            if stage != "evaluate":
                train_stages(experiment, reporter, stop, stage)
            waits = stage in ("", "evaluate") and experiment.settings.evaluation.enabled
            if waits:
                evaluate_stages(experiment, reporter, stop, command)
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
