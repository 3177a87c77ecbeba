"""Checks of what a stage takes from earlier stages: teacher, weights, classifier, optimisers."""

import math
from collections.abc import Mapping

import numpy as np
from flax import linen as nn
from flax import traverse_util

from ddistill.errors import ConfigError, check_choice, nearest
from ddistill.networks import extra_inputs
from ddistill.networks.extras import EXTRAS, parameter_names
from ddistill.networks.survivors import REMOVED, survivors
from ddistill.networks.weights import variable_shapes
from ddistill.objectives import Objective
from ddistill.objectives.parts import DENOISER
from ddistill.optimizers import update_rule
from ddistill.planning.build import build_module, check_checkpoint, check_earlier, in_full
from ddistill.planning.context import StageContext
from ddistill.planning.plan import StagePlan
from ddistill.settings import StageSettings

# The options of networks that say which extra inputs they have.
_OF_EXTRAS = ("extras", "guidance_dim")


def check_sources(context: StageContext) -> None:
    """Raises `ConfigError` unless teacher and initial weights exist and fit the stage."""
    stage, path = context.settings, context.path
    _check_teacher(context)
    start = "resume" if stage.resume else "init"
    for key, name in (("teacher", stage.teacher_stage), (start, stage.init_source)):
        source = context.earlier.get(name)
        if source is None:
            continue
        _check_students_of(stage, source, f"{path}.{key}", key)
        if source.objective.trains.kind == "pairs":
            raise ConfigError(
                f"{path}.{key}={name!r} makes pairs and trains no network; name it as {path}.pairs."
            )
    if stage.init == "teacher" and not stage.teacher:
        raise ConfigError(f"{path}.init='teacher', but {path}.teacher is empty.")
    if stage.resume and stage.init != "fresh":
        raise ConfigError(
            f"{path}.resume={stage.resume!r} and {path}.init={stage.init!r}: a stage that goes on "
            "from another one has its weights from there; leave init out."
        )
    if stage.resume:
        check_earlier(f"{path}.resume", stage.resume, (), context.earlier)
    elif stage.init_source:
        check_checkpoint(f"{path}.init", stage.init, ("fresh", "teacher"), context.earlier)
    if context.source is not None:
        _check_weights(stage, context.source, path)


def _check_teacher(context: StageContext) -> None:
    stage, path, teacher = context.settings, context.path, context.teacher
    if teacher is None:
        return
    if stage.conditional and not teacher.settings.conditional:
        raise ConfigError(
            f"{path}.conditional=True, but its teacher '{teacher.name}' is unconditional."
        )
    if not stage.conditional and _needs_class(teacher):
        raise ConfigError(
            f"{path}.conditional=False, but its teacher '{teacher.name}' was trained with a class "
            "for every example: its predictions without a class were never trained. Set "
            "conditional=True, or train the teacher with a share of dropped labels."
        )
    if teacher.objective.trains.kind == "classifier":
        raise ConfigError(
            f"{path}.teacher={teacher.name!r} is a classifier, not a denoiser. Name it as "
            f"{path}.classifier, and a stage that makes images as the teacher."
        )
    trains = teacher.objective.trains
    if not trains.on_levels:
        raise ConfigError(
            f"{path}.teacher={teacher.name!r} is {trains.called}, not a denoiser. Name a stage "
            "that makes images as the teacher."
        )


def _needs_class(teacher: StagePlan) -> bool:
    """Whether a denoiser was always given a class in its training."""
    return teacher.settings.conditional and teacher.objective.null_class_share == 0


def _check_students_of(stage: StageSettings, source: StagePlan, path: str, key: str) -> None:
    """Raises `ConfigError` unless the students of `source` fit as teacher or initial weights."""
    theirs = source.settings.students
    if not theirs.count:
        return
    if key == "teacher" and source.partition is None:
        raise ConfigError(
            f"{path}={source.name!r} is a sweep of {theirs.count} students and not one network; "
            "name a stage of one student, or of students with a partition."
        )
    if key != "teacher" and stage.students.count != theirs.count:
        raise ConfigError(
            f"{path} takes the weights of '{source.name}', which has {theirs.count} students; "
            f"this stage has students.count={stage.students.count}. Set it to {theirs.count}, or "
            "start from a stage of one student."
        )


