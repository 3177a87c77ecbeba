"""A training step of a small Stable Diffusion, compiled for four chips of a TPU that is not there.

`benchmarks/aot_stable_diffusion.py` compiles the step of Stable Diffusion 1.5 in the same way.
"""

import importlib.util
import json

import pytest
from aot import printed

SECONDS = 900


def program(*flags: str) -> dict:
    """What `benchmarks/aot_stable_diffusion.py` tells of a program."""
    flags = ("--size=tiny", "--quick", *flags)
    return json.loads(printed("aot_stable_diffusion.py", *flags, seconds=SECONDS)[-1])


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install -e .[tpu-aot]",
)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@needs_libtpu
def test_weights_are_cut_and_gathered_over_the_model_axis_and_students_do_not_communicate():
    """Two students on two chips each."""
    found = program("--mesh=2,1,2", "--batch=2", "--students=2")
    # Half of a student's weights, average and two moments, of teacher and text encoder; arrays of
    # fewer than 1,024 elements are whole on every chip.
    whole = 4 * (4 * found["parameters"] / 2 + found["frozen"])
    assert 0.5 * whole < found["kept"] < 0.6 * whole
    exchanged = {(e["operation"], tuple(e["axes"])) for e in found["exchanges"]}
    assert ("all-gather", ("model",)) in exchanged
    assert {axes for _, axes in exchanged} == {("model",)}
    # The two chips of a student share its batch.
    assert 2 * found["flops"] == pytest.approx(found["flops_of_one"], rel=0.2)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("rank", [0, 4])
def test_a_chip_holds_one_student_and_one_copy_of_the_teacher(rank):
    """Four students of distribution matching on four chips, whole or as factors of low rank."""
    flags = ["--mesh=4,1,1", "--batch=2", "--students=4", "--method=dmd", f"--rank={rank}"]
    found = program(*flags, "--lower")
    assert found["students"] == 4
    # Of a student the weights, two moments and an average, of the network beside it all but that.
    own = found["parameters"] / 8
    held = 4 * (7 * own + found["frozen"])
    assert held < found["kept"] < 1.2 * held
    if rank:
        assert own < 0.3 * found["frozen"]
