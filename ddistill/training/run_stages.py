"""The stages of a run, one after the other; complete ones are not touched."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddistill.data import Dataset
from ddistill.denoiser import in_float32
from ddistill.errors import ConfigError, in_words
from ddistill.networks.weights import Weights
from ddistill.planning.plan import StagePlan
from ddistill.runtime.console import Reporter
from ddistill.runtime.hosts import agree, from_first
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.settings import Settings
from ddistill.students import clone
from ddistill.training.compiled import Programs
from ddistill.training.folders import claim
from ddistill.training.initial import Start
from ddistill.training.loop import StageRun
from ddistill.training.pairs import make_pairs, read_pairs
from ddistill.training.trained import Networks, guided, load_state


def run_stages(
    plans: list[StagePlan],
    settings: Settings,
    dataset: Dataset,
    reporter: Reporter,
    stop: StopRequest,
    only: str = "",
    networks: Networks | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs every stage that is not complete and returns the manifests by stage.

    Args:
      plans: the stages in order.
      settings: the run's settings.
      dataset: training images.
      reporter: where progress goes.
      stop: polled between steps and stages.
      only: name of the one stage to run; the stages that it needs must be complete.
      networks: where the trained networks are kept for the evaluation.

    Raises:
      Interrupted: a stop was asked for; all work is on disk.
    """
    by_name = {plan.name: plan for plan in plans}
    manifests: dict[str, dict[str, Any]] = {}
    programs, networks = Programs(), networks or Networks()
    for plan in plans:
        if only and plan.name != only:
            continue
        if agree(bool(stop)):
            raise Interrupted(f"before stage '{plan.name}'")
        manifests[plan.name] = _run_one(
            plan, by_name, settings, dataset, reporter, stop, programs, networks
        )
    return manifests


def _run_one(
    plan: StagePlan,
    by_name: Mapping[str, StagePlan],
    settings: Settings,
    dataset: Dataset,
    reporter: Reporter,
    stop: StopRequest,
    programs: Programs,
    networks: Networks,
) -> dict[str, Any]:
    # Before the folder is claimed, so that a stage that is refused leaves nothing behind.
    frozen = from_first(lambda: [] if plan.manifest() else check_sound(plan, by_name))
    with claim(plan, reporter, stop):
        manifest = from_first(plan.manifest)
        if manifest is not None:
            reporter.say(f"{plan.name}: complete ({manifest['steps']} steps), found on disk")
            return manifest
        s = plan.settings
        if frozen:
            reporter.say(
                f"{plan.name}: student {in_words(frozen)} diverged in the stage that it starts "
                "from; it stays frozen and will not be scored"
            )
        teacher, classifier = (
            networks(by_name[name]) if name else None for name in (s.teacher, s.classifier)
        )
        if plan.objective.trains.kind == "pairs":
            teacher = guided(plan, in_float32(teacher))
            manifest = make_pairs(plan, teacher, reporter, stop)
            reporter.say(
                f"{plan.name}: {manifest['pairs']} pairs in {manifest['train_seconds']:.0f} s"
            )
            return manifest
        if s.steps and plan.imported:
            reporter.say(f"{plan.name}: starts from {plan.imported.source}")
        pairs = read_pairs(by_name[s.pairs]) if s.pairs else None
        run = StageRun(plan, dataset, settings.training, reporter, stop, programs)
        start = dataclasses.replace(starting_point(plan, by_name, networks), frozen=frozen)
        manifest, weights = run.run(guided(plan, teacher), start, classifier, pairs)
        networks.add(plan, weights)
        if not s.steps:
            source = plan.imported.source if plan.imported else s.source
            reporter.say(f"{plan.name}: {manifest['parameters']:,} parameters from {source}")
            return manifest
        reporter.say(
            f"{plan.name}: {manifest['steps']} steps in {manifest['train_seconds']:.0f} s "
            f"(and {manifest['compile_seconds']:.0f} s to compile), "
            f"loss {manifest['final_loss']:.4g}"
        )
        return manifest


def check_sound(plan: StagePlan, by_name: Mapping[str, StagePlan]) -> list[int]:
    """The students that the stage starts from and that diverged, which stay frozen.

    Raises:
      ConfigError: it learns from such students, or the first that diverges is to stop it.
    """
    s = plan.settings
    source = s.init_source
    taught_by = by_name[s.teacher].diverged_students() if s.teacher else []
    frozen = by_name[source].diverged_students() if source else []
    if taught_by or (frozen and s.students.on_divergence != "freeze"):
        bad, remedy = (s.teacher, "") if taught_by else (source, ", or give ")
        if remedy:
            remedy += f"'{plan.name}' students.on_divergence='freeze' to leave it out"
        raise ConfigError(
            f"Stage '{plan.name}' needs stage '{bad}', whose student "
            f"{in_words(taught_by or frozen)} diverged and is frozen. Lower the learning rate of "
            f"'{bad}' or set its optimizer.clip{remedy}."
        )
    return frozen


def starting_point(plan: StagePlan, by_name: Mapping[str, StagePlan], networks: Networks) -> Start:
    """What the networks of a stage start from."""
    s = plan.settings
    start = resumed(plan, by_name[s.resume]) if s.resume else Start()
    sources = {"student": s.init_source} | {
        name: s.teacher
        for name, own in plan.objective.auxiliaries.items()
        if own.start == "teacher"
    }
    weights = dict(start.weights)
    if plan.imported is not None:
        if plan.imported.params is None:
            raise ConfigError(
                f"config.stages.{plan.name}.source={s.source!r} is not there any more, and the "
                "stage is not complete. Put the files back."
            )
        weights["student"] = Weights(plan.imported.params)
    for name, source in sources.items():
        if source and name in plan.modules and name not in weights:
            weights[name] = networks.weights(by_name[source])
            if plan.stacked and not by_name[source].stacked:
                weights[name] = clone(weights[name], len(plan.students))
    return dataclasses.replace(start, weights=weights)


def resumed(plan: StagePlan, source: StagePlan) -> Start:
    """Everything of a complete stage that `plan` trains on: raw weights, optimisers, averages.

    Students in a stage of many each go on from the one student of a stage that has no more.
    """
    state = load_state(source)
    if plan.stacked and not source.stacked:
        state = clone(state, len(plan.students))
    names = plan.modules.keys() & state.params.keys()
    return Start(
        {n: Weights(state.params[n], state.statistics.get(n)) for n in names},
        {n: state.opt_state[n] for n in names},
        {rate: tree for rate, tree in state.ema.items() if float(rate) in plan.settings.ema},
        {n: tree for n, tree in state.targets.items() if n in plan.objective.auxiliaries},
        {n: x for n, x in state.memory.items() if n in plan.objective.memory},
    )
