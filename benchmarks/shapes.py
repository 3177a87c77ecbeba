"""The stages of a config and the arguments of their train steps as shapes: no weights, no data."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddistill.conditions import Tokens
from ddistill.config_files import load_config
from ddistill.data import Dataset
from ddistill.data.encodings import MOMENTS, EncoderFacts, TokenizerFacts
from ddistill.data.facts import DataFacts
from ddistill.data.text_digits import LENGTH
from ddistill.interop.imported import Imported
from ddistill.interop.pipeline_folders import TEXT, TOKENIZER, VAE
from ddistill.interop.sources import write_noted
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.latent_encoding import LatentEncoder
from ddistill.networks.text_encoding import TextEncoder
from ddistill.networks.text_unet import TextUNet
from ddistill.objectives.inputs import Pairs
from ddistill.parsing import parse
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import SOURCES, plan_stages
from ddistill.runtime.sharding import BATCH_AXES, Layout
from ddistill.settings import Settings, StageSettings
from ddistill.training.initial import abstract_state
from ddistill.training.step_inputs import StepInputs
from ddistill.training.trained import bind, handed_on
from ddistill.typing import Options

# Tokens of a caption of a set of captioned images.
_LENGTH = 32
# Sets of TFDS by path: side in pixels, number of classes.
_SETS = {"cifar10": (32, 10), "imagenet_resized/64x64": (64, 1000)}


# Moments of a 256 x 256 image by Stable Diffusion's autoencoder.
_LATENTS = EncoderFacts("autoencoder_kl", "", MOMENTS, channels=4, factor=8, scaling=0.18215)


def read_settings(config: str | Path) -> Settings:
    """The settings of a config file, FILE or FILE:VARIANT."""
    return parse(load_config(str(config)), Settings)


def has_pipeline(settings: Settings) -> bool:
    """Whether a stage is the U-Net of a Stable Diffusion pipeline."""
    return any(stage.source.startswith("diffusers:") for stage in settings.stages.values())


def black_images(settings: Settings) -> Dataset:
    """Black images of the shape of a config's data, one of every class and at least eight.

    Of a set of latents: moments of zeros, captioned ones of 64 x 64 for a pipeline, and without
    captions of 32 x 32 with ImageNet's classes.
    """
    if has_pipeline(settings):
        return captioned_latents(CLIPText())
    source, texts = settings.data["name"], {}
    networks = {str(stage.network.get("name", "")) for stage in settings.stages.values()}
    captions = bool(networks & {"text_unet", "captioned_unet"})
    if source == "latents" and not captions:
        height, width, channels = _LATENTS.latent_shape(256)
        moments = np.broadcast_to(np.float16(0), (1000, height, width, 2 * channels))
        names = tuple(str(i) for i in range(1000))
        labels = np.arange(1000, dtype=np.int32)
        return Dataset("black", moments, labels, 1000, names, encoder=_LATENTS)
    if source in ("digits", "text_digits"):
        shape, classes = (8, 8, 1), 10
    else:
        side, classes = _SETS.get(str(settings.data.get("path", "")), (32, 10))
        side = settings.data.get("image_size") or side
        shape = (side, side, 3)
    count = max(8, classes)
    if source in ("text_digits", "latents"):
        length = LENGTH if source == "text_digits" else _LENGTH
        facts = TokenizerFacts("black", "", length, 2, (0,) * length)
        texts = {"tokens": np.zeros((count, length), np.int32), "tokenizer": facts}
    images = np.broadcast_to(np.uint8(0), (count, *shape))
    labels = np.arange(count, dtype=np.int32) % classes
    names = tuple(str(i) for i in range(classes))
    flip = bool(settings.data.get("flip"))
    return Dataset("black", images, labels, classes, names, flip, **texts)


def plan_all(
    settings: Settings, change: Callable[[str, StageSettings], StageSettings]
) -> tuple[dict[str, StagePlan], Dataset]:
    """The plans of all stages by name, and the images that they are planned for.

    Args:
      settings: of a config.
      change: stage name and settings -> the settings that are planned.
    """
    dataset = black_images(settings)
    stages = {name: change(name, stage) for name, stage in settings.stages.items()}
    settings = dataclasses.replace(settings, stages=stages)
    sources = {
        name: (stage.source, unet_facts(stage.source, _options(stage)))
        for name, stage in stages.items()
        if stage.source.startswith("diffusers:")
    }
    with tempfile.TemporaryDirectory() as folder:
        if sources:  # planning takes what is noted of files that are not there
            write_noted(Path(folder) / SOURCES, sources)
        made = plan_stages(settings, DataFacts.of(dataset), Path(folder), Path(folder))
    return {plan.name: plan for plan in made}, dataset


def _options(stage: StageSettings) -> Options:
    return {key: value for key, value in stage.network.items() if key != "name"}


def accelerated(_: str, stage: StageSettings) -> StageSettings:
    """A stage with the settings of accelerators: bfloat16 and XLA's own convolutions."""
    if stage.network.get("name") == "dit":
        return dataclasses.replace(stage, network={**stage.network, "dtype": "bfloat16"})
    if stage.network.get("name") != "unet":
        return stage
    network = {**stage.network, "dtype": "bfloat16", "conv_impl": "xla"}
    return dataclasses.replace(stage, network=network)


