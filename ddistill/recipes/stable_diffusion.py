"""Students of Stable Diffusion 1.5, and the same experiments on the embedded captioned digits.

The teacher is a folder of diffusers, and the data are latents and captions that were made with it.
Where a paper gives no settings for Stable Diffusion, we use those of DMD2 (arXiv 2405.14867) for
distribution matching and those of BK-SDM (arXiv 2305.15798) for regression.
"""

import dataclasses
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from ddistill.data.text_digits import LENGTH, digit_tokenizer
from ddistill.interop.sources import read_source
from ddistill.recipes.common import (
    Options,
    check_variant,
    experiment,
    network,
    objective,
    to_config,
)
from ddistill.recipes.consistency import consistency
from ddistill.recipes.msd import msd, tsm_stage
from ddistill.recipes.o2mkd import o2mkd
from ddistill.recipes.sfddm import sfddm_default
from ddistill.recipes.variants import smoke
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)

# Where a config looks for the teacher, and for the set of latents that was made with it.
FOLDER, SET = "stable-diffusion-v1-5", "data/sd15_latents"
_SCHEDULE = ScheduleSettings("scaled_linear_beta", 1000, {"start": 0.00085, "end": 0.012})
# 859,520,964 parameters.
SD15 = network("text_unet")
# Widths that the smoke variants' students can be shares of.
_SMOKE_WIDTHS = (80, 160)


def fewer_blocks(net: Options) -> Options:
    """BK-SDM's Small: one block a level on the way down, two on the way up, and no middle."""
    return {**net, "blocks": (1,), "middle": False}


def narrower(net: Options, share: float) -> Options:
    """The network with a share of the channels of every level."""
    return {**net, "widths": tuple(round(share * width) for width in net["widths"])}


def sfddm_sd15(net: Options = SD15) -> Settings:
    """SFDDM at 4, 2 and 1 steps, of the teacher with guidance 7.5."""
    stages = {
        f"sfddm_n{steps}": sfddm_default(
            steps,
            substeps=8,
            guidance=7.5,
            ema=(0.999,),
            **_updates(50_000, 256, 1e-5),
        )
        for steps in (4, 2, 1)
    }
    return _settings("sfddm_sd15", net, stages)


def lcm_sd15(net: Options = SD15) -> Settings:
    """LCM with guidance as an input: 50 levels, of which the target is the next one."""
    # The released command adds w (cond - uncond), w in 5 .. 15, to the conditional prediction.
    loss = {"guidance_range": (6.0, 16.0)}
    stage = consistency("lcm", 50, loss=loss, ema=(0.95,), **_updates(100_000, 96, 8e-6))
    stage = dataclasses.replace(stage, samplers={"renoise": (1, 2, 5)})
    return _settings("lcm_sd15", net, {"lcm": stage}, guidance=8.0)


def o2mkd_sd15(net: Options = SD15, count: int = 4) -> Settings:
    """O2MKD with BK-SDM's Small and with half the width, each first one student, then K.

    Args:
      net: the teacher's network.
      count: K.
    """
    levels = range(len(net["widths"]))
    features = tuple(f"{way}_{i}" for way in ("down", "out") for i in levels)
    loss: Options = {
        "name": "o2mkd",
        **{"output_weight": 1.0, "task_weight": 1.0, "feature_weight": 1.0, "features": features},
        "label_dropout": 0.1,
    }
    adam = OptimizerSettings(name="adamw", learning_rate=5e-5, weight_decay=0.01, clip=1.0)
    common: Options = {
        "batch_size": 256,
        "optimizer": adam,
        "prediction": "eps",
        "ema": (),
        "samplers": {"ddim": (25,)},
        "sample_guidance": 7.5,
    }
    small = o2mkd(
        count,
        name="_small",
        network=fewer_blocks(net),
        loss=loss,
        variant="BK-SDM Small",
        init="teacher",
        warmup_steps=50_000,
        steps=50_000 // count,
        **common,
    )
    narrow = o2mkd(
        count,
        name="_half",
        network=narrower(net, 0.5),
        loss=loss,
        variant="half the width",
        warmup_steps=50_000,
        steps=50_000 // count,
        **common,
    )
    return _settings("o2mkd_sd15", net, {**small, **narrow}, guidance=7.5)


def msd_sd15(net: Options = SD15, count: int = 4) -> Settings:
    """MSD with the teacher's network: DM, then ADM, K students of a quarter of the prompts each."""
    return _settings("msd_sd15", net, _msd(count))


