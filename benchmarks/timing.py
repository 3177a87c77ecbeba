"""What the benchmarks share: interleaved timing, deadlines, counting floating-point operations."""

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np


@dataclass
class Variant:
    """One implementation of one network's step.

    Attributes:
      name: how the table calls it.
      step: runs one step and waits for it.
      compile_seconds: lowering and compilation; nan where there is none.
      seconds: duration of each timed step, one a round.
    """

    name: str
    step: Callable[[], None]
    compile_seconds: float
    seconds: list[float] = field(default_factory=list)


class Deadline:
    """The wall time of a benchmark, after which it prints what it has and ends.

    Args:
      seconds: from now; 0 for no limit.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds if seconds else float("inf")
        self._longest = 0.0
        self._done = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until the deadline; infinite without one."""
        return self._end - time.perf_counter()

    def watch(self, show: Callable[[], None]) -> None:
        """Calls `show` at the deadline and ends the process, also while the main thread compiles.

        `show` prints a table of the variants that have been timed.
        """
        if self._end == float("inf"):
            return

        def wait() -> None:
            time.sleep(max(0.0, self.left))
            if self._done.acquire(blocking=False):
                print("The time is over: rows of variants without a time are left out.")
                show()
                sys.stdout.flush()
                os._exit(0)

        threading.Thread(target=wait, daemon=True).start()

    def close(self) -> None:
        """Ends the watch; waits for ever if the process is about to end."""
        self._done.acquire()

    def prepare(self, name: str, make: Callable[[], Variant], made: list[Variant]) -> None:
        """Appends a variant to `made` unless the time left is shorter than the longest one took.

        With a deadline it is timed at once, so that it has a row if nothing else fits.
        """
        if self.left < 1.5 * self._longest:
            print(f"{name}: left out, because {self.left:.0f} s are left", flush=True)
            return
        start = time.perf_counter()
        variant = make()
        made.append(variant)
        if self._end < float("inf"):
            for _ in range(3):
                begun = time.perf_counter()
                variant.step()
                variant.seconds.append(time.perf_counter() - begun)
            del variant.seconds[0]
        self._longest = max(self._longest, time.perf_counter() - start)

    def measure(self, made: list[Variant], rounds: int, limit: float) -> None:
        """`measure`, within half of the time that is left."""
        early = [list(v.seconds) for v in made]
        if self.left < 3:
            return
        for v in made:
            v.seconds.clear()
        measure(made, rounds, min(limit, 0.5 * self.left))
        for v, seconds in zip(made, early):
            v.seconds = v.seconds or seconds


def measure(made: list[Variant], rounds: int, limit: float) -> None:
    """Runs every variant once a round, after two rounds of warm-up, for at most `limit` seconds."""
    for _ in range(2):
        for v in made:
            v.step()
    stop = time.perf_counter() + limit
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > stop:
            break
        for v in made:
            start = time.perf_counter()
            v.step()
            v.seconds.append(time.perf_counter() - start)


def jaxpr_flops(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * out.size * int(np.prod([left[i] for i in contracted]))
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            total += 2 * out.size * int(np.prod(kernel[:3]))
        for inner in jax.tree.leaves(eqn.params):
            if hasattr(inner, "jaxpr"):
                total += jaxpr_flops(inner.jaxpr)
    return total


def machine() -> str:
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        with open("/proc/cpuinfo") as info:
            models = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
        name = f"{os.cpu_count()} cores, {models[0] if models else platform.machine()}"
    return f"{name}; Python {platform.python_version()}, jax {jax.__version__}"


def print_table(table: list[list[str]], markdown: bool) -> None:
    """Prints rows of equal length, the first one the heading."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for i, row in enumerate(table):
        if markdown:
            print("| " + " | ".join(row) + " |")
        else:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)))
        if markdown and not i:
            print("|" + "---|" * len(row))
