"""Trains, distils, samples, scores and reports: `python -m ddistill.main --config=FILE[:VARIANT]`.

The same command again resumes the run and skips complete stages.
"""

import errno
import functools
import json
import logging as python_logging
import os
import shlex
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from ddistill.config_files import ConfigFileError, ConfigFileParser, unknown_flag, wrong_flag
from ddistill.errors import CheckpointError, ConfigError, DataError, TrainingError
from ddistill.planning.manifests import shared_stages
from ddistill.runtime.ending import (
    INTERRUPTED,
    answer_closed_output,
    is_output_closed,
    silence_output,
    tell,
)
from ddistill.runtime.files import expand
from ddistill.text import is_utf8, make_streams_safe, one_line, printable

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Path or name of a config file, with ':smoke' for its quick variant."
)
_CONFIG_FLAG = flags.FLAGS["config"]
_CONFIG_FILE = ConfigFileParser()  # which answers mistakes in one line
_CONFIG_FLAG.parser = _CONFIG_FILE
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run. Default: runs/NAME, or runs/NAME-HASH with other training settings.",
)
_CACHE = flags.DEFINE_string(
    "cache",
    None,
    "Folder of the stages that runs share. Default: 'shared' beside the workdir, or in it if the "
    "run is packed.",
)
_STAGE = flags.DEFINE_string(
    "stage", None, "Run this stage alone ('evaluate' = sampling, scoring and the report)."
)
_PRINT = flags.DEFINE_bool("print_config", False, "Print the settings in full and stop.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes of a TPU pod, SLURM, Open MPI or Kubernetes."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first of several processes that are started by hand."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many such processes there are.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DOCTOR = flags.DEFINE_bool(
    "doctor", False, "Print versions, devices, data and disk of this machine and stop."
)

_FLAGS = [
    *("config", "workdir", "cache", "stage", "print_config", "distributed", "coordinator"),
    *("processes", "process_id", "doctor", "help"),
]
PROGRAM = "python -m ddistill.main"
USAGE_ERROR = 2
RUN_ERROR = 1
_HELP = {"--help", "-help", "-h", "--helpshort"}
_SWITCHED_OFF = ("nodistributed", "noprint_config", "nodoctor", "help", "h", "helpfull")
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def start(words: Sequence[str], program: str, about: str) -> None:
    """Runs a command line that begins with `program`, and ends the process as `main` does.

    Args:
      words: its arguments. One argument without a flag is the config.
      program: the command before them, as the user gave it.
      about: what `--help` prints between usage and flags.
    """
    make_streams_safe()
    if not _HELP.isdisjoint(words):
        usage = f"usage: {program} CONFIG[:VARIANT] [--config.KEY=VALUE ...] [FLAG ...]"
        with answer_closed_output():
            print(f"{usage}\n\n{about}\n\nflags:\n{_flags_help()}")
        return
    try:
        given = with_config_flag(words)
    except ConfigError as error:
        _fail(str(error), USAGE_ERROR)
    sys.argv = [program, *given]  # which absl and ml_collections read
    with answer_closed_output():
        app.run(functools.partial(main, program=program), flags_parser=parse_flags)


def with_config_flag(words: Sequence[str]) -> list[str]:
    """Arguments with `--config=NAME` in place of NAME, the one that is no flag and no flag's value.

    Raises:
      ConfigError: two arguments name a config.
    """
    names: list[str] = []
    others: list[str] = []
    value_follows = False
    for word in words:
        flag = word.lstrip("-")
        is_flag = word.startswith("-")
        (others if is_flag or value_follows else names).append(word)
        switch = flag in flags.FLAGS and flags.FLAGS[flag].boolean
        value_follows = is_flag and "=" not in word and not switch and flag not in _SWITCHED_OFF
    flagged = [w for w in others if w.startswith("-") and w.lstrip("-").split("=")[0] == "config"]
    if len(names) + len(flagged) > 1:
        raise ConfigError(f"There is one config for a run; given: {' '.join([*names, *flagged])}.")
    return [*(f"--config={name}" for name in names), *others]


