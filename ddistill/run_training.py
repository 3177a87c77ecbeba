"""`ddistill.train`: a run as a function, for scripts and notebooks."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
from ml_collections import ConfigDict
from rich.console import Console

from ddistill import experiment
from ddistill.config_files import ConfigFileError, load_config
from ddistill.errors import ConfigError
from ddistill.parsing import kind_of
from ddistill.planning.manifests import shared_stages
from ddistill.runtime import hosts
from ddistill.runtime.compilation import cache_folder
from ddistill.runtime.console import Reporter
from ddistill.runtime.cpu import use_quick_code
from ddistill.runtime.files import expand
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.sharding import use_cores_as_devices
from ddistill.settings import Settings
from ddistill.text import is_utf8
from ddistill.trained_run import TrainedRun, open_run
from ddistill.training.callbacks import Callback
from ddistill.workdir import default_workdir, read_base

Config: TypeAlias = str | os.PathLike | ConfigDict | Mapping[str, Any] | Settings


def train(
    config: Config,
    workdir: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    *,
    stage: str = "",
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> TrainedRun:
    """Trains the stages of a config that are not complete, evaluates them, and opens the run.

    It does what `python -m ddistill.main --config=CONFIG` does, with the same checks, files and
    messages, and continues a run that was stopped. Errors are exceptions; nothing ends the process.

        run = ddistill.train("configs/sfddm_digits.py:smoke", callbacks=[MyCallback()])
        images = run.sample(16)

    In the main thread, SIGINT (Ctrl-C, or a notebook's interrupt) and SIGTERM stop the training
    after the current step, with a checkpoint; a second Ctrl-C stops at once. The former signal
    handlers are put back at the end. In other threads no signal is handled.

    Where JAX has not computed anything yet, every CPU core becomes a device. Compiled programs are
    kept in `cache`, unless JAX has a compilation cache already.

    Args:
      config: a config file as of `--config`, FILE or FILE:VARIANT; or the result of its
        `get_config`; or `ddistill.settings.Settings`.
      workdir: the folder of the run; None for runs/NAME, or runs/NAME-HASH with training settings
        other than those of the config file.
      cache: the folder of stages that runs share; None for `shared` beside `workdir`, or in it if
        the run is packed.
      stage: one stage to run alone, or "evaluate"; "" for all stages and the evaluation.
      callbacks: are told of the progress, see `ddistill.Callback`.
      quiet: print nothing.

    Returns:
      The finished run.

    Raises:
      ConfigError: a setting or an argument cannot work; nothing was trained.
      DataError, CheckpointError: data or files of the run are missing or damaged.
      TrainingError: a loss is no longer finite, or an alarm is fatal.
      KeyboardInterrupt: SIGINT has stopped the run; the same call continues it.
      Interrupted: another signal or a callback has stopped the run; the same call continues it.
    """
    made, base = _read(config)
    dataset = None
    if workdir is None:
        folder, dataset = default_workdir(made, base)
    else:
        folder = _path("workdir", workdir)
    shared = shared_stages(folder) if cache is None else _path("cache", cache)
    _prepare_jax(shared)
    planned = experiment.prepare(made, folder, shared, stage, dataset)
    reporter = Reporter(Console(quiet=True)) if quiet else Reporter()
    experiment.announce(planned, reporter)
    with StopRequest(speaks=hosts.is_first() and not quiet, exits=False) as stop:
        try:
            if stage != "evaluate":
                experiment.train_stages(planned, reporter, stop, stage, callbacks)
            if stage in ("", "evaluate") and planned.settings.evaluation.enabled:
                experiment.evaluate_stages(planned, reporter, stop, "ddistill.train(...)")
        except Interrupted as where:
            text = (
                f"stopped by {stop.name or 'request'} in {where}; everything up to there is saved, "
                "and the same call continues."
            )
            if stop.name == "SIGINT":
                raise KeyboardInterrupt(text) from None
            raise Interrupted(text) from None
    return dataclasses.replace(open_run(folder, shared), networks=planned.networks)


def _read(config: Config) -> tuple[Any, Any]:
    """The settings of a run as `ddistill.parsing.parse` takes them, and those of its file or None.

    Raises:
      ConfigError: the file does not exist or fails, or the value is no config.
    """
    if isinstance(config, Settings):
        return dataclasses.asdict(config), None
    if isinstance(config, ConfigDict | Mapping):
        return config, None
    if not isinstance(config, str | os.PathLike):
        raise ConfigError(
            f"config={config!r} is {kind_of(type(config))}; the name of a config file, a "
            "ConfigDict or ddistill.settings.Settings is needed."
        )
    given = os.fspath(config)
    try:
        return load_config(given), read_base(given)
    except ConfigFileError as error:
        raise ConfigError(str(error)) from None


def _path(name: str, given: object) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{name}={given!r} is {kind_of(type(given))}; a path is needed.")
    path = expand(given)
    if not is_utf8(path.absolute()):
        raise ConfigError(
            f"{name}={path} is not UTF-8, and checkpoints are written to folders of UTF-8 names "
            "alone. Give another folder."
        )
    return path


def _prepare_jax(cache: Path) -> None:
    """Makes cores devices and keeps compiled programs, as far as the user has not chosen."""
    use_quick_code(os.environ)
    with contextlib.suppress(RuntimeError):  # JAX has devices already
        use_cores_as_devices()
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        folder = cache_folder(cache.absolute() / "xla")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
