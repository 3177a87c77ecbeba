"""Which files of a text-to-image pipeline are its networks, its tokenizer and its scheduler."""

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
# The classes of the parts that are read.
_KINDS = {
    UNET: ("UNet2DConditionModel",),
    VAE: ("AutoencoderKL",),
    TEXT: ("CLIPTextModel",),
    TOKENIZER: TOKENIZERS,
}
_STEMS = {UNET: (STEM,), VAE: (STEM,), TEXT: TRANSFORMERS}
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
        """All files, for a digest."""
        return (self.config_path, *self.weights.files)


@dataclass(frozen=True)
class FoundPipeline:
    """The files of a pipeline.

    Attributes:
      index: model_index.json.
      parts: the networks by name: "unet", "vae", "text_encoder".
      scheduler: its file.
      scheduler_config: its content, with the class that `index` names.
      tokenizer: the folder.
    """

    index: Path
    parts: dict[str, FoundPart]
    scheduler: Path
    scheduler_config: JsonRecord
    tokenizer: Path


def is_text_pipeline(folder: Path) -> bool:
    """Whether model_index.json of a folder names a pipeline that `find_pipeline` reads."""
    index = folder / INDEX
    return index.is_file() and read_json(index).get("_class_name") in PIPELINES


def find_pipeline(folder: Path) -> FoundPipeline:
    """The files of the pipeline in a folder that `save_pretrained` has written.

    Raises:
      ConfigError: a file is missing or no JSON, or the folder holds another pipeline.
    """
    index = folder / INDEX
    if not index.is_file():
        raise ConfigError(
            f"{folder} has no {INDEX}; give the folder of a whole pipeline, with {UNET}/, {VAE}/, "
            f"{TEXT}/, tokenizer/ and scheduler/ inside."
        )
    kinds = _kinds(index)
    parts = {name: find_part(folder, name) for name in (UNET, VAE, TEXT)}
    tokenizer, scheduler = folder / TOKENIZER, folder / "scheduler" / SCHEDULER
    if not tokenizer.is_dir():
        raise ConfigError(f"{tokenizer} is missing; {index} names a {kinds['tokenizer']}.")
    settings = {**read_json(scheduler), "_class_name": kinds["scheduler"]}
    return FoundPipeline(index, parts, scheduler, settings, tokenizer)


def _kinds(index: Path) -> dict[str, str]:
    """The classes of the parts by name."""
    content = read_json(index)
    pipeline = content.get("_class_name")
    if pipeline not in PIPELINES:
        raise ConfigError(
            f"{index} is of a {pipeline}. Text-to-image models that can be read: "
            f"{', '.join(PIPELINES)}."
        )
    kinds = {
        name: str(value[-1])
        for name, value in content.items()
        if isinstance(value, list) and value and value[-1]
    }
    for name in (*_KINDS, "scheduler"):
        if name not in kinds:
            raise ConfigError(f"{index} names no {name}, which a {pipeline} needs.")
    for name, kind in kinds.items():
        allowed = _KINDS.get(name)
        if allowed and kind not in allowed:
            raise ConfigError(f"{index}: {name} is a {kind}. Allowed: {', '.join(allowed)}.")
        if not allowed and name not in (*_IDLE, "scheduler"):
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
