"""The stages of a run, one after the other; complete ones are not touched."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from ddistill.denoiser import in_float32
from ddistill.errors import ConfigError, in_words
from ddistill.interop.pipeline_parts import copy_parts, keep_files
from ddistill.networks.survivors import survivors
from ddistill.networks.text_encoding import TextEncoder
from ddistill.networks.weights import Weights
from ddistill.partitions import text_part
from ddistill.partitions.fitting import shares
from ddistill.planning.manifests import Manifest, PairsManifest, TrainedManifest
from ddistill.planning.plan import StagePlan
from ddistill.runtime.hosts import agree, from_first
from ddistill.runtime.interrupt import Interrupted
from ddistill.students import clone
from ddistill.training.folders import claim
from ddistill.training.initial import Start
from ddistill.training.loop import Learnt, StageRun
from ddistill.training.pairs import PairMaker, make_pairs, read_pairs
from ddistill.training.run_context import RunContext, StagePlace
from ddistill.training.text_cells import fit_texts, is_fitted, read_groups
from ddistill.training.trained import Networks, guided, load_state


def run_stages(
    plans: Sequence[StagePlan], context: RunContext, only: str = ""
) -> dict[str, Manifest]:
    """Runs every stage that is not complete and returns the manifests by stage.

    Args:
      plans: the stages in order.
      context: settings, data and services of the run.
      only: name of the one stage to run; the stages that it needs must be complete.

    Raises:
      Interrupted: a stop was requested; all work is on disk.
    """
    by_name = {plan.name: plan for plan in plans}
    manifests: dict[str, Manifest] = {}
    for i, plan in enumerate(plans):
        if only and plan.name != only:
            continue
        if agree(bool(context.stop)):
            raise Interrupted(f"before stage '{plan.name}'")
        later = [] if only else [p for p in plans[i + 1 :] if p.manifest() is None]
        place = StagePlace(i + 1, len(plans), tuple(later))
        manifests[plan.name] = _run_one(plan, by_name, context, place)
    return manifests


def _run_one(
    plan: StagePlan, by_name: Mapping[str, StagePlan], context: RunContext, place: StagePlace
) -> Manifest:
    # Before the folder is claimed, so that a stage that is refused leaves nothing behind.
    diverged = from_first(lambda: [] if plan.manifest() else check_sound(plan, by_name))
    with claim(plan, context.reporter, context.stop):
        found = _found(plan)
        if found is not None:
            context.reporter.say(f"{plan.name}: complete ({found.steps} steps), found on disk")
            return found
        if diverged:
            context.reporter.say(
                f"{plan.name}: student {in_words(diverged)} diverged in the stage that it starts "
                "from; it does not learn and will not be scored"
            )
        if plan.objective.trains.kind == "pairs":
            return _make_pairs(plan, by_name, context, place)
        return _train(plan, by_name, context, place, diverged)


def _found(plan: StagePlan) -> Manifest | None:
    """The manifest as the first process reads it; the view of another host may lag behind."""
    found = from_first(lambda: m.to_json() if (m := plan.manifest()) else None)
    if found is None:
        return None
    made = PairsManifest if plan.objective.trains.kind == "pairs" else TrainedManifest
    return made.from_json(found)


def _make_pairs(
    plan: StagePlan, by_name: Mapping[str, StagePlan], context: RunContext, place: StagePlace
) -> Manifest:
    texts = context.networks.text_encoder(plan)
    teacher = guided(plan, in_float32(context.networks.teacher(plan, by_name)), texts)
    maker = PairMaker(teacher, context.dataset.tokens if texts else None, texts)
    info = place.info(plan, 0, context.stop)
    context.call_back(lambda callback: callback.on_stage_begin(info))
    manifest = make_pairs(plan, maker, context.reporter, context.stop, place.title(plan))
    context.timings.note_step(plan, manifest.train_seconds / max(1, plan.settings.steps))
    context.call_back(lambda callback: callback.on_stage_end(info, manifest))
    context.reporter.say(f"{plan.name}: {manifest.pairs} pairs in {manifest.train_seconds:.0f} s")
    return manifest


def _train(
    plan: StagePlan,
    by_name: Mapping[str, StagePlan],
    context: RunContext,
    place: StagePlace,
    diverged: list[int],
) -> Manifest:
    s, say = plan.settings, context.reporter.say
    teacher = context.networks.teacher(plan, by_name)
    classifier = context.networks(by_name[s.classifier]) if s.classifier else None
    if s.steps and plan.imported:
        say(f"{plan.name}: starts from {plan.imported.source}")
    if plan.imported is not None and plan.imported.parts:
        folder = plan.imported.folder  # None for a pipeline that is gone
        from_first(lambda: None if folder is None else copy_parts(folder, plan.folder))
    if plan.keeps_files:
        from_first(lambda: keep_files(context.dataset.files, plan.folder))
    texts = None if plan.learns_texts else context.networks.text_encoder(plan)
    latents = context.networks.latent_encoder(plan)
    pairs = read_pairs(by_name[s.pairs]) if s.pairs else None
    groups = None if texts is None else _text_groups(plan, context, texts)
    run = StageRun(plan, context, place)
    start = dataclasses.replace(starting_point(plan, by_name, context.networks), diverged=diverged)
    bases = context.networks.bases(plan, by_name)
    manifest, weights = run.run(
        start,
        Learnt(guided(plan, teacher, texts), classifier, pairs, texts, latents, bases, groups),
    )
    context.networks.add(plan, weights)
    if not s.steps:
        source = plan.imported.source if plan.imported else s.source
        say(f"{plan.name}: {manifest.parameters:,} parameters from {source}")
        return manifest
    say(
        f"{plan.name}: {manifest.steps} steps in {manifest.train_seconds:.0f} s "
        f"(and {manifest.compile_seconds:.0f} s to compile), loss {manifest.final_loss:.4g}"
    )
    return manifest


def _text_groups(
    plan: StagePlan, context: RunContext, encoder: TextEncoder
) -> Int[np.ndarray, " N"] | None:
    """The group of every caption, for students that divide texts; fitted where that is due."""
    texts = text_part(plan.partition)
    if texts is None:
        return None

    def fit() -> None:
        if not is_fitted(plan):
            context.reporter.say(f"{plan.name}: fits the texts of {texts.count} students")
            fit_texts(plan, context.dataset, encoder)

    from_first(fit)
    groups = read_groups(plan, len(context.dataset))
    found = ", ".join(f"{share:.1%}" for share in shares(groups, texts.count))
    context.reporter.say(f"{plan.name}: {found} of {len(groups):,} captions, by student")
    return groups


def check_sound(plan: StagePlan, by_name: Mapping[str, StagePlan]) -> list[int]:
    """The students that diverged in the stage that `plan` starts from.

    Raises:
      ConfigError: the stage learns from diverged students, or starts from them without
        `students.on_divergence="freeze"`.
    """
    s = plan.settings
    source = s.init_source
    taught_by = by_name[s.teacher_stage].diverged_students() if s.teacher else []
    diverged = by_name[source].diverged_students() if source else []
    if taught_by or (diverged and s.students.on_divergence != "freeze"):
        bad, remedy = (s.teacher_stage, "") if taught_by else (source, ", or give ")
        if remedy:
            remedy += f"'{plan.name}' students.on_divergence='freeze' to leave it out"
        raise ConfigError(
            f"Stage '{plan.name}' needs stage '{bad}', whose student "
            f"{in_words(taught_by or diverged)} diverged. Lower the learning rate of "
            f"'{bad}' or set its optimizer.clip{remedy}."
        )
    return diverged


def starting_point(plan: StagePlan, by_name: Mapping[str, StagePlan], networks: Networks) -> Start:
    """The initial weights, optimiser states and averages of a stage.

    Raises:
      ConfigError: the files of an imported network are gone.
    """
    s = plan.settings
    start = resumed(plan, by_name[s.resume]) if s.resume else Start()
    sources = {"student": s.init_checkpoint} | {
        name: s.teacher_checkpoint
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
    for name, (source, step) in sources.items():
        if source and name in plan.modules and name not in weights:
            found = _taken_over(
                plan, name, by_name[source], networks.weights(by_name[source], step)
            )
            if found is not None and plan.stacked and not by_name[source].stacked:
                found = found.cloned(len(plan.students))
            weights |= {} if found is None else {name: found}
    return dataclasses.replace(start, weights=weights)


def _taken_over(plan: StagePlan, name: str, source: StagePlan, found: Weights) -> Weights | None:
    """The weights of a source that a network starts from; None where they are its base."""
    if not plan.settings.low_rank_of(name):
        own = found.whole()
        kept = survivors(own.params, plan.modules[name], source.module)
        return dataclasses.replace(own, params=kept)
    if name == "student" and source.base is not None:
        return dataclasses.replace(found, base=None)
    return None


def resumed(plan: StagePlan, source: StagePlan) -> Start:
    """The raw weights, optimiser states and averages of a complete stage, to be trained further.

    Where `source` has one student and `plan` many, each of them goes on from that one.
    """
    state = load_state(source)
    if plan.stacked and not source.stacked:
        state = clone(state, len(plan.students))
    names = plan.modules.keys() & state.params.keys()
    return Start(
        {n: Weights(state.params[n], state.statistics.get(n)) for n in names},
        {n: state.opt_state[n] for n in names},
        {rate: tree for rate, tree in state.ema.items() if float(rate) in plan.settings.ema},
        {n: tree for n, tree in state.targets.items() if _keeps_target(plan, n)},
        {n: x for n, x in state.memory.items() if _keeps_memory(plan, source, n)},
    )


def _keeps_target(plan: StagePlan, name: str) -> bool:
    """Whether the stage has a moving average of this name, of a rate above 0."""
    own = plan.objective.auxiliaries.get(name)
    return own is not None and own.start == "average" and own.rate != 0.0


def _keeps_memory(plan: StagePlan, source: StagePlan, name: str) -> bool:
    """Whether the stage carries the array of this name in the shape and type of the source."""
    ours, theirs = (p.objective.memory.get(name) for p in (plan, source))
    if ours is None or theirs is None:
        return False
    return (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
