"""Programs of benchmarks/ that compile for devices that are not there."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def printed(script: str, *flags: str, seconds: float) -> list[str]:
    """The lines that a program prints.

    It runs in a process of its own: compilers that it loads, and variables of other tests for JAX,
    would stay.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and k[:4] != "JAX_"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *flags],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()
