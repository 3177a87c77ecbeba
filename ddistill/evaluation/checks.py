"""What would stop an evaluation only after hours of training, looked at before."""

from ddistill import data
from ddistill.data import Dataset
from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.sampling import Call
from ddistill.settings import Settings

# The largest neighbourhood that `features.score` looks at.
NEIGHBOURS = 5


def check_rows(calls: list[Call]) -> None:
    """Raises `ConfigError` if two calls would leave rows or samples that cannot be told apart."""
    seen: dict[tuple, Call] = {}
    for call in calls:
        s, student = call.plan.settings, call.role == "student"
        apart = (call.variant, call.students, s.ema[:1], call.sampler, call.nfe, call.width)
        same = (student, call.method, *apart)
        other = seen.setdefault(same, call)
        if other is call:
            continue
        if not student:
            raise ConfigError(
                f"config.evaluation.teacher_samplers.{call.sampler} names {call.steps} steps twice."
            )
        raise ConfigError(
            f"config.stages.{call.plan.name}.variant={s.variant!r}: results.json could not tell "
            f"its rows from those of '{other.plan.name}', which has the same method "
            f"({call.method}), variant and number of steps ({call.steps}). Give one of them "
            "another variant, any short text."
        )
    files: dict[str, Call] = {}
    for call in calls:  # samples lie in files of these names
        other = files.setdefault(call.key, call)
        if other is not call:
            raise ConfigError(
                f"The samples of '{other.label}' (stage '{other.plan.name}') and of '{call.label}' "
                f"(stage '{call.plan.name}') would share the file '{call.key}'. Rename one of the "
                "stages."
            )


def check_real_images(settings: Settings, dataset: Dataset) -> None:
    """Raises `ConfigError` if there are too few real images to score samples against.

    Args:
      settings: the run's settings.
      dataset: training images.
    """
    e = settings.evaluation
    if not (e.enabled and e.classifier):
        return
    way_out = "Set config.evaluation.classifier='' to sample without scores."
    try:
        test = data.count(settings.data, "test")
    except DataError as error:
        raise ConfigError(f"Scores need test images: {error} {way_out}") from None
    for split, count in (("training", len(dataset)), ("test", test)):
        if count <= NEIGHBOURS:
            raise ConfigError(
                f"Scores need more than {NEIGHBOURS} {split} images, because precision and recall "
                f"look at so many neighbours, and the data have {count}: use more data, or another "
                f"data.test_fraction where the data have no test split. {way_out}"
            )
