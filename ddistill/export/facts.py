"""The facts about an exported network: levels, owners and scores, as JSON and as a model card."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.sampling_plan import SamplerRun, experiment_of
from ddistill.networks import WITHOUT_PARAMETERS as IDLE
from ddistill.networks.unet import UNet
from ddistill.settings import Settings
from ddistill.students import RoutedDenoiser
from ddistill.text import markdown, printable

FORMAT = 1


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
    """

    sampler_run: SamplerRun
    network: Denoiser | RoutedDenoiser
    settings: Settings
    data: str
    num_classes: int
    rows: tuple[Row, ...]
    licence: str

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
    def clip(self) -> float:
        """Bound on x0 predictions; 0 for no clipping."""
        return self.settings.evaluation.clip

    @property
    def unet(self) -> UNet:
        """The module of the students.

        Raises:
          ConfigError: the module is not a `UNet`.
        """
        module = self.sampler_run.plan.module
        if not isinstance(module, UNet):
            name = self.sampler_run.plan.settings.network["name"]
            raise ConfigError(
                f"stage '{self.sampler_run.plan.name}' is a network '{name}', which diffusers "
                "does not have. Use --to=stablehlo or --to=safetensors."
            )
        return module

    def owners(self) -> np.ndarray:
        """`[N, C]` index of the student for level 1 .. N and class; C is 1 without classes."""
        levels, count = self.sampler_run.levels, self.num_classes if self.conditional else 1
        table = np.zeros((levels.num_steps, count), np.int64)
        if isinstance(self.network, RoutedDenoiser):
            for i in range(levels.num_steps):
                owner = self.network.partition.owner(levels.at(i + 1), jnp.arange(count))
                table[i] = np.broadcast_to(np.asarray(owner), count)
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
            "network": _plain(sampler_run.plan.settings.network),
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
        }

    def card(self, how: str, library: str = "") -> str:
        """Returns a model card in Markdown.

        Args:
          how: Python code of the example.
          library: the library that reads the files; "" for none.
        """
        sampler_run, s = self.sampler_run, self.sampler_run.plan.settings
        teacher = self.settings.evaluation.teacher
        options = {k: v for k, v in _plain(s.network).items() if k not in ("name", *IDLE)}
        network = f"{s.network['name']}, " + ", ".join(f"{k}={v}" for k, v in options.items())
        lines = [
            "---",
            # A JSON string is a YAML string, except for surrogate pairs.
            f"license: {json.dumps(printable(self.licence or 'unknown'), ensure_ascii=False)}",
            *([f"library_name: {library}"] if library else []),
            "tags: [diffusion, distillation, ddistill]",
            "---",
            f"# {markdown(self.settings.name)}: {markdown(sampler_run.label)}",
            "",
            f"* Data: {markdown(self.data)}, "
            f"images of {' x '.join(map(str, sampler_run.plan.image_shape))} "
            "(height, width, channels)" + (f", {self.num_classes} classes" * self.conditional),
            f"* Method: {s.method or 'none, this is the teacher'}"
            + (f", {sampler_run.students} students" if sampler_run.students > 1 else ""),
            f"* Teacher: stage '{markdown(teacher)}' of the run, {_source(self.settings, teacher)}",
            f"* Network: {markdown(network)}; predicts {self.denoiser.prediction}",
            f"* Network evaluations per image (NFE): {sampler_run.nfe}, with {sampler_run.sampler}",
            "* Licence: " + markdown(self.licence or "not stated; ask the authors of the teacher"),
            "",
            "## Scores",
            "",
            *(self._scores() or ["The run has no scores of it."]),
            "",
            "## Use",
            "",
            "```python",
            how.strip(),
            "```",
            "",
        ]
        return "\n".join(lines)

    def _scores(self) -> list[str]:
        table = [f"| {r.metric} | {r.value:.4g} | {r.seed} | `{r.protocol}` |" for r in self.rows]
        return (
            ["| metric | value | seed | protocol |", "|---|---|---|---|", *table] if table else []
        )


def _source(settings: Settings, teacher: str) -> str:
    source = settings.stages[teacher].source
    return f"from {source.partition(':')[0]} weights" if source else "trained there"


def _plain(network: Mapping[str, object]) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in network.items()}


def rows_of(sampler_run: SamplerRun, rows: list[Row], settings: Settings) -> tuple[Row, ...]:
    """The rows of results.json that belong to `sampler_run`."""
    identity = (
        experiment_of(settings, sampler_run),
        sampler_run.method,
        sampler_run.nfe,
        sampler_run.students,
        sampler_run.width,
    )
    return tuple(
        r
        for r in rows
        if (r.experiment, r.method, r.nfe, r.students, r.width) == identity
        and r.seed == settings.seed
    )
