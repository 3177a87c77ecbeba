"""Text-to-image models of your own captioned images: an autoencoder and a latent teacher."""

import dataclasses

from ml_collections import ConfigDict

from ddistill.data.latents.records import read_finished
from ddistill.data.text_digits import LENGTH, digit_tokenizer
from ddistill.errors import ConfigError
from ddistill.recipes.autoencoder import autoencoder_stage
from ddistill.recipes.common import experiment, network, objective, teacher_stage, to_config
from ddistill.recipes.digits import annealed
from ddistill.recipes.variants import smoke
from ddistill.runtime.files import expand
from ddistill.settings import EvaluationSettings, ScheduleSettings, Settings, StageSettings

# Tokens of a vocabulary and of a caption, where no set is named.
_TOKENS, _LENGTH = 8192, 32
_VARIANT = "latents"


def text_folder(
    path: str = "",
    *,
    name: str = "text_folder",
    width: int = 64,
    updates: int = 8000,
    batch_size: int = 32,
) -> Settings:
    """An autoencoder of captioned images, and a teacher on its latents that reads the captions.

    The data are a set that `ddistill data latents SOURCE SET --pipeline=pixels --pixels=all` has
    made: images, and captions as token ids. The defaults are for images of 32 pixels on a CPU. The
    teacher is a U-Net (arXiv 2112.10752) with cross-attention on both levels, which learns its text
    encoder; a tenth of the captions is replaced by the empty text, for classifier-free guidance
    (arXiv 2207.12598).

    Args:
      path: of the set, whose tokenizer determines the size of the text encoder; "" for captions of
        at most 32 tokens of a vocabulary of at most 8,192.
      name: of the experiment; the run is kept in `runs/NAME`.
      width: channels of the first level of the teacher, a multiple of 16.
      updates: of the teacher; the autoencoder has a fifth.
      batch_size: of the teacher; the autoencoder has half.

    Raises:
      ConfigError: a size that is not allowed.
      DataError: the set is missing or not finished.
    """
    for key, value, least in (("updates", updates, 5), ("batch_size", batch_size, 2)):
        if value < least:
            raise ConfigError(f"text_folder: {key}={value} must be {least} or more.")
    if width < 16 or width % 16:
        raise ConfigError(f"text_folder: width={width} must be a multiple of 16.")
    tokens, length = _TOKENS, _LENGTH
    if path:
        facts = read_finished(expand(path)).spec.tokenizer
        tokens, length = facts.vocabulary, facts.length
    stages = {
        "autoencoder": _autoencoder(updates // 5, batch_size // 2),
        "teacher": _teacher(width, (tokens, length), updates, batch_size),
    }
    made = experiment(
        name,
        {"name": "latents", "path": path},
        ScheduleSettings(name="cosine", steps=256),
        stages,
        EvaluationSettings(
            samples=256,
            batch_size=32,
            teacher_samplers={"ddim": (8, 16, 32)},
            full_steps=64,
            guidance=3.0,
            clip=0.0,
        ),
    )
    training = dataclasses.replace(made.training, checkpoint_every=100, preview_every=500)
    return dataclasses.replace(made, training=training)


def _autoencoder(updates: int, batch_size: int) -> StageSettings:
    """An autoencoder with latents of a quarter of the side and 4 channels: 680 thousand parameters.

    There is no perceptual distance; the absolute error blurs less than the squared one. The weight
    of the divergence leaves 2 to 3 nats a dimension on pictures of 32 pixels: with more, the
    decoder shows every small error of the teacher (docs/latents.md).
    """
    net = network("autoencoder_kl", widths=(16, 32, 64), blocks=1, norm_groups=8)
    return autoencoder_stage(
        net,
        loss={"reconstruction": "l1", "kl_weight": 2e-2},
        steps=updates,
        batch_size=batch_size,
        optimizer=annealed(2e-3, warmup=min(100, updates // 10)),
        ema=(0.99,),
    )


def _teacher(width: int, text: tuple[int, int], updates: int, batch_size: int) -> StageSettings:
    """The teacher; `text` is the number of tokens of the vocabulary and of a caption."""
    vocabulary, positions = text
    net = network(
        "captioned_unet",
        widths=(width, 2 * width),
        blocks=(1,),
        attends=(0, 1),
        heads=(width // 16, width // 8),
        context_dim=64,
        norm_groups=16,
        out_channels=4,
        vocabulary=vocabulary,
        positions=positions,
    )
    stage = teacher_stage(
        net,
        latents="autoencoder",
        steps=updates,
        batch_size=batch_size,
        optimizer=annealed(1e-3, warmup=min(300, updates // 10)),
        ema=(0.999,),
    )
    dropped = objective("denoising", error="v", weight="uniform", label_dropout=0.1)
    return dataclasses.replace(stage, objective=dropped)


def text_folder_config(variant: str = "") -> ConfigDict:
    """The config of `text_folder`, in a variant.

    Args:
      variant: the part after the colon of `--config=FILE:VARIANT`. "latents:SET" is for the set of
        this path; "smoke" trains small networks on the embedded captioned digits.

    Raises:
      ConfigError: another variant.
      DataError: the set is missing or not finished.
    """
    kind, _, path = variant.partition(":")
    if kind == _VARIANT and path:
        return to_config(text_folder(path))
    if variant not in ("", "smoke"):
        raise ConfigError(
            f"Variant ':{variant}' is not known. Allowed: ':smoke', none, or the path of a set: "
            f"':{_VARIANT}:SET'."
        )
    return to_config(_smoke(text_folder()) if variant else text_folder())


def _smoke(settings: Settings) -> Settings:
    """The experiment shrunk to seconds, on the embedded captioned digits."""
    settings = smoke(settings, {})
    autoencoder, teacher = (settings.stages[name] for name in ("autoencoder", "teacher"))
    small = {"widths": (8, 16), "norm_groups": 8, "out_channels": 1}
    read = {"vocabulary": digit_tokenizer().facts.vocabulary, "positions": LENGTH}
    net = {**teacher.network, **read, "widths": (16, 32), "heads": (1, 2), "context_dim": 16}
    stages = {
        "autoencoder": dataclasses.replace(autoencoder, network={**autoencoder.network, **small}),
        "teacher": dataclasses.replace(teacher, network=net),
    }
    return dataclasses.replace(settings, data={"name": "text_digits"}, stages=stages)
