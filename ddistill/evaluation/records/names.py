"""Names of methods and metrics in results, with their labels in tables and plots.

Writing and reading results refuse other names, because a misspelt method would silently become a
separate row. `register_method` and `register_metric` add names.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from ddistill.errors import nearest

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
      label: name in tables and legends.
      role: "teacher" (a sampler of the undistilled network), "student", or "real" (test images
        scored like samples, the floor of a score).
    """

    label: str
    role: str = "student"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      label: column heading.
      better: "lower", "higher", or "" if neither is better.
      form: `format` specification of a value.
      sampled: whether the value varies between measurements, so that a comparison needs an
        interval.
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

# Names of the Frechet distances in the features of EfficientNet-Lite0.
LITE0_DISTANCES = {
    "fd": "fd_efficientnet_lite0",
    "fd_infinity": "fd_efficientnet_lite0_infinity",
}

METRICS: dict[str, Metric] = {
    "fid": Metric("FID", "lower", sampled=True),
    LITE0_DISTANCES["fd_infinity"]: Metric(
        "FD\N{INFINITY} (EfficientNet-Lite0)", "lower", sampled=True
    ),
    LITE0_DISTANCES["fd"]: Metric("FD (EfficientNet-Lite0)", "lower", sampled=True),
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

# Frechet distances; the first that was measured is the main score. FD of N samples comes last,
# because it depends on N, and the floor has another N.
DISTANCES = ("fid", LITE0_DISTANCES["fd_infinity"], LITE0_DISTANCES["fd"], "fd_infinity", "fd")
# The distances that are extrapolated to infinitely many samples.
EXTRAPOLATED = (LITE0_DISTANCES["fd_infinity"], "fd_infinity")


def main_distance(metrics: Collection[str]) -> str | None:
    """The first of `DISTANCES` in `metrics`; None if there is none."""
    return next((name for name in DISTANCES if name in metrics), None)


def register_method(name: str, label: str, role: str = "student") -> None:
    """Adds a method, so that its rows can be written and recorded.

    Raises:
      ValueError: `name` is no lower_case identifier or has another label already, or `role` is
        unknown.
    """
    if role not in ("teacher", "student", "real"):
        raise ValueError(f"role={role!r} of method '{name}': allowed are teacher, student, real.")
    _register(METHODS, name, Method(label, role), "method")


def register_metric(name: str, label: str, better: str = "", form: str = ".3g") -> None:
    """Adds a metric; arguments are the attributes of `Metric`.

    Raises:
      ValueError: `name` is no lower_case identifier or has another meaning already, or `better` is
        unknown.
    """
    if better not in ("", "lower", "higher"):
        raise ValueError(f"better={better!r} of metric '{name}': allowed are lower, higher, ''.")
    _register(METRICS, name, Metric(label, better, form, sampled=True), "metric")


def check_name(kind: str, name: object) -> None:
    """Raises `ValueError` if `name` is unknown; `kind` is "method" or "metric"."""
    known = METHODS if kind == "method" else METRICS
    adds = "ddistill.register.method"
    if kind == "metric":
        adds = f"{__name__}.register_metric"
    if name not in known:
        raise ValueError(
            f"{kind}={name!r} is not known.{nearest(name, known)} Allowed: {', '.join(known)};"
            f" {adds} adds a {kind} of your own: import the module that calls it."
        )


def _register(table: dict, name: str, value: object, kind: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} must be lower case letters, digits and _.")
    if table.setdefault(name, value) != value:
        raise ValueError(f"{kind} '{name}' is taken by {table[name]}.")
