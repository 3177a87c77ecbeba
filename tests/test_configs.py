"""Every file in configs/, in every variant, up to the point where something would be compiled."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from runs import plans_of, tiny_chain

from ddistill import data, recipes
from ddistill.data import Dataset
from ddistill.data.encodings import MOMENTS, EncoderFacts, TokenizerFacts
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError
from ddistill.evaluation.checks import check_evaluation, check_real_images
from ddistill.interop.imported import Imported
from ddistill.interop.pipeline_folders import TEXT, TOKENIZER, VAE
from ddistill.interop.sources import write_noted
from ddistill.objectives.parts import DENOISER
from ddistill.optimizers import OPTIMIZERS, check_optimizer
from ddistill.parsing import parse, plain, to_plain
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import SOURCES, plan_stages
from ddistill.settings import EvaluationSettings, GridSettings, OptimizerSettings, Settings

EMBEDDED = ("digits", "text_digits")
FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
NO_VARIANT = "no such variant"
# Side, channels and classes of the data sets that configs name; another set needs a line here.
LATENTS = "imagenet256"
TFDS = {"cifar10": (32, 3, 10), "imagenet_resized/64x64": (64, 3, 1000), LATENTS: (32, 4, 1000)}


# The parts of Stable Diffusion, and latents with captions that they have made.
PARTS = {VAE: "a" * 64, TEXT: "b" * 64, TOKENIZER: "c" * 64}
LATENTS_OF_SD = Dataset(
    "latents",
    np.broadcast_to(np.float16(0), (8, 64, 64, 8)),
    np.zeros(8, np.int32),
    1,
    ("captions",),
    tokens=np.zeros((8, 77), np.int32),
    tokenizer=TokenizerFacts("CLIP", PARTS[TOKENIZER], 77, 49408, (0,) * 77),
    encoder=EncoderFacts("autoencoder_kl", PARTS[VAE], MOMENTS, 4, 8, 0.18215),
)


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(file: Path) -> list[str]:
    """All variants of a file, as it tells them itself to who asks for one that it has not."""
    try:
        load(file).get_config(NO_VARIANT)
    except ConfigError as error:
        return ["", *re.findall(r"':(\w+)'", str(error).partition("Allowed")[2])]
    return [""]


CASES = [(file, variant) for file in FILES for variant in variants(file)]
IDS = [f"{file.stem}:{variant}" if variant else file.stem for file, variant in CASES]
# Chains of large networks take a while to trace, once for every stage.
PLANS = [
    pytest.param(*case, marks=[] if case[1] or "digits" in case[0].stem else pytest.mark.slow)
    for case in CASES
]


def stand_in(settings: Settings) -> Dataset:
    """The data of a config: the embedded ones, or a few black images of their shape and classes."""
    wanted = settings.data
    if wanted["name"] in EMBEDDED:
        return data.load(wanted, "train")
    texts = {}
    if _pipelines(settings):
        return LATENTS_OF_SD
    if wanted["name"] == "latents" and wanted.get("path") == LATENTS:
        side, channels, classes = TFDS[LATENTS]
    elif wanted["name"] == "latents":
        side, channels, classes = 32, 3, 1
        tokenizer = TokenizerFacts("stand_in", "", 32, 8, (0,) * 32)
        texts = {"tokens": np.zeros((8, 32), np.int32), "tokenizer": tokenizer}
    elif wanted["name"] == "folder":
        side, channels, classes = wanted["image_size"], wanted.get("channels", 3), 1
    else:
        side, channels, classes = TFDS[wanted["path"]]
    count = max(8, classes)
    return Dataset(
        name="stand_in",
        images=np.zeros((count, side, side, channels), np.uint8),
        labels=(np.arange(count) % classes).astype(np.int32),
        num_classes=classes,
        class_names=tuple(str(i) for i in range(classes)),
        **texts,
    )


def _pipelines(settings: Settings) -> dict[str, tuple[str, Imported]]:
    """By stage the source and the facts of pipelines that configs name and tests do not have."""
    return {
        name: (
            stage.source,
            Imported(
                network=stage.network,
                params=None,
                prediction="eps",
                schedule=None,
                image_shape=(64, 64, 4),
                num_classes=0,
                digest="d" * 64,
                source=stage.source,
                parts=PARTS,
            ),
        )
        for name, stage in settings.stages.items()
        if stage.source
    }


def planned(settings: Settings, folder: Path) -> list[StagePlan]:
    if sources := _pipelines(settings):
        (folder / "run").mkdir()
        write_noted(folder / "run" / SOURCES, sources)
    return plan_stages(
        settings, DataFacts.of(stand_in(settings)), folder / "run", folder / "shared"
    )


# -------------------------------------------------------------------------------- the files


def test_there_are_configs():
    assert {"sfddm_digits", "pd_digits", "cfd_digits"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_docstring_says_how_to_run_it_on_what_and_what_to_expect(file):
    text = load(file).__doc__
    lines = dict(re.findall(r"^(\w+): +(.+(?:\n +.+)*)", text, re.MULTILINE))
    assert {"Command", "Hardware", "Score"} <= lines.keys()
    assert f"--config=configs/{file.name}" in lines["Command"]
    for variant in variants(file):
        known = variant in ("", "smoke") or f":{variant}" in text
        assert known, f"':{variant}' is not told"
    settings = parse(load(file).get_config(), Settings)
    if settings.data["name"] not in EMBEDDED:
        assert "Data" in lines, "who has not the data is not told how to get them"
    if settings.data["name"] == "tfds":
        assert f"ddistill.data.prepare {settings.data['path']}" in " ".join(text.split())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_unknown_variant_is_refused_with_those_that_are_known(file):
    with pytest.raises(ConfigError, match=rf"':{NO_VARIANT}' is not known.*Allowed: ':smoke'"):
        load(file).get_config(NO_VARIANT)


@pytest.mark.parametrize(("file", "variant"), CASES, ids=IDS)
def test_what_a_config_prints_reads_back_as_the_same_run(file, variant):
    """As does the config.json of a run."""
    config = load(file).get_config(variant)
    settings = parse(config, Settings)
    assert parse(plain(config), Settings) == settings
    # Every setting is there to be overridden on the command line, those of all sources of data too.
    left_open = dict.fromkeys(data.setting_types())
    full = to_plain(dataclasses.asdict(settings))
    assert to_plain(config) == {**full, "data": {**left_open, **full["data"]}}
    assert settings.name == file.stem + ("-smoke" if variant == "smoke" else "")


@pytest.mark.parametrize(("file", "variant"), PLANS, ids=IDS)
def test_every_stage_can_be_planned_and_evaluated_without_compiling(
    file, variant, compiled, tmp_path
):
    settings = parse(load(file).get_config(variant), Settings)
    before = len(compiled)
    plans = planned(settings, tmp_path)
    check_evaluation(settings, plans)
    if settings.data["name"] in EMBEDDED:
        check_real_images(settings, stand_in(settings))
    assert len(compiled) == before, "something was compiled"
    noted = {tmp_path / "run"} if _pipelines(settings) else set()
    assert set(tmp_path.iterdir()) == noted
    assert [plan.name for plan in plans] == list(settings.pipeline)
    assert set(settings.pipeline) == set(settings.stages), "a stage is described and never run"
    generates = any(plan.objective.trains == DENOISER for plan in plans)
    assert generates == bool(settings.evaluation.teacher), "nothing is sampled"
    if variant == "smoke" and file.stem.startswith("sfddm"):
        return  # students of any number of steps are shrunk to 4
    for plan in plans:
        # "pd_n8" and "n4_k2" say how many steps the student takes.
        count = re.search(r"(?:^|_)n(\d+)(?:_|$)", plan.name)
        if count:
            assert plan.levels.num_steps == int(count[1]), plan.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_smoke_variant_needs_no_data_and_is_small(file):
    full, small = (parse(load(file).get_config(v), Settings) for v in ("", "smoke"))
    assert small.data["name"] in EMBEDDED
    assert small.name != full.name
    assert sum(s.steps for s in small.stages.values()) <= 400
    assert small.evaluation.samples <= 64
    assert {s.objective["name"] for s in small.stages.values()} == {
        s.objective["name"] for s in full.stages.values()
    }


def test_a_student_that_generates_guided_images_is_compared_with_a_teacher_of_the_same_guidance():
    settings = recipes.meanflow_imagenet256()
    loss = settings.stages["meanflow"].objective
    found = loss["data_guidance"] / (1 - loss["own_guidance"])
    assert settings.evaluation.guidance == found == 2.0


def test_a_pipeline_that_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse(load(next(f for f in FILES if f.stem == "lcm_sd15")).get_config(), Settings)
    with pytest.raises(ConfigError) as caught:
        plan_stages(settings, DataFacts.of(LATENTS_OF_SD), tmp_path / "run", tmp_path / "shared")
    text = str(caught.value)
    assert "\n" not in text
    for part in ("config.stages.teacher.source", "stable-diffusion-v1-5", "hf download ORG/NAME"):
        assert part in text


# --------------------------------------------------------------------------- numbers in configs

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "values", "allowed"),
    [
        ("learning_rate", (0.0, -1e-3, NAN, INFINITE), "above 0 and finite"),
        ("eps", (0.0, -1e-8, NAN, INFINITE), "above 0 and finite"),
        ("decay", (0.0, -0.1, NAN, INFINITE), "above 0 and finite"),
        ("b1", (-0.1, 1.0, 9.0, NAN), "in [0, 1)"),
        ("b2", (-0.1, 1.0, 999.0, NAN), "in [0, 1)"),
        ("momentum", (-0.9, 1.0, NAN), "in [0, 1)"),
        ("final_scale", (-0.1, NAN, INFINITE), "0 or above and finite"),
        ("clip", (-1.0, NAN, INFINITE), "0 (off) or above and finite"),
        ("weight_decay", (-1e-4, NAN, INFINITE), "0 (off) or above and finite"),
    ],
)
def test_optimisers_refuse_numbers_out_of_range(key, values, allowed):
    for value in values:
        settings = OptimizerSettings(name="adamw", **{key: value})
        with pytest.raises(ConfigError) as caught:
            check_optimizer(settings, 10, "config.stages.x.optimizer")
        assert str(caught.value) == f"config.stages.x.optimizer.{key}={value} must be {allowed}."


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_take_the_ends_of_their_ranges(name):
    lowest = {"b1": 0.0, "b2": 0.0, "momentum": 0.0, "final_scale": 0.0, "clip": 0.0}
    check_optimizer(OptimizerSettings(name=name, weight_decay=0.0, **lowest), 10)
    check_optimizer(OptimizerSettings(name=name, b1=0.999999, decay=2.0, final_scale=3.0), 10)


EVALUATION = {"samples": 64, "batch_size": 64, "grid_images": 8, "strip_images": 2}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"noise_seed": -1}, "evaluation.noise_seed=-1 must be 0 or more"),
        ({"clip": NAN}, "evaluation.clip=nan must be 0"),
        ({"clip": INFINITE}, "evaluation.clip=inf must be 0"),
        ({"teacher_samplers": {"ddim": (4, 2, 4)}}, "teacher_samplers.ddim names 4 steps twice"),
    ],
)
def test_evaluations_that_no_row_can_hold_are_refused(tmp_path, changes, part):
    evaluation = EvaluationSettings(**{**EVALUATION, **changes})
    settings = dataclasses.replace(tiny_chain(), evaluation=evaluation)
    with pytest.raises(ConfigError, match=part):
        check_evaluation(settings, list(plans_of(settings, tmp_path / "run").values()))


def test_students_that_would_leave_the_same_rows_are_refused(tmp_path):
    chain = tiny_chain()

    def check(**changes):
        stages = {**chain.stages, "twin": dataclasses.replace(chain.stages["pd_n4"], **changes)}
        settings = dataclasses.replace(
            chain,
            stages=stages,
            pipeline=(*chain.pipeline, "twin"),
            evaluation=EvaluationSettings(**EVALUATION),
        )
        check_evaluation(settings, list(plans_of(settings, tmp_path / "run").values()))

    with pytest.raises(ConfigError, match=r"stages.twin.variant=''.*'pd_n4'.*\(pd\).*\(4\)"):
        check(optimizer=OptimizerSettings(learning_rate=0.5))
    check(variant="twin")
    check(grid=GridSettings(8))
    check(method="cfd")
    check(ema=(0.5,))
