"""Halving and doubling images with a separable filter."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.networks.convolution import upsample
from ddistill.networks.layers import downsample

# [1, 1] is the mean of 2 x 2 pixels and nearest neighbour; [1, 3, 3, 1] is smoother (NCSN++).
FILTERS = ((1, 1), (1, 3, 3, 1))


def filter_down(
    x: Float[Array, "B H W C"], taps: tuple[int, ...], pad: bool = True
) -> Float[Array, "B h w C"]:
    """Every second pixel of `x` convolved with `taps / sum(taps)` in both directions.

    Args:
      x: images of even sides.
      taps: one of `FILTERS`.
      pad: with zeros, so that the sides are halved; else only where the filter fits inside.
    """
    if len(taps) == 2:
        return downsample(x)
    margin = len(taps) // 2 - 1 if pad else 0
    for axis in (1, 2):
        widths = [(margin, margin) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, widths)
        count = (padded.shape[axis] - len(taps)) // 2 + 1
        x = sum(  # type: ignore[assignment]
            tap / sum(taps) * _every_second(padded, axis, k, count) for k, tap in enumerate(taps)
        )
    return x


def filter_up(x: Float[Array, "B H W C"], taps: tuple[int, ...]) -> Float[Array, "B h w C"]:
    """Zeros put between the pixels, then `2 taps / sum(taps)` in both directions; doubles the size.

    Args:
      x: images; outside of them there are zeros.
      taps: one of `FILTERS`.
    """
    if len(taps) == 2:
        return upsample(x)
    half, gain = len(taps) // 2, 2.0 / sum(taps)
    for axis in (1, 2):
        size = x.shape[axis]
        widths = [(half, half) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, widths)
        phases = []
        for phase in (0, 1):
            # Output 2 m + phase sees input m + (phase + half - 1 - k) / 2 through tap k.
            terms = [
                gain * tap * _slice(padded, axis, half + (phase + half - 1 - k) // 2, size)
                for k, tap in enumerate(taps)
                if (phase + half - 1 - k) % 2 == 0
            ]
            phases.append(sum(terms[1:], terms[0]))
        shape = [2 * n if i == axis else n for i, n in enumerate(x.shape)]
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def _slice(x: Array, axis: int, start: int, count: int) -> Array:
    return x[:, start : start + count] if axis == 1 else x[:, :, start : start + count]


def _every_second(x: Array, axis: int, start: int, count: int) -> Array:
    stop = start + 2 * count - 1
    return x[:, start:stop:2] if axis == 1 else x[:, :, start:stop:2]
