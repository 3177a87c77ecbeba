"""How programs are compiled on this platform."""

from typing import Any

import jax


def compiler_options(platform: str = "") -> dict[str, Any] | None:
    """Options for `jax.jit(..., compiler_options=...)`; None for the platform's own.

    On CPU, LLVM's expensive passes take a good part of the time to compile a U-Net's train step and
    gain nothing measurable afterwards: convolutions and matrix products are library calls.

    Args:
      platform: what is compiled for: "cpu", "gpu" or "tpu"; "" for jax's default.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    return {"xla_llvm_disable_expensive_passes": True}


def initialiser_options() -> dict[str, Any] | None:
    """Options for programs that run once, such as drawing a network's first weights."""
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 1}


def forward_options(platform: str = "") -> dict[str, Any] | None:
    """Options for large convolutional networks that only run forward, such as Inception.

    XLA's CPU compiler hands convolutions to a library which takes up to four times as long as its
    own code where the image is large and not padded; benchmarks/inception.py measures it. Versions
    of XLA that do not know the option are left alone.

    Args:
      platform: what is compiled for: "cpu", "gpu" or "tpu"; "" for jax's default.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options
