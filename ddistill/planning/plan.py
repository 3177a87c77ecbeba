"""The plans that planning returns: of a stage, and of each of its students."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from ddistill.data.encodings import EncoderFacts, TokenizerFacts
from ddistill.errors import CheckpointError
from ddistill.interop.imported import Imported
from ddistill.objectives import LevelTables, Objective
from ddistill.partitions import Partition
from ddistill.planning.manifests import PAIRS, TRAINED, PairsManifest, TrainedManifest
from ddistill.runtime.files import read_object_or_none
from ddistill.runtime.sharding import Layout, plan_layout
from ddistill.schedules import Schedule
from ddistill.settings import (
    MeshSettings,
    OptimizerSettings,
    ScheduleSettings,
    StageSettings,
    StudentsSettings,
)

# How texts are pooled where no setting says it.
DEFAULT_POOL = StudentsSettings.pool


@dataclass(frozen=True)
class LevelTable:
    """The noise levels that a stage picks from.

    Attributes:
      levels: its teacher's, or the run's schedule.
      indices: their rows in the run's schedule.
      schedule: what the run's schedule is made by.
    """

    levels: Schedule
    indices: np.ndarray
    schedule: ScheduleSettings

    @classmethod
    def whole(cls, levels: Schedule, schedule: ScheduleSettings) -> "LevelTable":
        """All levels of the run's schedule."""
        return cls(levels, np.arange(levels.num_steps + 1), schedule)


@dataclass(frozen=True)
class StudentPlan:
    """One student of a stage.

    Attributes:
      label: its values in a sweep, such as "grid_steps=4"; "" without a sweep.
      levels: `[N+1]`, the levels that it is sampled on, with the times that its network takes.
      indices: `[N+1]`, their rows in the run's schedule; with grid.spacing="edm" the rows nearest
        to them.
      tables: the same as tables, with the levels that it is trained on.
      objective: the method, prepared for these levels.
      seed: of its random streams and its batches.
      stream: ends the names of its random streams.
      optimizer: its optimiser.
      classes: the classes that it is trained on; None for all.
    """

    label: str
    levels: Schedule
    indices: np.ndarray
    tables: LevelTables
    objective: Objective
    seed: int
    stream: str
    optimizer: OptimizerSettings
    classes: tuple[int, ...] | None = None

    @property
    def data_seed(self) -> int:
        """The seed of its batches; students of one seed see other orders of the same data."""
        return self.seed + (int(self.stream or 0) << 32)


