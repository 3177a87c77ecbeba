"""Train steps of the GPU day, compiled for an NVIDIA GPU where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# jax's CUDA plugin; .ci/run installs it there.
PLUGIN = ROOT / ".venv" / "cuda-aot"
SECONDS = 900


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.skipif(
    not (PLUGIN / "jax_plugins").is_dir(),
    reason="jax's CUDA plugin is not in .venv/cuda-aot; see benchmarks/cuda_aot.py",
)
def test_the_teachers_step_compiles_for_a_gpu():
    # In a process of its own: a plugin that has been loaded stays.
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda_aot.py"), f"--plugin={PLUGIN}"]
    command += ["--size=tiny", "--stages=teacher"]
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["stage"], found["device"]) == ("teacher", "NVIDIA H200")
    assert found["kernels"] > 0
    # The state is given away and comes back in the same memory.
    assert 0 < found["aliased"] <= found["arguments"]
