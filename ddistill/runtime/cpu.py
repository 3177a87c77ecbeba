"""XLA flags for processes that compute on CPUs, set before XLA starts."""

from collections.abc import MutableMapping

from jaxlib.version import __version_info__ as _VERSION

# Options of XLA's CPU compiler that can be given in the environment alone; docs/benchmarks.md has
# the measurements. One loop writes several results; LLVM neither unrolls loops nor searches them
# for operations to make into vectors, because XLA writes vector operations itself.
_CODE = (
    "xla_cpu_use_multi_output_fusion",
    "xla_cpu_disable_loop_unrolling",
    "xla_cpu_disable_slp_vectorizer",
)
_EXTRA = "--xla_backend_extra_options"
# XLA ends a process if a CPU device waits longer than this, in seconds, for the others when they
# exchange gradients. The default is 40, which a busy machine or a stopped process (Ctrl-Z) reaches.
_WAIT = "--xla_cpu_collective_call_terminate_timeout_seconds"
_SECONDS = 1200
# Releases of jaxlib that are known to have this flag; XLA ends a process with an unknown flag.
_FIRST, _LAST = (0, 8), (0, 10)


def use_quick_code(environment: MutableMapping[str, str]) -> None:
    """Adds the options that make CPU programs quick, and quick to compile, to `XLA_FLAGS`.

    Devices wait 20 minutes for one another, so that a busy or stopped process goes on. Has to come
    before XLA compiles anything. What the user's flags set is not changed; if they have extra
    options, none is added. Versions of XLA that do not know an extra option ignore it.

    Args:
      environment: `os.environ`, which is changed.
    """
    flags = environment.get("XLA_FLAGS", "").split()
    joined = " ".join(flags)
    if _EXTRA not in joined:
        flags.append(f"{_EXTRA}=" + ",".join(f"{name}=true" for name in _CODE))
    if _WAIT not in joined and _FIRST <= _VERSION[:2] <= _LAST:
        flags.append(f"{_WAIT}={_SECONDS}")
    environment["XLA_FLAGS"] = " ".join(flags)
