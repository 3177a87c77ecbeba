"""The identity of a stage: everything that the result of its training depends on, and its hash.

`FIELDS` gives the kind of every setting. An identity holds the settings that change the training
and, in place of the settings of data and files, the hashes of their content. Two stages of equal
digest are the same training, wherever their data lie and however they are run.
"""

import dataclasses
import enum
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddistill import networks
from ddistill.data import SOURCES
from ddistill.data.digits import DigitsSettings
from ddistill.data.folder import FolderSettings
from ddistill.data.latents.reader import LatentsSettings
from ddistill.data.parquet import ParquetSettings
from ddistill.data.text_digits import TextDigitsSettings
from ddistill.data.tfds import TfdsSettings
from ddistill.extensions import added, in_use
from ddistill.objectives import Objective, hyperparameters
from ddistill.objectives.base import trained_auxiliaries
from ddistill.optimizers import settings_used
from ddistill.parsing import to_plain
from ddistill.protocol_settings import ProtocolSettings
from ddistill.schedules import SCHEDULES
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    LowRankSettings,
    MeshSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
    TrainingSettings,
)

# Goes up where the same settings mean another training.
FORMAT = 5


class Kind(enum.Enum):
    """How a setting enters the identity of a stage."""

    LEARNT = "another value is another training"
    GROUP = "settings that have a kind each"
    CONTENT = "names data or files, of which the content counts"
    PLANNED = "names other stages, of which the digests and roles count"
    RUN = "how a training is run: pace, memory, devices, logs"
    NAME = "names and places of results"
    SCORED = "how students are sampled and scored"


