"""Train steps of diffusion transformers on latents of 256 x 256 images, for `aot_compile.py`.

    python benchmarks/aot_compile.py --config=benchmarks/dit_steps.py:o2mkd --mesh=4,2,2 --remat

Variants: "flow", a DiT-XL/2 teacher by flow matching; "meanflow", a DiT-XL/2 student by MeanFlow;
"o2mkd", four DiT-B/2 students of the teacher. No latents are read.
"""

from typing import Any

from ddistill import recipes
from ddistill.errors import check_choice
from ddistill.networks.dit import named_size
from ddistill.recipes.common import Options, experiment, objective
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)

VARIANTS = ("flow", "meanflow", "o2mkd")
_COMMON: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 256,
    "conditional": True,
    "optimizer": OptimizerSettings(learning_rate=1e-4, b2=0.95),
    "ema": (0.9999,),
}


def _network(size: str) -> Options:
    return recipes.network("dit", num_classes=1000, **named_size(size))


def _settings(variant: str) -> Settings:
    stages = {"teacher": recipes.flow_teacher(_network("XL/2"), **_COMMON)}
    if variant == "meanflow":
        stages["student"] = StageSettings(
            objective("meanflow", label_dropout=0.1, null_class=1000),
            teacher="teacher",
            init="teacher",
            grid=GridSettings(steps=0),
            **_COMMON,
        )
    if variant == "o2mkd":
        small = {"network": _network("B/2"), "prediction": "flow", **_COMMON}
        stages["student"] = recipes.flow_teacher(_network("B/2"), **_COMMON)
        stages |= recipes.o2mkd(4, start="student", **small)
    return experiment(
        "dit",
        {"name": "latents", "path": "imagenet256"},
        ScheduleSettings(name="linear_path", steps=1024),
        stages,
        EvaluationSettings(enabled=False, clip=0.0),
    )


def get_config(variant: str = "flow"):
    """The config of a variant."""
    check_choice("dit_steps.py: variant", variant, VARIANTS)
    return recipes.to_config(_settings(variant))
