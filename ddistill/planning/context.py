"""What the checks and the builders of a stage read: its settings and everything around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from flax import linen as nn

from ddistill import networks
from ddistill.conditions import Leaf, text_leaves, token_leaves
from ddistill.data.encodings import EncoderFacts, TokenizerFacts
from ddistill.data.facts import DataFacts
from ddistill.interop.imported import Imported
from ddistill.planning.identity import by_text
from ddistill.planning.plan import DEFAULT_POOL, LevelTable, StagePlan
from ddistill.schedules import Schedule
from ddistill.settings import Settings, StageSettings


class TextFacts(TypedDict):
    """Fields of `StagePlan`."""

    encoder: EncoderFacts | None
    latent_source: StagePlan | None
    tokenizer: TokenizerFacts | None
    text_source: StagePlan | None
    text_pool: str


@dataclass(frozen=True)
class StageContext:
    """A stage that is being planned.

    Attributes:
      name: its key in `config.stages`.
      settings: its settings; network, prediction and classes are filled in by
        `planning.build.resolve`.
      run: the settings of the run.
      schedule: `[T+1]`, the noise levels of the run.
      data: the training images, or with `latents` their latents, as far as planning needs them.
      earlier: by name, the plans of the stages before it.
      imported: the network of another project that the stage starts from, or None.
    """

    name: str
    settings: StageSettings
    run: Settings
    schedule: Schedule
    data: DataFacts
    earlier: Mapping[str, StagePlan]
    imported: Imported | None = None

    @property
    def path(self) -> str:
        """The dotted name of its settings, for messages."""
        return f"config.stages.{self.name}"

    @property
    def teacher(self) -> StagePlan | None:
        """The stage that it learns from, or None."""
        name = self.settings.teacher_stage
        return self.earlier[name] if name else None

    @property
    def source(self) -> StagePlan | None:
        """The stage whose weights it starts from, or None."""
        name = self.settings.init_source
        return self.earlier[name] if name else None

    @property
    def base(self) -> tuple[StagePlan, int | None] | None:
        """`StagePlan.base`: the stage that it starts from, or the base of that stage."""
        source = self.source
        if source is None or not self.settings.low_rank_of("student"):
            return None
        return source.base or (source, self.settings.init_checkpoint.step)

    @property
    def reads_text(self) -> bool:
        """Whether its denoiser is conditional on texts."""
        return networks.reads_text(str(self.settings.network.get("name", "")))

    @property
    def text_facts(self) -> TextFacts:
        """What its plan says of latents and captions."""
        teacher, name = self.teacher, self.settings.latents
        own = self.settings.students.pool if by_text(self.settings) else ""
        theirs = teacher.text_pool if teacher is not None else DEFAULT_POOL
        shared = teacher is not None and (
            teacher.tokenizer or teacher.text_stage.has_parts or teacher.sees_latents
        )
        return {
            "encoder": self.data.encoder,
            "latent_source": self.earlier[name] if name else None,
            "tokenizer": self.data.tokenizer if self.reads_text else None,
            "text_source": teacher.text_stage if teacher is not None and shared else None,
            "text_pool": own or theirs,
        }

    def text_leaves(self, student: nn.Module) -> tuple[Leaf, ...]:
        """The arrays of a text as losses see it; () for classes."""
        facts = self.text_facts
        tokenizer, learns = facts["tokenizer"], facts["text_source"] is None and not self.imported
        if tokenizer is None:
            return ()
        if learns:
            return token_leaves(tokenizer.length)
        return text_leaves(tokenizer.length, student.context_dim)

    @cached_property
    def table(self) -> LevelTable:
        """The levels that its grid picks from: its teacher's, or the run's."""
        made = self.run.schedule
        if self.teacher is None:
            return LevelTable.whole(self.schedule, made)
        return LevelTable(self.teacher.levels, self.teacher.indices, made)

    @property
    def rows(self) -> int:
        """The length of the level tables, equal for all stages of the run."""
        return self.schedule.num_steps + 1
