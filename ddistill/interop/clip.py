"""A CLIP model with its tokenizer from a folder that the user brings.

The folder is that of transformers' `CLIPModel.save_pretrained` with the files of its tokenizer, or
one of open_clip (see `ddistill.interop.open_clip`) with the same files of a tokenizer. Nothing is
downloaded.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ddistill.errors import ConfigError
from ddistill.interop import clip_text, clip_vision, open_clip
from ddistill.interop.config_values import is_number, is_whole
from ddistill.interop.diffusers_folders import read_json
from ddistill.interop.diffusers_weights import TRANSFORMERS, Weights, find_weights
from ddistill.interop.tensors import file_digest, full_precision
from ddistill.interop.tokenizer import ClipTokenizer, read_tokenizer
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.clip_vision import CLIPVision
from ddistill.runtime.files import expand
from ddistill.typing import JsonRecord, Options, Params

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
# Statistics of the training images of OpenAI's CLIP, which open_clip's models use too.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3
# Fewer digits of a hash would be an accident.
_LEAST_DIGITS = 8


@dataclass(frozen=True)
class ClipFiles:
    """The files of a CLIP model; made by `find_clip`.

    Attributes:
      folder: the folder.
      config: the options, in transformers' terms.
      where: the file with the options, for messages.
      preprocessor: how images are prepared, in transformers' terms.
      weights: the files of the weights.
      layout: "transformers" or "open_clip".
    """

    folder: Path
    config: JsonRecord
    where: str
    preprocessor: JsonRecord
    weights: Weights
    layout: str

    @property
    def digest(self) -> str:
        """SHA-256 of the files of the weights, one after the other."""
        return file_digest(*self.weights.files)

    @property
    def vision(self) -> CLIPVision:
        """The image encoder; raises `ConfigError` for options that it does not have."""
        return clip_vision.read_vision(
            _nested(self.config, "vision"), f"{self.where}: vision_config"
        )

    @property
    def name(self) -> str:
        """Patch and width of the image encoder, as in "clip-14-1408" for ViT-g/14."""
        return f"clip-{self.vision.patch}-{self.vision.width}"


@dataclass(frozen=True, eq=False)
class ClipModel:
    """Both encoders of CLIP.

    Attributes:
      name: as of `ClipFiles`.
      text, vision: the networks.
      params: by "text" and "vision" their parameters, and by "text_projection" [D, P] and
        "image_projection" [E, P] the linear maps to the common space of P dimensions.
      mean, std: by which pixels in [0, 1] are normalised.
      tokenizer: of the texts.
      sha256: of the weights.
    """

    name: str
    text: CLIPText
    vision: CLIPVision
    params: Params
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: ClipTokenizer
    sha256: str


def find_clip(path: str | os.PathLike) -> ClipFiles:
    """The files of the CLIP model in a folder; no weights are read.

    Raises:
      ConfigError: there is no folder, or it holds no whole CLIP model.
    """
    folder = expand(path)
    if not folder.is_dir():
        state = "is a file" if folder.is_file() else "does not exist"
        raise ConfigError(
            f"The CLIP checkpoint {folder} {state}; give the folder of a CLIPModel of "
            f"transformers, with {CONFIG}, weights and tokenizer, or of an open_clip model."
        )
    if (folder / CONFIG).is_file() and _has_weights(folder):
        config = read_json(folder / CONFIG)
        _check_kind(config, folder / CONFIG)
        weights = find_weights(folder, read_json, TRANSFORMERS)
        preprocessor = _preprocessor(folder)
        return ClipFiles(
            folder, config, str(folder / CONFIG), preprocessor, weights, "transformers"
        )
    if (folder / open_clip.CONFIG).is_file():
        content, where = read_json(folder / open_clip.CONFIG), str(folder / open_clip.CONFIG)
        config = open_clip.as_config(content, where)
        prepared = open_clip.as_preprocessor(content, config["vision_config"]["image_size"])
        weights = find_weights(folder, read_json, open_clip.STEMS)
        return ClipFiles(folder, config, where, prepared, weights, "open_clip")
    raise ConfigError(
        f"The CLIP checkpoint {folder} holds neither {CONFIG} with model.safetensors or "
        f"pytorch_model.bin, nor {open_clip.CONFIG}; give the folder of a CLIPModel of "
        "transformers or of an open_clip model."
    )


def _has_weights(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return any(name.startswith(TRANSFORMERS) for name in names)


def check_digest(found: str, wanted: str, what: str, key: str) -> None:
    """Raises `ConfigError` unless a SHA-256 begins with the digits that a setting gives.

    Args:
      found: the hash.
      wanted: its first digits, at least eight; "" for any hash.
      what: the file or folder, for messages.
      key: the setting.
    """
    if wanted and (len(wanted) < _LEAST_DIGITS or set(wanted.lower()) - set("0123456789abcdef")):
        raise ConfigError(
            f"{key}={wanted!r} must be the first {_LEAST_DIGITS} or more digits of a SHA-256."
        )
    if not found.startswith(wanted.lower()):
        raise ConfigError(
            f"{key}={wanted!r}: {what} has the SHA-256 {found[:16]}...; give the file of that "
            f"hash, or set {key}={found[:16]!r} for this one."
        )


def load_clip(files: ClipFiles, sha256: str = "") -> ClipModel:
    """Reads a CLIP model.

    Args:
      files: of `find_clip`.
      sha256: `files.digest` where it is known already.

    Raises:
      ConfigError: weights, options or tokenizer are damaged or do not fit together, the
        projections are missing, or the package `tokenizers` is not installed.
    """
    where, config, vision = files.where, files.config, files.vision
    given = _nested(config, "text")
    known = {key: given[key] for key in clip_text.DEFAULTS if key in given}
    text = CLIPText(**clip_text.read_options(known, f"{where}: text_config"))
    mean, std = _normalisation(files, vision.image_size)
    tokenizer = read_tokenizer(files.folder, text.positions)
    if tokenizer.vocabulary > text.vocabulary:
        raise ConfigError(
            f"{files.folder}: the tokenizer has {tokenizer.vocabulary} tokens and the text encoder "
            f"{text.vocabulary}. Are they of one model?"
        )
    tensors = files.weights.read()
    if files.layout == "open_clip":
        tensors = open_clip.as_tensors(tensors)
    name = str(files.weights.named)
    width = config.get("projection_dim", 512)
    image, words = (_projection(tensors, key, width, name) for key in PROJECTIONS)
    rest = {k: x for k, x in tensors.items() if not k.startswith(clip_vision.PREFIX)}
    params = {
        "vision": clip_vision.to_params(vision, tensors, name),
        "text": clip_text.to_params(text, rest, name),
        "image_projection": image,
        "text_projection": words,
    }
    digest = sha256 or files.digest
    return ClipModel(files.name, text, vision, params, mean, std, tokenizer, digest)


def _check_kind(config: JsonRecord, path: Path) -> None:
    kind = config.get("model_type")
    if kind != "clip":
        raise ConfigError(
            f"{path}: model_type={kind!r}; a CLIP score needs both encoders and their "
            "projections, a CLIPModel with model_type 'clip'."
        )


def _nested(config: JsonRecord, name: str) -> Options:
    """The options of one encoder; files of early versions have them twice."""
    found: Options = {}
    for key in (f"{name}_config", f"{name}_config_dict"):
        own = config.get(key)
        found = {**found, **(own if isinstance(own, dict) else {})}
    return found


def _projection(
    tensors: Mapping[str, np.ndarray], key: str, width: object, where: str
) -> Float[np.ndarray, "D P"]:
    if key not in tensors:
        raise ConfigError(
            f"{where} lacks {key}: a CLIP score needs the projections of both encoders, as "
            "CLIPModel.save_pretrained and open_clip write them, and not one encoder alone."
        )
    found = full_precision(f"{where}: {key}", np.asarray(tensors[key]))
    if found.ndim != 2 or len(found) != width:
        raise ConfigError(
            f"{where}: {key} has shape {found.shape}; projection_dim={width!r} asks for "
            f"({width!r}, D)."
        )
    return np.ascontiguousarray(found.T)


def _preprocessor(folder: Path) -> JsonRecord:
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    if (folder / PROCESSOR).is_file():
        inner = read_json(folder / PROCESSOR).get("image_processor")
        return inner if isinstance(inner, dict) else {}
    return {}


def _normalisation(
    files: ClipFiles, side: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation; checks that images are resized as they are here."""
    p, where = files.preprocessor, f"{files.folder}: the image processor"
    for key in ("size", "crop_size"):
        value = p.get(key, side)
        sides = list(value.values()) if isinstance(value, dict) else [value]
        sides = [s for s in sides if s is not None]
        if any(not is_whole(s) or s != side for s in sides):
            raise ConfigError(f"{where} has {key}={value!r}; the image encoder has {side} pixels.")
    if p.get("resample", _BICUBIC) != _BICUBIC:
        raise ConfigError(f"{where} has resample={p['resample']!r}; only bicubic (3) can be used.")
    found = []
    for key, usual in (("image_mean", MEAN), ("image_std", STD)):
        values = p.get(key, usual)
        if (
            not isinstance(values, (list, tuple))
            or len(values) != 3
            or not all(map(is_number, values))
            or (key == "image_std" and min(values) <= 0)
        ):
            raise ConfigError(f"{where} has {key}={values!r}; three numbers are needed.")
        found.append((float(values[0]), float(values[1]), float(values[2])))
    return found[0], found[1]
