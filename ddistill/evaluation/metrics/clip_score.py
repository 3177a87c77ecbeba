"""CLIP score (arXiv 2104.08718): how well images show their prompts.

The mean cosine of the embeddings of image and prompt by a CLIP model that the user brings. It is
not scaled: published tables of text-to-image models have values such as 0.32. Prompts may get a
prefix, which a protocol says.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ddistill.evaluation.metrics.detector import Detector, over_devices
from ddistill.evaluation.metrics.geometry import of_each, shortest_side
from ddistill.evaluation.metrics.resampling import Estimate, ratio_of_means
from ddistill.interop.clip import ClipModel

METRIC = "clip_score"
# Texts per batch.
_TEXTS = 64


def clip_detector(
    model: ClipModel, batch: int = 64, devices: Sequence[jax.Device] | None = None
) -> Detector:
    """The image encoder as a feature network: unit vectors of P dimensions.

    Images are resized as CLIP does: the shorter side to the encoder's size (bicubic, Pillow), then
    the centre square.

    Args:
      model: the CLIP model.
      batch: images per batch; rounded up to a multiple of the number of devices.
      devices: devices to use; None for all local devices.
    """
    side, mean, std = model.vision.image_size, np.array(model.mean), np.array(model.std)

    def forward(params: PyTree, pixels: jax.Array) -> tuple[jax.Array, None]:
        images = (pixels.astype(jnp.float32) / 255 - mean) / std
        state: Array = model.vision.apply({"params": params["vision"]}, images)  # type: ignore[assignment]
        return unit(state @ params["image_projection"]), None

    own = {key: model.params[key] for key in ("vision", "image_projection")}
    apply, batch = over_devices(forward, own, batch, devices)

    def prepared(pixels: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        colours = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
        return apply(
            of_each(lambda image: shortest_side(np.ascontiguousarray(image), side), colours)
        )

    dim = model.params["image_projection"].shape[1]
    return Detector(
        name=model.name,
        sha256=model.sha256,
        feature=str(dim),
        dim=dim,
        resize=f"bicubic-{side}",
        apply=prepared,
        batch=batch,
        logits=False,
        network="clip",
    )


def text_embeddings(
    model: ClipModel, texts: Sequence[str], prefix: str = ""
) -> Float[np.ndarray, "N P"]:
    """Unit vectors of texts, by the text encoder; texts that are too long are cut.

    Args:
      model: the CLIP model.
      texts: the prompts.
      prefix: text before each of them.
    """
    ids = model.tokenizer([prefix + text for text in texts])

    @jax.jit
    def embed(params: PyTree, ids: Array) -> Array:
        read: tuple[Array, Array] = model.text.apply({"params": params["text"]}, ids)  # type: ignore[assignment]
        return unit(read[1] @ params["text_projection"])

    own = jax.device_put({key: model.params[key] for key in ("text", "text_projection")})
    found = []
    with jax.default_matmul_precision("float32"):
        for start in range(0, len(ids), _TEXTS):
            block = ids[start : start + _TEXTS]
            filled = np.concatenate([block, np.repeat(block[:1], _TEXTS - len(block), axis=0)])
            found.append(np.asarray(embed(own, filled))[: len(block)])
    return np.concatenate(found)


def unit(x: Float[Array, "B P"]) -> Float[Array, "B P"]:
    """Vectors of length 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def clip_score(images: Float[np.ndarray, "N P"], texts: Float[np.ndarray, "N P"]) -> Estimate:
    """The mean cosine of image i and text i in [-1, 1], with the 95 % interval over the pairs.

    Args:
      images, texts: unit vectors.
    """
    cosines = np.sum(images.astype(np.float64) * texts.astype(np.float64), axis=1)
    return ratio_of_means(cosines)
