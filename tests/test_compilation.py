"""Which compiler options networks get on a CPU."""

import jax
import jax.numpy as jnp
import pytest

from ddistill import networks, recipes
from ddistill.runtime import compilation
from ddistill.runtime.compilation import compiler_options, is_wide


def shapes(fields, size, channels):
    x, t = jnp.zeros((1, size, size, channels)), jnp.zeros(1)
    return jax.eval_shape(networks.build(**fields).init, jax.random.key(0), x, t)["params"]


def test_wide_networks_have_most_weights_in_wide_kernels():
    cifar, digits = networks.UNet(), recipes.digits_network()
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    assert is_wide(jax.eval_shape(cifar.init, jax.random.key(0), x, t)["params"])
    assert not is_wide(shapes(digits, 8, 1))


@pytest.mark.parametrize("students", [(), (4,)])
def test_the_student_axis_does_not_count(students):
    kernel = jax.ShapeDtypeStruct((*students, 3, 3, 128, 128), jnp.float32)
    matrix = jax.ShapeDtypeStruct((*students, 4096, 512), jnp.float32)
    narrow = jax.ShapeDtypeStruct((*students, 3, 3, 4, 128), jnp.float32)
    assert is_wide({"a": kernel, "b": matrix, "c": narrow})
    assert not is_wide({"b": matrix, "c": narrow})
    assert not is_wide({})


def test_the_library_takes_convolutions_of_narrow_networks_alone():
    narrow, wide = (compiler_options("cpu", wide=w)[compilation._LIBRARY] for w in (False, True))
    assert wide.split(",") == [compilation._REDUCTIONS]
    assert narrow.split(",") == [compilation._REDUCTIONS, compilation._CONVOLUTIONS]


def test_another_cpu_has_another_folder_of_programs(tmp_path):
    """Of one kind: whatever changes while a machine runs does not count, nor how many cores."""
    core = "processor : {}\nmodel name : A\ncpu MHz : {}\nflags : sse4 avx2{}\n"
    texts = [
        core.format(0, 2600, ""),
        core.format(0, 800, "") + core.format(1, 3100, ""),
        core.format(0, 2600, " avx512f"),
    ]
    found = []
    for i, text in enumerate(texts):
        (tmp_path / str(i)).write_text(text)
        found.append(compilation.cache_folder(tmp_path / "xla", tmp_path / str(i)))
    assert found[0] == found[1] != found[2]
    assert compilation.cache_folder(tmp_path / "xla", tmp_path / "none").parent == tmp_path / "xla"


def test_other_platforms_keep_their_own_options():
    assert compiler_options("tpu", wide=True) is None
    assert compiler_options("gpu", wide=False) is None


def test_an_xla_that_does_not_know_the_option_is_left_alone(monkeypatch):
    monkeypatch.setattr(compilation, "_LIBRARY", "xla_cpu_an_option_of_the_future")
    compilation._known_options.cache_clear()
    try:
        options = compiler_options("cpu", wide=True)
    finally:
        monkeypatch.undo()
        compilation._known_options.cache_clear()
    assert options == {"xla_llvm_disable_expensive_passes": True}
