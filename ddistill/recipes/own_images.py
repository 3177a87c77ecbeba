"""An experiment on a folder of your own images, sized by a few arguments."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ml_collections import ConfigDict

from ddistill.data.folder import FolderSettings, class_counts
from ddistill.errors import ConfigError, check_choice
from ddistill.recipes.common import (
    Options,
    check_variant,
    experiment,
    network,
    objective,
    teacher_stage,
    to_config,
)
from ddistill.recipes.digits import annealed
from ddistill.recipes.o2mkd import o2mkd
from ddistill.recipes.progressive import progressive
from ddistill.recipes.sfddm import sfddm_default
from ddistill.recipes.variants import smoke
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)

SMALLEST, LARGEST, MULTIPLE = 8, 256, 4  # image sides in pixels
# Images of a class below which the teacher is not conditioned on it, and no classifier learns it.
LEAST_OF_A_CLASS = 10
LEAST_IMAGES = 40
# Training images below which a fifth of the images is for testing, not a tenth.
FEW_IMAGES = 1000


@dataclass(frozen=True)
class Scale:
    """Sizes and lengths of an experiment.

    Attributes:
      width: channels of the U-Net's first level.
      blocks: residual blocks per level of the U-Net.
      head_dim: channels of an attention head.
      batch_size: images per update, of every stage.
      updates: of the teacher.
      rate: learning rate of teacher and students.
      ema: rate of the moving average of the weights.
      levels: T, the teacher's noise levels.
      samples: images that every network is scored with.
      sample_batch: images sampled at once.
    """

    width: int
    blocks: int
    head_dim: int
    batch_size: int
    updates: int
    rate: float
    ema: float
    levels: int
    samples: int
    sample_batch: int


SIZES = {
    "small": Scale(16, 1, 16, 32, 3_000, 1e-3, 0.995, 256, 512, 128),
    "base": Scale(64, 2, 32, 64, 50_000, 4e-4, 0.999, 1024, 5_000, 250),
    "large": Scale(128, 2, 64, 128, 200_000, 2e-4, 0.9999, 1024, 10_000, 250),
}
# Sampler steps of the students by method, unless `steps` are given.
METHODS = {"sfddm": (4, 2, 1), "pd": (16, 8, 4, 2, 1), "o2mkd": (16, 8)}


@dataclass(frozen=True)
class _Images:
    """A folder: side and channels, by class the training images, and the share of test images."""

    side: int
    channels: int
    counts: dict[str, int]
    test_fraction: float

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def labelled(self) -> bool:
        """Whether a classifier can learn the classes."""
        return len(self.counts) > 1 and min(self.counts.values()) >= LEAST_OF_A_CLASS


def own_images(
    name: str,
    folder: str,
    *,
    image_size: int = 32,
    channels: int = 3,
    conditional: bool | None = None,
    method: str = "sfddm",
    steps: Sequence[int] | None = None,
    size: str = "small",
    updates: int = 0,
    flip: bool = False,
    seed: int = 0,
) -> Settings:
    """An experiment on a folder of images: a feature network, a teacher, and students.

    The folder is listed when the recipe is called, and no image is decoded: the number of classes
    and of images decides the conditioning, the share of test images and the feature network. Images
    of every mode are converted to `channels`, scaled, and cropped to the centre square. Two or more
    sub-folders are classes, and the feature network learns them. Without classes it learns to tell
    by which of four quarter turns an image was rotated (`ddistill.objectives.rotation`). Images of
    32 pixels and more are scored in the features of EfficientNet-Lite0 instead if the extra
    `features` is installed (`evaluation.features`).

    All sizes and lengths are settings of the result, which the command line can override, such as
    `--config.stages.teacher.steps=10000`. A folder of other classes needs another call.

    Args:
      name: of the experiment; the run is kept in `runs/NAME`.
      folder: path of the images, as `ddistill.data.folder.FolderSettings.path`.
      image_size: side in pixels, a multiple of 4 from 8 to 256.
      channels: 1 (grey) or 3 (RGB). Transparent pixels are composed with white.
      conditional: whether the networks are told the class; None where the folder has two or more
        classes.
      method: "sfddm" (arXiv 2405.14961), "pd" (arXiv 2202.00512), or "o2mkd" (arXiv 2410.04191:
        four students of half the width, each for a range of noise levels).
      steps: sampler steps of the students: of one SFDDM student each; the least one ends PD's chain
        of halvings, and all of them are powers of two then; the O2MKD students are sampled with
        each. None for (4, 2, 1), (16, 8, 4, 2, 1) or (16, 8).
      size: "small" for a CPU, "base" for one GPU of any kind, "large" for a fast one; see `SIZES`.
      updates: of the teacher; the lengths of the other stages are fractions of it. 0 for the number
        of `size`.
      flip: whether training mirrors images at random. Letters and other signs should not be.
      seed: of the run.

    Returns:
      The settings; `own_images_config` makes a config of them.

    Raises:
      ConfigError: a size, method or number of steps that is not allowed, or too few images.
      DataError: the folder is missing, holds no images, or has an ambiguous layout.
    """
    check_choice("own_images: size", size, SIZES)
    check_choice("own_images: method", method, METHODS)
    scale = _scale(size, updates)
    images = _look_at(folder, image_size, channels)
    conditional = _conditioning(folder, images, conditional)
    counts = _checked_steps(method, METHODS[method] if steps is None else steps, scale)
    net = _network(scale, images, len(images.counts) if conditional else 0)
    teacher = teacher_stage(
        net,
        steps=scale.updates,
        batch_size=scale.batch_size,
        optimizer=_optimizer(scale, scale.updates),
        ema=(scale.ema,),
        conditional=conditional,
    )
    students = _students(method, counts, scale, net, conditional)
    settings = experiment(
        name,
        {
            "name": "folder",
            "path": folder,
            "image_size": image_size,
            "channels": channels,
            "flip": flip,
            "test_fraction": images.test_fraction,
        },
        ScheduleSettings(name="cosine", steps=scale.levels),
        {"classifier": _feature_network(images, scale), "teacher": teacher, **students},
        _evaluation(scale, images, counts),
        checkpoint_every=max(500, scale.updates // 20),
    )
    return dataclasses.replace(settings, seed=seed)


def own_images_config(settings: Settings, variant: str = "") -> ConfigDict:
    """The config of `own_images`, in a variant.

    Args:
      settings: the result of `own_images`.
      variant: the part after the colon of `--config=FILE:VARIANT`; "smoke" trains narrow networks
        for 20 updates each on the same folder, up to the first student that is sampled.

    Raises:
      ConfigError: the variant is neither "" nor "smoke", nor a teacher of another project.
    """
    check_variant(variant)
    if variant == "smoke":
        net: Options = {
            "channels": 8,
            "head_dim": 8,
            "norm_groups": 8,
            "multipliers": (1,),
            "attention": (),
            "mid_attention": False,
        }
        sampled = next(i for i, n in enumerate(settings.pipeline) if settings.stages[n].method)
        settings = smoke(settings, net, settings.pipeline[: sampled + 1])
    return to_config(settings, variant)


def _scale(size: str, updates: int) -> Scale:
    if updates < 0:
        raise ConfigError(f"own_images: updates={updates} must be 1 or more, or 0 for its default.")
    scale = SIZES[size]
    return dataclasses.replace(scale, updates=updates or scale.updates)


def _look_at(folder: str, side: int, channels: int) -> _Images:
    """The facts of a folder, after checks of image size, channels and the number of images."""
    if not SMALLEST <= side <= LARGEST or side % MULTIPLE:
        nearest = min(max(round(side / MULTIPLE) * MULTIPLE, SMALLEST), LARGEST)
        raise ConfigError(
            f"own_images: image_size={side} is not a multiple of {MULTIPLE} from {SMALLEST} to "
            f"{LARGEST}. The nearest one is {nearest}."
        )
    if channels not in (1, 3):
        raise ConfigError(f"own_images: channels={channels} is not known. Allowed: 1 (grey), 3.")
    settings = FolderSettings(path=folder, image_size=side, channels=channels)
    images = _Images(side, channels, class_counts(settings), settings.test_fraction)
    if images.total < FEW_IMAGES:
        # Counted again with the larger share of test images that the experiment has.
        settings = dataclasses.replace(settings, test_fraction=0.2)
        images = _Images(side, channels, class_counts(settings), settings.test_fraction)
    if images.total < LEAST_IMAGES:
        raise ConfigError(
            f"own_images: {folder} has {images.total} training images, and at least "
            f"{LEAST_IMAGES} are needed. Add images."
        )
    return images


def _conditioning(folder: str, images: _Images, conditional: bool | None) -> bool:
    if conditional is None:
        conditional = len(images.counts) > 1
    if not conditional:
        return False
    if len(images.counts) == 1:
        raise ConfigError(
            f"own_images: conditional=True, but {folder} has no classes: make a sub-folder for "
            "each class, or set conditional=False."
        )
    fewest = min(images.counts, key=lambda name: images.counts[name])
    if not images.labelled:
        raise ConfigError(
            f"own_images: the class '{fewest}' in {folder} has {images.counts[fewest]} training "
            f"images, and conditional networks need {LEAST_OF_A_CLASS} of every class. Add images, "
            "remove that folder, or set conditional=False."
        )
    return True


def _checked_steps(method: str, given: Sequence[int], scale: Scale) -> tuple[int, ...]:
    """The steps, most first."""
    if not isinstance(given, list | tuple) or not all(type(count) is int for count in given):
        raise ConfigError(
            f"own_images: steps={given!r} must be whole numbers in brackets, such as (4, 2, 1); a "
            "single one is (4,)."
        )
    counts = tuple(given)
    most = scale.levels // 2
    for count in counts:
        if not 1 <= count <= most or (method == "pd" and count & (count - 1)):
            kind = "a power of two" if method == "pd" else "a whole number"
            raise ConfigError(
                f"own_images: steps={counts}: {count} is not {kind} from 1 to {most}."
            )
    if not counts or len(set(counts)) < len(counts):
        raise ConfigError(f"own_images: steps={counts} must name one or more different numbers.")
    return tuple(sorted(counts, reverse=True))


def _network(scale: Scale, images: _Images, classes: int) -> Options:
    """A U-Net that halves the images down to 4 or 8 pixels, or as far as they halve evenly."""
    smallest = 4 if images.side <= 32 else 8
    sides = [images.side]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= smallest:
        sides.append(sides[-1] // 2)
    wide = sides[-3:]  # narrow outer levels, because these cost most
    multipliers = tuple(1 if side == images.side or side not in wide else 2 for side in sides)
    return network(
        "unet",
        channels=scale.width,
        multipliers=multipliers,
        blocks=scale.blocks,
        attention=(next((side for side in sides[1:] if side <= 16), sides[-1]),),
        head_dim=scale.head_dim,
        norm_groups=min(32, scale.width // 2),
        out_channels=images.channels,
        num_classes=classes,
    )


def _optimizer(scale: Scale, updates: int) -> OptimizerSettings:
    return annealed(scale.rate, warmup=min(500, updates // 20))


def _students(
    method: str, counts: tuple[int, ...], scale: Scale, teacher: Options, conditional: bool
) -> dict[str, StageSettings]:
    length = max(1, scale.updates // 4)
    common: Options = {
        "steps": length,
        "batch_size": scale.batch_size,
        "optimizer": _optimizer(scale, length),
    }
    if method == "pd":
        start = min(max(32, 2 * counts[0]), scale.levels)
        halving = {**common, "steps": max(1, length // 2)}
        return progressive(start, counts[-1], steps_last=length, **halving)
    if method == "o2mkd":
        narrow = {**teacher, "channels": scale.width // 2, "norm_groups": scale.width // 2}
        return o2mkd(
            4,
            warmup_steps=length,
            **{**common, "steps": max(1, length // 2)},
            network={**narrow, "norm_groups": min(32, scale.width // 2)},
            prediction="v",
            conditional=conditional,
            loss={"error": "v"},
            ema=(scale.ema,),
            samplers={"ddim": counts},
        )
    stages: dict[str, StageSettings] = {}
    for count in counts:
        # Each student starts from the one before it.
        init = next(reversed(stages), "teacher")
        substeps = min(max(2, 8 // count), scale.levels // count)
        # The noisiest level has no past, so that a student of one step has nothing to look back to.
        stages[f"sfddm_n{count}"] = sfddm_default(
            count,
            substeps=substeps,
            loss={"lookback": count > 1},
            init=init,
            ema=(scale.ema,),
            **common,
        )
    return stages


def _feature_network(images: _Images, scale: Scale) -> StageSettings:
    """The network that scores samples: a residual network with few features for few images."""
    features = 32 if images.total < 1000 else 64 if images.total < 10_000 else 128
    large = images.side >= 64 and images.side % 16 == 0
    blocks = (1, 1, 1, 1) if large else (1, 1, 1)
    shift = max(1, images.side // 16)
    learn = {"shift": shift, "fill": 0.0, "label_smoothing": 0.05}
    name, classes = ("classification", len(images.counts)) if images.labelled else ("rotation", 4)
    updates = min(20_000, max(1, scale.updates // 5))
    return StageSettings(
        objective=objective(name, **learn),
        network=network(
            "resnet",
            num_classes=classes,
            width=features // 2 ** (len(blocks) - 1),
            blocks=blocks,
            stem="large" if large else "small",
        ),
        steps=updates,
        batch_size=64,
        optimizer=OptimizerSettings(
            name="adamw",
            learning_rate=2e-3,
            schedule="cosine",
            warmup=updates // 20,
            weight_decay=1e-2,
        ),
        ema=(),
        shared=True,
    )


def _evaluation(scale: Scale, images: _Images, counts: tuple[int, ...]) -> EvaluationSettings:
    steps = tuple(sorted({*counts, 8, 16}))
    return EvaluationSettings(
        samples=scale.samples,
        batch_size=scale.sample_batch if images.side <= 64 else 32,
        teacher_samplers={"ddim": steps},
        full_sampler="ddim",
        full_steps=min(64, scale.levels),
        grid_images=16,
        strip_images=6,
    )