def _check_weights(stage: StageSettings, source: StagePlan, path: str) -> None:
    """Raises `ConfigError` unless the network that weights are taken from is the stage's."""
    start = "resume" if stage.resume else "init"
    ours, theirs = in_full(stage.network), in_full(source.settings.network)
    named = [extra_inputs(s.network) for s in (stage, source.settings)]
    if not stage.resume and set(named[1]) <= set(named[0]):
        # Inputs that the source lacks are drawn, and have no effect before training.
        theirs |= {key: ours[key] for key in _OF_EXTRAS if key in ours and named[1] != named[0]}
    different = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if different and set(different) <= set(REMOVED) and not stage.resume:
        _check_survivors(stage, source, path)
    elif different:
        k = different[0]
        raise ConfigError(
            f"{path}.{start} takes the weights of '{source.name}', whose network differs: "
            f"network.{k} is {ours.get(k)!r} here and {theirs.get(k)!r} there. "
            "Use the same network, or a fresh one (init='fresh')."
        )
    if stage.prediction != source.settings.prediction:
        raise ConfigError(
            f"{path}.prediction={stage.prediction!r}, but '{source.name}', whose weights it "
            f"starts from, predicts {source.settings.prediction!r}."
        )


def _check_survivors(stage: StageSettings, source: StagePlan, path: str) -> None:
    """Raises `ConfigError` unless every layer of a smaller network is one of the source's."""
    ours = build_module(stage.network, f"{path}.network")
    conditional = source.settings.conditional
    wanted, given = (
        variable_shapes(net, *DENOISER.shapes_of(net, source.image_shape, conditional))["params"]
        for net in (ours, source.module)
    )
    extras = getattr(ours, "extra_parameters", parameter_names(getattr(ours, "extras", ())))
    found = traverse_util.flatten_dict(survivors(given, ours, source.module), sep="/")
    for name, x in traverse_util.flatten_dict(wanted, sep="/").items():
        there = found.get(name)
        if name.partition("/")[0] in extras or (there is not None and there.shape == x.shape):
            continue
        here = "nothing" if there is None else f"{there.shape}"
        raise ConfigError(
            f"{path}.init takes over the layers of '{source.name}' that a network with fewer "
            f"blocks has, but '{name}' is {x.shape} here and {here} there. Use the widths of "
            f"'{source.name}', or a fresh network (init='fresh')."
        )


