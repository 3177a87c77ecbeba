"""Checks of stages whose networks see latents or read captions."""

from flax import linen as nn

from ddistill.errors import ConfigError
from ddistill.interop.imported import Imported
from ddistill.interop.pipeline_folders import TOKENIZER, VAE
from ddistill.networks.captioned_unet import CaptionedUNet
from ddistill.objectives import Objective
from ddistill.partitions import text_part
from ddistill.planning.context import StageContext
from ddistill.planning.identity import by_text

_MAKE = "Make the set with the teacher: ddistill data latents SOURCE SET --pipeline={}"


def check_texts(context: StageContext, objective: Objective, module: nn.Module) -> None:
    """Raises `ConfigError` where images or captions of the data do not fit the networks.

    Args:
      context: the stage.
      objective: its method.
      module: the student's network.
    """
    data, path = context.data, context.path
    _check_images(context, objective)
    imported = context.imported
    if imported is not None and imported.parts:
        _check_pipeline(context, imported)
    if not context.reads_text:
        return
    name, tokenizer = context.settings.network["name"], data.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{path}.network.name='{name}' reads captions, and the data {data.name} have none. Use "
            "data with captions, such as data.name='latents' or 'text_digits'."
        )
    _check_students(context)
    _check_own_pairs(context, objective)
    _check_pool(context)
    source = context.text_facts["text_source"]
    if isinstance(module, CaptionedUNet) and source is None:
        if module.vocabulary < tokenizer.vocabulary or module.positions < tokenizer.length:
            raise ConfigError(
                f"{path}.network has vocabulary={module.vocabulary} and positions="
                f"{module.positions}, and the captions have {tokenizer.vocabulary} tokens and "
                f"{tokenizer.length} positions. Set both to these."
            )
    elif source is None and imported is None:
        raise ConfigError(
            f"{path}.network.name='{name}' has no text encoder. Set {path}.source to a pipeline or "
            f"{path}.teacher to a stage that has one, or name the network 'captioned_unet'."
        )


def _check_images(context: StageContext, objective: Objective) -> None:
    data, path = context.data, context.path
    if objective.requires.images and not data.has_images:
        raise ConfigError(
            f"{path}.objective.name={context.settings.objective['name']!r} needs images, because "
            f"{objective.requires.images}, and the data {data.name} are prompts alone."
        )
    clip = context.run.evaluation.clip
    if data.encoder is not None and data.encoder.digest and clip:
        raise ConfigError(
            f"config.evaluation.clip={clip} bounds predictions of pixels, and the networks see "
            "latents. Set config.evaluation.clip=0."
        )


def _check_pipeline(context: StageContext, imported: Imported) -> None:
    """Raises `ConfigError` where the data were not made by the parts of a pipeline."""
    data, source = context.data, context.settings.source
    named, advice = f"{context.path}.source={source!r}", f"{_MAKE.format(source)}."
    if data.encoder is None:
        raise ConfigError(f"{named} sees latents, and the data {data.name} are pixels. {advice}")
    if data.encoder.digest != imported.parts[VAE]:
        raise ConfigError(
            f"{named} has the image encoder {imported.parts[VAE][:16]}, and the data {data.name} "
            f"were made by {data.encoder}. {advice}"
        )
    if TOKENIZER not in imported.parts:
        return  # a pipeline of classes
    if data.tokenizer is None:
        raise ConfigError(f"{named} reads captions, and the data {data.name} have none. {advice}")
    if data.tokenizer.digest != imported.parts[TOKENIZER]:
        raise ConfigError(
            f"{named} has the tokenizer {imported.parts[TOKENIZER][:16]}, and the captions of "
            f"{data.name} were read by {data.tokenizer.name} {data.tokenizer.digest[:16]}. {advice}"
        )


def _check_own_pairs(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` for pairs of students that divide texts; pairs are of all captions."""
    stage, reason = context.settings, objective.requires.own_pairs
    if stage.pairs and reason and by_text(stage):
        raise ConfigError(
            f"{context.path}.pairs={stage.pairs!r}: {reason}, but the pairs of captions are not "
            f"divided as students.partition={stage.students.partition!r} divides them. Switch it "
            "off, or leave the pairs out."
        )


def _check_pool(context: StageContext) -> None:
    """Raises `ConfigError` where students pool texts in another way than those of their teacher."""
    teacher, pool = context.teacher, context.text_facts["text_pool"]
    if teacher is None or text_part(teacher.partition) is None or pool == teacher.text_pool:
        return
    raise ConfigError(
        f"{context.path}.students.pool={pool!r}, and the students of the teacher '{teacher.name}' "
        f"pool texts by {teacher.text_pool!r}: a batch has one embedding of each text. Set both "
        "alike."
    )


def _check_students(context: StageContext) -> None:
    """Raises `ConfigError` for students that classes divide, or that learn many text encoders."""
    stage, path = context.settings, context.path
    if stage.students.partition == "classes":
        raise ConfigError(
            f"{path}.students.partition={stage.students.partition!r} divides classes, and network "
            f"'{stage.network['name']}' reads captions. Use partition='texts' or 'timesteps'."
        )
    if stage.students.count and context.text_facts["text_source"] is None:
        raise ConfigError(
            f"{path}.students.count={stage.students.count}: a network that learns its text encoder "
            "is one network. Set 0, or give the stage a teacher with a text encoder."
        )