def _flags_help() -> str:
    """The flags with their meanings."""
    lines = []
    for name in _FLAGS[:-1]:
        text = textwrap.fill(str(flags.FLAGS[name].help), 88)
        lines += [f"  --{name}", textwrap.indent(text, " " * 6)]
    return "\n".join(lines)


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Runs what the flags ask for; every expected error is one line and an exit status.

    The exit status of a run that a signal has stopped is 130 (SIGINT) or 143 (another signal), and
    141 where the reader of the output ends first, as `head` does; a training goes on to its end.
    """
    status = 0
    try:
        status = _main(argv, program)
    except KeyboardInterrupt:  # before the first stage or after the last
        tell("Stopped by SIGINT; what is on disk is kept.")
        _leave(INTERRUPTED)
        status = INTERRUPTED
    except (ConfigError, DataError, CheckpointError) as error:
        _fail(str(error), USAGE_ERROR)
    except BrokenPipeError as error:
        # Before or after training, which reports through the console.
        if not is_output_closed():
            _fail(f"{error}; another program or host has closed its end.", RUN_ERROR)
        silence_output()
    except TrainingError as error:
        _fail(str(error), RUN_ERROR)
    except Exception as error:
        text = _disk_trouble(error)
        if text is None:
            _leave(RUN_ERROR, error)
            raise
        _fail(text, RUN_ERROR)
    if status:
        sys.exit(status)


def _main(argv: Sequence[str], program: str) -> int:
    if len(argv) > 1:
        raise ConfigError(
            f"Arguments without a flag: {' '.join(argv[1:])}. Flags begin with --, as in "
            "--config=FILE."
        )
    config = _CONFIG.value
    name = "unnamed" if config is None else str(config.get("name", "unnamed"))
    workdir = expand(_WORKDIR.value or f"runs/{name}")
    _check_paths(workdir, _cache(workdir))
    _prepare_jax(_cache(workdir))
    _join_others()
    if _DOCTOR.value:
        from ddistill.system_info import report

        lines = report(None if config is None else config.get("data", {}), workdir)
        print("\n".join(map(printable, lines)))
        return 0
    if config is None:
        raise ConfigError("--config=FILE is missing, for example --config=sfddm_digits.")
    if _PRINT.value:
        from ddistill.parsing import parse, plain
        from ddistill.settings import Settings

        parse(config, Settings)
        print(json.dumps(plain(config), indent=2))
        return 0
    dataset = None
    if not _WORKDIR.value:
        from ddistill.workdir import default_workdir, read_base

        workdir, dataset = default_workdir(config, read_base(_CONFIG_FILE.given))
    from ddistill.experiment import run

    return run(config, workdir, _cache(workdir), _STAGE.value or "", _command(program), dataset)


def _prepare_jax(cache: Path) -> None:
    """Persistent compilation cache, CPU devices and their code, and quiet libraries."""
    import jax

    from ddistill.runtime.compilation import cache_folder
    from ddistill.runtime.cpu import use_quick_code
    from ddistill.runtime.sharding import use_cores_as_devices

    _quiet_libraries()
    use_quick_code(os.environ)
    use_cores_as_devices()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = cache_folder(cache.absolute() / "xla")
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a run that goes on has over a hundred of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _join_others() -> None:
    """Makes this process one of several, if the flags say so."""
    by_hand = {"coordinator": _COORDINATOR, "processes": _PROCESSES, "process_id": _PROCESS}
    given = [name for name, flag in by_hand.items() if flag.value is not None]
    if not given and not _DISTRIBUTED.value:
        return
    if given and len(given) < len(by_hand):
        missing = ", ".join(f"--{name}" for name in by_hand if name not in given)
        raise ConfigError(f"--{given[0]} needs {missing} too, or --distributed alone.")
    from ddistill.runtime import hosts

    hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def _quiet_libraries() -> None:
    """Leaves it to us to tell what went wrong, in one line.

    Orbax raises a failure and also logs it with several tracebacks; then the event loop of its
    thread, which is cleared away with work undone, complains once for every array.
    """
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)

    def unraisable(hook: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(hook.exc_value):
            sys.__unraisablehook__(hook)

    sys.unraisablehook = unraisable


def _check_paths(workdir: Path, cache: Path) -> None:
    for flag, path in (("--workdir", workdir), ("--cache", cache)):
        if not is_utf8(path.absolute()):
            raise ConfigError(
                f"{flag}={path}: {path.absolute()} is not UTF-8, and checkpoints are written to "
                f"folders of UTF-8 names alone. Give another {flag}, or rename the folder."
            )


def _cache(workdir: Path) -> Path:
    return expand(_CACHE.value) if _CACHE.value else shared_stages(workdir)


def _command(program: str) -> str:
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def _disk_trouble(error: BaseException | None) -> str | None:
    """One line for a full disk or a folder that cannot be written; None for anything else."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = getattr(error, "errno", None)
        text = str(error)
        name = getattr(error, "filename", None)
        where = f" ({name})" if name else ""
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
            return (
                f"The disk is full{where}. Free some space and give the same command again; the "
                "last complete checkpoint is kept."
            )
        if number == errno.EISDIR:
            return (
                f"There is a folder in place of a file{where}. Move it elsewhere and give the same "
                "command again."
            )
        if number in _UNWRITABLE:
            return (
                f"Cannot write to the run's folder{where}: {os.strerror(number)}. "
                "Choose another --workdir."
            )
        error = error.__cause__ or error.__context__
    return None


def _fail(text: str, status: int) -> None:
    print(f"error: {one_line(text)}", file=sys.stderr)
    _leave(status)
    sys.exit(status)


def _leave(status: int, error: Exception | None = None) -> None:
    """Ends this process at once, with its traceback, if it is one of several.

    The usual way out waits for the others, and they may be waiting for this one.
    """
    hosts = sys.modules.get("ddistill.runtime.hosts")
    if hosts is not None and hosts.several():
        if error is not None:
            traceback.print_exception(error)
        hosts.leave_alone(status)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags with config errors as one line each instead of tracebacks."""
    make_streams_safe()
    try:
        return flags.FLAGS(argv)
    except ConfigFileError as error:
        _fail(str(error), USAGE_ERROR)
    except flags.UnrecognizedFlagError as error:
        value = str(error.flagvalue or "").partition("=")[2]
        text = unknown_flag(str(error.flagname), value, _FLAGS, _CONFIG_FLAG.value)
        _fail(text, USAGE_ERROR)
    except flags.IllegalFlagValueError as error:
        _fail(wrong_flag(error), USAGE_ERROR)
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        _fail(str(error.args[0] if error.args else error), USAGE_ERROR)
    return []


if __name__ == "__main__":
    with answer_closed_output():
        app.run(main, flags_parser=parse_flags)
