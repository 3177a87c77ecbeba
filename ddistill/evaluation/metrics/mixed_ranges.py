"""Detects arrays with images in several ranges of values, as in files from several sources.

The range of every image is derived separately. Images without a clear range (a single colour, dark
images) get the range of the others. So do images with values that fit both the range of the others
and a narrower range, unless there is a gap between the two groups: dark images of [0, 255] have all
levels of brightness, but images of [0, 1] among them have no values between 1 and 255.
"""

import dataclasses

import numpy as np

from ddistill.evaluation.metrics.value_spread import Verdicts, judge

# Values of an image that are examined, at random positions that all images share.
_LOOKED_AT = 512
# Number of values that are examined at a time.
_BLOCK = 1 << 17
# Factor above the top of a narrow range within which no image of a wider range may end.
_GAP = 16
# Smallest share and number of images that show [0, 1] among [-1, 1] by their values alone.
_FEW, _FEW_IMAGES = 0.05, 3
# Most images of [0, 1] start below the first number and, except for errors of filters, end at the
# second; if this share of images ends above it, they are dark images of a wider range.
_NEAR_0, _END, _SEVERAL = 0.02, 1.05, 0.25
# Share of images that always counts as a group.
_LARGE = 0.4


@dataclasses.dataclass(frozen=True)
class Parts:
    """The ranges of images.

    Attributes:
      names: [N] range of each image; "" if the image has no clear range.
    """

    names: np.ndarray

    def first(self) -> dict[str, int]:
        """The first image of each range, in the order of the images."""
        found = {str(name): int((self.names == name).argmax()) for name in set(self.names) - {""}}
        return dict(sorted(found.items(), key=lambda item: item[1]))


def find_parts(images: np.ndarray) -> Parts:
    """Derives the ranges of the images of an array.

    Args:
      images: [N, ...] finite floats, or integers.
    """
    if images.ndim == 0 or not images.size:
        return Parts(np.full(len(images) if images.ndim else 0, "", "U7"))
    said = _judge_images(images)
    names = said.names.copy()
    if images.dtype.kind == "u" and images.dtype.itemsize == 2 and np.any(names == "0,65535"):
        # uint16 has one range, so images with small values are dark images.
        names[names == "0,255"] = ""
    for narrow, top in (("0,1", 1), ("-1,1", 1), ("0,255", 255)):
        wider = names == ("0,255" if top == 1 else "0,65535")
        chosen = (names == narrow) & ~said.exact
        between = _between(said.high, 1.25 * top, _GAP * top)
        if wider.any() and (chosen.sum() <= between or _is_dark(chosen, wider, said, top)):
            names[chosen] = ""
    light, signed = (names == "0,1") & ~said.exact, names == "-1,1"
    if signed.any() and not _is_group(light, signed, said.low):
        names[light] = ""
    return Parts(names)


def _judge_images(images: np.ndarray) -> Verdicts:
    rows = images.reshape(len(images), -1)
    size = rows.shape[1]
    places: slice | np.ndarray = slice(None)
    if size > _LOOKED_AT:
        places = np.sort(np.random.default_rng(0).choice(size, _LOOKED_AT, replace=False))
    step = max(1, _BLOCK // min(size, _LOOKED_AT))
    found = [judge(rows[i : i + step][:, places]) for i in range(0, len(rows), step)]
    fields = [field.name for field in dataclasses.fields(Verdicts)]
    return Verdicts(**{key: np.concatenate([getattr(x, key) for x in found]) for key in fields})


def _is_dark(chosen: np.ndarray, wider: np.ndarray, said: Verdicts, top: int) -> bool:
    """Whether images are dark images of a wider range, which do not end at `top`.

    Images of a filter or a sampler exceed their range at both ends, dark images at one end.
    """
    if not chosen.any() or _is_large(chosen, wider):
        return False
    beyond = np.mean(said.high[chosen] > _END * top) >= _SEVERAL
    return bool(beyond and np.median(said.low[chosen]) > (1 - _END) * top)


def _is_group(light: np.ndarray, signed: np.ndarray, low: np.ndarray) -> bool:
    """Whether images without negative values are a separate group among images of [-1, 1].

    Light images of [-1, 1] are rare, occur with others that are nearly as light, and do not start
    at exactly 0.
    """
    enough = light.sum() >= max(_FEW_IMAGES, _FEW * len(light))
    if not enough or light.sum() <= _between(low, -0.6, -0.1):
        return False
    return _is_large(light, signed) or bool(np.mean(low[light] < _NEAR_0) > 0.5)


def _is_large(chosen: np.ndarray, others: np.ndarray) -> bool:
    """Whether the group is about as large as the rest, unlike dark or light images."""
    return bool(chosen.sum() >= _LARGE * (chosen.sum() + others.sum()))


def _between(values: np.ndarray, low: float, high: float) -> int:
    return int(((values > low) & (values <= high)).sum())
