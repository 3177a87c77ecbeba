"""Facts and shapes of a Stable Diffusion pipeline that need not be there, for the benchmarks."""

import jax
import numpy as np

from ddistill.data import Dataset
from ddistill.data.encodings import MOMENTS, EncoderFacts, TokenizerFacts
from ddistill.interop.imported import Imported
from ddistill.interop.pipeline_folders import TEXT, TOKENIZER, VAE
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.text_encoding import TextEncoder
from ddistill.networks.text_unet import TextUNet
from ddistill.runtime.sharding import Layout
from ddistill.typing import Options

PARTS = {VAE: "a" * 64, TEXT: "b" * 64, TOKENIZER: "c" * 64}
SIDE = 64


def unet_facts(source: str, options: Options, side: int = SIDE) -> Imported:
    """What planning reads of a pipeline's U-Net.

    Args:
      source: the stage's `source`.
      options: of `TextUNet`.
      side: of its latents.
    """
    return Imported(
        network={"name": "text_unet", **options},
        params=None,
        prediction="eps",
        schedule=None,
        image_shape=(side, side, TextUNet(**options).out_channels),
        num_classes=0,
        digest="d" * 64,
        source=source,
        parts=PARTS,
    )


def text_encoder(options: Options, layout: Layout | None = None) -> TextEncoder:
    """A text encoder with shapes in place of parameters, placed on the devices of a layout."""
    module = CLIPText(**{**options, "dtype": "bfloat16"})
    ids = np.zeros((1, module.positions), np.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), ids))["params"]
    encoder = TextEncoder(shapes, module)
    if layout is None:
        return encoder
    places = layout.of_teacher(encoder)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), encoder, places
    )


def captioned_latents(module: CLIPText, side: int = SIDE) -> Dataset:
    """Eight captioned latents of zeros, for a text encoder's tokens."""
    length = module.positions
    null = (module.vocabulary - 2, *[module.vocabulary - 1] * (length - 1))
    return Dataset(
        "latents",
        np.broadcast_to(np.float16(0), (8, side, side, 8)),
        np.zeros(8, np.int32),
        1,
        ("captions",),
        tokens=np.zeros((8, length), np.int32),
        tokenizer=TokenizerFacts("CLIP", PARTS[TOKENIZER], length, module.vocabulary, null),
        encoder=EncoderFacts("autoencoder_kl", PARTS[VAE], MOMENTS, 4, 8, 0.18215),
    )
