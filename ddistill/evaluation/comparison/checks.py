"""Checks that runs are comparable: equal data, noise, labels and features, and no seed twice."""

from collections.abc import Sequence

from ddistill.errors import ConfigError
from ddistill.evaluation.comparison.join import FinishedRun
from ddistill.evaluation.comparison.run_identity import images_of, recipes_of
from ddistill.evaluation.records.protocol import RESAMPLED

# Parts of the protocol that all numbers of a comparison share -> the setting that decides them.
_SHARED = {
    "features": "config.evaluation.features",
    "reference": "config.data",
    "reference_n": "config.data",
    "samples": "config.evaluation.samples",
    "noise_seed": "config.evaluation.noise_seed",
    "clip": "config.evaluation.clip",
    "quantised": "",
    "floor": "config.data",
    "count": "config.evaluation.samples",
    "subsets": "",
    "splits": "",
    "subset_seed": "",
}


def check_runs(runs: Sequence[FinishedRun]) -> None:
    """Raises `ConfigError` with two runs, a key and both values if runs are not comparable."""
    first = runs[0]
    for run in runs[1:]:
        _check_pair(first, run)
    for i, run in enumerate(runs):
        for earlier in runs[:i]:
            if earlier.seed == run.seed:
                _check_same_seed(earlier, run)
            if earlier.experiment == run.experiment:
                _check_same_recipe(earlier, run)


def _check_pair(a: FinishedRun, b: FinishedRun) -> None:
    known = _check_images(a, b)
    for key, setting in _SHARED.items():
        first, second = getattr(a.protocol, key), getattr(b.protocol, key)
        if key == "reference" and known:  # the name of the data, and the split
            first, second = first.rpartition("/")[2], second.rpartition("/")[2]
        if first != second:
            advice = f"Evaluate both with one value of {setting}." if setting else ""
            if (first is None or second is None) and key in RESAMPLED:
                # An earlier version scored the run, without intervals; its samples still exist.
                old = b if second is None else a
                advice = (
                    f"{old.folder} was scored by an earlier version: give its command again with "
                    "--stage=evaluate, which scores its samples again."
                )
            raise _refusal(a, b, f"protocol.{key}", first, second, advice)
    _check_reference(a, b)
    labels = [max(record.classes for record in run.sampler_runs) for run in (a, b)]
    if labels[0] != labels[1]:
        raise _refusal(
            a, b, "classes", labels[0], labels[1],
            "This is the number of classes of the labels of the samples, 0 without labels; samples "
            "with different labels are not comparable.",
        )  # fmt: skip


def _check_reference(a: FinishedRun, b: FinishedRun) -> None:
    """Raises if the teacher's images were made in different ways; earlier versions do not say."""
    first, second = ({row.reference_teacher for row in run.rows} - {""} for run in (a, b))
    own, other = (min(names, default="", key=len) for names in (first, second))
    if own and other and own != other:
        raise _refusal(
            a, b, "reference_teacher", own, other,
            "Distances to the teacher's images are only comparable for equal images. Evaluate both "
            "with one value of config.evaluation.full_sampler and config.evaluation.full_steps.",
        )  # fmt: skip


def _check_images(a: FinishedRun, b: FinishedRun) -> bool:
    """Raises if training images differ; returns whether both runs recorded their images."""
    first, second = images_of(a), images_of(b)
    names = a.rows[0].data, b.rows[0].data
    if not first or not second:
        if names[0] != names[1]:
            raise _refusal(a, b, "data", *names, "Compare runs of one data set.")
        return False
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            called = f" Both are called '{names[0]}'." if names[0] == names[1] else ""
            raise _refusal(
                a, b, f"data.identity.{key}", first.get(key), second.get(key),
                f"The runs were trained on different images or labels.{called} Compare runs of one "
                "data set.",
            )  # fmt: skip
    return True


def _check_same_seed(a: FinishedRun, b: FinishedRun) -> None:
    if a.experiment == b.experiment:
        raise ConfigError(
            f"{a.folder} and {b.folder} are both experiment '{a.experiment}' with config.seed="
            f"{a.seed}, so they are the same measurement. Give one of them, or runs with different "
            "--config.seed; a run with other settings needs its own --config.name."
        )
    first, second = a.protocol.features_hash, b.protocol.features_hash
    if first != second:
        raise _refusal(
            a, b, "protocol.features_hash", first, second,
            "Runs of one seed must be scored with the same feature network: give both runs the "
            "same --cache and the same settings of the classifier stage.",
        )  # fmt: skip


def _check_same_recipe(a: FinishedRun, b: FinishedRun) -> None:
    first, second = recipes_of((a, b))
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            raise _refusal(
                a, b, f"config.{key}", first.get(key), second.get(key),
                "Runs of one experiment may differ only in the seed, because the table shows the "
                "spread over seeds. Train one of the runs with another --config.name.",
            )  # fmt: skip


def _refusal(
    a: FinishedRun, b: FinishedRun, key: str, first: object, second: object, advice: str
) -> ConfigError:
    text = (
        f"{a.title} and {b.title} cannot be compared: {key} is {first!r} in the first and "
        f"{second!r} in the second; it must be the same."
    )
    return ConfigError(f"{text} {advice}".strip())
