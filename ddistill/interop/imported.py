"""A network of another project, in our terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Imported:
    """A denoiser that somebody else has trained.

    Attributes:
      network: what `config.stages.X.network` holds: its name and its options.
      params: the parameters of that network, nested dictionaries of float32 numpy arrays.
      prediction: what it predicts: "x0", "eps", "v" or "edm".
      schedule: `ddistill.settings.ScheduleSettings` as a dictionary; None where the file does not
        say on what levels the network was trained.
      image_shape: (H, W, C).
      num_classes: 0 for an unconditional network.
      digest: SHA-256 of the weights and settings that were read, in hexadecimal.
      source: what it was read from, as the user named it.
      licence: of the weights, where the files or their project say; "" otherwise.
    """

    network: Mapping[str, Any]
    params: Mapping[str, Any]
    prediction: str
    schedule: Mapping[str, Any] | None
    image_shape: tuple[int, int, int]
    num_classes: int
    digest: str
    source: str
    licence: str = ""
