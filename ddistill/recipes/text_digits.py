"""Text-to-image at a small scale: autoencoder, teacher and students of captioned digits."""

import dataclasses
from collections.abc import Mapping

from ddistill.data.text_digits import LENGTH, digit_tokenizer
from ddistill.recipes.autoencoder import digits_autoencoder
from ddistill.recipes.common import Options, network, objective, teacher_stage
from ddistill.recipes.consistency import consistency
from ddistill.recipes.digits import annealed, digits
from ddistill.recipes.msd import msd, pairs_stage
from ddistill.recipes.o2mkd import o2mkd
from ddistill.recipes.sfddm import sfddm_default
from ddistill.settings import OptimizerSettings, Settings, StageSettings

# Scale of the teacher's classifier-free guidance, in its scores and as the students' teacher.
GUIDANCE = 3.0


def text_digits_network(width: int = 32) -> Options:
    """A U-Net on latents of 4x4x4 that learns its text encoder, with cross-attention throughout.

    Args:
      width: channels of the outer level.
    """
    return network(
        "captioned_unet",
        widths=(width, 2 * width),
        blocks=(1,),
        attends=(0, 1),
        heads=(4,),
        context_dim=64,
        norm_groups=8,
        out_channels=4,
        vocabulary=digit_tokenizer().facts.vocabulary,
        positions=LENGTH,
    )


def text_digits_teacher() -> StageSettings:
    """A teacher of captioned digits, of which a tenth is replaced by the empty text."""
    stage = teacher_stage(
        text_digits_network(),
        error="v",
        latents="autoencoder",
        steps=1000,
        batch_size=128,
        optimizer=annealed(2e-3, warmup=100),
        ema=(0.995,),
    )
    dropped = objective("denoising", error="v", weight="uniform", label_dropout=0.1)
    return dataclasses.replace(stage, objective=dropped)


def text_digits_students() -> dict[str, StageSettings]:
    """SFDDM at 4, 2 and 1 steps, LCM, O2MKD and MSD with one and four students.

    All learn from the teacher with guidance, which they have without a second call.
    """
    return {**_sfddm(), "lcm": _lcm(), **_o2mkd((1, 4)), **_msd((1, 4))}


def _sfddm() -> dict[str, StageSettings]:
    stages, init = {}, "teacher"
    for levels, substeps in ((4, 2), (2, 3), (1, 4)):
        name = f"sfddm_n{levels}"
        last = {"lookback": False} if levels == 1 else {}
        options = _updates(300, annealed(2e-3))
        stages[name] = sfddm_default(levels, substeps=substeps, loss=last, init=init, **options)
        init = name
    return stages


def _lcm() -> StageSettings:
    return consistency("lcm", 32, **_updates(400, annealed(1e-3)), samplers={"renoise": (1, 2, 4)})


def _o2mkd(counts: tuple[int, ...]) -> dict[str, StageSettings]:
    """Half the width; every student has as many updates, after a warm-up that all share."""
    stages: dict[str, StageSettings] = {}
    for count in counts:
        stages |= o2mkd(
            count,
            name="_w16",
            network=text_digits_network(16),
            prediction="v",
            loss={"error": "v"},
            warmup_steps=400,
            samplers={"ddim": (8,)},
            **_updates(300, annealed(2e-3, warmup=20)),
        )
    return stages


def _msd(counts: tuple[int, ...]) -> dict[str, StageSettings]:
    """The teacher's network, for one or four groups of captions."""
    optimizer = OptimizerSettings(
        name="adamw", learning_rate=3e-4, schedule="cosine", warmup=20, final_scale=0.1, clip=1.0
    )
    stages = {"pairs": pairs_stage(2000, 200, 16, sampler="ddim", **_GUIDED)}
    for count in counts:
        stages |= msd(
            count,
            adm={"features_of": "teacher", "gan_weight": 3e-3, "student_every": 1},
            second={"steps": 100, "optimizer": dataclasses.replace(optimizer, learning_rate=1e-4)},
            students={"partition": "texts", "text_split": "clusters"},
            steps=300,
            batch_size=32,
            optimizer=optimizer,
            ema=(0.99,),
            guidance=GUIDANCE,
        )
    return stages


_GUIDED: Options = {"guidance": GUIDANCE, "conditional": True}


def _updates(steps: int, optimizer: OptimizerSettings) -> Options:
    return {"steps": steps, "batch_size": 64, "optimizer": optimizer, "ema": (0.99,), **_GUIDED}


def text_digits(students: Mapping[str, StageSettings] | None = None) -> Settings:
    """Captioned digits: a classifier, an autoencoder, a teacher on its latents, and students.

    The classifier reads the digits of reconstructions and of samples.

    Args:
      students: stages that learn from the stage "teacher"; `text_digits_students` by default.
    """
    common = digits("text_digits", {})
    stages = {
        "classifier": common.stages["classifier"],
        "autoencoder": digits_autoencoder(),
        "teacher": text_digits_teacher(),
        **(text_digits_students() if students is None else students),
    }
    return dataclasses.replace(
        common,
        data={"name": "text_digits"},
        stages=stages,
        pipeline=tuple(stages),
        evaluation=dataclasses.replace(
            common.evaluation,
            teacher_samplers={"ddim": (1, 2, 4, 8)},
            full_steps=32,
            guidance=GUIDANCE,
            guidances=(1.0,),
            clip=0.0,
            interpolations=0,
        ),
    )
