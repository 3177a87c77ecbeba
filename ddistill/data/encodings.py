"""What a set of latents and tokens has to say of the networks that made them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ddistill.runtime.schemas import COUNT, NUMBER, TEXT, WHOLE, Schema, list_of
from ddistill.typing import JsonRecord

MOMENTS, LATENTS = "moments", "latents"


@dataclass(frozen=True)
class EncoderFacts:
    """An image encoder, such as the VAE of a latent diffusion model.

    Attributes:
      name: for messages.
      digest: SHA-256 of its weights and options; "" for an encoder without weights.
      kind: "moments" [h, w, 2c] (mean and logarithm of the variance) or "latents" [h, w, c].
      channels: c, of latents.
      factor: pixels a latent, along each side.
      scaling, shift: networks see (z - shift) * scaling of a latent z.
      image_channels: of the images that are encoded, 1 or 3.
    """

    name: str
    digest: str
    kind: str
    channels: int
    factor: int
    scaling: float = 1.0
    shift: float = 0.0
    image_channels: int = 3

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(h, w, c) of the latents of square images; `image_size` is a multiple of `factor`."""
        side = image_size // self.factor
        return side, side, self.channels

    def __str__(self) -> str:
        return f"{self.name} {self.digest[:16]}".strip()

    def to_json(self) -> JsonRecord:
        """An object as `ENCODER` describes it."""
        # 1 and 1.0 are one value and two texts, which would give two digests.
        return {
            **dataclasses.asdict(self),
            "scaling": float(self.scaling),
            "shift": float(self.shift),
        }

    @classmethod
    def from_json(cls, found: Mapping) -> "EncoderFacts":
        """The facts in an object as `ENCODER` describes it."""
        return cls(**{f.name: found[f.name] for f in dataclasses.fields(cls)})


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer of captions.

    Attributes:
      name: for messages.
      digest: SHA-256 of its vocabulary and options.
      length: L, token ids of every text.
      vocabulary: ids are 0 .. vocabulary - 1.
      null: [L] ids of the empty text, which is the null condition of guidance.
    """

    name: str
    digest: str
    length: int
    vocabulary: int
    null: tuple[int, ...]

    def to_json(self) -> JsonRecord:
        """An object as `TOKENIZER` describes it."""
        return {**dataclasses.asdict(self), "null": list(self.null)}

    @classmethod
    def from_json(cls, found: Mapping) -> "TokenizerFacts":
        """The facts in an object as `TOKENIZER` describes it."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{**{name: found[name] for name in names}, "null": tuple(found["null"])})


def _kind_known(found: Mapping) -> str:
    if found["kind"] not in (MOMENTS, LATENTS):
        return f"key 'kind' is {found['kind']!r}, and '{MOMENTS}' or '{LATENTS}' is needed"
    if found["image_channels"] not in (1, 3):
        return f"key 'image_channels' is {found['image_channels']}, and 1 or 3 is needed"
    return ""


ENCODER = Schema(
    {
        **dict.fromkeys(("name", "digest", "kind"), TEXT),
        **dict.fromkeys(("channels", "factor", "image_channels"), COUNT),
        **dict.fromkeys(("scaling", "shift"), NUMBER),
    },
    agree=_kind_known,
)


def _null_fits(found: Mapping) -> str:
    if len(found["null"]) != found["length"]:
        return f"key 'null' has {len(found['null'])} of {found['length']} token ids"
    return ""


TOKENIZER = Schema(
    {
        **dict.fromkeys(("name", "digest"), TEXT),
        **dict.fromkeys(("length", "vocabulary"), COUNT),
        "null": list_of(WHOLE, 1),
    },
    agree=_null_fits,
)
