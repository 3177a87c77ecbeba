"""O2MKD's train step on CIFAR-10 for sixteen chips of a TPU v5e, compiled where there is no TPU.

The config in bf16 and with a global batch of 1024, that is 256 examples for each of the four
students. Networks have two levels of one block in place of four of two, which take a third of the
time to compile; docs/scaling.md has what the whole config takes.
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot import printed
from jax.sharding import PartitionSpec

from benchmarks.hlo import convolution_groups, crossed, exchanges
from ddistill.runtime.sharding import make_mesh

MESH = {"student": 4, "data": 4, "model": 1}
CHIPS = 16
# Bytes that a program can have on one chip.
HBM = 15.75 * 2**30
SECONDS = 1800


def program() -> dict:
    """What `benchmarks/aot_compile.py` tells of the program."""
    flags = (
        "--batch=256",
        "--quick",
        "--config=configs/o2mkd_cifar.py",
        "--mesh=4,4,1",
        "--blocks=1",
        "--levels=2",
    )
    return json.loads(printed("aot_compile.py", *flags, seconds=SECONDS)[-1])


# One test and not four, which two processes of pytest-xdist would compile for twice.
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install -e .[tpu-aot]",
)
def test_four_students_on_sixteen_chips():
    found = program()
    assert found["students"] * found["batch"] == 1024

    # A chip holds the weights, average and moments of one student, and the teacher's weights.
    assert found["parameters"] / 4 < found["frozen"] / 3.5
    held = 4 * (4 * found["parameters"] / 4 + found["frozen"])
    assert held < found["arguments"] < 1.1 * held
    assert found["memory"] < HBM

    # Nothing goes from one student's chips to another's.
    exchanged = {(e["operation"], *e["axes"]) for e in found["exchanges"]}
    assert exchanged == {("all-reduce", "data")}

    # All chips together do what four programs of one student do, and convolutions stay plain.
    assert found["flops"] * CHIPS == pytest.approx(4 * found["flops_of_one"], rel=0.1)
    assert found["convolution_groups"] == []


# ------------------------------------------------------------------ that exchanges are recognised


LINE = "%x.1 = f32[8]{0} all-reduce(%y), channel_id=1, replica_groups=%s, to_apply=%add"


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", ("data",)),
        ("{{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}", ("student",)),
        ("{}", ("student", "data")),
        ("[4,4]<=[16]", ("data",)),
        ("[4,4]<=[4,4]T(1,0)", ("student",)),
        ("[8,2]<=[16]", ("data",)),
        ("[1,16]<=[16]", ("student", "data")),
        ("[16,1]<=[16]", ()),
        ("mesh['axis_0'=4,'axis_1'=4] {'axis_1'}", ("data",)),
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=4] {'axis_1'}", ("student",)),
        ("mesh['a'=4,'b'=4] {'a','b'}", ("student", "data")),
        ("mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'a'}", ("data",)),
        ("mesh['a'=1,'b'=4,'c'=4], device_ids=([4,4]T(1,0)) {'c'}", ("student",)),
        ("mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'b'}", ("student",)),
        ("mesh['a'=1,'b'=4,'c'=4], device_ids=([4,4]T(1,0)) {'b'}", ("data",)),
        ("mesh['a'=4,'b'=4], device_ids=([16]) {'b'}", ("data",)),
    ],
)
def test_every_way_to_write_groups_is_read(groups, axes):
    line = LINE.replace("%s", groups)
    assert exchanges(line, MESH) == {("all-reduce", axes): 1}


def test_pairs_of_a_permutation_are_read():
    line = "%p = f32[8]{0} collective-permute-start(%y), channel_id=3, source_target_pairs={%s}"
    inside, across = "{0,1},{1,2},{2,3},{3,0}", "{0,4},{4,0}"
    assert exchanges(line.replace("%s", inside), MESH) == {("collective-permute", ("data",)): 1}
    assert exchanges(line.replace("%s", across), MESH) == {("collective-permute", ("student",)): 1}


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace("%s", "something[else]"),
        LINE.replace("%s", "mesh['a'=16] {'a':(1)4}"),
        "%x = f32[8]{0} all-gather(%y), replica_groups={{0,1}}, dimensions={0}",
    ],
    ids=["form", "part of an axis", "replicas"],
)
def test_what_cannot_be_read_is_not_taken_for_harmless(line):
    with pytest.raises(ValueError, match="is not known"):
        exchanges(line, MESH)


def test_a_place_in_the_mesh_is_counted_row_by_row():
    sizes = {"student": 2, "data": 3, "model": 2}
    assert crossed([[0, 1]], sizes) == ("model",)
    assert crossed([[0, 2, 4]], sizes) == ("data",)
    assert crossed([[5, 11]], sizes) == ("student",)
    assert crossed([[0], [7]], sizes) == ()


@pytest.mark.parametrize(("axis", "expected"), [("student", "student"), ("data", "data")])
def test_exchanges_of_a_program_that_was_compiled_here_are_found(axis, expected):
    mesh = make_mesh((2, 2, 1), jax.devices()[:4])
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, axis),
        mesh=mesh,
        in_specs=PartitionSpec("student", "data"),
        out_specs=PartitionSpec(*(None if name == axis else name for name in ("student", "data"))),
    )
    text = jax.jit(summed).lower(np.ones((4, 4), np.float32)).compile().as_text()
    assert exchanges(text, mesh.shape) == {("all-reduce", (expected,)): 1}


def test_grouped_convolutions_are_found():
    x, kernels = jnp.ones((3, 1, 8, 8, 4)), jnp.ones((3, 3, 3, 4, 4))

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def text(fn, *args):
        return jax.jit(fn).lower(*args).as_text("hlo")

    assert list(convolution_groups(text(jax.vmap(convolve), x, kernels))) == [3]
    assert list(convolution_groups(text(convolve, x[0], kernels[0]))) == []


@pytest.mark.parametrize("variant", ["flow", "meanflow", "o2mkd"])
def test_trained_transformers_recompute_their_blocks(variant, benchmarks):
    """Also a student that has the network of its teacher."""
    import aot_compile

    config = str(benchmarks / f"dit_steps.py:{variant}")
    for remat in (False, True):
        plan, plans, _ = aot_compile.plans(aot_compile.Case(config, (1, 1, 1), remat=remat))
        assert plan.module.remat is remat
        assert plans[plan.name] is plan
