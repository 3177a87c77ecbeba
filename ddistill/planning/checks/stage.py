"""What is checked of a stage while it is planned: before anything compiles or is written."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from ddistill.errors import ConfigError, check_choice, nearest
from ddistill.objectives import Objective
from ddistill.objectives.base import FeatureShapes
from ddistill.optimizers import check_optimizer, update_rule
from ddistill.planning.build import check_earlier, in_full
from ddistill.planning.plan import StagePlan
from ddistill.settings import Settings, StageSettings
from ddistill.text import name_of, one_line

_LONGEST_NAME = 150  # file systems take 255 bytes, and a hash or a sampler's name is appended


PREDICTIONS = ("x0", "eps", "v", "edm")


def check_name(key: str, name: str, folder: bool = False) -> None:
    """Raises `ConfigError` for a name that records, folders or file names cannot hold.

    Args:
      key: dotted name of the setting that has the name.
      name: of a run or a stage.
      folder: whether it has to be the name of one folder.
    """
    why = ""
    if name_of(name) != name:
        why = "is blank, begins or ends with a space, or has characters that cannot be shown"
    elif name in (".", "..") or (folder and "/" in name):
        why = "is no name of a folder"
    elif len(name.encode()) > _LONGEST_NAME:
        why = f"is longer than {_LONGEST_NAME} bytes"
    if why:
        raise ConfigError(f"{key}: the name {name!r} {why}. Use letters, digits, '_' and '-'.")


def check_numbers(stage: StageSettings, path: str) -> None:
    """Raises `ConfigError` for counts, rates and names of a stage that cannot work."""
    for key in ("steps", "batch_size", "accumulate"):
        # What comes trained may be taken as it is.
        lowest = 0 if key == "steps" and stage.source else 1
        if getattr(stage, key) < lowest:
            raise ConfigError(f"{path}.{key}={getattr(stage, key)} must be {lowest} or more.")
    if stage.batch_size % stage.accumulate:
        raise ConfigError(
            f"{path}.batch_size={stage.batch_size} does not divide by "
            f"accumulate={stage.accumulate}; choose a divisor of {stage.batch_size}."
        )
    for rate in stage.ema:
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"{path}.ema={stage.ema}: every rate must be in [0, 1).")
    _check_average(stage, path)
    check_choice(f"{path}.prediction", stage.prediction, PREDICTIONS)
    check_choice(f"{path}.select_checkpoint", stage.select_checkpoint, ("last", "best"))
    if stage.steps:
        check_optimizer(stage.optimizer, stage.steps, f"{path}.optimizer")


def _check_average(stage: StageSettings, path: str) -> None:
    """Raises `ConfigError` where what a stage hands on is mostly what it started from.

    A stage that goes on from another one takes over its average, which has learnt.
    """
    if not stage.ema or stage.ema_warmup or stage.resume or not stage.steps:
        return
    share = stage.ema[0] ** stage.steps
    if share > 0.5:
        raise ConfigError(
            f"{path}.ema={stage.ema} with ema_warmup=False: after {stage.steps} steps {share:.0%} "
            "of the average, which the stage hands on, are its first weights. Set ema_warmup=True, "
            f"or a rate of {0.5 ** (10 / stage.steps):.3g} or below."
        )


def check_best(name: str, settings: Settings) -> None:
    """Raises `ConfigError` where the best checkpoint of a stage can only be its last."""
    stage, every = settings.stages.get(name), settings.training.checkpoint_every
    if stage and stage.select_checkpoint == "best" and 0 < stage.steps <= every:
        raise ConfigError(
            f"config.stages.{name}.select_checkpoint='best' chooses among checkpoints, but with "
            f"config.training.checkpoint_every={every} there is one in {stage.steps} steps. Set it "
            f"below {stage.steps}, or select_checkpoint='last'."
        )


def check_sources(stage: StageSettings, path: str, earlier: Mapping[str, StagePlan]) -> None:
    """Raises `ConfigError` unless teacher and initial weights exist and fit the stage."""
    if stage.teacher and stage.conditional and not earlier[stage.teacher].settings.conditional:
        raise ConfigError(
            f"{path}.conditional=True, but its teacher '{stage.teacher}' is unconditional."
        )
    if stage.teacher and not stage.conditional and _needs_class(earlier[stage.teacher]):
        raise ConfigError(
            f"{path}.conditional=False, but its teacher '{stage.teacher}' was trained with "
            "objective.label_dropout=0: what it says without a class was never trained. Set "
            "conditional=True."
        )
    if stage.teacher and earlier[stage.teacher].objective.trains_classifier:
        raise ConfigError(
            f"{path}.teacher={stage.teacher!r} is a classifier, not a denoiser. Name it as "
            f"{path}.classifier, and a stage that makes images as the teacher."
        )
    start = "resume" if stage.resume else "init"
    for key, name in (("teacher", stage.teacher), (start, stage.init_source)):
        check_students_of(stage, earlier.get(name), f"{path}.{key}", key)
        if name in earlier and earlier[name].objective.makes_pairs:
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
        check_earlier(f"{path}.resume", stage.resume, (), earlier)
    if stage.init_source:
        if not stage.resume:
            check_earlier(f"{path}.init", stage.init, ("fresh", "teacher"), earlier)
        source = earlier[stage.init_source]
        ours, theirs = in_full(stage.network), in_full(source.settings.network)
        different = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        if different:
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


def _needs_class(teacher: StagePlan) -> bool:
    """Whether a denoiser has never been without a class."""
    dropout = getattr(teacher.objective, "label_dropout", 1.0)
    return teacher.settings.conditional and not dropout


def check_students_of(stage: StageSettings, source: StagePlan | None, path: str, key: str) -> None:
    """Raises `ConfigError` unless many students can be what a stage learns or starts from."""
    theirs = source.settings.students if source is not None else None
    if source is None or theirs is None or not theirs.count:
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


def check_classifier(
    stage: StageSettings, objective: Objective, path: str, earlier: Mapping[str, StagePlan]
) -> None:
    """Raises `ConfigError` unless the classifier that a stage names, or needs, is one."""
    known = {n: p for n, p in earlier.items() if p.objective.trains_classifier}
    if stage.classifier or objective.needs_classifier:
        names = ", ".join(known) or "none, because no stage before this one is a classifier"
        if not stage.classifier:
            raise ConfigError(
                f"{path}.classifier is empty, but objective.classifier_weight is above 0, or "
                "another distance of the objective is one of a classifier's features. "
                f"Allowed: {names}."
            )
        if stage.classifier not in known:
            raise ConfigError(
                f"{path}.classifier={stage.classifier!r} is not a classifier's stage before this "
                f"one in config.pipeline.{nearest(stage.classifier, known)} Allowed: {names}."
            )


def check_guidance(stage: StageSettings, path: str, earlier: Mapping[str, StagePlan]) -> None:
    """Raises `ConfigError` unless the teacher knows what to be guided away from."""
    if stage.guidance != 1.0 and stage.teacher and not stage.conditional:
        raise ConfigError(
            f"{path}.guidance={stage.guidance}, but {path}.conditional=False gives the teacher no "
            "class to be guided to. Set conditional=True or guidance=1."
        )
    check_scale(stage.guidance, stage.teacher, path, earlier)


def check_scale(scale: float, teacher: str, path: str, plans: Mapping[str, StagePlan]) -> None:
    """Raises `ConfigError` unless a teacher can be given guidance of a scale.

    Args:
      scale: 1 for none.
      teacher: name of its stage, "" for none.
      path: of the settings that ask for it.
      plans: by name, the teacher's among them.
    """
    if scale == 1.0:
        return
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(f"{path}.guidance={scale} must be 0 or above; 1 is none.")
    if not teacher:
        raise ConfigError(f"{path}.guidance={scale} is the teacher's, and there is none.")
    theirs, why = plans[teacher], ""
    if theirs.partition is not None and theirs.partition.groups > 1:
        why = "is students of some classes each, of whom one alone knows the null class"
    elif not theirs.settings.conditional:
        why = "is unconditional: there is no class to be guided to"
    elif not getattr(theirs.objective, "label_dropout", 0.0):
        why = "was trained with objective.label_dropout=0: it has never seen the null class"
    if why:
        raise ConfigError(
            f"{path}.guidance={scale}, but the teacher '{teacher}' {why}. Set guidance=1."
        )


def check_copied(objective: Objective, teacher: StagePlan, path: str) -> None:
    """Raises `ConfigError` where a network is to start as a copy of a teacher of many students."""
    if objective.starts() and teacher.stacked:
        raise ConfigError(
            f"{path}.teacher={teacher.name!r} is {teacher.settings.students.count} students; the "
            f"objective's {', '.join(objective.starts())} starts as a copy of one network. Name a "
            "stage of one student as the teacher."
        )


def check_optimizers(stage: StageSettings, objective: Objective, path: str) -> None:
    """Raises `ConfigError` for optimisers of networks that there are not, or that cannot work."""
    for name, optimizer in stage.optimizers.items():
        if not objective.networks():
            raise ConfigError(
                f"{path}.optimizers names '{name}', but '{stage.objective['name']}' trains the "
                f"student alone; set {path}.optimizer."
            )
        check_choice(f"{path}.optimizers", name, objective.networks())
        check_optimizer(optimizer, stage.steps, f"{path}.optimizers.{name}")


def check_resume(
    stage: StageSettings,
    modules: Mapping[str, nn.Module],
    path: str,
    earlier: Mapping[str, StagePlan],
) -> None:
    """Raises `ConfigError` unless optimisers and networks of an earlier stage can be taken over."""
    if not stage.resume:
        return
    source = earlier[stage.resume]
    for name in [name for name in modules if name in source.modules]:
        if name != "student" and modules[name] != source.modules[name]:
            raise ConfigError(
                f"{path}.resume={stage.resume!r}: the network '{name}' is another one there. Use "
                "the same teacher and the same objective.features in both stages."
            )
        ours, theirs = (update_rule(s.optimizer_of(name)) for s in (stage, source.settings))
        if ours != theirs:
            raise ConfigError(
                f"{path}.resume={stage.resume!r}: the optimiser of '{name}' differs in more than "
                f"its rate, {ours} here and {theirs} there (name, clip, weight decay, b1, b2, eps, "
                "momentum). Its state cannot be taken over; use the same one."
            )
    for key, here, there in (
        ("teacher", stage.teacher, source.settings.teacher),
        ("conditional", stage.conditional, source.settings.conditional),
        ("grid.time", stage.grid.time, source.settings.grid.time),
    ):
        if here != there:
            raise ConfigError(
                f"{path}.resume={stage.resume!r}: {key} is {here!r} here and {there!r} there. A "
                "stage goes on with what its networks have learnt; set both alike."
            )


def check_classes(
    objective: Objective, module: nn.Module, stage: StageSettings, there: int, path: str
) -> None:
    """Compares the classes of a network with the `there` classes of the data."""
    here = getattr(module, "num_classes", 0)
    if objective.trains_classifier and here != there:
        raise ConfigError(
            f"{path}.network.num_classes={here}, but the data have {there} classes: set it to "
            f"{there}."
        )
    if stage.conditional and here < there:
        raise ConfigError(
            f"{path}.network.num_classes={here} is below the {there} classes of the data; set it "
            f"to {there}, or {path}.conditional=False."
        )
    if stage.conditional and there < 2:
        raise ConfigError(
            f"{path}.conditional=True, but the data have one class, which is to say no labels: all "
            f"other classes of the network would stay as they were drawn. Set {path}.conditional="
            "False, or give data with labels (a folder for each class, or data.label_key)."
        )
    if stage.conditional:
        try:
            objective.check_classes(here)
        except ConfigError as error:
            raise ConfigError(f"{path}.{error}") from None


def check_network(
    objective: Objective,
    module: nn.Module,
    wanted: tuple[str, ...],
    shape: tuple[int, int, int],
    stage: Any,
    path: str,
) -> FeatureShapes:
    """Traces the network on shapes only and compares what comes out with the images.

    Returns:
      By `wanted` tap, the shape (H, W, C) of the features there.

    Raises:
      ConfigError: the network refuses this image size, has no such feature taps, or its output
        has another shape.
    """
    classes = getattr(module, "num_classes", 0)
    if stage.conditional and not classes:
        raise ConfigError(f"{path}.conditional=True needs {path}.network.num_classes above 0.")
    taps: dict[str, Any] = {"taps": wanted} if wanted else {}
    try:
        out, variables = jax.eval_shape(
            lambda: module.init_with_output(
                jax.random.key(0),
                *objective.init_inputs("student", shape, stage.conditional),
                **taps,
            )
        )
    except ConfigError as error:
        raise ConfigError(f"{path}.network: {error}") from None
    except (TypeError, ValueError, ArithmeticError) as error:  # what jax says of odd sizes
        described = ", ".join(f"{k}={v!r}" for k, v in stage.network.items())
        raise ConfigError(
            f"{path}.network ({described}) cannot be built for images of shape {shape}: "
            f"{one_line(error)}"
        ) from error
    if "batch_stats" in variables:
        _check_batch_norm(stage, path)
    first = out[0] if isinstance(out, tuple) else out
    for tap in wanted:
        check_choice(f"{path}.objective: feature tap", tap, out[1])
    if hasattr(module, "out_channels") and first.shape[1:] != shape:
        raise ConfigError(
            f"{path}.network gives images of shape {first.shape[1:]}, the data are {shape}: "
            f"set network.out_channels={shape[-1]} or data.channels={first.shape[-1]}."
        )
    return {tap: out[1][tap].shape[1:] for tap in wanted}


def _check_batch_norm(stage: StageSettings, path: str) -> None:
    if stage.ema:
        raise ConfigError(
            f"{path}.ema={stage.ema}, but the network has batch norms, whose running statistics "
            "belong to the raw weights and not to an average of them. Set ema=()."
        )
    if stage.accumulate > 1:
        raise ConfigError(
            f"{path}.accumulate={stage.accumulate}, but the network has batch norms, which need "
            "the whole batch at once. Set accumulate=1, and a smaller batch_size if memory is "
            "short."
        )