def check_classifier(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` unless the classifier that a stage names, or needs, is one."""
    named, path = context.settings.classifier, context.path
    reason = objective.requires.classifier
    if not named and not reason:
        return
    known = {n: p for n, p in context.earlier.items() if p.objective.trains.kind == "classifier"}
    names = ", ".join(known) or "none, because no stage before this one is a classifier"
    if not named:
        raise ConfigError(f"{path}.classifier is empty, but {reason}. Allowed: {names}.")
    if named not in known:
        raise ConfigError(
            f"{path}.classifier={named!r} is not a classifier's stage before this "
            f"one in config.pipeline.{nearest(named, known)} Allowed: {names}."
        )


def check_guidance(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` for guidance without effect, or that the teacher cannot have."""
    stage, path = context.settings, context.path
    check_range(stage.sample_guidance, f"{path}.sample_guidance")
    if stage.sample_guidance != 1.0 and not stage.method:
        raise ConfigError(
            f"{path}.sample_guidance={stage.sample_guidance} has no effect: without "
            f"{path}.method the stage is not scored. A teacher has config.evaluation.guidance."
        )
    if stage.guidance != 1.0 and stage.teacher and not _learns_predictions(objective):
        raise ConfigError(
            f"{path}.guidance={stage.guidance} has no effect: with these settings the objective "
            f"'{stage.objective['name']}' does not learn from the teacher's predictions, and the "
            "student would not be guided. Set guidance=1, or take an objective that does."
        )
    if stage.guidance != 1.0 and stage.teacher and not stage.conditional:
        raise ConfigError(
            f"{path}.guidance={stage.guidance}, but {path}.conditional=False gives the teacher no "
            "class to be guided to. Set conditional=True or guidance=1."
        )
    check_scale(stage.guidance, stage.teacher_stage, path, context.earlier)


def _learns_predictions(objective: Objective) -> bool:
    """Whether guidance of the teacher, which costs a second call, changes what is learnt."""
    told = type(objective).teacher_calls is not Objective.teacher_calls
    counts = told or not objective.requires.teacher
    if objective.trains.kind != "denoiser" or objective.requires.pairs or not counts:
        return True  # or not known
    return objective.teacher_calls(2) > objective.teacher_calls(1)


def check_dropped(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` where a student is to learn a null condition that its teacher lacks."""
    teacher, share = context.teacher, objective.null_class_share
    if not share or teacher is None or not objective.teacher_calls():
        return
    why, remedy = not_guidable(teacher)
    if why and not extra_inputs(teacher.settings.network):
        raise ConfigError(
            f"{context.path}.objective asks the teacher '{teacher.name}' without conditions for "
            f"{share:.0%} of the examples, but it {why}. Give them conditions{remedy}."
        )


def check_extras(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` unless every extra input of student and teacher is given values."""
    stage, path, teacher = context.settings, context.path, context.teacher
    ours, name = objective.extra_inputs, stage.objective["name"]
    own = extra_inputs(stage.network)
    for extra in (*own, *ours):
        check_choice(f"{path}.network.extras", extra, EXTRAS)
    if set(own) != set(ours):
        raise ConfigError(
            f"{path}.network.extras={own}, but the objective '{name}' gives its student "
            f"{', '.join(ours) or 'no extra inputs'}. Set it to {tuple(ours)}, or change the "
            "objective."
        )
    theirs = extra_inputs(teacher.settings.network) if teacher is not None else ()
    for extra in theirs:
        assert teacher is not None
        trained = teacher.objective.extra_inputs[extra]
        if extra not in ours:
            raise ConfigError(
                f"{path}.teacher={stage.teacher!r} is a network that is given {extra}, which the "
                f"objective '{name}' does not give a teacher. Name a teacher without this input, "
                "or an objective that has it."
            )
        if ours[extra].low < trained.low or ours[extra].high > trained.high:
            raise ConfigError(
                f"{path}.objective: {extra} goes from {ours[extra].low:g} to {ours[extra].high:g}, "
                f"but the teacher '{teacher.name}' was trained on {trained.low:g} to "
                f"{trained.high:g}. Choose a range inside of that."
            )


def check_guided_teacher(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` where an objective guides a teacher that cannot be guided."""
    stage, path, teacher = context.settings, context.path, context.teacher
    reason = objective.requires.guided_teacher
    if not reason or teacher is None:
        return
    if stage.guidance != 1.0:
        raise ConfigError(
            f"{path}.guidance={stage.guidance} is a fixed scale, but {reason}. Set guidance=1."
        )
    if not stage.conditional:
        raise ConfigError(
            f"{path}.conditional=False gives the teacher no class to be guided to, but {reason}. "
            "Set conditional=True."
        )
    why, remedy = not_guidable(teacher)
    if why and not extra_inputs(teacher.settings.network):
        raise ConfigError(f"{path}.teacher={stage.teacher!r} {why}, but {reason}{remedy}.")


def check_scale(scale: float, teacher: str, path: str, plans: Mapping[str, StagePlan]) -> None:
    """Raises `ConfigError` unless a teacher can be sampled with guidance of a scale.

    Args:
      scale: scale of classifier-free guidance; 1 for none.
      teacher: name of its stage, "" for none.
      path: dotted name of the settings that hold the scale.
      plans: by name, the stages, with the teacher among them.
    """
    if scale == 1.0:
        return
    check_range(scale, f"{path}.guidance")
    if not teacher:
        raise ConfigError(f"{path}.guidance={scale} is the teacher's, and there is none.")
    why, remedy = not_guidable(plans[teacher])
    if why:
        raise ConfigError(
            f"{path}.guidance={scale}, but the teacher '{teacher}' {why}. Set guidance=1{remedy}."
        )


def check_range(scale: float, key: str) -> None:
    """Raises `ConfigError` for a scale of guidance that is none."""
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(f"{key}={scale} must be 0 or above; 1 is none.")


def not_guidable(theirs: StagePlan) -> tuple[str, str]:
    """Why classifier-free guidance does not work with a stage, and the remedy; "" if it does."""
    why, remedy = "", ""
    if extra_inputs(theirs.settings.network):
        why = "has extra inputs, of which guidance may be one: it is not guided a second time"
    elif theirs.partition is not None and theirs.partition.groups > 1:
        why = "is students of some classes each, of whom one alone knows the null class"
    elif not theirs.settings.conditional:
        why = "is unconditional: there is no class to be guided to"
    elif theirs.imported is not None and theirs.imported.parts:
        pass  # its pipeline samples it with guidance, by the empty text or the null class
    elif not theirs.objective.null_class_share:
        share = theirs.objective.null_class_share
        why = "was trained with a class for every example: it has never seen the null class"
        remedy = f", or drop a share of the labels in config.stages.{theirs.name}.objective"
        if share is None:
            why = "is not known to have been trained on the null class"
    return why, remedy


def check_copied(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` where a network is to start as a copy of a teacher of many students."""
    teacher = context.teacher
    copies = [name for name, own in objective.auxiliaries.items() if own.start == "teacher"]
    if teacher is not None and teacher.stacked and copies:
        raise ConfigError(
            f"{context.path}.teacher={teacher.name!r} is {teacher.settings.students.count} "
            f"students; the objective's {', '.join(copies)} starts as a copy of one "
            "network. Name a stage of one student as the teacher."
        )


def check_resume(context: StageContext, modules: Mapping[str, nn.Module]) -> None:
    """Raises `ConfigError` unless optimisers and networks of an earlier stage can be taken over.

    Args:
      context: the stage.
      modules: its networks by name.
    """
    stage, path, source = context.settings, context.path, context.source
    if not stage.resume or source is None:
        return
    for name in [name for name in modules if name in source.modules]:
        if name != "student" and modules[name] != source.modules[name]:
            raise ConfigError(
                f"{path}.resume={stage.resume!r}: the network '{name}' is another one there. Give "
                f"both stages the same teacher and the same hyperparameters of '{name}'."
            )
        ours, theirs = (update_rule(s.optimizer_of(name)) for s in (stage, source.settings))
        if ours != theirs:
            raise ConfigError(
                f"{path}.resume={stage.resume!r}: the optimiser of '{name}' differs in more than "
                f"its rate, {ours} here and {theirs} there (name, clip, weight decay, b1, b2, eps, "
                "momentum). Its state cannot be taken over; use the same one."
            )
    if not _same_teacher(context, source):
        raise ConfigError(
            f"{path}.resume={stage.resume!r}: teacher is {stage.teacher!r} here and "
            f"{source.settings.teacher!r} there, which have other networks, levels or kinds of "
            "prediction. Set both alike, or name checkpoints of one network."
        )
    for key, here, there in (
        ("conditional", stage.conditional, source.settings.conditional),
        ("grid.time", stage.grid.time, source.settings.grid.time),
    ):
        if here != there:
            raise ConfigError(
                f"{path}.resume={stage.resume!r}: {key} is {here!r} here and {there!r} there. A "
                "stage goes on with what its networks have learnt; set both alike."
            )


def _same_teacher(context: StageContext, source: StagePlan) -> bool:
    """Whether the teachers of a stage and of the one that it continues are the same network.

    They are checkpoints of one stage, or of two of which one was trained from the other.
    """
    ours, name = context.teacher, source.settings.teacher_stage
    theirs = context.earlier[name] if name else None
    if ours is None or theirs is None or ours is theirs:
        return ours is theirs
    return (
        ours.module == theirs.module
        and ours.settings.prediction == theirs.settings.prediction
        and ours.settings.conditional == theirs.settings.conditional
        and np.array_equal(ours.indices, theirs.indices)
        and (theirs.name in ours.lineage or ours.name in theirs.lineage)
    )
