"""Fixtures that several test files share: what compiles, and how quickly."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ddistill.runtime.cpu import use_quick_code

# Every stage that a test trains in this process spreads its batches over these.
jax.config.update("jax_num_cpu_devices", 4)

# XLA's older code for fused operations, and one LLVM module for each program: together they compile
# in about 2/5 of the time. Processes that tests start inherit the flags. XLA ends a process with a
# flag that it does not know, so that only versions of jax which have both flags are given them.
if (0, 8) <= jax.__version_info__[:2] <= (0, 10):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip()
# Processes that tests start keep the bytecode of the package, which takes as long to make as jax to
# import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
use_quick_code(os.environ)  # as main does: flags are part of what programs are cached by


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: two processes then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def quick_compiler(tmp_path_factory) -> Iterator[None]:
    """Compiling is most of the tests: little optimisation, and every program only once.

    Processes of pytest-xdist and processes that tests start share their programs. A file that
    another one is writing is damaged for jax, which then compiles.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    set_cache(str(shared / "xla"), 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    inherited = {
        "JAX_COMPILATION_CACHE_DIR": str(shared / "xla"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    os.environ |= inherited
    # What is imported stays, and tracing makes many small objects that are no garbage.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    yield
    for name in inherited:
        del os.environ[name]
    jax.config.update("jax_disable_most_optimizations", False)
    set_cache(None, 1.0)


# Of a process of tests, before it drops its compiled programs, which are on disk too.
MOST_MEMORY = 3 * 2**30


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """After a file, drops compiled programs if the process has grown large.

    glibc keeps what is freed. The process would stay large, and every file would compile anew.
    """
    yield
    if _resident() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)


def _resident() -> int:
    """Bytes of memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def set_cache(folder: str | None, seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """An entry for each compilation in this process from now on, also of programs found on disk."""
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Path]:
    """The folder of the benchmarks, which modules are imported from until the file ends.

    Its modules have short names: one that stayed imported would be found by other files' tests.
    """
    folder = Path(__file__).parents[1] / "benchmarks"
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in {path.stem for path in folder.glob("*.py")} & set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def refused(compiled, tmp_path):
    """`refused(changes, error)` runs a config, checks that nothing happened, returns the text."""

    # Not above: this file is read for every test, and `runs` adds the tiny network to the registry.
    from runs import config, snapshot

    from ddistill import experiment
    from ddistill.errors import ConfigError

    def run(changes: dict[str, Any], error: type[Exception] = ConfigError, stage: str = "") -> str:
        before, files = len(compiled), snapshot(tmp_path)
        with pytest.raises(error) as caught:
            experiment.run(
                config(changes), tmp_path / "run", tmp_path / "shared", stage, "the command"
            )
        assert len(compiled) == before, "something was compiled"
        assert snapshot(tmp_path) == files, "something was written"
        text = str(caught.value)
        assert "\n" not in text
        return text

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, quick_compiler):
    """A tiny run that `ddistill.train` has trained, see `finished.Finished`."""
    from finished import train  # not above: this file is read for every test

    return train(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def cluster(tmp_path):
    """Every command that a dry run of a launch script must not call."""
    from launching import Cluster  # not above: this file is read for every test

    names = ("gcloud", "ssh", "srun", "sbatch", "scontrol", "kubectl", "git", "sleep")
    return Cluster(tmp_path / "cluster", *names)
