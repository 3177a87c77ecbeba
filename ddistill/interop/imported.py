"""A teacher that another library trained: the result of every reader of such teachers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ddistill.runtime.schemas import COUNT, OBJECT, TEXT, WHOLE, Schema, list_of, map_of, maybe
from ddistill.typing import JsonObject, JsonRecord, Options, Params

# Of `Imported.facts`, as a run notes them.
FACTS = Schema(
    {
        "network": OBJECT,
        "prediction": TEXT,
        "schedule": maybe(OBJECT),
        "image_shape": maybe(list_of(COUNT, 3, 3)),
        "num_classes": WHOLE,
        "digest": TEXT,
        "source": TEXT,
        "licence": TEXT,
    },
    {"hub_id": TEXT, "revision": TEXT, "kind": TEXT, "parts": map_of(TEXT)},
)


@dataclass(frozen=True)
class Imported:
    """A network of ddistill with the weights of another library, and its facts.

    Attributes:
      network: the value of `stages.NAME.network` in a config: the name of a network of ddistill,
        and its options.
      params: its parameters as nested dictionaries of float32 numpy arrays; None for a network
        that was read from the facts of a run.
      prediction: its prediction type, one of `ddistill.diffusion.KINDS`.
      schedule: the fields of `ScheduleSettings` that the file defines; None for none.
      image_shape: (height, width, channels) of the images that it was trained on; None for a
        network that takes images of any size.
      num_classes: 0 for an unconditional network.
      digest: SHA-256 of the file or files, in hexadecimal.
      source: the setting of the user, and which of several networks was read.
      licence: of the weights; "" if unknown.
      hub_id: the model's repository on the Hugging Face hub, "ORG/NAME"; "" for files of this
        machine.
      revision: the commit of the repository; "" for files of this machine.
      kind: the kind of network that a stage has to train, "denoiser" or "classifier".
      parts: of a text-to-image pipeline, SHA-256 by "vae", "text_encoder" and "tokenizer".
      folder: of such a pipeline, whose parts a stage copies; None for a network that was read from
        the facts of a run.
    """

    network: Options
    params: Params | None
    prediction: str
    schedule: Options | None
    image_shape: tuple[int, int, int] | None
    num_classes: int
    digest: str
    source: str
    licence: str = ""
    hub_id: str = ""
    revision: str = ""
    kind: str = "denoiser"
    parts: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def facts(self) -> JsonObject:
        """Everything but parameters and folder, for JSON."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.parts:
            del named["parts"]
        return {n: value for n, value in named.items() if n not in ("params", "folder")}


def from_facts(facts: JsonRecord) -> Imported:
    """A network of which `facts` are known (`Imported.facts`), without parameters."""
    shape = tuple(facts["image_shape"]) if facts["image_shape"] else None
    network = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["network"].items()}
    return Imported(**{**facts, "params": None, "image_shape": shape, "network": network})
