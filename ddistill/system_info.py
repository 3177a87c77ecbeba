"""Versions, devices, memory, data and disk of this machine."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import ddistill
from ddistill.data import describe
from ddistill.typing import Options

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml_collections",
    "chex",
    "numpy",
    "tensorflow-datasets",
    "array-record",
    "tensorboardX",
    "wandb",
    "mlflow-skinny",
    "torch",
    "diffusers",
    "tensorflow",
)


def report(data: Options | None, workdir: Path) -> list[str]:
    """Lines on versions, devices, memory, data and disk.

    Args:
      data: the config's data settings, or None when no config was given.
      workdir: the run folder, whose disk is looked at.
    """
    lines = [f"Python               {platform.python_version()}"]
    # Of the code that runs, which need not be the installed one.
    lines.append(f"{'ddistill':<21}{ddistill.__version__}")
    for name in _PACKAGES:
        lines.append(f"{name:<21}{_version(name)}")
    lines += _devices()
    lines.append(f"{'CPU cores':<21}{os.cpu_count()} ({_usable_cores()} usable)")
    lines.append(f"{'memory':<21}{_memory()}")
    lines.append(f"{'disk':<21}{_disk(workdir)}")
    lines += _data(data)
    return lines


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return [f"{'devices':<21}none: {error}"]
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    cache = jax.config.values.get("jax_compilation_cache_dir") or "off"
    return [
        f"{'devices':<21}{len(devices)} x {devices[0].platform} ({kinds})",
        f"{'compile cache':<21}{cache}",
    ]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _disk(folder: Path) -> str:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    usage = shutil.disk_usage(existing)
    writable = "writable" if os.access(existing, os.W_OK) else "NOT WRITABLE"
    return f"{usage.free / 2**30:.1f} GiB free for {folder} ({writable})"


def _data(data: Options | None) -> list[str]:
    if data is None:
        return [f"{'data':<21}give --config=... to look for its data"]
    found = describe(data)
    text = found if isinstance(found, str) else "; ".join(found)
    return [f"{'data':<21}{text}"]