def msd_small_sd15(net: Options = SD15, count: int = 4) -> Settings:
    """MSD with 0.4 of the teacher's widths (-83.5 % parameters), after TSM of one student."""
    small = narrower(net, 0.4)
    tsm = tsm_stage(small, "eps", ema=(0.999,), guidance=1.75, **_updates(100_000, 256, 1e-4))
    changes: Options = {"network": small, "prediction": "eps", "init": "tsm"}
    return _settings("msd_small_sd15", net, {"tsm": tsm, **_msd(count, **changes)})


def _msd(count: int, **changes: object) -> dict[str, StageSettings]:
    """DM and ADM at DMD2's settings for Stable Diffusion 1.5, with a K-th of its batch for each.

    The fake score's error is that of eps, without weights; it has ten updates per update of the
    student. The discriminator is a head on its middle. A step counts an update of the fake score.
    """
    scores = {
        "fake_weight": "snr",
        "student_every": 10,
        "lowest": 0.02,
        "highest": 0.98,
        "regression_weight": 0.0,
    }
    heads = {"gan_weight": 1e-3, "discriminator_weight": 1e-2, "features_of": "fake"}
    second = {"steps": 20_000, "optimizer": _adam(5e-7)}
    return msd(
        count,
        dm={"name": "dmd", **scores},
        adm={"name": "dmd2", **scores, **heads},
        second=second,
        guidance=1.75,
        students={"partition": "texts"},
        ema=(),
        **{**_updates(390_000, 2048 // count, 1e-5), **changes},
    )


def _adam(rate: float) -> OptimizerSettings:
    return OptimizerSettings(
        name="adamw", learning_rate=rate, warmup=500, weight_decay=0.01, clip=10.0
    )


def _updates(steps: int, batch_size: int, rate: float) -> Options:
    return {"steps": steps, "batch_size": batch_size, "optimizer": _adam(rate)}


def _settings(
    name: str, net: Options, stages: Mapping[str, StageSettings], guidance: float = 1.0
) -> Settings:
    teacher = StageSettings(
        objective=objective("denoising", error="eps"),
        source=f"diffusers:{FOLDER}",
        network=net,
        prediction="eps",
        conditional=True,
        steps=0,
        batch_size=1,
        ema=(),
        shared=True,
    )
    evaluation = EvaluationSettings(
        samples=256,
        batch_size=16,
        teacher_samplers={"ddim": (4, 25)},
        full_steps=50,
        guidance=guidance,
        clip=0.0,
        interpolations=0,
    )
    data = {"name": "latents", "path": SET}
    made = experiment(name, data, _SCHEDULE, {"teacher": teacher, **stages}, evaluation, 1000)
    # Every stage's students are on the latents of the set.
    return dataclasses.replace(
        made, stages={n: dataclasses.replace(s, conditional=True) for n, s in made.stages.items()}
    )


def stable_diffusion_config(make: Callable[[Options], Settings], variant: str) -> ConfigDict:
    """The config of an experiment of this module, in a variant.

    Args:
      make: `sfddm_sd15`, or another function of this module, of the teacher's network.
      variant: the part after the colon of `--config=FILE:VARIANT`: "diffusers:FOLDER" for another
        folder with a pipeline, of which students with fewer blocks or channels are derived; "smoke"
        for small networks on the embedded captioned digits, with a teacher that is trained there.

    Raises:
      ConfigError: another variant, or a folder that cannot be read.
    """
    check_variant(variant)
    if variant == "smoke":
        return to_config(_smoke(make))
    if variant:
        return to_config(make(read_source(variant, "--config").network), variant)
    return to_config(make(SD15))


def _smoke(make: Callable[[Options], Settings]) -> Settings:
    """The experiment shrunk to seconds, on captioned digits and the teacher of a moment."""
    read = {"vocabulary": digit_tokenizer().facts.vocabulary, "positions": LENGTH}
    net = network(
        "captioned_unet",
        **{"widths": _SMOKE_WIDTHS, "blocks": (1,), "attends": (0, 1), "heads": (4,)},
        **{"context_dim": 16, "norm_groups": 8, "out_channels": 1, "text_layers": 1, **read},
    )
    settings = smoke(make(net), {})
    teacher = dataclasses.replace(
        settings.stages["teacher"],
        objective=objective("denoising", error="eps", label_dropout=0.1),
        source="",
        shared=False,
        ema=(0.9,),
    )
    evaluation = dataclasses.replace(settings.evaluation, teacher_samplers={"ddim": (4,)})
    return dataclasses.replace(
        settings,
        data={"name": "text_digits"},
        stages={**settings.stages, "teacher": teacher},
        evaluation=evaluation,
    )
