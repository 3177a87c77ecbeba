"""Which files of a folder of diffusers are read, and what is said where one is missing."""

import json

import pytest

from ddistill.errors import ConfigError
from ddistill.interop.diffusers_folders import find_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_start": 0.01}
PIPELINE = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def network(folder):
    put(folder / "config.json", {"_class_name": "UNet2DModel", "in": folder.name})
    put(folder / WEIGHTS, "weights")


def scheduler(folder):
    put(folder / "scheduler_config.json", SCHEDULER)


@pytest.fixture
def training(tmp_path):
    """What diffusers' training script leaves: a pipeline, and a checkpoint with an average."""
    network(tmp_path / "out" / "unet")
    scheduler(tmp_path / "out" / "scheduler")
    put(tmp_path / "out" / "model_index.json", PIPELINE)
    for name in ("unet", "unet_ema"):
        network(tmp_path / "out" / "checkpoint-500" / name)
    return tmp_path / "out"


def test_the_average_of_a_checkpoint_is_taken(training):
    found = find_model(training / "checkpoint-500")
    assert found.network.name == "unet_ema"
    assert found.averaged
    assert found.scheduler == str(training / "scheduler" / "scheduler_config.json")
    assert found.config["in"] == "unet_ema"
    assert [file.parent.name for file in found.files] == ["unet_ema", "scheduler", "unet_ema"]


@pytest.mark.parametrize("part", ["", "unet", "checkpoint-500/unet", "checkpoint-500/unet_ema"])
def test_a_folder_that_is_named_is_the_one_that_is_read(training, part):
    found = find_model(training / part)
    assert found.network == training / (part or "unet")
    assert not found.averaged
    assert found.scheduler_config == SCHEDULER


def test_an_average_alone(tmp_path):
    network(tmp_path / "unet_ema")
    scheduler(tmp_path)
    assert find_model(tmp_path).network.name == "unet_ema"


def test_checkpoints_are_not_chosen_between(training):
    (training / "unet" / "config.json").unlink()
    (training / "unet" / WEIGHTS).unlink()
    (training / "unet").rmdir()
    (training / "checkpoint-1000").mkdir()
    with pytest.raises(ConfigError, match="the checkpoints checkpoint-500, checkpoint-1000. Give"):
        find_model(training)


def test_the_class_of_the_scheduler_is_that_of_the_pipeline(training):
    """diffusers makes the class that model_index.json names, with its defaults."""
    put(
        training / "model_index.json",
        {**PIPELINE, "scheduler": ["diffusers", "HeunDiscreteScheduler"]},
    )
    found = find_model(training)
    assert found.scheduler_config == {**SCHEDULER, "_class_name": "HeunDiscreteScheduler"}
    assert "model_index.json" in found.scheduler


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vqvae": ["diffusers", "VQModel"]}, r"is of a pipeline with vqvae \(VQModel\)"),
        (
            {"unet": ["diffusers", "UNet2DConditionModel"]},
            "unet is a UNet2DConditionModel; only UNet2DModel",
        ),
    ],
)
def test_other_pipelines_are_refused(training, changes, message):
    put(training / "model_index.json", {**PIPELINE, **changes})
    for part in ("", "unet", "checkpoint-500"):
        with pytest.raises(ConfigError, match=message):
            find_model(training / part)


def test_parts_that_a_pipeline_leaves_out(training):
    left = {"safety_checker": [None, None], "requires_safety_checker": False, "empty": []}
    put(training / "model_index.json", {**PIPELINE, **left})
    assert find_model(training).network.name == "unet"


def shards(folder, table):
    (folder / WEIGHTS).unlink()
    put(folder / f"{WEIGHTS}.index.json", {"metadata": {}, "weight_map": table})


