"""Precision and recall of a generator from k-nearest-neighbour balls in feature space.

Improved precision and recall (arXiv 1904.06991, eq. 1-2): the radius of the ball around a point of
a set is the distance to its k-th nearest neighbour within the set. Precision is the share of fake
points inside some real ball, recall the share of real points inside some fake ball. Density and
coverage (arXiv 2002.09797, eq. 3-4) use real balls only: density is the mean number of real balls
that contain a fake point, divided by k; coverage is the share of real balls that contain at least
one fake point.

Balls are closed: a copy of a real point is inside even if duplicates make its radius zero. Memory
is block * N float64.
"""

import numpy as np

# Relative slack of comparisons of squared distances, so that rounding does not decide ties: the
# k-th neighbour lies exactly on the ball that it defines.
SLACK = 1.0 + 1e-9
# Up to this dimension distances are summed term by term, which is exact for equal points. Above it
# the expansion |a|^2 + |b|^2 - 2ab with a matrix product is an order of magnitude faster.
_EXACT_DIM = 256


def precision_recall(
    real: np.ndarray,
    fake: np.ndarray,
    k: int = 3,
    k_density: int = 5,
    block: int = 1024,
) -> dict[str, float]:
    """Computes precision, recall, density and coverage of fake features against real features.

    Args:
      real: [N, D] finite features of real images, N > max(k, k_density).
      fake: [M, D] finite features of generated images, M > k.
      k: number of neighbours for precision and recall (3 in the paper).
      k_density: number of neighbours for density and coverage (5 in the paper).
      block: rows of distances in memory; it does not change the result.

    Returns:
      {"precision", "recall", "density", "coverage"}: all in [0, 1] except density, which is at most
      N / k_density and has expectation 1 for a perfect generator.

    Raises:
      ValueError: shapes do not fit, there are too few points for k, or values are not finite.
    """
    real, fake = checked_features(real, "real"), checked_features(fake, "fake")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"Real features have {real.shape[1]} entries, fake {fake.shape[1]}.")
    centre = real.mean(axis=0)  # the product form of the distance is exact to |a|^2 * eps
    real, fake = real - centre, fake - centre
    real_radii = neighbour_radii(real, (k, k_density), block, "real")
    fake_radii = neighbour_radii(fake, (k,), block, "fake")[:, 0]

    fakes_inside = 0
    reals_inside = np.zeros(len(real), bool)
    hits = 0
    covered = np.zeros(len(real), bool)
    for start in range(0, len(fake), block):
        squares = squared_distances(fake[start : start + block], real)
        inside = squares <= real_radii[:, 0] * SLACK
        fakes_inside += int(inside.any(axis=1).sum())
        reals_inside |= (squares <= fake_radii[start : start + block, None] * SLACK).any(axis=0)
        inside_wide = squares <= real_radii[:, 1] * SLACK
        hits += int(inside_wide.sum())
        covered |= inside_wide.any(axis=0)
    return {
        "precision": fakes_inside / len(fake),
        "recall": float(reals_inside.mean()),
        "density": hits / (k_density * len(fake)),
        "coverage": float(covered.mean()),
    }


def neighbour_radii(
    points: np.ndarray, ks: tuple[int, ...], block: int = 1024, name: str = "points"
) -> np.ndarray:
    """Squared distances [N, len(ks)] of every point to its k-th nearest other point, for each k.

    Raises:
      ValueError: a k is not in 1 .. N - 1.
    """
    for k in ks:
        if not 1 <= k < len(points):
            raise ValueError(
                f"k={k} neighbours need 1 <= k < N, but there are N={len(points)} {name} features."
                " Use a smaller k or more samples."
            )
    if block < 1:
        raise ValueError(f"block={block} must be at least 1.")
    radii = np.empty((len(points), len(ks)))
    for start in range(0, len(points), block):
        squares = squared_distances(points[start : start + block], points)
        rows = np.arange(len(squares))
        squares[rows, start + rows] = -1.0  # a point is not its own neighbour; a duplicate is
        squares.partition(sorted(set(ks)), axis=1)
        radii[start : start + block] = squares[:, list(ks)]
    return radii


def class_histogram(values: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of every class [num_classes], float64, summing to 1.

    Args:
      values: integer labels [N], or logits [N, num_classes].
      num_classes: number of classes K.

    Raises:
      ValueError: there are no values, labels are not in 0..K-1, or logits have another width.
    """
    values = np.asarray(values)
    if values.ndim == 2:
        if values.shape[1] != num_classes:
            raise ValueError(f"Logits {values.shape} do not fit num_classes={num_classes}.")
        values = values.argmax(axis=1)
    if values.ndim != 1 or not values.size or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"Expected integer labels [N] or logits [N, {num_classes}];"
            f" got shape {values.shape}, type {values.dtype}."
        )
    if values.min() < 0 or values.max() >= num_classes:
        raise ValueError(
            f"Labels lie in {values.min()}..{values.max()}; num_classes={num_classes} allows"
            f" 0..{num_classes - 1}."
        )
    return np.bincount(values, minlength=num_classes) / values.size


def total_variation(histogram: np.ndarray, reference: np.ndarray | None = None) -> float:
    """Total variation distance of two class histograms [K], in [0, 1].

    This is the share of samples that would have to change class to match the reference, which is
    uniform by default.
    """
    histogram = np.asarray(histogram, np.float64)
    if reference is None:
        reference = np.full(histogram.shape, 1.0 / histogram.size)
    reference = np.asarray(reference, np.float64)
    if histogram.shape != reference.shape:
        raise ValueError(f"Histograms have {histogram.size} and {reference.size} classes.")
    return float(np.abs(histogram - reference).sum() / 2)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [N, M] of points [N, D] and [M, D], centred near 0; exact for copies."""
    if a.shape[1] <= _EXACT_DIM:
        from scipy.spatial.distance import cdist  # slow to import, and only needed here

        return cdist(a, b, "sqeuclidean")
    norms = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
    squares = norms - 2.0 * (a @ b.T)
    # For equal points the result is about +-eps * |a|^2 instead of zero.
    squares[squares < 1e-13 * norms] = 0.0
    return squares


def checked_features(features: np.ndarray, name: str) -> np.ndarray:
    """Features [N, D] as float64; raises `ValueError` for another shape or non-finite values."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"{name} features must have shape [N, D]; got {features.shape}.")
    if not np.isfinite(features).all():
        raise ValueError(f"{name} features hold values that are not finite; check the samples.")
    return features