def arguments(
    plan: StagePlan,
    plans: Mapping[str, StagePlan],
    dataset: Dataset,
    layout: Layout,
    text_encoder: TextEncoder | None = None,
) -> list[Any]:
    """Shapes of the arguments of a stage's `Chunk`, with shardings; images are streamed.

    Args:
      plan: the stage.
      plans: all stages by name, for its teacher, classifier and pairs.
      dataset: for the shapes of images and labels.
      layout: without students for the program of one student.
      text_encoder: of the captions, with shapes and shardings for parameters; None for classes.
    """
    students = layout.students
    lead, axes = ((students,), ("student",)) if students else ((), ())

    def shaped(shape: Any, dtype: Any, *axes: Any) -> jax.ShapeDtypeStruct:
        place = NamedSharding(layout.mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    s = plan.settings
    tables = jax.tree.map(
        lambda x: shaped(x.shape, x.dtype, *axes),
        plan.tables if students else plan.students[0].tables,
    )
    size = s.batch_size
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), lead or ()))
    stored = dataset.take([0])
    images = shaped((1, *lead, size, *stored.shape[1:]), stored.dtype, None, *axes, BATCH_AXES)
    labels = shaped((len(dataset),), np.int32)
    texts = plan.tokenizer is not None and dataset.tokens is not None
    tokens = Tokens(shaped(dataset.tokens.shape, np.int32)) if texts else None
    return [
        abstract_state(plan, layout) if students else first_student(plan, layout),
        StepInputs(
            network(plans.get(s.teacher_stage), layout.of_teacher),
            tables,
            network(plans.get(s.classifier), lambda _: layout.whole()),
            _pairs(plans.get(s.pairs), layout),
            text_encoder,
            _latent_encoder(plan.latent_source, layout),
        ),
        images if plan.objective.requires.images else None,
        labels if tokens is None else (labels, tokens),
        shaped((1, *lead, size), np.int32, None, *axes, BATCH_AXES),
        shaped(key.shape, key.dtype, *axes),
        {name: shaped((1, *lead), np.float32, None, *axes) for name in plan.modules},
    ]


def network(plan: StagePlan | None, shardings: Callable[[Any], Any]) -> Any:
    """The network that a stage hands on, with shapes for weights; None for no stage."""
    if plan is None:
        return None
    made = bind(plan, handed_on(abstract_state(plan), plan.ema_key()))
    places = shardings(made)
    if not isinstance(places, jax.sharding.Sharding):
        return jax.tree.map(_placed, made, places)
    return jax.tree.map(lambda x: _placed(x, places), made)


def _latent_encoder(plan: StagePlan | None, layout: Layout) -> LatentEncoder | None:
    """The encoder that an autoencoder's stage hands on, with shapes for weights."""
    if plan is None:
        return None
    params = handed_on(abstract_state(plan), plan.ema_key()).params
    made = LatentEncoder(params, jax.ShapeDtypeStruct((), np.float32), plan.module)
    return jax.tree.map(lambda x: _placed(x, layout.whole()), made)


def _placed(x: Any, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _pairs(plan: StagePlan | None, layout: Layout) -> Pairs | None:
    """All pairs of a stage, which lie on every device."""
    if plan is None:
        return None

    def whole(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return _placed(x, layout.whole())

    count = plan.settings.steps * plan.settings.batch_size
    images = whole(jax.ShapeDtypeStruct((count, *plan.image_shape), jnp.float32))
    labels = whole(jax.ShapeDtypeStruct((count,), np.int32))
    text = texts_of(plan, count)
    return Pairs(images, labels, images, text and jax.tree.map(whole, text))


def texts_of(plan: StagePlan, count: int) -> Tokens | None:
    """Shapes of the token ids of texts for a stage; None for one that reads none."""
    if plan.tokenizer is None:
        return None
    return Tokens(jax.ShapeDtypeStruct((count, plan.tokenizer.length), np.int32))


def first_student(plan: StagePlan, layout: Layout) -> Any:
    """The shapes of one student's state."""
    if not plan.stacked:
        return abstract_state(plan, layout)
    state = abstract_state(plan)

    def one(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=layout.whole())

    step = jax.ShapeDtypeStruct((), np.int32, sharding=layout.whole())
    return jax.tree.map(one, state.replace(step=None, diverged=None)).replace(step=step)


# ------------------------------------------ a Stable Diffusion pipeline that need not be there

PARTS = {VAE: "a" * 64, TEXT: "b" * 64, TOKENIZER: "c" * 64}
_SIDE = 64


def unet_facts(source: str, options: Options, side: int = _SIDE) -> Imported:
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


def captioned_latents(module: CLIPText, side: int = _SIDE) -> Dataset:
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