def test_weights_in_several_files(training):
    unet = training / "unet"
    shards(unet, {"b": "two.safetensors", "a": "one.safetensors", "c": "two.safetensors"})
    with pytest.raises(ConfigError, match="names 2 files of weights, and 2 of them are missing"):
        find_model(training)
    put(unet / "one.safetensors", "1")
    with pytest.raises(ConfigError, match=r"1 of them are missing: two\.safetensors\. Copy them"):
        find_model(training)
    put(unet / "two.safetensors", "2")
    names = [file.name for file in find_model(training).weights]
    assert names == ["one.safetensors", "two.safetensors"]


@pytest.mark.parametrize("table", [None, {"a": 3}, {"a": "../secret"}, {}])
def test_indices_that_name_no_files(training, table):
    shards(training / "unet", table)
    with pytest.raises(ConfigError, match=r"weight_map must say|names 0 files"):
        find_model(training)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: put(f / "unet" / "config.json", POINTER), r"config\.json is a git-lfs pointer"),
        (lambda f: put(f / "unet" / "config.json", ""), r"config\.json is empty \(0 bytes\)"),
        (lambda f: put(f / "unet" / "config.json", "<html>"), r"config\.json is a web page"),
        (lambda f: put(f / "model_index.json", "["), r"model_index\.json is no JSON"),
        (
            lambda f: (f / "unet" / WEIGHTS).rename(f / "unet" / "model.ckpt"),
            r"no weights in .*unet\. It holds model\.ckpt\. One of these files is needed",
        ),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
            r"scheduler_config\.json are missing\. It says on what noise levels",
        ),
    ],
)
def test_files_that_are_missing_or_something_else(training, change, message):
    change(training)
    with pytest.raises(ConfigError, match=message):
        find_model(training)


def test_a_file_in_place_of_a_folder(training):
    with pytest.raises(ConfigError, match="is not a folder but a file; give the folder"):
        find_model(training / "unet" / WEIGHTS)
    with pytest.raises(ConfigError, match="nowhere is not a folder. Put config.json"):
        find_model(training / "nowhere")


# ------------------------------------------------------------------------- several sets of weights

EMA = "diffusion_pytorch_model.ema.safetensors"
HALF = "diffusion_pytorch_model.fp16.safetensors"


def index(folder, name, *files):
    put(folder / name, {"weight_map": {str(i): file for i, file in enumerate(files)}})
    for file in files:
        put(folder / file, file)


@pytest.mark.parametrize(
    "name",
    ["unet_ema", "ema_unet", "unet-ema", "ema", "EMA", "ema_model", "unet_ema_0.9999", "swa"],
)
def test_averages_by_other_names_are_taken(training, name):
    checkpoint = training / "checkpoint-500"
    (checkpoint / "unet_ema").rename(checkpoint / name)
    found = find_model(checkpoint)
    assert (found.network.name, found.averaged) == (name, True)
    assert found.taken == f"{name}/{WEIGHTS}, the average"
    assert find_model(checkpoint / "unet").taken == WEIGHTS


@pytest.mark.parametrize("name", ["non_ema", "schema", "cinema", "unet_without_ema", "samples"])
def test_folders_that_are_no_averages(training, name):
    (training / name).mkdir()
    assert find_model(training).taken == f"unet/{WEIGHTS}"


@pytest.mark.parametrize(
    "file", ["samples-ema/0.png", "ema/log.txt", "ema/deep/config.json", "ema-eval/scores.json"]
)
def test_folders_named_after_an_average_that_hold_no_network(training, file):
    for folder in (training, training / "checkpoint-500"):
        before = find_model(folder).taken
        put(folder / file, "x")
        assert find_model(folder).taken == before


def test_a_folder_with_a_config_alone_is_no_second_average(training):
    checkpoint = training / "checkpoint-500"
    put(checkpoint / "ema" / "config.json", {})
    assert find_model(checkpoint).taken == f"unet_ema/{WEIGHTS}, the average"
    # Its weights are missing where it is the only one.
    (checkpoint / "unet_ema" / WEIGHTS).unlink()
    (checkpoint / "unet_ema" / "config.json").unlink()
    with pytest.raises(ConfigError, match="There are no weights in .*ema"):
        find_model(checkpoint)


