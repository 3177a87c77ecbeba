"""Several processes as one run: start, agreement, and one process that writes.

Every process runs the same program on its own devices. The first process alone writes files and
makes decisions that depend on files, and broadcasts them, so that all processes call the same
collective operations in the same order. With one process these functions cost nothing.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddistill import errors
from ddistill.typing import JsonRecord

T = TypeVar("T")

# The first process samples and scores alone; the others wait for it as long as that takes.
_WAIT_SECONDS = 7 * 24 * 3600


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of a run of several; has to come before jax looks at its devices.

    Args:
      coordinator: "HOST:PORT" of the first process; None asks the cluster (a TPU pod, SLURM, Open
        MPI, Kubernetes), and so do the others.
      processes: how many there are.
      process: which of them this is, from 0.

    Raises:
      ConfigError: the processes did not find each other, or nothing says who they are.
    """
    # Harmless where accelerators compute: only collectives between CPU devices go through it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator, processes, process, shutdown_timeout_seconds=_WAIT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise errors.ConfigError(
            f"The processes of this run could not be joined: {reason} Outside a TPU pod, SLURM, "
            "Open MPI or Kubernetes give --coordinator=HOST:PORT, --processes=N and --process_id=I."
        ) from error


def several() -> bool:
    """Whether there is more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def agree(flag: bool) -> bool:
    """Whether `flag` is true on any process; a collective operation."""
    if not several():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def from_first(fn: Callable[[], T]) -> T:
    """Returns on every process the result of `fn` on the first; a collective operation.

    Only the first process calls `fn`. The result has to be JSON. An exception of `fn` is raised on
    every process.
    """
    if not several():
        return fn()
    sent: JsonRecord = {}
    raised: Exception | None = None
    if is_first():
        try:
            sent = {"value": fn()}
        except Exception as error:
            raised = error
            sent = {"error": type(error).__name__, "text": str(error)}
    sent = _broadcast(sent)
    if raised is not None:
        raise raised
    if "error" in sent:
        kind = getattr(errors, sent["error"], errors.TrainingError)
        raise kind(sent["text"])
    return sent["value"]


def _broadcast(value: JsonRecord) -> JsonRecord:
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = content if is_first() else np.zeros(size, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))


def wait(name: str) -> None:
    """Returns when every process has called it."""
    if several():
        multihost_utils.sync_global_devices(name)


def check_shared(path: Path) -> None:
    """Raises `ConfigError` on all processes unless all of them see a file of the first one."""
    missing = not path.exists()
    if agree(missing):
        where = "this host does" if missing else "some hosts do"
        raise errors.ConfigError(
            f"{path} was written by the first process and {where} not see it. Runs on several "
            "hosts need a --workdir (and --cache) on a disk that all of them share."
        )


def leave() -> None:
    """Ends the run together: returns when every process has called it, possibly after days."""
    if several():
        jax.distributed.shutdown()


def leave_alone(status: int) -> None:
    """Ends this process at once, so that processes that wait for it fail instead of hanging.

    Returns where there is only one process, which can end in the normal way.
    """
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
