"""Checks of the evaluation settings before training, which may take hours."""

import math

from ddistill.data import Dataset
from ddistill.errors import ConfigError, check_choice
from ddistill.evaluation.feature_networks import (
    CLASSIFIER,
    NEIGHBOURS,
    FeatureChoice,
    choose_features,
    too_few,
)
from ddistill.evaluation.metrics.lpips import LEAST_SIDE, read_lpips
from ddistill.evaluation.prompted import check_protocol
from ddistill.evaluation.records.names import METHODS
from ddistill.evaluation.sampling_plan import SamplerRun, planned_runs
from ddistill.interop.diffusers_folders import CONFIG
from ddistill.interop.pipeline_folders import VAE
from ddistill.planning.checks.sources import check_scale
from ddistill.planning.plan import StagePlan
from ddistill.settings import Settings


def check_rows(runs: list[SamplerRun]) -> None:
    """Raises `ConfigError` if the rows or samples of two sampler runs would have equal names."""
    seen: dict[tuple, SamplerRun] = {}
    for run in runs:
        s, student = run.plan.settings, run.role == "student"
        identity = (
            student, run.method, run.variant, run.students, s.ema[:1], run.sampler, run.nfe,
            run.width, run.guidance,
        )  # fmt: skip
        other = seen.setdefault(identity, run)
        if other is run:
            continue
        if not student:
            raise ConfigError(
                f"config.evaluation.teacher_samplers.{run.sampler} names {run.steps} steps twice."
            )
        raise ConfigError(
            f"config.stages.{run.plan.name}.variant={s.variant!r}: results.json could not tell "
            f"its rows from the rows of '{other.plan.name}', which has the same method "
            f"({run.method}), variant and number of steps ({run.steps}). Give one of the stages "
            "another variant, any short text."
        )
    files: dict[str, SamplerRun] = {}
    for run in runs:  # names of the files of samples
        other = files.setdefault(run.key, run)
        if other is not run:
            raise ConfigError(
                f"The samples of '{other.label}' (stage '{other.plan.name}') and of '{run.label}' "
                f"(stage '{run.plan.name}') would share the file '{run.key}'. Rename one of the "
                "stages."
            )


def check_real_images(settings: Settings, dataset: Dataset) -> FeatureChoice:
    """Returns the features that will score samples, after a check that they can.

    Args:
      settings: the settings of the run.
      dataset: the training images.

    Raises:
      ConfigError: the features are not there, or the data set has too few real images to score
        samples against.
    """
    e = settings.evaluation
    choice = choose_features(settings, dataset) if e.enabled else FeatureChoice("")
    if not choice.kind:
        return choice
    if why := too_few(settings, dataset):
        key = "classifier" if choice.kind == CLASSIFIER else "features"
        raise ConfigError(f"{why} Set config.evaluation.{key}='' to sample without scores.")
    _check_count(e.samples)
    return choice


def _check_count(samples: int) -> None:
    if samples <= NEIGHBOURS:
        raise ConfigError(
            f"config.evaluation.samples={samples}: precision and recall use {NEIGHBOURS} "
            "neighbours of every sample and need more samples than neighbours."
        )


def check_decoders(settings: Settings, plans: list[StagePlan], dataset: Dataset) -> None:
    """Raises `ConfigError` for latents without a decoder, of which nothing could be shown.

    Args:
      settings: the settings of the run.
      plans: its stages.
      dataset: the training data.
    """
    e = settings.evaluation
    sampled = [plan for plan in plans if plan.settings.method or plan.name == e.teacher]
    lacking = [plan.name for plan in sampled if plan.sees_latents and plan.keeps_files]
    if e.enabled and lacking and f"{VAE}/{CONFIG}" not in dataset.files:
        raise ConfigError(
            f"Stage '{lacking[0]}' is trained on latents by {dataset.encoder}, and the data "
            f"{dataset.name} have no decoder ({VAE}/{CONFIG}) for its samples. Give the command "
            "that made the set again, which adds it, or set config.evaluation.enabled=False."
        )


def check_evaluation(settings: Settings, plans: list[StagePlan]) -> None:
    """Raises `ConfigError` for evaluation settings that cannot work."""
    e = settings.evaluation
    if not e.enabled:
        return
    # An imported classifier does not know the classes of the data.
    judges = [
        p.name for p in plans if p.objective.trains.kind == "classifier" and p.imported is None
    ]
    if e.classifier and not judges:
        raise ConfigError(
            f"config.evaluation.classifier={e.classifier!r}, but no stage of this config trains a "
            "classifier. Set it to '' to sample without scores."
        )
    if e.classifier:
        check_choice("config.evaluation.classifier", e.classifier, judges)
    sampled = [plan.name for plan in plans if plan.settings.method]
    if sampled and not e.teacher:
        raise ConfigError(
            f"config.evaluation.teacher is empty, but stage '{sampled[0]}' is to be sampled. Name "
            "the stage of its teacher."
        )
    for trains in [p.objective.trains for p in plans if p.name == e.teacher]:
        if not trains.on_levels:
            raise ConfigError(
                f"config.evaluation.teacher={e.teacher!r} is {trains.called} and generates no "
                "images."
            )
    for plan in plans:
        if plan.settings.method:
            check_choice(f"config.stages.{plan.name}.method", plan.settings.method, METHODS)
    teachers = {plan.name: plan for plan in plans if plan.name == e.teacher}
    for scale in (e.guidance, *e.guidances):
        check_scale(scale, e.teacher, "config.evaluation", teachers)
    if not 0 <= e.clip < math.inf:
        raise ConfigError(f"config.evaluation.clip={e.clip} must be 0 (off) or above.")
    if 0 < e.clip < 1:
        raise ConfigError(
            f"config.evaluation.clip={e.clip} clips images, because their pixels are in [-1, 1] "
            "with every schedule. Set 1 or above, or 0 (off)."
        )
    if e.noise_seed < 0:
        raise ConfigError(f"config.evaluation.noise_seed={e.noise_seed} must be 0 or more.")
    if e.interpolations < 0:
        raise ConfigError(
            f"config.evaluation.interpolations={e.interpolations} must be 0 (none) or above."
        )
    _check_lpips(settings, plans)
    check_protocol(settings, plans)
    if any(seed < 0 for seed in e.tuned_on):
        raise ConfigError(f"config.evaluation.tuned_on={e.tuned_on}: seeds are 0 or more.")
    if e.classifier:
        _check_count(e.samples)
    for key in ("samples", "batch_size", "grid_images", "strip_images"):
        if getattr(e, key) < 1:
            raise ConfigError(f"config.evaluation.{key}={getattr(e, key)} must be 1 or more.")
    if e.samples < max(e.grid_images, e.strip_images):
        raise ConfigError(
            f"config.evaluation.samples={e.samples} is below grid_images={e.grid_images} or "
            f"strip_images={e.strip_images}."
        )
    check_rows(planned_runs(settings, plans))


def _check_lpips(settings: Settings, plans: list[StagePlan]) -> None:
    """Raises `ConfigError` if the LPIPS weights cannot be used with images of this size."""
    path = settings.evaluation.lpips_weights
    if not path:
        return
    sides = [min(p.image_shape[:2]) for p in plans if p.name == settings.evaluation.teacher]
    if sides and sides[0] < LEAST_SIDE:
        raise ConfigError(
            f"config.evaluation.lpips_weights={path!r}: LPIPS needs images of {LEAST_SIDE} pixels "
            f"per side or more, and these have {sides[0]}. Set it to ''; the feature distance to "
            "the teacher is measured for images of every size."
        )
    read_lpips(path)