def test_several_averages_are_not_chosen_between(training):
    network(training / "checkpoint-500" / "ema")
    with pytest.raises(
        ConfigError, match="several averages of a network: ema/ and unet_ema/. Give"
    ):
        find_model(training / "checkpoint-500")
    unet = training / "unet"
    for rate in ("0.99", "0.9999"):
        put(unet / f"diffusion_pytorch_model.ema_{rate}.safetensors", rate)
    with pytest.raises(
        ConfigError, match=r"several averages of the weights: .*ema_0\.99\.saf.*9999"
    ):
        find_model(training)


def test_an_average_without_its_config(training):
    (training / "ema").mkdir()
    put(training / "ema" / WEIGHTS, "average")
    with pytest.raises(
        ConfigError, match=r"ema seems to hold an average .* or give .*unet to leave"
    ):
        find_model(training)


# Files beside one another, the first of them the one that is taken.
ORDERS = [
    (EMA, WEIGHTS),
    ("diffusion_pytorch_model_ema.bin", WEIGHTS),
    ("diffusion_pytorch_model.fp16.ema.safetensors", WEIGHTS),
    (EMA, "diffusion_pytorch_model.ema.fp16.safetensors"),
    (WEIGHTS, "diffusion_pytorch_model.non_ema.safetensors"),
    ("diffusion_pytorch_model.non_ema.safetensors",),
    (WEIGHTS, "diffusion_pytorch_model.bin"),
    ("diffusion_pytorch_model.bin", HALF),
    ("diffusion_pytorch_model.fp32.safetensors", HALF),
    ("diffusion_pytorch_model.fp32.bin", "diffusion_pytorch_model.bf16.safetensors"),
    (HALF, "diffusion_pytorch_model.fp16.bin"),
    (WEIGHTS, "diffusion_pytorch_model.int8.safetensors", "optimizer.bin"),
]


@pytest.mark.parametrize("names", ORDERS)
def test_of_several_files_of_weights_one_is_taken_by_a_rule(training, names):
    (training / "unet" / WEIGHTS).unlink()
    for name in names:
        put(training / "unet" / name, name)
    found = find_model(training)
    assert [file.name for file in found.weights] == [names[0]]
    assert found.taken.startswith(f"unet/{names[0]}")
    assert (
        found.averaged
        == (", the average" in found.taken)
        == ("ema" in names[0].replace("non_ema", ""))
    )


@pytest.mark.parametrize(
    "indexed",
    [
        f"{WEIGHTS}.index.json",
        "diffusion_pytorch_model.bin.index.json",
        "diffusion_pytorch_model.safetensors.index.fp32.json",
        "diffusion_pytorch_model.safetensors.index.ema.json",
    ],
)
def test_full_precision_in_shards_goes_before_half_precision(training, indexed):
    unet = training / "unet"
    (unet / WEIGHTS).unlink()
    put(unet / HALF, "half")
    put(unet / "diffusion_pytorch_model.safetensors.index.fp16.json", {"weight_map": {"a": HALF}})
    index(unet, indexed, "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors")
    found = find_model(training)
    assert len(found.weights) == 2
    assert found.taken.startswith(f"unet/{indexed}")
    (unet / "x-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"1 of them are missing.* or remove .* to read {HALF}"):
        find_model(training)


@pytest.mark.parametrize(
    "place, name",
    [
        ("unet", "unet.ema.safetensors"),
        ("unet", "ema.bin"),
        ("unet", "model_ema.pt"),
        ("unet", "diffusion_pytorch_model.ema-00001-of-00002.safetensors"),
        ("", EMA),
        ("", "ema.safetensors"),
        ("", "ema_unet.pth"),
    ],
)
def test_averages_that_would_not_be_read_are_asked_about(training, place, name):
    put(training / place / name, "average")
    with pytest.raises(
        ConfigError, match=rf"{name} seems to be an average .*unet.* to leave it out"
    ):
        find_model(training)
    if not place:
        assert find_model(training / "unet").taken == WEIGHTS
