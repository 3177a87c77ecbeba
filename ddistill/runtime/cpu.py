"""XLA flags for processes that compute on CPUs, set before XLA starts."""

from collections.abc import MutableMapping

# Options of XLA's CPU compiler that can be given in the environment alone; docs/benchmarks.md has
# the measurements. One loop writes several results; LLVM neither unrolls loops nor searches them
# for operations to make into vectors, because XLA writes vector operations itself.
_CODE = (
    "xla_cpu_use_multi_output_fusion",
    "xla_cpu_disable_loop_unrolling",
    "xla_cpu_disable_slp_vectorizer",
)
_EXTRA = "--xla_backend_extra_options"


def use_quick_code(environment: MutableMapping[str, str]) -> None:
    """Adds the options that make CPU programs quick, and quick to compile, to `XLA_FLAGS`.

    Has to come before XLA compiles anything. If the user's flags have extra options, nothing is
    added. Versions of XLA that do not know an extra option ignore it.

    Args:
      environment: `os.environ`, which is changed.
    """
    flags = environment.get("XLA_FLAGS", "")
    if _EXTRA not in flags:
        options = ",".join(f"{name}=true" for name in _CODE)
        environment["XLA_FLAGS"] = f"{flags} {_EXTRA}={options}".strip()