@dataclass(frozen=True)
class StagePlan:
    """A stage that has passed every check, or one of a finished run that was opened.

    Attributes:
      name: its key in `config.stages`.
      settings: its settings.
      identity: everything that the result depends on; empty for a stage that was opened.
      lineage: by name, the identities of all stages that it rests on, directly or not; empty for a
        stage that was opened.
      digest: the hash of its identity.
      folder: where checkpoints, metrics and the manifest lie.
      objective: the method, prepared for this grid.
      modules: networks by name: the student and whatever else the objective trains.
      students: what each student learns from; one, unless `settings.students.count` is above 1.
      partition: which student owns which levels and classes, or None.
      image_shape: (H, W, C) of what the networks see, images or latents.
      seed: the run's seed.
      imported: the network of another project that the stage starts from, or None.
      encoder: what made the latents that the networks see; None for pixels.
      tokenizer: of the captions; None for networks that read no texts.
      latent_source: the stage with the encoder and the decoder of the latents that the networks
        see; None for stages on the images or the latents of the data.
      text_source: the stage with the text encoder, or with the parts of the teacher's pipeline, or
        with the decoder of the data's latents; None where it is the stage itself.
      text_pool: how texts are pooled for partitions, its own or its teacher's.
      base: of a student of low rank, the stage with the weights that its factors are for, and the
        step of its checkpoint, None for the one that the stage hands on; None for other students.
    """

    name: str
    settings: StageSettings
    identity: Mapping[str, object]
    lineage: Mapping[str, Mapping[str, object]]
    digest: str
    folder: Path
    objective: Objective
    modules: Mapping[str, nn.Module]
    students: tuple[StudentPlan, ...]
    partition: Partition | None
    image_shape: tuple[int, int, int]
    seed: int
    imported: Imported | None = None
    encoder: EncoderFacts | None = None
    tokenizer: TokenizerFacts | None = None
    latent_source: "StagePlan | None" = None
    text_source: "StagePlan | None" = None
    text_pool: str = DEFAULT_POOL
    base: "tuple[StagePlan, int | None] | None" = None

    @property
    def text_stage(self) -> "StagePlan":
        """The stage with the text encoder of the captions, and with the decoder of latents."""
        return self if self.text_source is None else self.text_source

    @property
    def has_parts(self) -> bool:
        """Whether the parts of a pipeline lie in its folder."""
        return self.imported is not None and bool(self.imported.parts)

    @property
    def learns_texts(self) -> bool:
        """Whether the network learns its text encoder here."""
        return self.tokenizer is not None and self.imported is None and self.text_source is None

    @property
    def sees_latents(self) -> bool:
        """Whether the data are latents, of an encoder with weights."""
        return self.encoder is not None and bool(self.encoder.digest)

    @property
    def keeps_files(self) -> bool:
        """Whether the data's own tokenizer and decoder are kept in its folder."""
        own = self.objective.trains.on_levels and self.text_source is None and not self.has_parts
        return own and (self.tokenizer is not None or self.sees_latents)

    @property
    def stacked(self) -> bool:
        """Whether weights have a leading student axis."""
        return self.settings.students.count > 0

    @property
    def levels(self) -> Schedule:
        """`[N+1]`, the levels that a student is sampled on, with the times that its network takes.

        In a sweep, the levels of the first student.
        """
        return self.students[0].levels

    @property
    def indices(self) -> np.ndarray:
        """`[N+1]`, their rows in the run's schedule."""
        return self.students[0].indices

    @property
    def tables(self) -> LevelTables:
        """Levels as tables for the losses; with a leading student axis where weights have one."""
        if not self.stacked:
            return self.students[0].tables
        return jax.tree.map(lambda *x: np.stack(x), *(m.tables for m in self.students))

    @property
    def module(self) -> nn.Module:
        """The student's network."""
        return self.modules["student"]

    @property
    def manifest_path(self) -> Path:
        """The file that says that the stage is complete."""
        return self.folder / "complete.json"

    def manifest(self) -> TrainedManifest | PairsManifest | None:
        """The manifest, or None while the stage is not complete.

        A damaged or incomplete manifest is None too: training goes on from the last checkpoint and
        writes it anew.

        Raises:
          CheckpointError: there is a folder in its place.
        """
        if self.objective.trains.kind == "pairs":
            found = read_object_or_none(self.manifest_path, PAIRS)
            return None if found is None else PairsManifest.from_json(found)
        found = read_object_or_none(self.manifest_path, TRAINED)
        return None if found is None else TrainedManifest.from_json(found)

    def diverged_students(self) -> list[int]:
        """The students of a complete stage that diverged; none while it is not complete."""
        manifest = self.manifest()
        if not isinstance(manifest, TrainedManifest):
            return []
        return [k for k, step in enumerate(manifest.diverged) if step]

    def layout(self, mesh: MeshSettings) -> Layout:
        """Where its arrays lie; raises `ConfigError` for a mesh that does not fit."""
        s = self.settings
        path = f"stage '{self.name}', config.training.mesh"
        return plan_layout(mesh, s.students, s.batch_size // s.accumulate, path)

    @property
    def teacher_passes(self) -> int:
        """Forward passes of one prediction of its teacher: 2 with guidance."""
        return 2 if self.settings.guidance != 1.0 or self.objective.requires.guided_teacher else 1

    def ema_key(self) -> str | None:
        """The average that the stage hands on; None means the raw weights."""
        return str(self.settings.ema[0]) if self.settings.ema else None


def complete_manifest(plan: StagePlan) -> TrainedManifest | PairsManifest:
    """The manifest of a stage that is complete.

    Raises:
      CheckpointError: it is not complete.
    """
    manifest = plan.manifest()
    if manifest is None:
        raise incomplete(plan)
    return manifest


def incomplete(plan: StagePlan) -> CheckpointError:
    """The error for a stage that is needed and not complete."""
    return CheckpointError(
        f"Stage '{plan.name}' in {plan.folder} is not complete; run it with "
        f"--stage={plan.name} first."
    )
