"""The stages of a run, one after the other; complete ones are not touched."""

from collections.abc import Mapping
from typing import Any

from ddistill.data import Dataset
from ddistill.settings import Settings
from ddistill.students import clone
from ddistill.training.folders import claim
from ddistill.training.hosts import agree, from_first
from ddistill.training.interrupt import Interrupted, StopRequest
from ddistill.training.loop import StageRun
from ddistill.training.programs import Programs
from ddistill.training.progress import Reporter
from ddistill.training.stages import StagePlan
from ddistill.training.weights import Networks


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
    with claim(plan, reporter, stop):
        manifest = from_first(plan.manifest)
        if manifest is not None:
            reporter.say(f"{plan.name}: complete ({manifest['steps']} steps), found on disk")
            return manifest
        teacher, classifier = (
            networks(by_name[name]) if name else None
            for name in (plan.settings.teacher, plan.settings.classifier)
        )
        source = plan.settings.init_source
        start = networks.weights(by_name[source]) if source else None
        if start is not None and plan.stacked and not by_name[source].stacked:
            start = clone(start, len(plan.members))
        run = StageRun(plan, dataset, settings.training, reporter, stop, programs)
        manifest, weights = run.run(teacher, start, classifier)
        networks.add(plan, weights)
        reporter.say(
            f"{plan.name}: {manifest['steps']} steps in {manifest['train_seconds']:.0f} s "
            f"(and {manifest['compile_seconds']:.0f} s to compile), "
            f"loss {manifest['final_loss']:.4g}"
        )
        return manifest
