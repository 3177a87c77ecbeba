"""Which files of a pipeline on latents are its networks, its tokenizer and its scheduler."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ddistill.errors import ConfigError
from ddistill.interop.diffusers_folders import CONFIG, INDEX, SCHEDULER, read_json
from ddistill.interop.diffusers_weights import STEM, TRANSFORMERS, Weights, find_weights
from ddistill.interop.tokenizer import KINDS as TOKENIZERS
from ddistill.typing import JsonRecord

# Pipelines with the parts of Stable Diffusion 1 and 2.
PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
UNET, VAE, TEXT, TOKENIZER = "unet", "vae", "text_encoder", "tokenizer"
# Pipelines of classes, with the parts of DiT.
CLASS_PIPELINES = ("DiTPipeline",)
TRANSFORMER = "transformer"
# The classes of the parts that are read.
_KINDS = {
    UNET: ("UNet2DConditionModel",),
    VAE: ("AutoencoderKL",),
    TEXT: ("CLIPTextModel",),
    TOKENIZER: TOKENIZERS,
}
# The first releases with DiT had no class of its own for it.
CLASS_KINDS = ("DiTTransformer2DModel", "Transformer2DModel")
_CLASS_KINDS = {
    TRANSFORMER: CLASS_KINDS,
    VAE: ("AutoencoderKL",),
}
_STEMS = {UNET: (STEM,), TRANSFORMER: (STEM,), VAE: (STEM,), TEXT: TRANSFORMERS}
# Parts that change no picture that is not refused.
_IDLE = ("safety_checker", "feature_extractor")


@dataclass(frozen=True)
class FoundPart:
    """The files of a network of a pipeline.

    Attributes:
      config_path, config: config.json and its content.
      weights: the files of its weights.
    """

    config_path: Path
    config: JsonRecord
    weights: Weights

    @property
    def where(self) -> str:
        """What messages call its weights."""
        return str(self.weights.named)

    @property
    def files(self) -> tuple[Path, ...]:
        """Settings and weights, for a digest."""
        return (self.config_path, *self.weights.files)

    @property
    def all_files(self) -> tuple[Path, ...]:
        """Also the index of weights in shards, for a copy."""
        return tuple(dict.fromkeys((*self.files, self.weights.named)))


@dataclass(frozen=True)
class FoundPipeline:
    """The files of a pipeline.

    Attributes:
      index: model_index.json.
      parts: the networks by name: "unet", "vae", "text_encoder", or "transformer" and "vae".
      scheduler: its file.
      scheduler_config: its content, with the class that `index` names.
      tokenizer: the folder; None for a pipeline of classes.
    """

    index: Path
    parts: dict[str, FoundPart]
    scheduler: Path
    scheduler_config: JsonRecord
    tokenizer: Path | None


def is_text_pipeline(folder: Path) -> bool:
    """Whether model_index.json of a folder names a pipeline that `find_pipeline` reads."""
    return _pipeline_of(folder) in PIPELINES


def is_class_pipeline(folder: Path) -> bool:
    """Whether it names a pipeline that `find_class_pipeline` reads."""
    return _pipeline_of(folder) in CLASS_PIPELINES


def _pipeline_of(folder: Path) -> object:
    index = folder / INDEX
    return read_json(index).get("_class_name") if index.is_file() else None


def find_pipeline(folder: Path) -> FoundPipeline:
    """The files of the text-to-image pipeline in a folder that `save_pretrained` has written.

    Raises:
      ConfigError: a file is missing or no JSON, or the folder holds another pipeline.
    """
    found = _find(folder, PIPELINES, _KINDS)
    tokenizer = folder / TOKENIZER
    if not tokenizer.is_dir():
        raise ConfigError(f"{tokenizer} is missing; {found.index} names one.")
    return dataclasses.replace(found, tokenizer=tokenizer)


def find_class_pipeline(folder: Path) -> FoundPipeline:
    """The files of the class-conditional pipeline in a folder; errors as of `find_pipeline`."""
    return _find(folder, CLASS_PIPELINES, _CLASS_KINDS)


def _find(
    folder: Path, pipelines: tuple[str, ...], allowed: Mapping[str, tuple[str, ...]]
) -> FoundPipeline:
    """The files of one of `pipelines`, but for the tokenizer.

    Args:
      folder: with model_index.json.
      pipelines: the classes that can be read.
      allowed: by part, the classes that can be read.
    """
    index = folder / INDEX
    if not index.is_file():
        inside = ", ".join(f"{name}/" for name in allowed)
        raise ConfigError(
            f"{folder} has no {INDEX}; give the folder of a whole pipeline, with {inside} and "
            "scheduler/ inside."
        )
    kinds = _kinds(index, pipelines, allowed)
    parts = {name: find_part(folder, name) for name in allowed if name in _STEMS}
    scheduler = folder / "scheduler" / SCHEDULER
    settings = {**read_json(scheduler), "_class_name": kinds["scheduler"]}
    return FoundPipeline(index, parts, scheduler, settings, None)


def _kinds(
    index: Path, pipelines: tuple[str, ...], allowed: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """The classes of the parts by name."""
    content = read_json(index)
    pipeline = content.get("_class_name")
    if pipeline not in pipelines:
        raise ConfigError(
            f"{index} is of a {pipeline}. Pipelines that can be read here: {', '.join(pipelines)}."
        )
    kinds = {
        name: str(value[-1])
        for name, value in content.items()
        if isinstance(value, list) and value and value[-1]
    }
    for name in (*allowed, "scheduler"):
        if name not in kinds:
            raise ConfigError(f"{index} names no {name}, which a {pipeline} needs.")
    for name, kind in kinds.items():
        classes = allowed.get(name)
        if classes and kind not in classes:
            raise ConfigError(f"{index}: {name} is a {kind}. Allowed: {', '.join(classes)}.")
        if not classes and name not in (*_IDLE, "scheduler"):
            raise ConfigError(f"{index}: the part {name} ({kind}) is not known here.")
    return kinds


def find_part(folder: Path, name: str) -> FoundPart:
    """The files of the network `name` of a pipeline.

    Raises:
      ConfigError: a file is missing or no JSON.
    """
    path = folder / name
    if not path.is_dir():
        raise ConfigError(f"{path} is missing; the model_index.json names it.")
    config = read_json(path / CONFIG)
    return FoundPart(path / CONFIG, config, find_weights(path, read_json, _STEMS[name]))
