"""When the scores of a run mean little: said with the scores, not found out later."""

from ddistill.evaluation.scored import Scored, Scorer

# A classifier that is right less often has features in which noise can look like images. Many
# classes are harder to tell apart.
LEAST_ACCURACY = 0.8
LEAST_ACCURACY_OF_MANY = 0.5
MANY_CLASSES = 10
# Images for each feature: a covariance of fewer is far from that of all images, and halves of them
# have none of full rank, from which FD-infinity is extrapolated.
LEAST_PER_FEATURE = 2
# Share of the variance of the real features: a generator of one mean image has a distance of 1.
FARTHEST_TEACHER = 0.1


def warnings_of(scorer: Scorer, teacher: Scored) -> list[str]:
    """Sentences that say why the scores of a run may mean little; empty for no reason.

    Args:
      scorer: the feature network, the real images and the floor.
      teacher: the full teacher's samples and scores.
    """
    found = [_weak(scorer), *_few(scorer, len(teacher.samples.images)), _far(scorer, teacher)]
    return [text for text in found if text]


def _weak(scorer: Scorer) -> str:
    classes = 0 if scorer.real.histogram is None else len(scorer.real.histogram)
    least = LEAST_ACCURACY_OF_MANY if classes > MANY_CLASSES else LEAST_ACCURACY
    if scorer.accuracy >= least:
        return ""
    return (
        f"The classifier whose features are compared is right on {scorer.accuracy:.1%} of the test "
        f"images, below {least:.0%}: its features tell images little apart, and noise can score "
        "well. Train it for longer."
    )


def _few(scorer: Scorer, samples: int) -> list[str]:
    dim = scorer.real.features.shape[1]
    counts = {
        "samples": samples,
        "test images": scorer.floor_count,
        "training images": scorer.real_count,
    }
    return [
        f"{count} {name} are fewer than {LEAST_PER_FEATURE} for each of the {dim} features: "
        "Frechet distances of so few say little. Use more, or a classifier of fewer features."
        for name, count in counts.items()
        if count < LEAST_PER_FEATURE * dim
    ]


def _far(scorer: Scorer, teacher: Scored) -> str:
    name = "fd_infinity"
    if name not in teacher.scores or name not in scorer.floor:
        return ""
    value, floor = teacher.scores[name].value, scorer.floor[name].value
    bound = FARTHEST_TEACHER * scorer.real.variance
    if value - floor <= bound:
        return ""
    return (
        f"The teacher is far from the data: its FD\N{INFINITY} is {value:.3g}, that of the test "
        f"images {floor:.3g}, and the difference is above {FARTHEST_TEACHER:.0%} of the variance "
        f"of the real features ({bound:.3g}). What its students score says little about their "
        "method. Train it for longer."
    )
