"""A training step of a small Stable Diffusion, compiled for four chips of a TPU that is not there.

`benchmarks/aot_stable_diffusion.py` compiles the step of Stable Diffusion 1.5 in the same way.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 900


def program(*flags: str) -> dict:
    """What `benchmarks/aot_stable_diffusion.py` tells of a program."""
    command = [sys.executable, str(ROOT / "benchmarks" / "aot_stable_diffusion.py")]
    command += ["--size=tiny", "--quick", *flags]
    # In a process of its own: neither these variables nor libtpu are any other test's business.
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
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install -e .[tpu-aot]",
)
def test_weights_of_all_networks_are_cut_and_gathered_over_the_model_axis():
    found = program("--mesh=1,2,2", "--batch=4")
    # Half of the student's weights, average and two moments, of teacher and text encoder; arrays
    # of fewer than 1,024 elements are whole on every chip.
    whole = 4 * (4 * found["parameters"] + found["frozen"])
    assert 0.5 * whole < found["kept"] < 0.6 * whole
    exchanged = {(e["operation"], tuple(e["axes"])) for e in found["exchanges"]}
    assert ("all-gather", ("model",)) in exchanged
    # Gradients are summed over all chips, which share the batch.
    assert {axes for name, axes in exchanged if name == "all-gather"} == {("model",)}
    assert 4 * found["flops"] == pytest.approx(found["flops_of_one"], rel=0.2)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install -e .[tpu-aot]",
)
@pytest.mark.parametrize("rank", [0, 4])
def test_a_chip_holds_one_student_and_one_copy_of_the_teacher(rank):
    """Four students of distribution matching on four chips, whole or as factors of low rank."""
    flags = ["--mesh=4,1,1", "--batch=2", "--students=4", "--method=dmd", f"--rank={rank}"]
    found = program(*flags, *([] if rank else ["--lower"]))  # one of the two is compiled
    assert found["students"] == 4
    # Of a student the weights, two moments and an average, of the network beside it all but that.
    own = found["parameters"] / 8
    held = 4 * (7 * own + found["frozen"])
    assert held < found["kept"] < 1.2 * held
    if rank:
        assert found["exchanges"] == []
        assert own < 0.3 * found["frozen"]
