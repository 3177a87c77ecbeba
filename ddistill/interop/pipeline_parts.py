"""The parts of a pipeline on latents that its students use too, kept with the stage.

Autoencoder, text encoder and tokenizer are copied byte for byte to the stage's folder, so that a
run can be sampled where the pipeline is not. Pipelines of classes have the autoencoder alone.
"""

import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddistill.errors import CheckpointError, ConfigError
from ddistill.interop import autoencoder_kl, clip_text
from ddistill.interop.autoencoder_kl import Scaling
from ddistill.interop.pipeline_folders import TEXT, TOKENIZER, VAE, find_part, is_text_pipeline
from ddistill.interop.tokenizer import ClipTokenizer, read_tokenizer
from ddistill.networks.autoencoder_kl import AutoencoderKL, gaussian
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.text_encoding import TextEncoder
from ddistill.runtime.files import write_files
from ddistill.typing import HostImages, Params

# The folder of the parts in the folder of a stage.
FOLDER = "pipeline"
# Pictures that are decoded at the same time.
CHUNK = 8


@dataclass(frozen=True, eq=False)
class Decoder:
    """An autoencoder with its parameters on the device, between pictures and scaled latents.

    Attributes:
      module: the network "autoencoder_kl".
      params: its parameters.
      scaling: of latents as the networks see them.
    """

    module: nn.Module
    params: Params
    scaling: Scaling

    def __call__(self, latents: HostImages) -> HostImages:
        """Pictures float32 `[B, H, W, C]`, about in [-1, 1], of latents `[B, h, w, c]`.

        They are decoded in chunks of `CHUNK`, the last of them filled up, so that one program does.
        """
        return self._in_chunks("decode", latents / self.scaling.factor + self.scaling.shift)

    def encode(self, pictures: HostImages) -> HostImages:
        """Latents float32 `[B, h, w, c]`, the means of those of pictures `[B, H, W, C]`."""
        mean, _ = gaussian(jnp.asarray(self._in_chunks("encode", pictures)))
        return (np.asarray(mean) - self.scaling.shift) * self.scaling.factor

    def _in_chunks(self, method: str, given: HostImages) -> HostImages:
        count, size = len(given), min(CHUNK, len(given))
        filled = np.concatenate([given, np.repeat(given[-1:], -count % size, axis=0)])
        parts = [
            np.asarray(_apply(self.module, method, self.params, filled[i : i + size]))
            for i in range(0, len(filled), size)
        ]
        return np.concatenate(parts)[:count]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(module: nn.Module, method: str, params: Params, given: jax.Array) -> jax.Array:
    found: jax.Array = module.apply({"params": params}, given, method=method)  # type: ignore[assignment]
    return found


@dataclass(frozen=True, eq=False)
class PipelineParts:
    """What samples a student of a pipeline beside its own network.

    Attributes:
      decoder: latents to pictures.
      tokenizer: texts to token ids; None for a pipeline of classes.
      text_encoder: token ids to conditions; None for a pipeline of classes.
    """

    decoder: Decoder
    tokenizer: ClipTokenizer | None = None
    text_encoder: TextEncoder | None = None


def copy_parts(source: Path, stage: Path) -> None:
    """Copies the parts of the pipeline in `source` to the folder of a stage, if it lacks them.

    Raises:
      OSError: a file cannot be read or written.
    """
    target = stage / FOLDER
    if target.is_dir():
        return
    temporary = target.with_name(f".{FOLDER}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    texts = is_text_pipeline(source)
    for name in (VAE, TEXT) if texts else (VAE,):
        for place, file in files_of_part(source, name).items():
            _copy(file, temporary / place)
    for path in sorted((source / TOKENIZER).iterdir()) if texts else ():
        if path.is_file():
            _copy(path, temporary / TOKENIZER / path.name)
    temporary.rename(target)


def files_of_part(folder: Path, name: str) -> dict[str, Path]:
    """The files of a network of a pipeline, by their names in the folder of the pipeline.

    Args:
      folder: of the pipeline, or of the parts that a stage keeps.
      name: of the network, such as "vae".

    Raises:
      ConfigError: as `find_part`.
    """
    return {f"{name}/{file.name}": file for file in find_part(folder, name).all_files}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def keep_files(files: Mapping[str, str | Path], stage: Path) -> None:
    """Writes files of the data of a stage, by their names in the folder of its parts.

    Args:
      files: by name the text of a file, or its place.
      stage: the folder of the stage.

    Raises:
      OSError: a file cannot be read or written.
    """
    write_files(stage / FOLDER, files)


def read_decoder(stage: Path) -> Decoder | None:
    """The decoder in the folder of a stage, with parameters on the device; None if there is none.

    Raises:
      CheckpointError: it is damaged.
    """
    folder = stage / FOLDER
    if not (folder / VAE).is_dir():
        return None
    try:
        return _decoder(folder)
    except ConfigError as error:
        raise CheckpointError(
            f"{error} These files were copied from the data of the run; copy them again to "
            f"{folder / VAE}."
        ) from None


def _decoder(folder: Path) -> Decoder:
    vae = find_part(folder, VAE)
    options, scaling = autoencoder_kl.read_options(vae.config, str(vae.config_path))
    net = AutoencoderKL(**options)
    params = autoencoder_kl.to_params(net, vae.weights.read(), vae.where)
    return Decoder(net, jax.device_put(params), scaling)


def read_parts(stage: Path, texts: bool = True) -> PipelineParts:
    """The parts in the folder of a stage, with parameters on the device.

    Args:
      stage: the folder.
      texts: whether they are of a text-to-image pipeline.

    Raises:
      CheckpointError: they are missing or damaged.
    """
    folder = stage / FOLDER
    try:
        decoder = _decoder(folder)
        if not texts:
            return PipelineParts(decoder)
        text = find_part(folder, TEXT)
        net = CLIPText(**clip_text.read_options(text.config, str(text.config_path)))
        params = clip_text.to_params(net, text.weights.read(), text.where)
        tokenizer = read_tokenizer(folder / TOKENIZER, net.positions)
    except ConfigError as error:
        raise CheckpointError(
            f"{error} These files were copied from the pipeline of the teacher; copy them again "
            f"to {folder}."
        ) from None
    return PipelineParts(decoder, tokenizer, TextEncoder(jax.device_put(params), net))