def _all(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


FIELDS: dict[type, dict[str, Kind]] = {
    Settings: {
        **_all(Kind.LEARNT, "seed"),
        **_all(Kind.GROUP, "stages data schedule training evaluation"),
        **_all(Kind.PLANNED, "pipeline"),
        **_all(Kind.NAME, "name"),
    },
    ScheduleSettings: _all(Kind.LEARNT, "name steps options"),
    StageSettings: {
        **_all(Kind.LEARNT, "objective steps batch_size network prediction guidance accumulate"),
        **_all(Kind.LEARNT, "ema ema_warmup select_checkpoint keep_every conditional"),
        **_all(Kind.LEARNT, "teacher init resume pairs latents"),
        **_all(Kind.GROUP, "grid optimizer optimizers students low_rank"),
        **_all(Kind.PLANNED, "classifier"),
        **_all(Kind.CONTENT, "source"),
        **_all(Kind.NAME, "shared method variant"),
        **_all(Kind.SCORED, "samplers sample_guidance mid_levels"),
    },
    GridSettings: _all(Kind.LEARNT, "steps spacing explicit time"),
    OptimizerSettings: _all(
        Kind.LEARNT,
        "name learning_rate schedule warmup final_scale clip weight_decay b1 b2 eps momentum "
        "milestones decay",
    ),
    LowRankSettings: _all(Kind.LEARNT, "rank targets networks"),
    StudentsSettings: {
        **_all(
            Kind.LEARNT,
            "count partition spacing boundaries margin full_range_share grouping groups",
        ),
        **_all(Kind.LEARNT, "ranges sweep on_divergence text_split column pool"),
        **_all(Kind.CONTENT, "embeddings"),
        **_all(Kind.RUN, "mapping"),
    },
    # `checkpoint_every` changes the result with select_checkpoint="best", and `normalised` adds it:
    # it decides which checkpoints there are. Their scores are means over the steps between them,
    # whatever `log_every` is. A stage that an alarm ends hands on nothing.
    TrainingSettings: {
        **_all(Kind.RUN, "log_every checkpoint_every keep scan_steps preview_every loggers"),
        **_all(Kind.GROUP, "mesh"),
    },
    MeshSettings: _all(Kind.RUN, "student data model fsdp smallest"),
    EvaluationSettings: {
        **_all(
            Kind.SCORED,
            "enabled teacher classifier features samples batch_size noise_seed teacher_samplers "
            "full_sampler teacher_spacing full_steps student_sampler guidance guidances clip "
            "grid_images strip_images interpolations lpips_weights tuned_on",
        ),
        **_all(Kind.GROUP, "protocol"),
    },
    ProtocolSettings: _all(Kind.SCORED, "name prompts real inception clip clip_digest"),
    DigitsSettings: _all(Kind.CONTENT, "name flip"),
    FolderSettings: {
        **_all(Kind.CONTENT, "name path image_size channels on_bad_image flip splits"),
        **_all(Kind.CONTENT, "test_fraction metadata label_column"),
        **_all(Kind.RUN, "in_memory_limit_mb workers"),
    },
    LatentsSettings: {
        **_all(Kind.CONTENT, "name path flip"),
        **_all(Kind.RUN, "in_memory_limit_mb"),
    },
    TextDigitsSettings: _all(Kind.CONTENT, "name flip"),
    ParquetSettings: {
        **_all(Kind.CONTENT, "name path image_column label_column image_size channels flip"),
        **_all(Kind.CONTENT, "on_bad_image test_fraction"),
        **_all(Kind.RUN, "in_memory_limit_mb workers"),
    },
    TfdsSettings: {
        **_all(Kind.CONTENT, "name path data_dir image_key label_key image_size channels flip"),
        **_all(Kind.CONTENT, "test_fraction"),
        **_all(Kind.RUN, "in_memory_limit_mb workers"),
    },
}
# Settings of students without effect unless they divide texts.
OF_TEXTS = ("text_split", "column", "pool")
# Options that change how a network is computed, and not its result.
COMPUTED = ("remat", "conv_impl", "attention_impl")


def kinds_of(cls: type) -> Mapping[str, Kind]:
    """The kind of every setting of a dataclass.

    The settings of a data source that a user has registered are `CONTENT`, or `RUN` where the field
    has the metadata {"run": True}.

    Raises:
      KeyError: the class is not in `FIELDS`, where every new setting has to be put.
    """
    if cls not in FIELDS and any(
        cls is source.settings and added("data", name) for name, source in SOURCES.items()
    ):
        fields = dataclasses.fields(cls)
        return {f.name: Kind.RUN if f.metadata.get("run") else Kind.CONTENT for f in fields}
    return FIELDS[cls]


def kind_of(cls: type, name: str) -> Kind:
    """The kind of a setting; errors as of `kinds_of`."""
    return kinds_of(cls)[name]


def learnt(settings: object) -> Any:
    """The settings of a dataclass that change the training, as nested dictionaries."""
    if isinstance(settings, Mapping):
        return {str(key): learnt(value) for key, value in settings.items()}
    if not dataclasses.is_dataclass(settings):
        return to_plain(settings)
    found = {}
    for field in dataclasses.fields(settings):
        kind, value = kind_of(type(settings), field.name), getattr(settings, field.name)
        if kind is Kind.LEARNT:
            found[field.name] = to_plain(value)
        elif kind is Kind.GROUP:
            found[field.name] = learnt(value)
    return found


@dataclass(frozen=True)
class Inputs:
    """What a stage reads beside its settings.

    Attributes:
      data: the identity of the training images, see `Dataset`.
      stages: by name, the digests of the stages that it learns from, starts from or reads.
      files: hash of the files of the network that it imports, "" for none.
    """

    data: Mapping[str, str | int | bool]
    stages: Mapping[str, str]
    files: str = ""


def make_identity(
    name: str, stage: StageSettings, objective: Objective, settings: Settings, inputs: Inputs
) -> dict[str, Any]:
    """Everything that the result of a stage depends on, as JSON represents it.

    Args:
      name: of the stage, from which its random streams are made.
      stage: its settings, resolved.
      objective: its method, prepared.
      settings: the run's.
      inputs: what the stage reads.
    """
    own = normalised(stage, objective, settings)
    own["init"] = "" if stage.resume else str(stage.init_checkpoint)
    own["optimizers"] = {
        n: settings_used(stage.optimizer_of(n)) for n in trained_auxiliaries(objective)
    }
    if inputs.files:
        own["source"] = inputs.files
    found: dict[str, object] = {
        "format": FORMAT,
        "name": name,
        "seed": settings.seed,
        "data": dict(inputs.data),
        "schedule": _schedule(settings.schedule),
        "stage": own,
        "sources": dict(inputs.stages),
    }
    names = {"objective": {str(stage.objective["name"])}, "network": {str(stage.network["name"])}}
    names["data"] = {str(settings.data.get("name", ""))}
    versions = {f"{e.kind} {e.name}": e.version for e in in_use(names)}
    if versions:
        found["extensions"] = versions
    return json.loads(json.dumps(found, sort_keys=True, default=_plain))


def normalised(stage: StageSettings, objective: Objective, settings: Settings) -> dict[str, Any]:
    """The stage's own settings in a normal form: equal trainings have equal forms.

    Settings without effect are left out, and defaults are filled in.
    """
    own = learnt(stage)
    own["objective"] = _objective(stage.objective, objective)
    own["network"] = _network(stage.network)
    own["optimizer"] = settings_used(stage.optimizer_of("student"))
    own["optimizers"] = {name: settings_used(o) for name, o in stage.optimizers.items()}
    own["teacher"] = str(stage.teacher_checkpoint)
    if not stage.keep_every:
        del own["keep_every"]
    if not stage.latents:
        del own["latents"]
    if stage.grid.explicit:
        own["grid"] = {k: v for k, v in own["grid"].items() if k not in ("steps", "spacing")}
    if not stage.students.count:
        del own["students"]
    elif not by_text(stage):
        # Stages of other partitions keep the digests that they had before there were these.
        for name in OF_TEXTS:
            del own["students"][name]
    if not stage.low_rank.rank:
        del own["low_rank"]
    if stage.select_checkpoint == "best":
        own["checkpoint_every"] = settings.training.checkpoint_every
    return own


def by_text(stage: StageSettings) -> bool:
    """Whether the students of a stage divide texts among them; the settings are resolved."""
    kind = stage.students.partition
    reads = networks.reads_text(str(stage.network.get("name", "")))
    return kind == "texts" or (kind == "both" and reads)


def digest_of(identity: Mapping[str, object]) -> str:
    """SHA-256 of a stage's identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _objective(given: Mapping[str, object], objective: Objective) -> dict[str, object]:
    name, idle = str(given["name"]), objective.inert_hparams()
    return {k: v for k, v in _filled_in(given, hyperparameters(name)).items() if k not in idle}


def _network(given: Mapping[str, object]) -> dict[str, object]:
    name = str(given["name"]) if "name" in given else ""
    defaults = networks.defaults(name) if name else {}
    usual = {k: v for k, v in defaults.items() if v is not dataclasses.MISSING}
    full = _filled_in(given, usual)
    off = {key for key, value in networks.OPTIONAL.items() if full.get(key) in (value, [])}
    return {k: to_plain(v) for k, v in full.items() if k not in COMPUTED and k not in off}


def _filled_in(given: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Settings with defaults in a normal form: 1 for a float is 1.0, "a" for a tuple is ("a",)."""

    def written(value: object, default: object) -> object:
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(default, tuple) and not isinstance(value, (tuple, list)):
            return (value,)
        return value

    return {
        **defaults,
        **{key: written(value, defaults.get(key)) for key, value in given.items()},
    }


def _schedule(s: ScheduleSettings) -> dict[str, object]:
    parameters = inspect.signature(SCHEDULES[s.name]).parameters.values()
    own = {p.name: p.default for p in parameters if p.name not in ("T", "dtype")}
    options = {key: value for key, value in own.items() if value is not inspect.Parameter.empty}
    full = _filled_in(to_plain(s.options), options)
    if full.get("zero_snr") is False:  # as the schedules were before they had this option
        del full["zero_snr"]
    return {"name": s.name, "steps": s.steps, "options": full}


def differences(
    theirs: Mapping[str, object],
    ours: Mapping[str, object],
    their_lineage: Mapping[str, Mapping[str, object]],
    our_lineage: Mapping[str, Mapping[str, object]],
) -> list[str]:
    """The settings in which two stages differ, each with its old and its new value.

    Args:
      theirs, ours: identities.
      their_lineage, our_lineage: by name, the identities of the stages that they rest on.
    """
    lines = _compare(theirs, ours)
    for name, now in our_lineage.items():
        was = their_lineage.get(name)
        # Differences that all stages share, such as the data, are listed once.
        new = [x for x in _compare(was, now) if x not in lines] if isinstance(was, dict) else []
        lines += [f"stage '{name}': {line}" for line in new]
    return lines


def _compare(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    lines: list[str] = []

    def walk(a: object, b: object, at: str) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() | b.keys()):
                walk(a.get(key), b.get(key), f"{at}.{key}" if at else key)
        elif a != b:
            lines.append(f"{at} was {_short(a)} and is now {_short(b)}")

    walk(_flat(theirs), _flat(ours), "")
    return lines


def _flat(identity: Mapping[str, object]) -> dict[str, object]:
    """An identity with the stage's own settings beside the run's, and the names of its sources."""
    own, sources = identity.get("stage"), identity.get("sources")
    found = {key: value for key, value in identity.items() if key not in ("stage", "sources")}
    if isinstance(own, dict):
        found.update(own)
    return {**found, "sources": sorted(sources) if isinstance(sources, dict) else []}


def _short(value: object) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _plain(value: Any) -> Any:
    """A value that JSON has no type for, the same in every process."""
    if hasattr(value, "tolist"):  # of numpy
        return value.tolist()
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"{value!r} of type {type(value).__name__} is no setting.")
