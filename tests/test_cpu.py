"""What a process asks of XLA's CPU compiler in its environment."""

import os
import subprocess
import sys

import pytest

from ddistill.runtime.cpu import use_quick_code

WAIT = "--xla_cpu_collective_call_terminate_timeout_seconds"
TWO_SUMS = """
import os, sys
import jax, jax.numpy as jnp
from ddistill.runtime.cpu import use_quick_code
use_quick_code(os.environ)
x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
both = jax.jit(lambda a, b: (a * b + jnp.sin(a), a + b * 2)).lower(x, x).compile()
print("loops:", both.as_text().count(" fusion("))
"""


def test_options_are_added_to_the_users_flags_once():
    environment = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    use_quick_code(environment)
    first = environment["XLA_FLAGS"]
    assert first.split()[0] == "--xla_cpu_enable_fast_math=false"
    assert "xla_cpu_use_multi_output_fusion=true" in first
    use_quick_code(environment)
    assert environment["XLA_FLAGS"] == first


def test_extra_options_of_the_user_stay():
    environment = {"XLA_FLAGS": "--xla_backend_extra_options=xla_cpu_optimize_for_size=true"}
    given = environment["XLA_FLAGS"]
    use_quick_code(environment)
    assert environment["XLA_FLAGS"].split()[0] == given
    assert environment["XLA_FLAGS"].count("xla_backend_extra_options") == 1


def test_devices_wait_20_minutes_unless_the_user_says_otherwise():
    """XLA's default of 40 s ends a run that a busy machine or Ctrl-Z holds up."""
    environment: dict[str, str] = {}
    use_quick_code(environment)
    assert f"{WAIT}=1200" in environment["XLA_FLAGS"].split()
    environment = {"XLA_FLAGS": f"{WAIT}=60"}
    use_quick_code(environment)
    assert environment["XLA_FLAGS"].split()[0] == f"{WAIT}=60"
    assert environment["XLA_FLAGS"].count(WAIT) == 1


@pytest.mark.parametrize(
    ("flags", "loops"), [("", 1), ("--xla_backend_extra_options=xla_unknown=true", 2)]
)
def test_xla_follows_the_options_and_ignores_unknown_ones(flags, loops):
    """One loop writes both results, also where jax was imported first."""
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", TWO_SUMS], env=environment, capture_output=True, text=True
    )
    assert f"loops: {loops}" in ran.stdout, ran.stdout + ran.stderr
