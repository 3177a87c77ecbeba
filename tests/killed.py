"""Trainings that are killed, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest


def kill_while_training(stage: str, step: int, train: Callable[..., Any], *args: Any) -> None:
    """Calls `train(*args)` in another process and kills it while a train step runs.

    The processes have the environment in which the first of them was started, and share the
    compilation cache with this process.

    Args:
      stage: the stage that is killed.
      step: the train step that does not end.
      train: a function of a module, which is called with picklable arguments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ddistill.training.loop"])  # imported once, if it is installed
    process = context.Process(target=_child, args=(stage, step, train, args))
    process.start()
    try:
        process.join(300)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
            pytest.fail("the training did not end in 300 s")
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _child(stage: str, step: int, train: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import driver

    # Nothing is written between the lines of the tests.
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    driver.arm(stage, step, "sigkill")
    train(*args)
