"""How far images are from the teacher's images from the same noise, in features and in pixels.

SFDDM (arXiv 2405.14961) calls this semantic consistency: a student that keeps the teacher's map
from noise to images gives the same image for the same noise.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from ddistill.evaluation.metrics.pixels import psnr_of_each
from ddistill.evaluation.metrics.resampling import Estimate, ratio_of_means

RAW, RELATIVE, PSNR = (
    "feature_distance_to_teacher",
    "relative_distance_to_teacher",
    "psnr_to_teacher",
)


def row_distances(
    a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, " N"]:
    """Euclidean distance of each row of `a` to the same row of `b`, float64."""
    return np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64), axis=-1)


def feature_scores(
    features: Float[np.ndarray, "N D"], teacher: Float[np.ndarray, "N D"], classes: int = 0
) -> dict[str, Estimate]:
    """Distances to the teacher's images in features, with bootstrap intervals over the noise.

    Args:
      features: features of the samples.
      teacher: features of the images of the reference teacher from the same noise.
      classes: number of classes through which the labels of the samples cycle; 0 without labels.

    Returns:
      The mean distance (`RAW`), and its ratio to the mean distance between two images of the
      teacher from different noise (`RELATIVE`): 0 for equal images, 1 for images that are no more
      alike than images from different noise. With labels, both images have the same class. The
      ratio is left out if there are no two such images, or if they are all equal.
    """
    own = row_distances(features, teacher)
    scores = {RAW: ratio_of_means(own)}
    shift = max(classes, 1)
    if len(teacher) > shift:
        # Image i and image i + shift; the last ones are compared with the first of their class.
        index = np.arange(len(teacher))
        other = np.where(index + shift < len(teacher), index + shift, index % shift)
        unrelated = row_distances(teacher, teacher[other])
        unrelated[other == index] = unrelated[other != index].mean()  # the only one of its class
        if unrelated.mean() > 0:
            scores[RELATIVE] = ratio_of_means(own, unrelated)
    return scores


def pixel_scores(
    images: Float[np.ndarray, "N H W C"], teacher: Float[np.ndarray, "N H W C"]
) -> Mapping[str, Estimate]:
    """Mean PSNR in dB to the teacher's images, with a bootstrap interval over the noise.

    Args:
      images: samples in [-1, 1]; other values are clipped.
      teacher: images of the reference teacher from the same noise.
    """
    ratios = psnr_of_each(np.clip(images, -1, 1), np.clip(teacher, -1, 1))
    return {PSNR: ratio_of_means(ratios)}
