"""The cases of `pinned_losses`: settings of objectives, and what their stages give them."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

from ddistill import recipes
from ddistill.diffusion import WEIGHTS
from ddistill.objectives.consistency import DISTANCES, STEP_WEIGHTS
from ddistill.objectives.distances import ERRORS, REGRESSIONS
from ddistill.objectives.matching.adversarial import DIVERGENCES
from ddistill.objectives.progressive import LOSSES
from ddistill.objectives.sampling import LAWS
from ddistill.recipes.cifar import feature_classifier_stage, scorer_stage
from ddistill.settings import OptimizerSettings, StageSettings


@dataclass(frozen=True)
class Case:
    """An objective and what its stage gives it.

    Attributes:
      objective: name and hyperparameters.
      schedule, T: the teacher's levels.
      levels, spacing, grid, time: the student's; 0 levels are all of the teacher's.
      prediction: of all denoisers.
      classes: 0 for unconditional networks.
      own: the student's classes; all where there are none.
      low, high, full_range_share: the student's share of the levels, see `LevelTables`.
      guidance: scale of the teacher's.
      student_width: channels of its features; the teacher has 5.
      program: whether numbers are taken from the tables, as in training, and not from the fields.
      panels: whether pictures are pinned too.
    """

    objective: dict[str, Any]
    schedule: str = "cosine"
    T: int = 6
    levels: int = 0
    spacing: str = "trailing"
    grid: tuple[int, ...] = ()
    time: str = "mapped"
    prediction: str = "v"
    classes: int = 0
    own: tuple[int, ...] = ()
    low: int = 1
    high: int = 0
    full_range_share: float | None = None
    guidance: float = 1.0
    student_width: int = 5
    program: bool = True
    panels: bool = field(default=False)


CASES: dict[str, Case] = {}
# Every other one of the weights is pinned with these; "flow" has cases of its own.
QUANTITIES = ERRORS[:3]
# What a stage gives, by the names of `Case`; all else is a hyperparameter.
_OF_STAGE = {f.name for f in dataclasses.fields(Case)} - {"objective"}
KARRAS: dict[str, Any] = {"schedule": "karras", "prediction": "edm"}
# The path's times go up to 1000, whose sines have few digits in the small network of the cases.
FLOW: dict[str, Any] = {"schedule": "linear_path", "prediction": "flow", "time": "index"}


def add(label: str, name: str, **options: Any) -> None:
    """Adds the case NAME/LABEL.

    An option that both a case and the objective know is the case's; `_` before it tells the other.
    """
    stage = {k: v for k, v in options.items() if k in _OF_STAGE}
    loss = {k.removeprefix("_"): v for k, v in options.items() if k not in _OF_STAGE}
    assert f"{name}/{label}" not in CASES, label
    CASES[f"{name}/{label}"] = Case({"name": name, **loss}, **stage)


CRITIC = {
    "critic": {"classifier_weight": 1.0},
    "critic_tau": {"classifier_weight": 0.5, "tau": 0.6},
    "critic_beta": {"classifier_weight": 1.0, "beta": 0.3},
    "critic_entropy": {"classifier_weight": 1.0, "beta": 0.3, "gamma": 1.0},
    "critic_diversity": {"classifier_weight": 2.0, "beta": 0.3, "gamma": 0.0, "tau": 0.95},
}


def _denoising() -> None:
    name = "denoising"
    dropped = {"label_dropout": 0.5, "null_class": 3, "classes": 3}
    # Every pair of error and weight, every other one with the other law and with dropped labels.
    for i, (error, weight) in enumerate(itertools.product(ERRORS, WEIGHTS)):
        law, drops = LAWS[i % 2], (i // 2) % 2
        label = f"{error}_{weight}_{law}{'_dropout' * drops}"
        add(label, name, error=error, weight=weight, _levels=law, **(dropped if drops else {}))
    add("min_snr_gamma", name, weight="min_snr", min_snr_gamma=1.5)
    for law in LAWS:
        add(f"range_{law}", name, _levels=law, low=2, high=4)
        add(f"outside_{law}", name, _levels=law, low=5, high=6, full_range_share=0.5)
    for kind in ("x0", "eps"):
        add(f"predicts_{kind}", name, prediction=kind)
    add("karras", name, error="x0", weight="edm", _levels="lognormal", **KARRAS)
    for label, own in CRITIC.items():
        add(label, name, **own)
    add("usual", "degradation")
    add("classes", "degradation", _levels="lognormal", **dropped, **KARRAS)
    add("flow", name, error="flow", **FLOW)
    add("flow_v", name, error="v", weight="edm", **{**FLOW, "prediction": "v"})
    own = {"time_mean": -0.4, "time_std": 1.3, "time_shift": 2.0}
    add("logit_normal", name, error="flow", _levels="logit_normal", **own, **FLOW)
    add("shifted", name, error="flow", _levels="shifted", time_shift=3.0, **FLOW)


def _progressive() -> None:
    name = "progressive"
    for loss in LOSSES:
        add(loss, name, loss=loss, levels=3)
        add(f"{loss}_conditional", name, loss=loss, levels=3, classes=3, prediction="x0")
    for label, own in CRITIC.items():
        add(label, name, levels=3, **own)
        add(f"{label}_only", name, levels=3, pixel_weight=0.0, **own)
    add("pixel_weight", name, levels=3, pixel_weight=0.3)
    add("range", name, levels=3, low=2, high=3)
    add("one_step", name, grid=(0, 6), prediction="eps")
    add("uneven", name, grid=(0, 2, 6))
    add("guided", name, levels=3, classes=3, guidance=2.0)
    add("guidance_range", name, levels=3, classes=3, guidance_range=(0.5, 4.0))
    add("karras", name, levels=3, **KARRAS)


def _consistency() -> None:
    for name, solvers in (("cd", ("heun", "ddim")), ("ct", ("",))):
        for solver in solvers:
            own = {"solver": solver} if solver else {}
            add(f"usual_{solver or 'data'}", name, **own)
            add(f"karras_{solver or 'data'}", name, **KARRAS, **own)
        for label, critic in list(CRITIC.items())[::2]:
            add(label, name, consistency_weight=0.5, **critic)
    for i, distance in enumerate(DISTANCES):
        huber = {"huber": 0.01} if "huber" in distance else {}
        weight, law = STEP_WEIGHTS[i % len(STEP_WEIGHTS)], LAWS[i % 2]
        add(distance, "ct", distance=distance, step_weight=weight, law=law, **huber)
    add("skip", "cd", level_skip=3, classes=3, prediction="eps", solver="ddim")
    add("guided", "cd", classes=3, guidance=2.0)
    add("average", "cd", target_ema=0.9)
    replay = {"student_states": 0.9, "replay_batches": 1, "clip_x0": True}
    add("replayed_states", "cd", target_ema=0.9, student_walk=2, level_skip=2, **replay)
    guided = {"guidance_range": (1.0, 3.0), "classes": 3}
    add("guided_replay", "cd", **{**replay, **guided, "clip_x0": False})
    add("guidance_range", "cd", classes=3, target_ema=0.9, guidance_range=(1.0, 3.0))
    add("doubling", "ct", curriculum="doubling", first_intervals=2)
    add("law", "ct", law="lognormal", log_mean=-0.5, log_std=1.0, **KARRAS)
    add("ect", "ct", curriculum="ect", ect_q=4.0, ect_stages=3, **KARRAS)


def _paths() -> None:
    add("usual", "sfd", T=24, grid=(0, 8, 24))
    add("counts", "sfd", T=24, step_counts=(1, 2), substeps=3)
    add("ddim", "sfd", T=24, grid=(0, 8, 24), solver="ddim", substeps=3, state_norm="l2", classes=3)
    add("analytic", "sfd", T=24, grid=(0, 8, 16, 24), analytic_first=True, **without(KARRAS, "T"))
    for name in ("boot", "pid"):
        add("usual", name, classes=3)
        uniform = {"step_weight": "uniform"} if name == "boot" else {}
        add("karras", name, distance="pseudo_huber", **uniform, **KARRAS)
        add("features", name, distance="classifier", **uniform)
    add("plain", "boot", step_weight="uniform", boundary_weight=0.5)
    for order in (1, 2):
        own = {"runge_kutta": order, "largest_step": 0.5}
        add(f"order_{order}", "catch_up", classes=3, **own, **FLOW)
        add(f"karras_{order}", "catch_up", data_weight=0.3, catch_up_weight=2.0, **own, **KARRAS)


def _two_times() -> None:
    from_teacher = {"velocity_from": "teacher"}
    for name, levels in (("meanflow", 6), ("shortcut", 4)):
        each = {"T": levels} | ({"doubled_every": 2} if name == "shortcut" else {})
        add("data", name, classes=3, **each, **FLOW)
        add("teacher", name, **from_teacher, **each)
        add("guided_teacher", name, classes=3, guidance=2.0, **from_teacher, **each, **FLOW)
        add("karras", name, **each, **KARRAS)
    below = {"end_rule": "below", "end_mean": -2.0, "adaptive_power": 0.75, "instant_share": 0.5}
    add("below", "meanflow", **below, adaptive_floor=1e-3, **FLOW)
    uniform = {"time_law": "uniform", "instant_share": 0.0}
    add("plain", "meanflow", adaptive_power=0.0, **uniform, **FLOW)
    law = {"end_rule": "below", "end_std": 0.6, "time_mean": 0.2, "time_std": 0.7}
    add("law", "meanflow", tangent_warmup=40, **law, **FLOW)
    own = {"data_guidance": 0.5, "own_guidance": 0.25, "label_dropout": 0.3, "null_class": 3}
    add("guidance", "meanflow", classes=3, **own, **uniform, **FLOW)
    add("average", "shortcut", T=8, doubled_every=4, target_ema=0.9, velocity_bound=0.5, **FLOW)
    at_once: dict[str, Any] = {"tangent_warmup": 0}
    add("teacher", "scm", **at_once)
    add("karras", "scm", classes=3, guidance=2.0, **at_once, **KARRAS)
    add("data", "scm", velocity_from="data", inverse_sigma=True, **at_once, **FLOW)
    add("plain", "scm", tangent_norm="none", learned_weight=False, sigma_data=0.8, **at_once)
    add("warm_up", "scm", tangent_norm="l2")
    add("law", "scm", log_mean=-0.5, log_std=1.0, tangent_floor=0.3, **at_once)
    add("usual", "rcm", consistency_weight=100.0, **at_once)
    add("weights", "rcm", consistency_weight=10.0, log_mean=0.2, log_std=1.0, **at_once)
    warm = {"tangent_warmup": 1000, "consistency_weight": 100.0}
    add("learned", "rcm", learned_weight=True, gan_weight=0.1, rollout_length=2, **warm, **KARRAS)


def _relations() -> None:
    name = "rdd"
    queue: dict[str, Any] = {"queue_rows": 11, "rows_per_step": 4, "contrast_rows": 7}
    add("usual", name, levels=3, **queue)
    add("intra", name, levels=3, intra_weight=2.0, memory_weight=0.0, tau=0.6)
    memory = {"intra_weight": 0.0, "contrast_temperature": 0.2}
    add("memory", name, levels=3, beta=0.2, gamma=0.4, **memory, **queue)
    alone = {"loss": "x0", "pixel_weight": 0.3, "classifier_weight": 0.0}
    guided = {"guidance_range": (1.0, 1.5), "contrast_temperature": 2.0}
    add("guidance_range", name, levels=3, classes=3, **guided, **queue)
    add("alone", name, levels=3, **alone, **memory, **queue)


def _sfddm() -> None:
    name = "sfddm"
    # All levels: weights differ from each other where little noise is.
    only = {"hidden_weight": 0.0, "substeps": 1}
    for kind in ERRORS:
        for norm in ("l1", "l2"):
            add(
                f"output_{kind}_{norm}",
                name,
                output_weight=1.0,
                output=kind,
                output_norm=norm,
                **only,
            )
    for kind, weight in zip(QUANTITIES * 2, WEIGHTS):
        own = {"output": kind, "output_level_weight": weight}
        add(f"output_{kind}_{weight}", name, output_weight=0.5, **own, **only)
        own = {"hidden_error": kind, "hidden_level_weight": weight}
        add(f"hidden_{kind}_{weight}", name, substeps=1, lookback=False, **own)
    for solver, back, k in (
        ("ddim", False, 3),
        ("dpm_solver_pp", False, 3),
        ("dpm_solver_pp", True, 2),
        ("dpm_solver_pp", True, 3),
    ):
        own = {"solver": solver, "lookback": back, "substeps": k}
        add(f"walk_{solver}_{'back' if back else 'plain'}_{k}", name, levels=2, **own)
    add("walk_all", name, levels=2, substeps=0)
    for tap in ("last", "mid"):
        add(f"feature_{tap}", name, feature_weight=1.0, tap=tap, **only)
    everything = {"output_weight": 0.7, "feature_weight": 0.3, "hidden_weight": 1.3}
    for label, more in (("all", {}), ("all_fields", {"program": False})):
        for k in (1, 3) if not more else (2,):
            own = {**everything, "classifier_weight": 0.9, "beta": 0.2, "substeps": k}
            add(f"{label}_{k}", name, levels=2, **own, **more)
    for label, own in CRITIC.items():
        add(label, name, levels=2, substeps=2, hidden_weight=0.5, **own)
    for label in ("critic", "critic_beta"):
        add(f"{label}_only", name, levels=2, substeps=3, hidden_weight=0.0, **CRITIC[label])
    add("hidden_weight", name, levels=2, substeps=3, hidden_weight=0.4)
    add("index_time", name, levels=3, substeps=1, spacing="leading", time="index")
    add("uneven", name, grid=(0, 2, 6), substeps=2)
    add("uneven_all", name, grid=(0, 2, 6), substeps=0)
    add("range", name, levels=3, substeps=2, low=2, high=3)
    add("conditional", name, levels=2, substeps=3, classes=3, prediction="eps")
    add("guided", name, levels=2, substeps=3, classes=3, guidance=2.0, output_weight=1.0)
    add("karras", name, levels=2, substeps=3, **KARRAS)


def _o2mkd() -> None:
    name = "o2mkd"
    for error, weight in zip(QUANTITIES * 2, WEIGHTS):
        add(f"{error}_{weight}", name, error=error, weight=weight)
    task = {"output_weight": 0.0, "task_weight": 1.0}
    add("task", name, **task)
    add("output_and_task", name, output_weight=0.4, task_weight=0.7, error="v")
    features = {"feature_weight": 0.1}
    for width in (5, 3):
        add(f"features_{width}", name, student_width=width, **features)
        add(f"features_only_{width}", name, student_width=width, output_weight=0.0, **features)
        add(f"one_feature_{width}", name, student_width=width, features=("last",), **features)
        everything = {"task_weight": 0.2, "classifier_weight": 0.6, "beta": 0.1, "error": "x0"}
        add(f"all_{width}", name, student_width=width, **everything, **features)
    for label, own in CRITIC.items():
        add(label, name, **own)
    for label in ("critic", "critic_beta"):
        add(f"{label}_only", name, output_weight=0.0, **CRITIC[label])
    add("range", name, low=2, high=4)
    add("full_range_share", name, low=5, high=6, full_range_share=0.5)
    add("conditional", name, classes=3, prediction="eps")
    add("dropped", name, classes=3, label_dropout=0.5, null_class=3)
    add("guided", name, classes=3, guidance=2.0)
    add("index_time", name, levels=3, spacing="leading", time="index")
    add("karras", name, **KARRAS)
    for owner in ("teacher", "student"):
        add(f"{owner}_states", name, **{f"{owner}_states": 0.6})
    walked = {"student_states": 0.7, "student_walk": 2, "clip_x0": True}
    add("walked_states", name, **walked, teacher_states=0.2)
    add("replayed_states", name, classes=3, student_states=1.0, replay_batches=2, replay_share=0.6)


def _tsm() -> None:
    # A preset of O2MKD.
    add("usual", "tsm")
    add("snr_uniform", "tsm", weight="snr", _levels="uniform")
    add("conditional", "tsm", classes=3, prediction="eps")
    add("dropped", "tsm", classes=3, label_dropout=0.5, null_class=3)
    add("range", "tsm", low=2, high=4)
    add("full_range_share", "tsm", low=5, high=6, full_range_share=0.5)
    add("karras", "tsm", **KARRAS)
    add("guided", "tsm", classes=3, guidance=2.0)


def _classification() -> None:
    name = "classification"
    add("plain", name)
    add("smoothing", name, label_smoothing=0.1)
    add("shift", name, shift=1)
    add("shift_fill", name, shift=2, fill=0.0)
    add("cutout", name, cutout=2)
    add("cutout_fill", name, cutout=3, fill=0.5)
    add("all", name, shift=1, cutout=2, fill=0.25, label_smoothing=0.05)


def _autoencoder() -> None:
    name = "autoencoder"
    add("l1", name)
    add("l2", name, reconstruction="l2", kl_weight=0.1)
    judged = {"gan_weight": 0.5, "gan_layers": 1, "gan_width": 4}
    add("judged", name, **judged)
    add("before_the_discriminator", name, gan_start=5, **judged)


def _dmd() -> None:
    name = "dmd"
    one: dict[str, Any] = {"grid": (0, 6)}
    for regression in REGRESSIONS:
        add(regression, name, regression=regression, **one)
    add("own_pairs", name, filter_pairs=True, own=(0, 2), classes=3, **one)
    add("all_pairs", name, own=(0, 2), classes=3, **one)
    add("without_pairs", name, regression_weight=0.0, **one)
    add("weights", name, score_weight=0.3, regression_weight=2.0, **one)
    for weight in WEIGHTS[:-1]:
        add(f"fake_{weight}", name, fake_weight=weight, **one)
    add("narrow", name, lowest=0.3, highest=0.6, **one)
    add("floor", name, floor=0.5, **one)
    add("every_3", name, student_every=3, **one)
    add("alternate", name, student_every=2, alternate=True, **one)
    add("with_gan", name, gan_weight=0.1, **one)
    add("panels", name, panels=True, **one)
    add("karras", name, classes=3, **KARRAS, **one)
    add("guided", name, classes=3, guidance=2.0, **one)
    for backward in ("data", "rollout"):
        add(backward, name, backward=backward, levels=2, classes=3)
    mixed: dict[str, Any] = {"backward": "data", "student_states": 0.5, "replay_batches": 1}
    add("mixed", name, levels=3, classes=3, teacher_states=0.3, clip_x0=True, **mixed)


def _dmd2() -> None:
    name = "dmd2"
    one: dict[str, Any] = {"grid": (0, 6)}
    for of in ("fake", "teacher"):
        own = {"features_of": of}
        add(f"gan_{of}", name, **own, gan_weight=0.5, discriminator_weight=0.7, **one)
        add(f"alternate_{of}", name, **own, alternate=True, **one)
        add(f"smooth_{of}", name, **own, smooth_weight=0.5, smooth_step=0.2, **one)
        add(f"taps_{of}", name, **own, features=("down_0", "mid"), **one)
        add(f"no_score_{of}", name, **own, score_weight=0.0, gan_weight=1.0, **one)
        add(f"guided_{of}", name, **own, classes=3, guidance=2.0, **one)
        add(f"own_classes_{of}", name, **own, classes=3, own=(0, 2), **one)
        add(f"rollout_3_{of}", name, **own, backward="rollout", levels=3)
    add("data_3", name, backward="data", levels=3)
    for divergence in DIVERGENCES:
        if divergence != "rkl":
            add(divergence, name, divergence=divergence, **one)
            if divergence in ("kl", "neyman"):
                add(f"{divergence}_no_bins", name, divergence=divergence, ratio_bins=0, **one)
    for divergence in ("kl", "softened_rkl", "neyman"):
        own = {"divergence": divergence, "ratio_bins": 3, "ratio_ema": 0.5}
        add(f"{divergence}_ema", name, **own, features_of="teacher", **one)
    add("kl_karras", name, divergence="kl", ratio_bins=3, classes=3, **KARRAS, **one)
    add("js_karras", name, divergence="js", ratio_bins=5, ratio_ema=0.3, **KARRAS, **one)
    add("kl_two_taps", name, divergence="kl", ratio_bins=2, features=("down_0", "last"), **one)
    for regression in REGRESSIONS:
        add(f"pairs_{regression}", name, regression_weight=0.25, regression=regression, **one)
    for backward in ("data", "rollout"):
        add(f"{backward}_conditional", name, backward=backward, levels=2, classes=3, own=(0, 2))
        add(f"{backward}_index", name, backward=backward, levels=3, spacing="leading", time="index")
    add("rollout_pairs", name, backward="rollout", levels=2, regression_weight=0.25)
    add("fastgen", name, features_of="teacher", alternate=True, fake_weight="uniform", **one)


def _ladd() -> None:
    name = "ladd"
    one: dict[str, Any] = {"grid": (0, 6)}
    add("plain", name, **one)
    add("conditional", name, classes=3, own=(0, 2), **one)
    add("taps", name, features=("down_0", "down_1", "mid"), **one)
    add("smooth", name, smooth_weight=0.5, **one)
    add("features_of_fake", name, features_of="fake", **one)
    add("narrow", name, lowest=0.5, highest=0.9, gan_weight=0.3, **one)
    add("pairs", name, regression_weight=0.5, **one)
    add("karras", name, **KARRAS, **one)
    for backward in ("data", "rollout"):
        add(backward, name, backward=backward, levels=3)


def _pairs() -> None:
    for sampler in ("ddim", "heun", "dpm_solver_pp"):
        for clip in (0.0, 1.0):
            add(f"{sampler}_{clip:g}", "pairs", sampler=sampler, clip=clip)
    add("heun_karras", "pairs", sampler="heun", levels=3, classes=3, **KARRAS)
    add("shard", "pairs", shard=2, levels=3)


# ------------------------------------------------------------------------------------- recipes


def of_stage(label: str, stage: StageSettings, **changes: Any) -> None:
    """Adds a recipe's stage: its objective, grid and kind of prediction."""
    grid = stage.grid
    own = {"levels": grid.steps, "spacing": grid.spacing, "time": grid.time}
    own |= {"prediction": stage.prediction or "v"}
    CASES[f"recipes/{label}"] = Case(dict(stage.objective), **{**own, **changes})


