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
      column: whether tables of all scores have a column for it; other metrics have tables of their
        own.
      meaning: one sentence on what is measured; reports print it.
    """

    label: str
    better: str = ""
    form: str = ".3g"
    sampled: bool = False
    column: bool = True
    meaning: str = ""


METHODS: dict[str, Method] = {
    "ddim": Method("teacher DDIM", "teacher"),
    "ddpm": Method("teacher DDPM", "teacher"),
    "heun": Method("teacher Heun", "teacher"),
    "heun_flow": Method("teacher Heun in flow time", "teacher"),
    "dpm_solver_pp": Method("teacher DPM-Solver++", "teacher"),
    "ddim_afs": Method("teacher DDIM, analytic first step", "teacher"),
    "renoise": Method("teacher renoising", "teacher"),
    "sfddm": Method("SFDDM"),
    "sfddm_released": Method("SFDDM, released recipe"),
    "pd": Method("PD"),
    "cfd": Method("CFD"),
    "rcfd": Method("RCFD"),
    "rdd": Method("RDD"),
    "ddil": Method("PD with DDIL"),
    "ddil_cd": Method("CD with DDIL"),
    "o2mkd": Method("O2MKD"),
    "dmd": Method("DMD"),
    "dmd2": Method("DMD2"),
    "ladd": Method("LADD"),
    "msd_dm": Method("MSD (DM)"),
    "msd_adm": Method("MSD (ADM)"),
    "cd": Method("CD"),
    "ct": Method("CT"),
    "ict": Method("iCT"),
    "ect": Method("ECT"),
    "lcm": Method("LCM"),
    "sfd": Method("SFD"),
    "sfd_v": Method("SFD-v"),
    "boot": Method("BOOT"),
    "disback": Method("DisBack"),
    "pid": Method("PID"),
    "catch_up": Method("Catch-Up"),
    "catch_up_rk2": Method("Catch-Up (RK-2)"),
    "shortcut": Method("shortcut"),
    "shortcut_distilled": Method("shortcut (from the teacher)"),
    "meanflow": Method("MeanFlow"),
    "meanflow_distilled": Method("MeanFlow (from the teacher)"),
    "scd": Method("sCD"),
    "sct": Method("sCT"),
    "rcm": Method("rCM"),
    "real": Method("real data (floor)", "real"),
}

# Names of the Frechet distances in the features of EfficientNet-Lite0.
LITE0_DISTANCES = {
    "fd": "fd_efficientnet_lite0",
    "fd_infinity": "fd_efficientnet_lite0_infinity",
}

METRICS: dict[str, Metric] = {
    "fid": Metric(
        "FID",
        "lower",
        sampled=True,
        meaning="Frechet distance between Gaussians fitted to Inception features of samples and of "
        "real images; papers take 50,000 samples.",
    ),
    LITE0_DISTANCES["fd_infinity"]: Metric(
        "FD\N{INFINITY} (EfficientNet-Lite0)",
        "lower",
        sampled=True,
        meaning="FD\N{INFINITY} in the features of EfficientNet-Lite0, trained on ImageNet.",
    ),
    LITE0_DISTANCES["fd"]: Metric(
        "FD (EfficientNet-Lite0)",
        "lower",
        sampled=True,
        meaning="FD in the features of EfficientNet-Lite0, trained on ImageNet.",
    ),
    "fd_infinity": Metric(
        "FD\N{INFINITY}",
        "lower",
        sampled=True,
        meaning="Frechet distance to the training images in features, extrapolated to infinitely "
        "many samples; it does not depend on the number of samples.",
    ),
    "fd": Metric(
        "FD",
        "lower",
        sampled=True,
        meaning="Frechet distance to the training images in features, of these samples; fewer "
        "samples have a larger distance.",
    ),
    "precision": Metric(
        "precision",
        "higher",
        ".3f",
        sampled=True,
        meaning="Share of the samples that lie among the real images in features (fidelity).",
    ),
    "recall": Metric(
        "recall",
        "higher",
        ".3f",
        sampled=True,
        meaning="Share of the real images that lie among the samples in features (diversity).",
    ),
    "density": Metric(
        "density",
        "higher",
        ".3f",
        sampled=True,
        meaning="Mean number of real neighbourhoods that contain a sample, over its expected "
        "value: precision that outliers change less.",
    ),
    "coverage": Metric(
        "coverage",
        "higher",
        ".3f",
        sampled=True,
        meaning="Share of the real images with a sample in their neighbourhood: recall that "
        "outliers change less.",
    ),
    "accuracy": Metric(
        "accuracy",
        "higher",
        ".3f",
        sampled=True,
        meaning="Share of the images that the classifier assigns to the class of their label.",
    ),
    "class_tv": Metric(
        "class TV",
        "lower",
        ".3f",
        sampled=True,
        meaning="Share of the samples that would have to change class to match the classes of the "
        "real images (total variation).",
    ),
    "psnr_to_teacher": Metric(
        "PSNR to teacher, dB",
        "higher",
        ".1f",
        sampled=True,
        meaning="Mean peak signal-to-noise ratio to the image of the reference teacher from the "
        "same noise, in pixels.",
    ),
    "mse_to_teacher": Metric(
        "MSE to teacher",
        "lower",
        sampled=True,
        meaning="Mean squared error to the image of the reference teacher from the same noise.",
    ),
    "feature_distance_to_teacher": Metric(
        "feature distance to teacher",
        "lower",
        sampled=True,
        column=False,
        meaning="Mean Euclidean distance, in the features that score the run, to the "
        "image of the reference teacher from the same noise. It is not LPIPS.",
    ),
    "relative_distance_to_teacher": Metric(
        "relative feature distance",
        "lower",
        ".3f",
        sampled=True,
        column=False,
        meaning="The feature distance to the teacher, divided by the mean distance between two "
        "images of the teacher from different noise: 0 is the same image, 1 an unrelated one.",
    ),
    "lpips_alex_to_teacher": Metric(
        "LPIPS (AlexNet) to teacher",
        "lower",
        ".4f",
        sampled=True,
        column=False,
        meaning="Mean LPIPS with AlexNet to the image of the reference teacher from the same "
        "noise, with the weights of config.evaluation.lpips_weights.",
    ),
    "lpips_vgg_to_teacher": Metric(
        "LPIPS (VGG) to teacher",
        "lower",
        ".4f",
        sampled=True,
        column=False,
        meaning="Mean LPIPS with VGG-16 to the image of the reference teacher from the same "
        "noise, with the weights of config.evaluation.lpips_weights.",
    ),
    "path_length": Metric(
        "path length",
        "lower",
        ".2f",
        sampled=True,
        column=False,
        meaning="Interpolation: sum of the feature distances between consecutive images of a path, "
        "divided by the distance between its ends; 1 for a straight path.",
    ),
    "path_largest_step": Metric(
        "largest step",
        "lower",
        ".3f",
        sampled=True,
        column=False,
        meaning="Interpolation: largest feature distance between consecutive images of a path, "
        "divided by the distance between its ends; near 1 if the image jumps.",
    ),
    "copying": Metric(
        "copying",
        "",
        ".3f",
        sampled=True,
        column=False,
        meaning="Share of pairs (sample, test image) in which the sample is closer to its nearest "
        "training image in features, or in pixels: 0.5 as for unseen images, near 1 for copies.",
    ),
    "digit_word": Metric(
        "digit word obeyed",
        "higher",
        ".3f",
        sampled=True,
        column=False,
        meaning="Share of the samples that the classifier reads as the digit of their caption.",
    ),
    "thickness_word": Metric(
        "thickness word obeyed",
        "higher",
        ".3f",
        sampled=True,
        column=False,
        meaning="Share of the samples with a caption of 'thin' or 'thick' that have less or more "
        "ink than half of the scans of the digit.",
    ),
    "fid_protocol": Metric(
        "FID (protocol)",
        "lower",
        ".2f",
        sampled=True,
        meaning="FID of samples of the prompts of a published protocol to its real images, with "
        "its number of images, its crop and its resizing (config.evaluation.protocol).",
    ),
    "clip_score": Metric(
        "CLIP score",
        "higher",
        ".4f",
        sampled=True,
        meaning="Mean cosine, in [-1, 1], of the embeddings of a sample and its prompt by the CLIP "
        "model of the protocol string; the protocol says with which text before the prompt.",
    ),
    "ms_per_image": Metric(
        "ms/image",
        "lower",
        sampled=True,
        meaning="Milliseconds to generate an image, in the fastest batch, without compilation.",
    ),
    "parameters": Metric("parameters", "", ",.0f", meaning="Number of weights of the network."),
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


def register_metric(
    name: str, label: str, *, meaning: str, better: str = "", form: str = ".3g"
) -> None:
    """Adds a metric; arguments are the attributes of `Metric`.

    Raises:
      ValueError: `name` is no lower_case identifier or has another meaning already, or `better` is
        unknown.
    """
    if better not in ("", "lower", "higher"):
        raise ValueError(f"better={better!r} of metric '{name}': allowed are lower, higher, ''.")
    _register(METRICS, name, Metric(label, better, form, sampled=True, meaning=meaning), "metric")


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
