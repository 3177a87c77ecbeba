"""Paths between two noises, and the smoothness of the images along them."""

import numpy as np
from jaxtyping import Float

from ddistill.evaluation.metrics.resampling import Estimate, ratio_of_means

LENGTH, LARGEST = "path_length", "path_largest_step"


def slerp(
    start: Float[np.ndarray, "..."],
    end: Float[np.ndarray, "..."],
    positions: Float[np.ndarray, " F"],
) -> Float[np.ndarray, "F ..."]:
    """Spherical interpolation between two arrays, as for the latents of DDIM (arXiv 2010.02502).

    With theta the angle between the arrays, the point at t is
    (sin((1 - t) theta) start + sin(t theta) end) / sin(theta). Norms near those of the ends are
    kept, so that every point is a likely noise; the points of a straight line are too short.

    Args:
      start: first array.
      end: last array, of the same shape.
      positions: `[F]` values of t in [0, 1].

    Returns:
      `[F, ...]` float32; the straight line for arrays that are parallel or zero.
    """
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    t = np.asarray(positions, np.float64).reshape(-1, *(1,) * a.ndim)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = np.clip(np.vdot(a, b) / norms, -1.0, 1.0) if norms else 1.0
    theta = np.arccos(cosine)
    if np.sin(theta) < 1e-6:
        return ((1 - t) * a + t * b).astype(np.float32)
    points = (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)
    return points.astype(np.float32)


def path_scores(features: Float[np.ndarray, "P F D"]) -> dict[str, Estimate]:
    """Smoothness of paths of F images in features, with bootstrap intervals over the paths.

    Args:
      features: features of the images of every path, in order.

    Returns:
      `LENGTH`, the sum of the distances between consecutive images, and `LARGEST`, the largest of
      them; both as means over paths, divided by the mean distance between first and last image. A
      path that is straight in features, with equal steps, has length 1 and a largest step of
      1 / (F - 1); a jump makes the largest step grow towards 1. Empty if first and last images are
      equal in all paths.
    """
    features = np.asarray(features, np.float64)
    steps = np.linalg.norm(np.diff(features, axis=1), axis=-1)
    ends = np.linalg.norm(features[:, -1] - features[:, 0], axis=-1)
    if not ends.mean() > 0:
        return {}
    return {
        LENGTH: ratio_of_means(steps.sum(axis=1), ends),
        LARGEST: ratio_of_means(steps.max(axis=1), ends),
    }