def _recipes() -> None:
    usual: dict[str, Any] = {"batch_size": 4, "optimizer": OptimizerSettings()}
    of_stage("sfddm_default", recipes.sfddm_default(2, steps=1, **usual), T=16)
    for kind in ERRORS:
        own = recipes.sfddm_released(3, prediction=kind, steps=1, batch_size=4)
        of_stage(f"sfddm_released_{kind}", own, prediction=kind)
    digits = recipes.digits("digits", recipes.digits_students())
    for name, stage in digits.stages.items():
        of_stage(f"digits_{name}", stage, T=24 if "sfddm" in name else 6)
    for name, stage in recipes.progressive(8, 2, steps=1, **usual).items():
        of_stage(name, stage, T=2 * stage.grid.steps)
    critics = {"cfd": recipes.CFD_DENSENET201, "rcfd": recipes.RCFD_RESNET18}
    for method, loss in critics.items():
        stages = recipes.progressive(4, 2, steps=1, method=method, loss=loss, **usual)
        of_stage(method, stages[f"{method}_n2"], T=4)
    of_stage("cfd_imagenet64", recipes.cfd_imagenet64().stages["cfd_n2"], T=4)
    of_stage("pd_cifar_teacher", recipes.pd_cifar().stages["teacher"])
    # Of images this small a shift by 4 pixels and a square of 16 leave nothing.
    for label, stage in (
        ("critic", feature_classifier_stage("resnet")),
        ("scorer", scorer_stage()),
    ):
        smaller = {"shift": 1, "cutout": min(2, stage.objective["cutout"])}
        of_stage(label, dataclasses.replace(stage, objective={**stage.objective, **smaller}))
    of_stage("digits_critic", recipes.digits_feature_classifier())
    stages = recipes.o2mkd(2, steps=1, samplers={}, **usual)
    of_stage("o2mkd", stages["o2mkd_k2"], low=4, high=6)
    stages = recipes.digits_specialists(8, (2,), warmup=1, updates=2)
    of_stage("o2mkd_digits", stages["o2mkd_w8_k2"], low=1, high=3)
    _msd_recipes()


