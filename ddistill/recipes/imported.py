"""Experiments whose teacher somebody else has trained."""

import dataclasses

from ddistill.interop.sources import read_source
from ddistill.recipes.common import objective
from ddistill.settings import ScheduleSettings, Settings, StageSettings


def with_teacher(settings: Settings, source: str, stage: str = "teacher") -> Settings:
    """The same experiment, with a teacher of another project instead of one that it trains.

    The noise levels become the teacher's, and students that take over its network get that one.

    Args:
      settings: an experiment.
      source: "diffusers:FOLDER" or "edm:FILE".
      stage: name of the teacher's stage.

    Raises:
      ConfigError: what `ddistill.interop.sources.read_source` says of the files.
    """
    found = read_source(source, f"config.stages.{stage}.source")
    teacher = StageSettings(
        objective=objective("denoising"),
        source=source,
        network=found.network,
        prediction=found.prediction,
        conditional=found.num_classes > 0,
        steps=0,
        batch_size=settings.stages[stage].batch_size,
        ema=(),
        shared=True,
    )
    schedule = settings.schedule
    if found.schedule:
        # EDM's files settle the kind of the levels and not their number.
        own = {"steps": schedule.steps, "options": {}}
        schedule = ScheduleSettings(**{**own, **found.schedule})
    return dataclasses.replace(
        settings, schedule=schedule, stages={**settings.stages, stage: teacher}
    )
