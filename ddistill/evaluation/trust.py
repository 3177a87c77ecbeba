"""Warnings about scores that mean little; the report shows them before the scores."""

from ddistill.evaluation.records.names import EXTRAPOLATED, METRICS
from ddistill.evaluation.scored import ScoredRun
from ddistill.evaluation.scorer import Scorer

# Below this accuracy, noise can look like images in the features of a classifier. The bound is
# lower with many classes, because they are harder to separate.
LEAST_ACCURACY = 0.8
LEAST_ACCURACY_OF_MANY = 0.5
MANY_CLASSES = 10
# Images per feature. With fewer, the estimate of the covariance is poor, and that of half of the
# images, from which FD-infinity is extrapolated, does not have full rank.
LEAST_PER_FEATURE = 2
# Share of the variance of the real features, which is the distance of a generator that always
# returns the mean image.
FARTHEST_TEACHER = 0.1


def warnings_of(scorer: Scorer, teacher: ScoredRun) -> list[str]:
    """Lists why the scores of a run may mean little, one sentence or two each.

    Args:
      scorer: the feature network, the real images and the scores of the test images.
      teacher: samples and scores of the reference teacher.
    """
    found = [
        _weak_classifier(scorer),
        *_few_images(scorer, len(teacher.samples.images)),
        _far_teacher(scorer, teacher),
    ]
    return [text for text in found if text]


def _weak_classifier(scorer: Scorer) -> str:
    classes = 0 if scorer.real.histogram is None else len(scorer.real.histogram)
    least = LEAST_ACCURACY_OF_MANY if classes > MANY_CLASSES else LEAST_ACCURACY
    if scorer.accuracy is None or scorer.accuracy >= least:
        return ""
    if scorer.fixed:
        if not scorer.tells_classes:  # no score depends on it
            return ""
        return (
            f"The classifier that gives class TV has an accuracy of {scorer.accuracy:.1%} on the "
            f"test images, below {least:.0%}: class TV means little. Train it for longer."
        )
    return (
        f"The classifier that gives the features has an accuracy of {scorer.accuracy:.1%} on the "
        f"test images, below {least:.0%}: its features separate images poorly, and noise can score "
        "well. Train it for longer."
    )


def _few_images(scorer: Scorer, samples: int) -> list[str]:
    dim = scorer.real.features.shape[1]
    counts = {
        "samples": samples,
        "test images": scorer.floor_count,
        "training images": scorer.real_count,
    }
    if scorer.fixed:
        few = [f"{n} {name}" for name, n in counts.items() if n < LEAST_PER_FEATURE * dim]
        return few and [
            f"{', '.join(few)} are fewer than {LEAST_PER_FEATURE} for each of the {dim} features "
            f"of {scorer.name}: its Frechet distances rank sets of equal size, and are too large "
            "as numbers; those extrapolated to infinitely many samples are rough."
        ]
    return [
        f"{count} {name} are fewer than {LEAST_PER_FEATURE} for each of the {dim} features: "
        "Frechet distances of so few images mean little. Use more images, or a classifier with "
        "fewer features."
        for name, count in counts.items()
        if count < LEAST_PER_FEATURE * dim
    ]


def _far_teacher(scorer: Scorer, teacher: ScoredRun) -> str:
    both = [name for name in EXTRAPOLATED if name in teacher.scores and name in scorer.floor]
    if not both:
        return ""
    name = both[0]
    value, floor = teacher.scores[name].value, scorer.floor[name].value
    bound = FARTHEST_TEACHER * scorer.real.variance
    if value - floor <= bound:
        return ""
    return (
        f"The teacher is far from the data: its {METRICS[name].label} is {value:.3g} and that of "
        f"the test images is {floor:.3g}; the difference is above {FARTHEST_TEACHER:.0%} of the "
        f"variance of the real features ({bound:.3g}). The scores of its students say little about "
        "the method. Train the teacher for longer."
    )
