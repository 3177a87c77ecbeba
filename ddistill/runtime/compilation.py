"""How programs are compiled on this platform."""

import functools
import hashlib
import platform as host
from pathlib import Path
from typing import TypeAlias

import jax
from jaxtyping import PyTree

# XLA's CPU compiler can lower operations to a library, by kind; docs/benchmarks.md measures it.
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_REDUCTIONS = "LIBRARY_FUSION_TYPE_REDUCE"
_CONVOLUTIONS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
# Convolutions of this many channels, in and out, are faster without that library.
_WIDE = 128

# So many weights take as long to draw as their program takes to compile.
_MANY = 10_000_000

# The argument `compiler_options` of `jax.jit`: options of XLA by name.
CompilerOptions: TypeAlias = dict[str, str | bool | int]


def cache_folder(base: Path, cpu_info: Path = Path("/proc/cpuinfo")) -> Path:
    """Folder of compiled programs for machines with this kind of CPU.

    A program that was compiled for a CPU may not run on another one, and jax does not tell them
    apart; a folder of runs may be shared between machines.

    Args:
      base: where the folders of all kinds lie.
      cpu_info: the file in which Linux describes the CPU.
    """
    kind = [host.machine(), host.processor()]
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        lines = []
    named = ("model name", "flags", "Features")
    kind += sorted({line for line in lines if line.split(":")[0].strip() in named})
    return base / hashlib.sha256("\n".join(kind).encode()).hexdigest()[:8]


def compiler_options(platform: str = "", wide: bool = False) -> CompilerOptions | None:
    """Options for `jax.jit(..., compiler_options=...)`; None for the platform's own.

    On CPU, LLVM's expensive passes take a good part of the time to compile a U-Net's train step and
    gain nothing measurable afterwards: convolutions and matrix products are library calls. Which
    library is called is chosen by the width of the networks.

    Args:
      platform: the target: "cpu", "gpu" or "tpu"; "" for jax's default.
      wide: whether the program's networks are, see `is_wide`.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    return {"xla_llvm_disable_expensive_passes": True, **library_options(wide)}


def is_wide(weights: PyTree) -> bool:
    """Whether most of the weights of convolutions are in kernels of 128 channels and more.

    Args:
      weights: pytree of arrays or shapes; kernels are `[..., k, k, C, D]` with k above 1.
    """
    shapes = [x.shape[-4:] for x in jax.tree.leaves(weights) if len(getattr(x, "shape", ())) >= 4]
    kernels = [s for s in shapes if s[0] == s[1] > 1]
    wide = [s for s in kernels if min(s[2:]) >= _WIDE]
    return 2 * sum(map(_size, wide)) > sum(map(_size, kernels))


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] * shape[2] * shape[3]


def library_options(wide: bool) -> CompilerOptions:
    """Options that name the operations which XLA's CPU compiler lowers to its library.

    Reductions always: without it, the sums over pixels of group norms take up to eight times as
    long. Convolutions of narrow networks. Matrix products never.

    Returns:
      Options of `jax.jit`; empty where this version of XLA does not accept them.
    """
    return _known_options(_REDUCTIONS if wide else f"{_REDUCTIONS},{_CONVOLUTIONS}") or {}


def initialiser_options(weights: PyTree) -> CompilerOptions | None:
    """Options for programs that run once, such as drawing a network's first weights.

    Args:
      weights: pytree of the arrays that the program makes, or of their shapes.
    """
    if jax.default_backend() != "cpu":
        return None
    # Without any optimisation a program compiles in half of the time, and draws take five times as
    # long; the values are the same.
    elements = sum(x.size for x in jax.tree.leaves(weights))
    return {"xla_backend_optimization_level": 0 if elements < _MANY else 1}


def forward_options(platform: str = "") -> CompilerOptions | None:
    """Options for large convolutional networks that only run forward, such as Inception.

    The library takes up to four times as long as XLA's own code where the image is large and not
    padded; benchmarks/inception.py measures it. Versions of XLA that do not know the option are
    left alone.

    Args:
      platform: the target: "cpu", "gpu" or "tpu"; "" for jax's default.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    return _known_options("")


@functools.cache
def _known_options(kinds: str) -> CompilerOptions | None:
    """The option that names the library's kinds of operations; None if XLA does not accept it."""
    options: CompilerOptions = {_LIBRARY: kinds}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options
