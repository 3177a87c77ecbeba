"""Train steps of diffusion transformers on latents of 256 x 256 images, for `aot_compile.py`.

    python benchmarks/aot_compile.py --config=benchmarks/dit_steps.py:o2mkd --mesh=4,4,1 --remat

Variants: "flow", a DiT-XL/2 teacher by flow matching, and "o2mkd", four DiT-B/2 students of it. No
latents are read.
"""

from ml_collections import ConfigDict

from ddistill import recipes
from ddistill.networks.dit import named_size
from ddistill.recipes.common import Options, experiment
from ddistill.settings import EvaluationSettings, OptimizerSettings, ScheduleSettings

_DATA = {"name": "latents", "path": "imagenet256"}
_ADAM = OptimizerSettings(learning_rate=1e-4, b2=0.95)
_COMMON = {"steps": 1000, "batch_size": 256, "optimizer": _ADAM, "ema": (0.9999,)}


def _network(size: str) -> Options:
    return recipes.network("dit", num_classes=1000, **named_size(size))


def get_config(variant: str = "flow") -> ConfigDict:
    """The config of a variant."""
    stages = {"teacher": recipes.flow_teacher(_network("XL/2"), conditional=True, **_COMMON)}
    if variant == "o2mkd":
        stages |= recipes.o2mkd(
            4,
            start="student",
            network=_network("B/2"),
            prediction="flow",
            conditional=True,
            **_COMMON,
        )
        narrow = recipes.flow_teacher(_network("B/2"), conditional=True, **_COMMON)
        stages = {"teacher": stages.pop("teacher"), "student": narrow, **stages}
    schedule = ScheduleSettings(name="linear_path", steps=1024)
    evaluation = EvaluationSettings(enabled=False, clip=0.0)
    return recipes.to_config(experiment("dit", _DATA, schedule, stages, evaluation))
