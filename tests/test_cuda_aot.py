"""Train steps of the GPU day, compiled for an NVIDIA GPU where there is none."""

import json

import pytest
from aot import ROOT, printed

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
    flags = (f"--plugin={PLUGIN}", "--size=tiny", "--stages=teacher")
    (line,) = printed("cuda_aot.py", *flags, seconds=SECONDS)
    found = json.loads(line)
    assert (found["stage"], found["device"]) == ("teacher", "NVIDIA H200")
    assert found["kernels"] > 0
    # The state is given away and comes back in the same memory.
    assert 0 < found["aliased"] <= found["arguments"]
