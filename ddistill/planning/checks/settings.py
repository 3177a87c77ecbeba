"""Checks of names, numbers and choices in the settings of a run and of a stage."""

from ddistill.errors import ConfigError, check_choice
from ddistill.objectives import Objective
from ddistill.optimizers import check_optimizer
from ddistill.planning.context import StageContext
from ddistill.runtime.loggers import JSONL, LOGGERS
from ddistill.settings import Settings, StageSettings
from ddistill.text import name_of

# File systems allow 255 bytes, and a hash or the name of a sampler is appended.
_LONGEST_NAME = 150
_LOWEST = {"log_every": 1, "checkpoint_every": 1, "keep": 1, "scan_steps": 0, "preview_every": 0}

PREDICTIONS = ("x0", "eps", "v", "edm", "flow")


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
    elif folder and "@" in name:
        why = "has an '@', which stands between a stage and the step of a checkpoint"
    elif len(name.encode()) > _LONGEST_NAME:
        why = f"is longer than {_LONGEST_NAME} bytes"
    if why:
        raise ConfigError(f"{key}: the name {name!r} {why}. Use letters, digits, '_' and '-'.")


def check_run(settings: Settings) -> None:
    """Raises `ConfigError` for settings of a run that work with no stage."""
    check_name("config.name", settings.name)
    for key, low in _LOWEST.items():
        value = getattr(settings.training, key)
        if value < low:
            raise ConfigError(f"config.training.{key}={value} must be {low} or more.")
    for name in settings.training.loggers:
        check_choice("config.training.loggers", name, [JSONL, *LOGGERS])
    for name in settings.pipeline:
        _check_best(name, settings)
    if settings.seed < 0:
        raise ConfigError(f"config.seed={settings.seed} must be 0 or more.")


def _check_best(name: str, settings: Settings) -> None:
    """Raises `ConfigError` where the best checkpoint of a stage can only be its last."""
    stage, every = settings.stages.get(name), settings.training.checkpoint_every
    if stage and stage.select_checkpoint == "best" and 0 < stage.steps <= every:
        raise ConfigError(
            f"config.stages.{name}.select_checkpoint='best' chooses among checkpoints, but with "
            f"config.training.checkpoint_every={every} there is one in {stage.steps} steps. Set it "
            f"below {stage.steps}, or select_checkpoint='last'."
        )


def check_numbers(context: StageContext) -> None:
    """Raises `ConfigError` for counts, rates and choices of a stage that cannot work."""
    stage, path = context.settings, context.path
    for key in ("steps", "batch_size", "accumulate"):
        # An imported network may be used without further training.
        lowest = 0 if key == "steps" and stage.source else 1
        if getattr(stage, key) < lowest:
            raise ConfigError(f"{path}.{key}={getattr(stage, key)} must be {lowest} or more.")
    if stage.keep_every < 0 or stage.keep_every > stage.steps:
        raise ConfigError(
            f"{path}.keep_every={stage.keep_every} must be 0 (none) to {stage.steps}, the steps of "
            "the stage."
        )
    if stage.batch_size % stage.accumulate:
        raise ConfigError(
            f"{path}.batch_size={stage.batch_size} is not divisible by "
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
    """Raises `ConfigError` where the average of the weights is mostly the initial weights.

    A stage that resumes another one takes over its average, which is trained already.
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


def check_accumulation(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` for micro-batches where a loss needs the whole batch at once."""
    stage, path = context.settings, context.path
    reason = objective.requires.whole_batch
    if objective.memory and not reason:
        reason = f"the objective's memory ({', '.join(objective.memory)}) changes with every batch"
    if reason and stage.accumulate > 1:
        raise ConfigError(f"{path}.accumulate={stage.accumulate}, but {reason}. Set accumulate=1.")


def check_teacher(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` where the objective needs a teacher and the stage names none."""
    stage, path = context.settings, context.path
    reason, name = objective.requires.teacher, stage.objective["name"]
    if reason and not stage.teacher:
        raise ConfigError(f"{path}.teacher is empty, but '{name}' needs one: {reason}.")
    check_choice(f"{path}.grid.time", stage.grid.time, ("mapped", "index"))