def _msd_recipes() -> None:
    ten: dict[str, Any] = {"schedule": "karras", "prediction": "edm", "classes": 10}
    settings = recipes.digits_conditional("msd", recipes.digits_small_msd(8, (2,)))
    of_stage("msd_digits_teacher", settings.stages["teacher"], **ten)
    of_stage("msd_digits_tsm", settings.stages["tsm_w8"], **ten)
    of_stage("msd_digits_pairs", settings.stages["pairs"], T=6, levels=0, **without(ten, "T"))
    for kind in ("dm", "adm"):
        stage = settings.stages[f"{kind}_w8_k2"]
        of_stage(f"msd_digits_{kind}", stage, own=(0, 2, 4, 6, 8), **ten)
        of_stage(f"msd_cifar_{kind}", recipes.msd_cifar((2,)).stages[f"{kind}_k2"], **ten)
    stages = recipes.msd_imagenet64("small").stages
    for kind in ("dm", "adm"):
        of_stage(f"msd_imagenet64_{kind}", stages[f"{kind}_k4"], **ten)


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options but for those names."""
    return {k: v for k, v in options.items() if k not in names}


for make in (
    _denoising,
    _progressive,
    _consistency,
    _paths,
    _two_times,
    _relations,
    _sfddm,
    _o2mkd,
    _tsm,
    _classification,
    _autoencoder,
    _dmd,
    _dmd2,
    _ladd,
    _pairs,
    _recipes,
):
    make()
