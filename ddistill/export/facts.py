"""The facts about an exported network: levels, owners, scores and origin."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddistill.conditions import TextCondition
from ddistill.data.byte_pairs import BytePairTokenizer
from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.evaluation.figures.image_grids import ImageRow
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.sampling_plan import SamplerRun, experiment_of
from ddistill.evaluation.scored import sampling_protocol
from ddistill.interop.pipeline_parts import Decoder
from ddistill.networks.extras import EXTRAS
from ddistill.networks.text_encoding import TextEncoder
from ddistill.networks.text_unet import TextUNet
from ddistill.networks.unet import UNet
from ddistill.partitions import Partition
from ddistill.settings import Settings
from ddistill.students import RoutedDenoiser

FORMAT = 1
N = TypeVar("N", bound=nn.Module)


class BaseModel(NamedTuple):
    """A model of the Hugging Face hub: its id, "ORG/NAME", and its commit; "" if unknown."""

    repo: str
    commit: str = ""


@dataclass(frozen=True, eq=False)
class LearntParts:
    """The parts that a run has trained itself.

    Attributes:
      decoder: the autoencoder.
      text_encoder: token ids to conditions.
      tokenizer: texts to token ids.
      side: height of the pictures.
    """

    decoder: Decoder
    text_encoder: TextEncoder
    tokenizer: BytePairTokenizer
    side: int


@dataclass(frozen=True)
class Exported:
    """A sampler run with its network, ready for export.

    Attributes:
      sampler_run: network, levels and sampler.
      network: the denoiser, or the students of a partition.
      settings: the settings of the run.
      data: name of the data set.
      num_classes: number of classes of the data set.
      rows: scores of the sampler run; may be empty.
      licence: licence of the weights; "" if unknown.
      base_models: models of the Hugging Face hub from which the network started.
      dataset: id of the data set on the Hugging Face hub; "" if it has none.
      image_rows: samples for the picture of the model card; may be empty.
      pipeline: tokenizer, text encoder and autoencoder: the folder of the parts of the teacher's
        pipeline, or what the run has trained; None for networks that read no texts, or see pixels.
      decoder: what makes pictures of latents, for programs that decode and for an autoencoder that
        the run has trained; None for networks of pixels, and where the export copies files.
      null_text: the condition of the empty text, for networks that read texts.
      precision: of exported weights of networks that read texts: "float32" or "float16".
    """

    sampler_run: SamplerRun
    network: Denoiser | RoutedDenoiser
    settings: Settings
    data: str
    num_classes: int
    rows: tuple[Row, ...]
    licence: str
    base_models: tuple[BaseModel, ...] = ()
    dataset: str = ""
    image_rows: tuple[ImageRow, ...] = ()
    pipeline: Path | LearntParts | None = None
    decoder: Decoder | None = None
    null_text: TextCondition | None = None
    precision: str = "float32"

    @property
    def denoiser(self) -> Denoiser:
        """The network; the parameters of K students are stacked, `[K, ...]`."""
        return self.network.students if isinstance(self.network, RoutedDenoiser) else self.network

    @property
    def students(self) -> list[Denoiser]:
        """The students as one denoiser each."""
        if not isinstance(self.network, RoutedDenoiser):
            return [self.network]
        return [self.network.student(k) for k in range(self.network.partition.count)]

    @property
    def conditional(self) -> bool:
        """Whether the network is class-conditional."""
        return self.sampler_run.student_plan.tables.classes is not None

    @property
    def reads_text(self) -> bool:
        """Whether the network is conditional on texts."""
        return self.sampler_run.plan.tokenizer is not None

    @property
    def sees_latents(self) -> bool:
        """Whether pictures are decoded from what the network makes."""
        plan = self.sampler_run.plan
        return plan.latent_source is not None or plan.sees_latents

    @property
    def clip(self) -> float:
        """Bound on x0 predictions; 0 for no clipping."""
        return self.settings.evaluation.clip

    @property
    def unet(self) -> UNet:
        """The module of the students.

        Raises:
          ConfigError: the module is not a `UNet`.
        """
        return self._module(
            UNet, "which diffusers does not have. Use --to=stablehlo or --to=safetensors."
        )

    @property
    def text_unet(self) -> TextUNet:
        """The module of students that read texts, without a text encoder.

        Raises:
          ConfigError: the module is not a `TextUNet`.
        """
        module = self._module(
            TextUNet,
            "which is no UNet2DConditionModel of a text-to-image pipeline. Use another --to.",
        )
        own = [field.name for field in fields(TextUNet) if field.name not in ("parent", "name")]
        return TextUNet(**{name: getattr(module, name) for name in own})

    def _module(self, kind: type[N], why_not: str) -> N:
        """The module of the students; raises `ConfigError` for a module of another kind."""
        plan = self.sampler_run.plan
        if not isinstance(plan.module, kind):
            name = plan.settings.network["name"]
            raise ConfigError(f"stage '{plan.name}' is a network '{name}', {why_not}")
        return plan.module

    @property
    def chosen_inputs(self) -> tuple[str, ...]:
        """The extra inputs of the network with a value that users of the export choose."""
        return tuple(name for name in self.sampler_run.inputs if name == "guidance")

    def owners(self) -> np.ndarray:
        """`[N, C]` index of the student for level 1 .. N and class, or cell of texts.

        C is 1 without classes and cells.
        """
        levels, count = self.sampler_run.levels, self.num_classes if self.conditional else 1
        if self.reads_text and isinstance(self.network, RoutedDenoiser):
            return self._owners_of_texts(self.network.partition)
        table = np.zeros((levels.num_steps, count), np.int64)
        if isinstance(self.network, RoutedDenoiser):
            for i in range(levels.num_steps):
                owner = self.network.partition.owner(levels.at(i + 1), jnp.arange(count))
                table[i] = np.broadcast_to(np.asarray(owner), count)
        return table

    def _owners_of_texts(self, partition: Partition) -> np.ndarray:
        levels = self.sampler_run.levels
        table = np.zeros((levels.num_steps, partition.groups), np.int64)
        for g in range(partition.groups):
            students, rest = partition.within(g)
            for i in range(levels.num_steps):
                place = 0 if rest is None else int(rest.owner(levels.at(i + 1)))
                table[i, g] = students[place]
        return table

    def manifest(self, time_scale: float = 1.0) -> dict[str, object]:
        """The contents of ddistill.json: everything that sampling needs except the weights.

        Args:
          time_scale: factor on the times.
        """
        sampler_run, levels = self.sampler_run, self.sampler_run.levels
        return {
            "format": FORMAT,
            "stage": sampler_run.plan.name,
            "data": self.data,
            "image_shape": list(sampler_run.plan.image_shape),
            "network": plain_options(sampler_run.plan.settings.network),
            "prediction": self.denoiser.prediction,
            "sigma_data": self.denoiser.sigma_data,
            "conditional": self.conditional,
            "num_classes": self.num_classes if self.conditional else 0,
            "sampler": sampler_run.sampler,
            "nfe": sampler_run.nfe,
            "clip": self.clip,
            # Entry 0 is the clean end, at which no network is evaluated.
            "levels": {
                "alpha": [float(x) for x in levels.alpha],
                "sigma": [float(x) for x in levels.sigma],
                "time": [float(x) * time_scale for x in levels.time],
            },
            "owners": self.owners().tolist(),
            "licence": self.licence,
            **self._inputs(),
        }

    def _inputs(self) -> dict[str, object]:
        """By name the values of the network's extra inputs, and the ranges of chosen ones.

        Also the names of inputs that differ from step to step: the time of the next level.
        """
        run = self.sampler_run
        trained = run.plan.objective.extra_inputs
        by_step = [name for name in trained if EXTRAS[name].of_step is not None]
        found: dict[str, object] = {"inputs_by_step": by_step} if by_step else {}
        if run.inputs:
            ranges = {n: [trained[n].low, trained[n].high] for n in self.chosen_inputs}
            found |= {"inputs": dict(run.inputs), "input_ranges": ranges}
        return found


def plain_options(network: Mapping[str, object]) -> dict[str, object]:
    """The options of a network for JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in network.items()}


# Parts of a protocol in which sampler runs with rows of the same names may differ.
_OF_RUN = ("sampler", "ema", "guidance")


def rows_of(sampler_run: SamplerRun, rows: list[Row], settings: Settings) -> tuple[Row, ...]:
    """The rows of results.json that belong to `sampler_run`."""
    identity = (
        experiment_of(settings, sampler_run),
        sampler_run.method,
        sampler_run.nfe,
        sampler_run.students,
        sampler_run.width,
        settings.seed,
    )
    ours = sampling_protocol(settings, sampler_run).items()

    def is_own(row: Row) -> bool:
        named = (row.experiment, row.method, row.nfe, row.students, row.width, row.seed)
        theirs = dict(part.partition("=")[::2] for part in row.protocol.split())
        return named == identity and all(theirs.get(k, ours[k]) == ours[k] for k in _OF_RUN)

    return tuple(row for row in rows if is_own(row))
