"""The autoencoder of a run as the pipeline of a set of latents."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from ddistill.data import to_unit
from ddistill.data.byte_pairs import BytePairTokenizer
from ddistill.data.encodings import MOMENTS, EncoderFacts
from ddistill.data.latents.pipeline import Encode, LatentPipeline, words_tokenizer
from ddistill.data.text_digits import digit_tokenizer
from ddistill.errors import ConfigError, check_choice
from ddistill.interop.autoencoder_kl import Scaling, to_tensors, write_options
from ddistill.interop.diffusers_folders import CONFIG
from ddistill.interop.diffusers_weights import STEM
from ddistill.interop.pipeline_folders import VAE
from ddistill.interop.tensors import as_safetensors
from ddistill.networks.autoencoder_kl import AutoencoderKL
from ddistill.networks.weights import Weights
from ddistill.objectives.autoencoder import AUTOENCODER
from ddistill.planning.plan import StagePlan
from ddistill.runtime.files import expand
from ddistill.trained_run import TrainedRun, open_run
from ddistill.training.trained import latent_scaling


def open_trained(path: str, captions: Sequence[str]) -> LatentPipeline:
    """The autoencoder of a finished stage, with the weights and the scaling that it hands on.

    Captions of the embedded digits have the tokenizer of `text_digits`, others one of their own
    words, as the pipeline `pixels`.

    Args:
      path: FOLDER of a run, or FOLDER@STAGE. Without a stage, the run has to have one autoencoder.
      captions: of the training images.

    Raises:
      CheckpointError: the folder is not that of a run, or the stage is not complete.
      ConfigError: the run has no such autoencoder, or several and none is named.
    """
    folder, stage = _parsed(path)
    run = open_run(folder)
    plan = _stage(run, stage)
    weights = run.networks.weights(plan)
    encode = _encode(plan, weights)
    image = jax.ShapeDtypeStruct((1, *plan.image_shape), np.uint8)
    moments = jax.eval_shape(encode, image).shape
    encoder = EncoderFacts(
        name=f"{run.settings.name}/{plan.name}",
        digest=_digest(plan, weights),
        kind=MOMENTS,
        channels=moments[-1] // 2,
        factor=plan.image_shape[0] // moments[1],
        scaling=latent_scaling(plan),
        image_channels=plan.image_shape[-1],
    )
    tokenizer = _tokenizer(run, captions)
    return LatentPipeline(
        encoder=encoder,
        tokenizer=tokenizer.facts,
        encode=encode,
        tokenize=tokenizer,
        files={**tokenizer.files(), **_autoencoder_files(plan, weights, encoder.scaling)},
    )


def _parsed(path: str) -> tuple[Path, str]:
    """Folder and stage; a folder may have an '@' in its name."""
    folder, mark, stage = path.rpartition("@")
    if not path:
        raise ConfigError("pipeline='run' needs the folder of a run, as in run:runs/text_digits.")
    return (expand(folder), stage) if mark and not expand(path).is_dir() else (expand(path), "")


def _stage(run: TrainedRun, stage: str) -> StagePlan:
    found = {p.name: p for p in run.plans if p.objective.trains == AUTOENCODER and not p.stacked}
    if not found:
        raise ConfigError(
            f"{run.folder} has no stage that trains one autoencoder. Name a run with a stage of "
            "objective.name='autoencoder' and students.count=0."
        )
    if stage:
        check_choice("the stage of the pipeline", stage, found)
        return found[stage]
    if len(found) > 1:
        names = ", ".join(found)
        raise ConfigError(f"{run.folder} has several autoencoders: add '@' and one of {names}.")
    return next(iter(found.values()))


def _encode(plan: StagePlan, weights: Weights) -> Encode:
    """uint8 images `[B, H, W, C]` to moments."""

    @jax.jit
    def apply(given: Weights, images: Array) -> Array:
        network = plan.objective.trains.bind(plan.module, given, plan.settings.prediction)
        return network.encode(to_unit(images))  # type: ignore[no-any-return]

    return functools.partial(apply, jax.device_put(weights))


def _autoencoder_files(plan: StagePlan, weights: Weights, scaling: float) -> dict[str, str | bytes]:
    """The autoencoder as diffusers' `AutoencoderKL`; no files of another network."""
    net = plan.module
    if not isinstance(net, AutoencoderKL):
        return {}
    options = write_options(net, Scaling(scaling), plan.image_shape[0])
    tensors = as_safetensors(dict(to_tensors(net, weights.params)))
    return {
        f"{VAE}/{CONFIG}": json.dumps(options, indent=2, sort_keys=True) + "\n",
        f"{VAE}/{STEM}.safetensors": tensors,
    }


def _digest(plan: StagePlan, weights: Weights) -> str:
    """SHA-256 of the network's options and of its weights in the order of their names."""
    content = hashlib.sha256(
        json.dumps(dict(plan.settings.network), sort_keys=True, default=list).encode()
    )
    leaves, _ = jax.tree_util.tree_flatten_with_path(weights.variables())
    for path, value in leaves:
        content.update(jax.tree_util.keystr(path).encode())
        content.update(np.ascontiguousarray(value, np.float32).tobytes())
    return content.hexdigest()


def _tokenizer(run: TrainedRun, captions: Sequence[str]) -> BytePairTokenizer:
    if run.settings.data["name"] == "text_digits":
        return digit_tokenizer()
    return words_tokenizer(captions)
