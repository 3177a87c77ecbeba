"""Arrays whose images are in several ranges of values, as files of several sources may be.

Every image is judged by itself. Images that say nothing (one colour, dark ones) go with the others,
and so do those whose values fit both the range of the others and a narrower one, unless there is
nothing in between: dark images of [0, 255] have all kinds of brightness, images of [0, 1] among
them have none between 1 and 255.
"""

import dataclasses

import numpy as np

from ddistill.evaluation.value_spread import Verdicts, judge

# Values of an image that are looked at, at places drawn once for all images.
_LOOKED_AT = 512
# Values that are judged at a time.
_BLOCK = 1 << 17
# From the brightest value of a narrow range, by what factor no image of a wider one may lie.
_GAP = 16
# Least share, and number, of images that show [0, 1] among [-1, 1] by their spread alone.
_FEW, _FEW_IMAGES = 0.05, 3


@dataclasses.dataclass(frozen=True)
class Parts:
    """The ranges that images say they are in.

    Attributes:
      names: [N] range of each image, "" where it says none of its own.
    """

    names: np.ndarray

    def first(self) -> dict[str, int]:
        """The first image of each range, in the order of the images."""
        found = {str(name): int((self.names == name).argmax()) for name in set(self.names) - {""}}
        return dict(sorted(found.items(), key=lambda item: item[1]))


def find_parts(images: np.ndarray) -> Parts:
    """The ranges of the images of an array.

    Args:
      images: [N, ...] finite floats, or integers.
    """
    said = _judge_images(images)
    names = said.names.copy()
    for narrow, top in (("0,1", 1), ("-1,1", 1), ("0,255", 255)):
        wider = "0,255" if top == 1 else "0,65535"
        chosen = (names == narrow) & ~said.exact
        if np.any(names == wider) and chosen.sum() <= _between(said.high, 1.25 * top, _GAP * top):
            names[chosen] = ""
    light = (names == "0,1") & ~said.exact
    if np.any(names == "-1,1") and not _is_group(light, said.low):
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


def _is_group(light: np.ndarray, low: np.ndarray) -> bool:
    """Whether images without negative values are a group of their own among those of [-1, 1].

    Light images of [-1, 1] are rare, and others that are nearly as light come with them.
    """
    enough = light.sum() >= max(_FEW_IMAGES, _FEW * len(light))
    return bool(enough and light.sum() > _between(low, -0.6, -0.1))


def _between(values: np.ndarray, low: float, high: float) -> int:
    return int(((values > low) & (values <= high)).sum())
