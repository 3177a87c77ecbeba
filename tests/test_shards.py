"""Weights in several files: the index is believed in nothing that the shards do not confirm."""

import json

import numpy as np
import pytest

from ddistill.errors import ConfigError
from ddistill.interop.diffusers_folders import read_json
from ddistill.interop.diffusers_weights import find_weights
from ddistill.interop.tensors import write_tensors

STEM = "diffusion_pytorch_model"
NAMES = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
FIRST, SECOND = {"a": np.ones(3, np.float32)}, {"b": np.full(2, 2, np.float16)}
TABLE = {"a": NAMES[0], "b": NAMES[1]}


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, FIRST, SECOND)
    index(tmp_path)
    return tmp_path


def put(folder, *tensors):
    for name, content in zip(NAMES, tensors):
        write_tensors(folder / name, content)


def index(folder, table=TABLE, name=f"{STEM}.safetensors.index.json", **metadata):
    content = {"metadata": metadata, "weight_map": table}
    (folder / name).write_text(json.dumps(content))


def read(folder):
    found = find_weights(folder, read_json).index
    assert found is not None
    return found.read()


def test_shards_are_read_as_one(folder):
    for size in ({}, {"total_size": 16}, {"total_size": 16.0}):
        index(folder, **size)
        found = read(folder)
        assert found.keys() == {"a", "b"}
        np.testing.assert_array_equal(found["b"], [2, 2])


@pytest.mark.parametrize(
    "table, message",
    [
        ({**TABLE, "c": NAMES[0]}, rf"{NAMES[0]} lacks 1 tensors that .*places in it: 'c'\. Copy"),
        ({"a": NAMES[1], "b": NAMES[0]}, rf"{NAMES[0]} lacks 1 tensors .*'b'"),
        ({"a": NAMES[0]}, None),
        ({**TABLE, "a": "../other.safetensors"}, "names of files that lie beside the index"),
        ({**TABLE, "a": "/etc/passwd"}, "names of files that lie beside the index"),
        ({**TABLE, "a": "sub\\x"}, "names of files that lie beside the index"),
        ({**TABLE, "a": "gone.safetensors"}, "1 of them are missing: gone"),
    ],
)
def test_tables_that_the_shards_contradict(folder, table, message):
    index(folder, table)
    if message is None:
        assert read(folder).keys() == {"a"}  # the second shard is not the model's
        return
    with pytest.raises(ConfigError, match=message):
        read(folder)


def test_tensors_that_the_index_does_not_have(folder):
    put(folder, {**FIRST, "c": np.zeros(1, np.float32)})
    with pytest.raises(ConfigError, match=r"holds 'c', and .*index\.json does not have it"):
        read(folder)
    put(folder, {**FIRST, **SECOND})
    with pytest.raises(ConfigError, match=rf"holds 'b', and .* places it in {NAMES[1]}"):
        read(folder)


@pytest.mark.parametrize("size", [20, -1, "16", True, float("nan"), [16]])
def test_a_total_size_that_is_not_that_of_the_shards(folder, size):
    index(folder, total_size=size)
    with pytest.raises(ConfigError, match=r"total_size is .*bytes"):
        read(folder)


def test_the_index_of_a_variant_is_read_with_its_own_shards(tmp_path):
    """Half precision and averages have indices of their own, with either name of their shards."""
    half = f"{STEM}-00001-of-00001.fp16.safetensors"
    write_tensors(tmp_path / half, SECOND)
    index(tmp_path, {"b": half}, f"{STEM}.safetensors.index.fp16.json")
    assert find_weights(tmp_path, read_json).named.name.endswith("index.fp16.json")
    average = f"{STEM}.ema-00001-of-00001.safetensors"
    write_tensors(tmp_path / average, FIRST)
    index(tmp_path, {"a": average}, f"{STEM}.safetensors.index.ema.json")
    found = find_weights(tmp_path, read_json)
    assert found.averaged
    assert read(tmp_path).keys() == {"a"}


def test_shards_without_an_index_name_it(folder):
    (folder / f"{STEM}.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=rf"shards of weights without .*{STEM}\.safetensors\.ind"):
        read(folder)


@pytest.mark.parity
def test_shards_of_torch_and_of_diffusers(tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )  # fmt: skip
    for safe in (True, False):
        out = tmp_path / str(safe)
        net.save_pretrained(out, max_shard_size="20KB", safe_serialization=safe)
        found = read(out)
        assert len(list(out.glob(f"{STEM}-*"))) > 1
        for name, tensor in net.state_dict().items():
            np.testing.assert_array_equal(found[name], tensor.numpy())
        assert len(found) == len(net.state_dict())
    assert torch is not None
