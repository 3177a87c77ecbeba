"""Names that results may use: methods and metrics, with how tables and plots call them.

A name outside these lists is refused on writing and on reading, because a misspelt method would
silently become a row of its own. `register_method` and `register_metric` add to them.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from ddistill.errors import nearest

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Method:
    """How a method is shown.

    Attributes:
      label: in tables and legends.
      role: "teacher" (a sampler of the undistilled network), "student", or "real" (data against
        data: the floor that no generator goes below).
    """

    label: str
    role: str = "student"


@dataclass(frozen=True)
class Metric:
    """How a metric is shown and read.

    Attributes:
      label: column heading.
      better: "lower", "higher" or "" where neither is better.
      form: format of a value, a `format` specification.
      sampled: whether it varies from one measurement to the next, so that it needs an interval to
        be compared.
    """

    label: str
    better: str = ""
    form: str = ".3g"
    sampled: bool = False


METHODS: dict[str, Method] = {
    "ddim": Method("teacher DDIM", "teacher"),
    "ddpm": Method("teacher DDPM", "teacher"),
    "heun": Method("teacher Heun", "teacher"),
    "dpm_solver_pp": Method("teacher DPM-Solver++", "teacher"),
    "sfddm": Method("SFDDM"),
    "sfddm_released": Method("SFDDM, released recipe"),
    "pd": Method("PD"),
    "cfd": Method("CFD"),
    "rcfd": Method("RCFD"),
    "o2mkd": Method("O2MKD"),
    "dmd": Method("DMD"),
    "dmd2": Method("DMD2"),
    "ladd": Method("LADD"),
    "msd_dm": Method("MSD (DM)"),
    "msd_adm": Method("MSD (ADM)"),
    "real": Method("real data (floor)", "real"),
}

METRICS: dict[str, Metric] = {
    "fid": Metric("FID", "lower", sampled=True),
    "fd_infinity": Metric("FD\N{INFINITY}", "lower", sampled=True),
    "fd": Metric("FD", "lower", sampled=True),
    "precision": Metric("precision", "higher", ".3f", sampled=True),
    "recall": Metric("recall", "higher", ".3f", sampled=True),
    "density": Metric("density", "higher", ".3f", sampled=True),
    "coverage": Metric("coverage", "higher", ".3f", sampled=True),
    "accuracy": Metric("accuracy", "higher", ".3f", sampled=True),
    "class_tv": Metric("class TV", "lower", ".3f", sampled=True),
    "psnr_to_teacher": Metric("PSNR to teacher, dB", "higher", ".1f", sampled=True),
    "mse_to_teacher": Metric("MSE to teacher", "lower", sampled=True),
    "ms_per_image": Metric("ms/image", "lower", sampled=True),
    "parameters": Metric("parameters", "", ",.0f"),
}

# Distances of which the first that was measured stands for the quality of samples. FD of N samples
# comes last: it depends on N, which is not the floor's.
DISTANCES = ("fid", "fd_infinity", "fd")


def main_distance(metrics: Collection[str]) -> str | None:
    """The first of `DISTANCES` among `metrics`; None for none."""
    return next((name for name in DISTANCES if name in metrics), None)


def register_method(name: str, label: str, role: str = "student") -> None:
    """Adds a method, so that its rows can be written and recorded.

    Raises:
      ValueError: a name that is no lower_case identifier, is taken by another label, or an
        unknown role.
    """
    if role not in ("teacher", "student", "real"):
        raise ValueError(f"role={role!r} of method '{name}': allowed are teacher, student, real.")
    _register(METHODS, name, Method(label, role), "method")


def register_metric(name: str, label: str, better: str = "", form: str = ".3g") -> None:
    """Adds a metric; `better` is "lower", "higher" or "", `form` a format specification.

    Raises:
      ValueError: a name that is no lower_case identifier, is taken by another meaning, or an
        unknown `better`.
    """
    if better not in ("", "lower", "higher"):
        raise ValueError(f"better={better!r} of metric '{name}': allowed are lower, higher, ''.")
    _register(METRICS, name, Metric(label, better, form, sampled=True), "metric")


def check_name(kind: str, name: object) -> None:
    """Raises ValueError, with the nearest match, unless `name` is a known "method" or "metric"."""
    known = METHODS if kind == "method" else METRICS
    if name not in known:
        raise ValueError(
            f"{kind}={name!r} is not known.{nearest(name, known)} Allowed: {', '.join(known)};"
            f" ddistill.evaluation.records.names.register_{kind} adds one."
        )


def _register(table: dict, name: str, value: object, kind: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} must be lower case letters, digits and _.")
    if table.setdefault(name, value) != value:
        raise ValueError(f"{kind} '{name}' is taken by {table[name]}.")
