"""Torch's files without torch: what is read, what is refused, and that nothing in them is run."""

import collections
import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from pickling import MACHINE, MAGIC, Named, Storage, legacy, pickled, tensor, zipped

from ddistill.errors import ConfigError
from ddistill.interop.pickles import rebuild_tensor
from ddistill.interop.tensors import full_precision, read_tensors
from ddistill.interop.torch_files import read_torch


def example():
    """A state dict of every sort, its storages, and what has to come out."""
    weights = Storage("torch.FloatStorage", "0", np.arange(10, dtype=np.float32))
    half = Storage("torch.HalfStorage", "1", np.array([0.5, -2.0], np.float16))
    brain = Storage("torch.BFloat16Storage", "2", np.array([1.5, -3.0], ml_dtypes.bfloat16))
    count = Storage("torch.LongStorage", "3", np.array([7]))
    state = collections.OrderedDict(
        plain=tensor(weights, 0, (2, 3), (3, 1)),
        transposed=Named(
            "torch._utils._rebuild_parameter", (tensor(weights, 4, (3, 2), (1, 3)), True, None)
        ),
        half=tensor(half, 0, (2,), (1,)),
        brain=tensor(brain, 1, (1,), (1,)),
        count=tensor(count, 0, (), ()),
        empty=tensor(weights, 0, (0, 3), (3, 1)),
    )
    values = weights.values
    expected = {
        "plain": values[:6].reshape(2, 3),
        "transposed": values[4:].reshape(2, 3).T,
        "half": half.values,
        "brain": brain.values[1:],
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    found = {"model": state, "size": Named("torch.Size", ((2, 3),)), "dtype": "float16"}
    return found, (weights, half, brain, count), expected


def check_example(found, expected):
    assert list(found["model"]) == list(expected)
    assert found["size"] == (2, 3)
    for name, value in expected.items():
        ours = found["model"][name]
        assert type(ours) is np.ndarray
        assert ours.dtype == value.dtype
        np.testing.assert_array_equal(ours, value)


def test_zip_format(tmp_path):
    obj, storages, expected = example()
    found = read_torch(zipped(tmp_path / "a.pt", obj, storages, byteorder="little"))
    check_example(found, expected)
    # One storage, read once: what overlaps in the file overlaps here.
    assert np.shares_memory(found["model"]["plain"], found["model"]["transposed"])


def test_legacy_format(tmp_path):
    obj, storages, expected = example()
    path = tmp_path / "a.pt"
    path.write_bytes(legacy(obj, storages))
    found = read_torch(path)
    check_example(found, expected)
    assert np.shares_memory(found["model"]["plain"], found["model"]["transposed"])


def test_legacy_views_of_a_storage(tmp_path):
    values = np.arange(6, dtype=np.float32)
    part = Storage("torch.FloatStorage", "9", values, (("view", 2, 3),))
    whole = Storage("torch.FloatStorage", "9", values, (None,))
    path = tmp_path / "a.pt"
    obj = [tensor(part, 1, (2,), (1,)), tensor(whole, 0, (6,), (1,))]
    path.write_bytes(legacy(obj, [whole]))
    found = read_torch(path)
    np.testing.assert_array_equal(found[0], [3, 4])
    np.testing.assert_array_equal(found[1], values)


def test_numpy_values_come_as_numpy_values(tmp_path):
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    obj = {"array": array, "scalar": np.float64(0.5), "columns": np.asfortranarray(array * 2)}
    found = read_torch(zipped(tmp_path / "a.pt", obj))
    np.testing.assert_array_equal(found["array"], array)
    np.testing.assert_array_equal(found["columns"], 2 * array)
    assert found["scalar"] == 0.5


# ------------------------------------------------------------------------------------- hostile


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare", "nested"])
def test_code_is_refused_by_name_and_not_run(tmp_path, how):
    path, trace = tmp_path / "a.pt", tmp_path / "ran"
    attack = Attack(trace)
    if how == "legacy":
        path.write_bytes(legacy({"model": attack}))
    elif how == "bare":
        path.write_bytes(pickle.dumps(attack))
    else:
        zipped(path, attack if how == "zip" else {"a": [{"b": (attack,)}]})
    with pytest.raises(ConfigError) as error:
        read_torch(path)
    assert f"'{os.system.__module__}.system'" in str(error.value)
    assert str(path) in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.getattr",
        "builtins.__import__",
        "torch.load",
        "torch.storage._load_from_bytes",
        "numpy.load",
        "collections.OrderedDict.fromkeys",
        "numpy.core.multiarray._reconstruct.__globals__",
        "torch.nn.modules.linear.Linear",
    ],
)
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(ConfigError) as error:
        read_torch(zipped(tmp_path / "a.pt", Named(name, ("x",))))
    assert f"'{name}'" in str(error.value)


def test_what_a_file_is_given_cannot_be_changed(tmp_path):
    """BUILD sets attributes: on a function of the table it has to fail."""
    for name in ("torch._utils._rebuild_tensor_v2", "collections.OrderedDict", "torch.float32"):
        module, _, last = name.rpartition(".")
        program = b"\x80\x02c" + f"{module}\n{last}\n".encode() + b"}U\x01aK\x01sb."
        path = tmp_path / "a.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", program)
        with pytest.raises(ConfigError, match="damaged"):
            read_torch(path)


def test_arrays_of_objects_are_refused(tmp_path):
    for array in (np.array([{}], object), np.zeros(2, [("a", "f4")]), np.array(["text"])):
        with pytest.raises(ConfigError, match="damaged"):
            read_torch(zipped(tmp_path / "a.pt", array))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (0, (2, 2), (3, 1)),
        (3, (2,), (-1,)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (2**62, 2), (2**62, 1)),
        (0, (2,), (1, 1)),
        (0.0, (2,), (1,)),
        (True, (2,), (1,)),
    ],
)
def test_tensors_stay_inside_of_their_storage(tmp_path, offset, size, stride):
    with pytest.raises(ValueError):
        rebuild_tensor(np.zeros(4, np.float32), offset, size, stride)
    storage = Storage("torch.FloatStorage", "0", np.zeros(4, np.float32))
    with pytest.raises(ConfigError, match="damaged"):
        read_torch(zipped(tmp_path / "a.pt", [tensor(storage, offset, size, stride)], [storage]))


def test_storages_have_the_size_that_is_claimed(tmp_path):
    claimed = Storage("torch.FloatStorage", "0", np.zeros(4, np.float32))
    real = Storage("torch.FloatStorage", "0", np.zeros(3, np.float32))
    obj = [tensor(claimed, 0, (4,), (1,))]
    with pytest.raises(ConfigError, match="storage '0' has 12 bytes for 4"):
        read_torch(zipped(tmp_path / "a.pt", obj, [real]))
    with pytest.raises(ConfigError, match=r"'weights/data/0' is missing"):
        read_torch(zipped(tmp_path / "b.pt", obj))
    path = tmp_path / "c.pt"
    path.write_bytes(legacy(obj, [real]))
    with pytest.raises(ConfigError, match="storage '0' ends early"):
        read_torch(path)


def test_a_legacy_file_cannot_ask_for_more_memory_than_it_fills(tmp_path):
    huge = Storage("torch.FloatStorage", "0", np.broadcast_to(np.float32(0), (10**12,)))
    path = tmp_path / "a.pt"
    body = [MAGIC, 1001, MACHINE, tensor(huge, 0, (1,), (1,)), ["0"]]
    path.write_bytes(b"".join(map(pickled, body)))
    with pytest.raises(ConfigError, match="larger than the file"):
        read_torch(path)


# ------------------------------------------------------------------------------- damaged files


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.pt does not exist"):
        read_torch(tmp_path / "gone.pt")
    with pytest.raises(ConfigError, match="is a folder"):
        read_torch(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"is empty \(0 bytes\): a copy or download did not finish"),
        (POINTER, "is a git-lfs pointer and not the file itself; run 'git lfs pull'"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html>\n<html>", r"is a web page \(HTML\)"),
        (b"<?xml version='1.0'?><Error/>", "is an XML message of a server"),
        (b"\x89HDF\r\n\x1a\n", "not a file that torch.save wrote; it begins with"),
        (b"{}", "not a file that torch.save wrote; it begins with"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.bin"])
def test_files_of_another_kind(tmp_path, content, message, name):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_torch, read_tensors):
        with pytest.raises(ConfigError, match=f"{name} (is )?{message}"):
            read(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"is empty \(0 bytes\)"),
        (POINTER, "is a git-lfs pointer"),
        (b"<html>", "is a web page"),
        (b"\0" * 100, "is no whole safetensors file"),
    ],
)
def test_safetensors_files_of_another_kind(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_tensors(path)
    with pytest.raises(ConfigError, match="is a folder; a file of weights is needed"):
        read_tensors(tmp_path)


def safetensors(kind, size, count):
    """A file of one tensor `w` of `count` zeros, each of `size` bits."""
    length = count * size // 8
    entry = {"w": {"dtype": kind, "shape": [count], "data_offsets": [0, length]}}
    header = json.dumps(entry).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * length


def test_every_type_of_a_safetensors_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for kind, size, ours in (
        ("F64", 64, np.float64),
        ("BF16", 16, ml_dtypes.bfloat16),
        ("F8_E4M3", 8, ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", 8, ml_dtypes.float8_e5m2),
        ("I64", 64, np.int64),
        ("BOOL", 8, np.bool_),
    ):
        path.write_bytes(safetensors(kind, size, 4))
        assert read_tensors(path)["w"].dtype == ours
    path.write_bytes(safetensors("F4", 4, 4))
    with pytest.raises(ConfigError, match="'w' is of the type F4, which cannot be read. Save it"):
        read_tensors(path)


def test_what_weights_may_be():
    ones = np.ones(2)
    for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        made = full_precision("w", ones.astype(kind))
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, ones)
    for kind, message in (
        (ml_dtypes.float8_e4m3fn, "w is float8_e4m3fn; .* Floats of 8 bits have lost most digits"),
        (np.int64, "w is int64; float32, float16 or bfloat16 is needed"),
    ):
        with pytest.raises(ConfigError, match=message):
            full_precision("w", ones.astype(kind))
    for value in (np.nan, 1e300):
        with pytest.raises(ConfigError, match="w holds values that are not finite"):
            full_precision("w", value * ones)


def test_the_format_is_told_by_the_content(tmp_path):
    storage = Storage("torch.FloatStorage", "0", np.arange(3, dtype=np.float32))
    zipped(tmp_path / "a.safetensors", {"w": tensor(storage, 0, (3,), (1,))}, [storage])
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.safetensors")["w"], [0, 1, 2])
    (tmp_path / "a.bin").write_bytes(safetensors("F32", 32, 3))
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.bin")["w"], [0, 0, 0])


def test_state_dicts_inside_of_dictionaries(tmp_path):
    storage = Storage("torch.FloatStorage", "0", np.zeros(3, np.float32))
    weights = {"w": tensor(storage, 0, (3,), (1,))}
    path = tmp_path / "a.bin"
    for content, message in (
        (
            {"epoch": 3, "ema": weights, "model": weights, "optimizer": {"lr": 0.1}},
            r"a dictionary with the keys 'epoch', 'ema', 'model', 'optimizer'; there are tensors "
            r"under 'model', 'ema'. Save one of them alone: .*\['model'\]",
        ),
        ({"state_dict": weights}, r"there are tensors under 'state_dict'\. Save"),
        ({**weights, "epoch": 3}, "'epoch' is a int. Its keys: 'w', 'epoch'"),
        ({**weights, 5: weights}, "there are tensors under 5"),
        ([weights], "holds a list, no state dict"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_tensors(zipped(path, content, [storage]))


def test_files_that_were_cut_short(tmp_path):
    obj, storages, _ = example()
    path = zipped(tmp_path / "a.pt", obj, storages)
    for whole in (path.read_bytes(), legacy(obj, storages)):
        for share in (0.3, 0.6, 0.99):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ConfigError, match="damaged or was cut short"):
                read_torch(path)


def test_zips_of_another_kind(tmp_path):
    storage = Storage("torch.FloatStorage", "0", np.zeros(10**6, np.float32))
    obj = [tensor(storage, 0, (1,), (1,))]
    bomb = zipped(tmp_path / "bomb.pt", obj, [storage], zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ConfigError, match="compressed"):
        read_torch(bomb)
    with pytest.raises(ConfigError, match="TorchScript"):
        read_torch(zipped(tmp_path / "script.pt", {}, **{"constants.pkl": ""}))
    # torch.jit.save compresses the program.
    with zipfile.ZipFile(tmp_path / "jit.pt", "w") as archive:
        archive.writestr("net/data.pkl", pickled({}))
        archive.writestr("net/code/net.py", "pass" * 99, zipfile.ZIP_DEFLATED)
        archive.writestr("net/constants.pkl", pickled(()))
    with pytest.raises(ConfigError, match=r"TorchScript program, .*torch.jit.load\(FILE\)"):
        read_torch(tmp_path / "jit.pt")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ConfigError, match="is an npz file with the arrays mu, sigma, not weights"):
        read_torch(tmp_path / "stats.npz")
    with pytest.raises(ConfigError, match="big-endian"):
        read_torch(zipped(tmp_path / "big.pt", {}, byteorder="big"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "no weights")
    with pytest.raises(ConfigError, match="not one that torch.save wrote"):
        read_torch(tmp_path / "other.zip")


def test_a_flipped_bit_is_noticed_by_the_zip(tmp_path):
    obj, storages, _ = example()
    path = zipped(tmp_path / "a.pt", obj, storages)
    body = bytearray(path.read_bytes())
    at = body.index(storages[0].values.tobytes()) + 5
    body[at] ^= 1
    path.write_bytes(bytes(body))
    with pytest.raises(ConfigError, match="damaged"):
        read_torch(path)


@pytest.mark.parametrize("kind", ["legacy", "zip"])
def test_random_damage_gives_the_one_error_or_none(tmp_path, kind):
    """Nothing else comes out of a file whose pickle had bytes changed: no crash, no other error."""
    obj, storages, _ = example()
    program, rng = pickled(obj), np.random.default_rng(0)
    path, refused = tmp_path / "a.pt", 0
    for _ in range(200):
        harmed = bytearray(program)
        for at in rng.integers(len(program), size=3):
            harmed[at] = rng.integers(256)
        if kind == "legacy":
            path.write_bytes(legacy(obj, storages).replace(program, bytes(harmed)))
        else:
            zipped(path, bytes(harmed), storages)
        try:
            read_torch(path)
        except ConfigError:
            refused += 1
    assert refused > 100


# --------------------------------------------------------------------------------------- torch


def same(ours, theirs, torch):
    if isinstance(theirs, torch.Tensor):
        if theirs.dtype == torch.bfloat16:
            assert ours.dtype == ml_dtypes.bfloat16
            ours, theirs = ours.astype(np.float32), theirs.float()
        np.testing.assert_array_equal(ours, theirs.detach().numpy())
        assert ours.dtype == theirs.detach().numpy().dtype
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key], torch)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            same(a, b, torch)
    elif not isinstance(theirs, torch.dtype):
        assert ours == theirs


@pytest.mark.parity
@pytest.mark.parametrize("new_format", [True, False])
def test_files_that_torch_wrote(tmp_path, new_format):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    adam.step()
    whole = torch.randn(4, 6)
    everything = {
        "model": net.state_dict(),
        "optimizer": adam.state_dict(),
        "views": [whole, whole.T, whole[1:, ::2], whole[0].expand(3, 6), torch.tensor(3)],
        "kinds": [whole.to(k) for k in (torch.float16, torch.bfloat16, torch.float64, torch.int8)],
        "flags": [whole > 0, torch.zeros(0, 3), torch.nn.Parameter(whole), whole.to(torch.cfloat)],
        "plain": {"step": 3, "names": {"a"}, "shape": whole.shape, "dtype": torch.float16},
        "numpy": [np.float64(0.5), np.arange(3)],
    }
    path = tmp_path / "a.pt"
    torch.save(everything, path, _use_new_zipfile_serialization=new_format)
    numbers = everything.pop("numpy")
    found = read_torch(path)
    for ours, theirs in zip(found.pop("numpy"), numbers):
        np.testing.assert_array_equal(ours, theirs)
    same(found, everything, torch)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_that_torch_wrote_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="a.pt is a TorchScript program, not weights"):
        read_torch(tmp_path / "a.pt")


@pytest.mark.parity
def test_modules_that_torch_wrote_whole_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_torch(tmp_path / "a.pt")
