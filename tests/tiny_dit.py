"""A tiny DiT with random weights, as the folder of a `DiTPipeline`, made without torch."""

import zlib
from pathlib import Path

import numpy as np
from tiny_sd import SCALING, random_tensors, write_json

from ddistill.interop import autoencoder_kl, dit
from ddistill.interop.tensors import write_tensors
from ddistill.networks.autoencoder_kl import AutoencoderKL
from ddistill.networks.dit import DiT

LATENTS, CLASSES = (4, 4, 4), 3
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    **{"num_train_timesteps": 16, "beta_schedule": "linear", "prediction_type": "epsilon"},
    **{"beta_start": 0.01, "beta_end": 0.4, "clip_sample": False},
}


def dit_tensors(net: DiT, channels: int):
    """Tensors of all names; copies of the embedding are equal, and zero where it has no class."""
    made = {}
    for name, shape in dit.tensor_shapes(net, channels).items():
        shared = name.partition("norm1.emb.")[-1]
        rng = np.random.default_rng(zlib.crc32((shared or name).encode()))
        spread = 0.3 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
        made[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
        if not net.num_classes and "class_embedder" in name:
            made[name][:] = 0
    return made


def write_folder(folder: Path) -> Path:
    """The folder of a pipeline with a variance, of three classes."""
    net = DiT(
        width=8,
        depth=2,
        heads=2,
        out_channels=LATENTS[2],
        learned_sigma=True,
        num_classes=CLASSES,
        mlp_norm_eps=1e-5,
    )
    vae = AutoencoderKL(widths=(8, 16), blocks=1, norm_groups=4)
    parts = {
        "transformer": (dit.write_options(net, LATENTS), dit_tensors(net, LATENTS[2])),
        "vae": (
            autoencoder_kl.write_options(vae, SCALING, 8),
            random_tensors(autoencoder_kl.leaves(vae)),
        ),
    }
    for name, (config, tensors) in parts.items():
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "config.json", config)
        write_tensors(folder / name / "diffusion_pytorch_model.safetensors", tensors)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": "0.42.1",
        "id2label": {"0": "zero", "1": "one", "2": "two"},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder
