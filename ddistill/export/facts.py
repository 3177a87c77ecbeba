"""What an exported network is: levels, owners and numbers, for machines and for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.sampling_plan import Call, experiment_of
from ddistill.networks import WITHOUT_PARAMETERS as IDLE
from ddistill.networks.unet import UNet
from ddistill.settings import Settings
from ddistill.students import RoutedDenoiser
from ddistill.text import markdown, printable

FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """A call of a run with what is needed to write it.

    Attributes:
      call: which network, levels and sampler.
      network: its denoiser, or its students as one.
      settings: the run's.
      data: name of its data set.
      num_classes: of the data.
      rows: what the run has scored it with; may be empty.
      licence: of the weights, as the user names it.
    """

    call: Call
    network: Denoiser | RoutedDenoiser
    settings: Settings
    data: str
    num_classes: int
    rows: tuple[Row, ...]
    licence: str

    @property
    def denoiser(self) -> Denoiser:
        """The network; its parameters are a stack where there are many students."""
        return self.network.students if isinstance(self.network, RoutedDenoiser) else self.network

    @property
    def students(self) -> list[Denoiser]:
        """Every student alone."""
        if not isinstance(self.network, RoutedDenoiser):
            return [self.network]
        return [self.network.student(k) for k in range(self.network.partition.count)]

    @property
    def conditional(self) -> bool:
        """Whether the network is told a class."""
        return self.call.student_plan.tables.classes is not None

    @property
    def clip(self) -> float:
        """Bound of x0 predictions; 0 for none."""
        return self.settings.evaluation.clip

    @property
    def unet(self) -> UNet:
        """The students' network.

        Raises:
          ConfigError: it is another one than our U-Net.
        """
        module = self.call.plan.module
        if not isinstance(module, UNet):
            name = self.call.plan.settings.network["name"]
            raise ConfigError(
                f"stage '{self.call.plan.name}' is a network '{name}', which diffusers does not "
                "have. Use --to=stablehlo or --to=safetensors."
            )
        return module

    def owners(self) -> np.ndarray:
        """`[N, C]`: who answers at levels 1 .. N for each class; C is 1 without classes."""
        levels, count = self.call.levels, self.num_classes if self.conditional else 1
        table = np.zeros((levels.num_steps, count), np.int64)
        if isinstance(self.network, RoutedDenoiser):
            for i in range(levels.num_steps):
                owner = self.network.partition.owner(levels.at(i + 1), jnp.arange(count))
                table[i] = np.broadcast_to(np.asarray(owner), count)
        return table

    def manifest(self, time_scale: float = 1.0) -> dict[str, Any]:
        """ddistill.json: everything that sampling needs beside the weights.

        Args:
          time_scale: what the times are multiplied by.
        """
        call, levels = self.call, self.call.levels
        return {
            "format": FORMAT,
            "stage": call.plan.name,
            "data": self.data,
            "image_shape": list(call.plan.image_shape),
            "network": _plain(call.plan.settings.network),
            "prediction": self.denoiser.prediction,
            "sigma_data": self.denoiser.sigma_data,
            "conditional": self.conditional,
            "num_classes": self.num_classes if self.conditional else 0,
            "sampler": call.sampler,
            "nfe": call.nfe,
            "clip": self.clip,
            # Entry 0 is the clean end, where no network is asked.
            "levels": {
                "alpha": [float(x) for x in levels.alpha],
                "sigma": [float(x) for x in levels.sigma],
                "time": [float(x) * time_scale for x in levels.time],
            },
            "owners": self.owners().tolist(),
            "licence": self.licence,
        }

    def card(self, how: str, library: str = "") -> str:
        """A model card in markdown.

        Args:
          how: the example, in Python.
          library: which the files are for, if any.
        """
        call, s = self.call, self.call.plan.settings
        teacher = self.settings.evaluation.teacher
        options = {k: v for k, v in _plain(s.network).items() if k not in ("name", *IDLE)}
        network = f"{s.network['name']}, " + ", ".join(f"{k}={v}" for k, v in options.items())
        lines = [
            "---",
            # JSON's strings are YAML's too, but for characters that JSON gives as two halves.
            f"license: {json.dumps(printable(self.licence or 'unknown'), ensure_ascii=False)}",
            *([f"library_name: {library}"] if library else []),
            "tags: [diffusion, distillation, ddistill]",
            "---",
            f"# {markdown(self.settings.name)}: {markdown(call.label)}",
            "",
            f"* Data: {markdown(self.data)}, "
            f"images of {' x '.join(map(str, call.plan.image_shape))} "
            "(height, width, channels)" + (f", {self.num_classes} classes" * self.conditional),
            f"* Method: {s.method or 'none, this is the teacher'}"
            + (f", {call.students} students" if call.students > 1 else ""),
            f"* Teacher: stage '{markdown(teacher)}' of the run, {_source(self.settings, teacher)}",
            f"* Network: {markdown(network)}; predicts {self.denoiser.prediction}",
            f"* Network evaluations an image (NFE): {call.nfe}, with {call.sampler}",
            "* Licence: " + markdown(self.licence or "not stated; ask whoever trained the teacher"),
            "",
            "## Scores",
            "",
            *(self._scores() or ["The run has not scored it."]),
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


def _plain(network: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in network.items()}


def rows_of(call: Call, rows: list[Row], settings: Settings) -> tuple[Row, ...]:
    """The run's rows of this call."""
    ours = (experiment_of(settings, call), call.method, call.nfe, call.students, call.width)
    return tuple(
        r
        for r in rows
        if (r.experiment, r.method, r.nfe, r.students, r.width) == ours and r.seed == settings.seed
    )
