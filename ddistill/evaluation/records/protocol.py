"""The protocol of a score: everything that two scores must share to be comparable.

Every `Row` of results.json carries the string of a `Protocol`. Reading is strict: missing, unknown
or malformed parts are errors.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ddistill.evaluation.metrics.protocols import PROMPTED_PARTS, PromptedParts

_TOKEN = re.compile(r"[^\s=,;|`]+")


_FID_FEATURES = "inception-2015-12-05"


_RESAMPLING = ("floor", "count", "subsets", "splits", "subset_seed")


# Parts that describe the resampling and not the measured quantity.
RESAMPLED = (*_RESAMPLING, "strata")


@dataclass(frozen=True)
class Protocol:
    """Everything that two scores must share to be comparable.

    Text fields contain no spaces and none of = , ; | or a backtick, so that the string can be
    parsed.

    Attributes:
      features: feature network, for example "digits_classifier" or "inception-2015-12-05".
      features_hash: short hash of its weights (`metrics.features.params_hash`).
      reference: reference set and split, for example "digits/train".
      reference_n: number of images in the reference set.
      samples: number of scored images.
      sampler: "ddim", "heun", ..., "heun-edm" with the sigmas of EDM, "renoise-mid-0.821" with
        levels that a setting has chosen; "none" for real data.
      nfe: network evaluations per image; 0 for real data.
      ema: rate of the sampled weight average; None for the raw weights.
      clip: bound on x0 predictions; None for no clipping.
      noise_seed: seed of the noise bank.
      quantised: whether samples were rounded to uint8 before scoring.
      guidance: scale of classifier-free guidance, also where it is an input of the student; None
        without guidance.
      floor: number of test images for the floor. This and the following fields are None for scores
        of earlier versions, which have no common count and no intervals.
      count: number of images for recall, coverage and class shares, of samples and test images;
        the scores are means over subsets of that size.
      subsets: number of random subsets for these means and for 95 % intervals.
      splits: number of splits into halves for "fd_infinity".
      subset_seed: seed of all subsets and splits.
      strata: whether each class has a fixed number of samples, which subsets preserve.
      prompted: a published protocol, of which the metrics "fid_protocol" and "clip_score" are;
        None for a run without one.
    """

    features: str
    features_hash: str
    reference: str
    reference_n: int
    samples: int
    sampler: str
    nfe: int
    ema: float | None
    clip: float | None
    noise_seed: int
    quantised: bool
    guidance: float | None = None
    floor: int | None = None
    count: int | None = None
    subsets: int | None = None
    splits: int | None = None
    subset_seed: int | None = None
    strata: bool = False
    prompted: PromptedParts | None = None

    def __post_init__(self) -> None:
        words = {k: getattr(self, k) for k in ("features", "features_hash", "reference", "sampler")}
        for key, value in (words | (self.prompted.items() if self.prompted else {})).items():
            if not isinstance(value, str) or not _TOKEN.fullmatch(value):
                raise ValueError(
                    f"protocol.{key}={value!r} must be a word without spaces and = , ; | `."
                )
        if "@" in self.features or ":" in self.reference:
            raise ValueError(f"'@' in features={self.features!r} or ':' in {self.reference!r}.")
        for key, least in (("reference_n", 1), ("samples", 1), ("nfe", 0), ("noise_seed", 0)):
            value = getattr(self, key)
            if not is_int(value) or value < least:
                raise ValueError(
                    f"protocol.{key}={value!r} must be an integer of at least {least}."
                )
        resampled = [getattr(self, key) for key in _RESAMPLING]
        if resampled != [None] * 5 and not all(is_int(v) and v >= 0 for v in resampled):
            raise ValueError(
                f"protocol.{', '.join(_RESAMPLING)}={resampled!r} must be integers of at least 0, "
                "or all None."
            )
        for key in ("ema", "clip", "guidance"):
            value = getattr(self, key)
            if value is not None and not is_finite(value):
                raise ValueError(f"protocol.{key}={value!r} must be a finite number or None.")
        if not isinstance(self.quantised, bool):
            raise ValueError(f"protocol.quantised={self.quantised!r} must be True or False.")

    def string(self) -> str:
        """The protocol on one line, in the format of `Protocol.parse`."""
        return " ".join(f"{key}={value}" for key, value in self.items().items())

    def items(self) -> dict[str, str]:
        """The parts of the string, in order."""
        parts = {
            "features": f"{self.features}@{self.features_hash}",
            "reference": f"{self.reference}:{self.reference_n}",
            "samples": str(self.samples),
            "sampler": self.sampler,
            "nfe": str(self.nfe),
            "ema": _optional(self.ema),
            "clip": _optional(self.clip),
            "noise_seed": str(self.noise_seed),
            "uint8": "yes" if self.quantised else "no",
            "guidance": _optional(self.guidance),
        }
        if self.count is not None:
            parts |= {key: str(getattr(self, key)) for key in _RESAMPLING}
            parts["strata"] = "yes" if self.strata else "no"
        return parts | (self.prompted.items() if self.prompted else {})

    @classmethod
    def parse(cls, text: str) -> "Protocol":
        """Parses the result of `string`.

        Raises:
          ValueError: a part is missing, unknown or malformed; the message names it.
        """
        parts = dict(part.partition("=")[::2] for part in text.split())
        own = tuple(key for key in parts if key not in PROMPTED_PARTS)
        added = tuple(parts)[len(own) :]
        if own not in (_OLD_PARTS, _PARTS) or added not in ((), PROMPTED_PARTS):
            known = (*_PARTS, *(PROMPTED_PARTS if added else ()))
            missing = [key for key in known if key not in parts]
            unknown = [key for key in parts if key not in known]
            raise ValueError(
                f"Not a protocol string (missing: {missing}, unknown: {unknown}): {text!r}."
            )
        features, _, features_hash = parts["features"].partition("@")
        reference, _, reference_n = parts["reference"].partition(":")
        for key in ("uint8", "strata"):
            if parts.get(key, "no") not in ("yes", "no"):
                raise ValueError(f"{key}={parts[key]!r} must be yes or no in protocol {text!r}.")
        return cls(
            features=features,
            features_hash=features_hash,
            reference=reference,
            reference_n=int(reference_n),
            samples=int(parts["samples"]),
            sampler=parts["sampler"],
            nfe=int(parts["nfe"]),
            ema=_number(parts["ema"]),
            clip=_number(parts["clip"]),
            noise_seed=int(parts["noise_seed"]),
            quantised=parts["uint8"] == "yes",
            guidance=_number(parts["guidance"]),
            **{key: int(parts[key]) for key in _RESAMPLING if key in parts},
            strata=parts.get("strata") == "yes",
            prompted=PromptedParts(**{key: parts[key] for key in added}) if added else None,
        )

    @property
    def label(self) -> str:
        """Name of the Frechet distance under this protocol.

        "FID" for the Inception graph and at least 50 000 samples, "FID proxy" for fewer samples,
        "FD (FEATURES)" for other features.
        """
        if self.features != _FID_FEATURES:
            return f"FD ({self.features})"
        return "FID" if self.samples >= 50_000 and self.quantised else "FID proxy"


def variant(protocol: str, drop: Sequence[str] = ()) -> str:
    """A protocol string without the hash of the feature network and without the parts in `drop`."""
    parts = [part for part in protocol.split() if part.partition("=")[0] not in drop]
    return " ".join(
        part.partition("@")[0] if part.startswith("features=") else part for part in parts
    )


def summarise(labelled: Iterable[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """Splits protocol strings into common parts and parts of single labels.

    Args:
      labelled: (label, protocol string); a label may occur several times.

    Returns:
      (common parts, [(label, further parts)]), without `nfe` and without labels that have no
      further parts. Values that vary within a label are joined by "|".
    """
    table: dict[str, dict[str, list[str]]] = {}
    for label, text in labelled:
        for part in text.split():
            key, _, value = part.partition("=")
            values = table.setdefault(label, {}).setdefault(key, [])
            if value not in values:
                values.append(value)
    keys = list(dict.fromkeys(key for parts in table.values() for key in parts if key != "nfe"))
    first = next(iter(table.values()), {})
    shared = [k for k in keys if all(p.get(k) == first.get(k) for p in table.values())]
    shared = [k for k in shared if len(first[k]) == 1]

    def joined(parts: dict[str, list[str]], names: list[str]) -> str:
        return " ".join(f"{k}={'|'.join(parts[k])}" for k in names if k in parts)

    own = [k for k in keys if k not in shared]
    rest = [(label, joined(parts, own)) for label, parts in table.items()]
    return joined(first, shared), [(label, text) for label, text in rest if text]


def _optional(value: float | None) -> str:
    return "none" if value is None else f"{value:.10g}"


def _number(text: str) -> float | None:
    return None if text == "none" else float(text)


def is_int(value: object) -> bool:
    """Whether a value is an integer, not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_OLD = Protocol("x", "x", "x", 1, 1, "x", 0, None, None, 0, True)


_OLD_PARTS = tuple(_OLD.items())


_PARTS = tuple(replace(_OLD, floor=1, count=1, subsets=0, splits=0, subset_seed=0).items())
