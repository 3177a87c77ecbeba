"""EDM's teachers: pickles are read without their code, and the networks compute what EDM's do."""

import functools
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edm_cases import CASES, inputs, module, numbers, sample, tensors, write
from flax import traverse_util
from pickling import pickled

from ddistill import networks
from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.interop.edm import read_teacher
from ddistill.interop.edm_pickles import Record
from ddistill.schedules import Level, karras

# Compiling is what takes the time here, so most of its optimisations are off.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def teacher(case, folder):
    return read_teacher(write(folder / f"{case}.pkl", CASES[case], tensors(case)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("edm")


@functools.cache
def denoised(case, folder):
    """x0 as our denoiser has it, of the weights in a pickle."""
    found = teacher(case, folder)
    options = dict(found.network)
    net = networks.build(options.pop("name"), **options)
    x, sigma, classes = inputs(case)
    level = Level(jnp.ones(3), jnp.asarray(sigma), jnp.log(sigma) / 4.0)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, x, classes):
        return Denoiser.from_module(net, params, found.prediction)(x, level, classes).x0

    return np.asarray(run(found.params, x, classes))


# ---------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("case", CASES)
def test_denoiser_gives_the_numbers_of_torch(case, folder):
    stored = np.asarray(numbers(case)["x0"])
    np.testing.assert_allclose(sample(denoised(case, folder)), stored, atol=1e-4 * stored.std())


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_denoiser_is_that_of_torch(case, folder):
    pytest.importorskip("torch")
    import torch_edm

    theirs = torch_edm.denoised(case)
    assert theirs.std() > 0.1
    ours = denoised(case, folder)
    # The last image, of sigma 20, has the largest values; the first must agree as well.
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


@pytest.mark.parity
@pytest.mark.parametrize("case", ["ddpmpp", "ncsnpp_classes", "adm_classes"])
def test_pickles_that_torch_wrote_are_read_alike(case, folder, tmp_path):
    pytest.importorskip("torch")
    import torch_edm

    found = read_teacher(torch_edm.written(torch_edm.network(case), tmp_path / "net.pkl"))
    expected = teacher(case, folder)
    assert found.network == expected.network
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


# ----------------------------------------------------------------------------------- description


def test_what_is_said_of_a_teacher(folder):
    found = teacher("ncsnpp_classes", folder)
    path = folder / "ncsnpp_classes.pkl"
    assert found.network == {
        "name": "song",
        "channels": 16,
        "multipliers": (2, 1),
        "blocks": 1,
        "attention": (8,),
        "out_channels": 3,
        "embedding": "fourier",
        "noise_multiplier": 2,
        "embedding_multiplier": 4,
        "encoder": "residual",
        "decoder": "standard",
        "resample_filter": (1, 3, 3, 1),
        "num_classes": 4,
        "augment_dim": 0,
        "dropout": 0.1,
    }
    assert (found.image_shape, found.num_classes) == ((8, 8, 3), 4)
    assert (found.prediction, found.schedule) == ("edm", {"name": "karras"})
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.source == f"edm:{path}"
    assert "BY-NC-SA 4.0" in found.licence
    assert all(p.dtype == np.float32 for p in jax.tree.leaves(found.params))


def test_the_schedule_tells_the_network_what_edm_tells_it():
    schedule = karras(5)
    np.testing.assert_allclose(schedule.time[1:], np.log(schedule.sigma[1:]) / 4, rtol=1e-5)


def test_sizes_of_attention_that_the_network_does_not_meet_are_left_out(folder):
    assert CASES["adm_classes"]["attn_resolutions"] == [32, 8]
    assert teacher("adm_classes", folder).network["attention"] == (8,)


def test_options_that_a_file_does_not_name_are_those_of_edm(tmp_path):
    options = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet"}
    # Four levels of four blocks: 540 tensors are asked for.
    with pytest.raises(ConfigError, match=r"lacks the tensors model\.dec\.16x16_.* 535 more"):
        read_teacher(write(tmp_path / "a.pkl", options, {"model.dec.x": np.zeros(1)}))


# -------------------------------------------------------------------------------------- weights


def changed(tmp_path, change, options=None, **more):
    """Reads the case "ddpmpp" with its tensors changed."""
    values = tensors("ddpmpp")
    change(values)
    options = {**CASES["ddpmpp"], **(options or {})}
    return read_teacher(write(tmp_path / "changed.pkl", options, values, **more))


NAME = "model.dec.4x4_in0.qkv.weight"


def test_every_tensor_is_used_once(folder, tmp_path):
    """No two parameters share a value and each is in the file: a placed twice would be seen."""
    values = np.concatenate([p.ravel() for p in jax.tree.leaves(teacher("ddpmpp", folder).params)])
    given = [v for n, v in tensors("ddpmpp").items() if not n.endswith("resample_filter")]
    given = np.concatenate([v.ravel() for v in given])
    np.testing.assert_array_equal(np.sort(values), np.sort(given))


def test_half_precision_becomes_float32(folder, tmp_path):
    def halve(values):
        values.update({k: v.astype(np.float16) for k, v in values.items()})

    found, exact = changed(tmp_path, halve).params, teacher("ddpmpp", folder).params
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact)):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b.astype(np.float16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop(NAME), [f"lacks the tensors {NAME}."]),
        (lambda v: v.update({"model.odd.weight": np.ones(2)}), ["left over", "model.odd.weight"]),
        (lambda v: v.update({NAME: v[NAME][:3]}), [NAME, "(3, 16, 1, 1)", "(48, 16, 1, 1)"]),
        (lambda v: v.update({NAME: v[NAME].astype(np.int64)}), [NAME, "int64", "real numbers"]),
        (lambda v: v.update({NAME: v[NAME] * np.nan}), [NAME, "not finite"]),
        (
            lambda v: v.update({"model.enc.4x4_down.conv0.resample_filter": np.ones((1, 1, 4, 4))}),
            ["4x4_down.conv0.resample_filter", "(1, 1)"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    with pytest.raises(ConfigError) as error:
        changed(tmp_path, change)
    for word in ("changed.pkl", *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [
        ({"model_type": "UNet"}, {}, ["class of its network='UNet'", "SongUNet"]),
        ({"adaptive_scale": True}, {}, ["adaptive_scale=True", "not supported"]),
        ({"num_block": 2}, {}, ["num_block=2", "Did you mean 'num_blocks'?"]),
        ({"encoder_type": "odd"}, {}, ["encoder='odd'", "residual"]),
        ({"resample_filter": [1, 2, 1]}, {}, ["resample_filter=(1, 2, 1)"]),
        ({"img_resolution": 9}, {}, ["9 x 9", "divide by 2"]),
        ({"img_resolution": None}, {}, ["img_resolution=None"]),
        ({"num_blocks": 2}, {}, ["lacks the tensors", "_block2"]),
        ({"attn_resolutions": 8}, {}, ["attn_resolutions=8", "no lists"]),
        ({}, {"outer": "VPPrecond"}, ["VPPrecond", "variance-preserving", "EDMPrecond"]),
        ({}, {"outer": "VEPrecond"}, ["VEPrecond", "variance-exploding"]),
        ({}, {"outer": "iDDPMPrecond"}, ["iDDPMPrecond", "variances"]),
        ({}, {"outer": "Precond"}, ["Precond", "EDM2's, whose network is not one that is known"]),
        ({}, {"state": {"sigma_data": 1.0}}, ["sigma_data is 1.0", "0.5"]),
    ],
)
def test_options_that_are_not_supported_are_named(tmp_path, options, more, words):
    with pytest.raises(ConfigError) as error:
        changed(tmp_path, lambda values: None, options, **more)
    for word in ("changed.pkl", *words):
        assert word in str(error.value)


# --------------------------------------------------------------------------------------- hostile


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_is_refused_by_name_and_not_run(tmp_path):
    trace = tmp_path / "ran"
    with pytest.raises(ConfigError) as error:
        changed(tmp_path, lambda values: None, extra=[Attack(trace)])
    assert f"'{os.system.__module__}.system'" in str(error.value)
    assert "changed.pkl" in str(error.value)
    assert not trace.exists()


def test_code_inside_of_a_tensor_is_refused_too(tmp_path):
    from pickling import Named, legacy

    held = Named("torch.storage._load_from_bytes", (legacy(Attack(tmp_path / "ran")),))
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled({"ema": held}, 4))
    with pytest.raises(ConfigError, match=r"a\.pkl \(a tensor in it\) wants '.*\.system'"):
        read_teacher(path)
    assert not (tmp_path / "ran").exists()


def test_the_source_text_in_a_pickle_is_not_run(folder, tmp_path):
    trace = tmp_path / "ran"
    source = f"open({str(trace)!r}, 'w').close()"
    found = changed(tmp_path, lambda values: None, source=source)
    jax.tree.map(np.testing.assert_array_equal, found.params, teacher("ddpmpp", folder).params)
    assert not trace.exists()


def test_classes_of_torch_that_are_no_containers_are_refused(tmp_path):
    from pickling import Instance

    odd = Instance("torch.nn.modules.linear.Linear", {})
    with pytest.raises(ConfigError, match=r"wants 'torch\.nn\.modules\.linear\.Linear'"):
        changed(tmp_path, lambda values: None, loss_fn=odd)


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.container\nModuleDict", "dnnlib.util\nEasyDict"]
)
def test_a_pickle_cannot_change_the_classes_that_stand_in(tmp_path, name):
    """BUILD with a pair sets attributes on what lies below it, here on the class itself."""
    program = f"\x80\x02c{name}\nN}}U\x07optionsK\x01s\x86b.".encode("latin1")
    path = tmp_path / "a.pkl"
    path.write_bytes(program)
    with pytest.raises(ConfigError, match="damaged"):
        read_teacher(path)


# --------------------------------------------------------------------------------- damaged files


def test_missing_cut_and_other_files(tmp_path):
    path = write(tmp_path / "a.pkl", CASES["ddpmpp"], tensors("ddpmpp"))
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ConfigError, match=r"a\.pkl.* is damaged or was cut short"):
            read_teacher(path)
    with pytest.raises(ConfigError, match=r"gone\.pkl does not exist"):
        read_teacher(tmp_path / "gone.pkl")
    for content, words in (
        (b"", r"a\.pkl is empty \(0 bytes\)"),
        (b"<html>", r"a\.pkl is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer .* run 'git"),
        (b"\x89HDF", r"not a pickle; it begins with b'\\x89HDF'"),
        (b"PK\x03\x04", "network-snapshot"),
        (pickled([1, 2], 4), "holds a list"),
        (pickled({"net": 1}, 4), "no network 'ema'; it holds 'net'"),
        (pickled({"ema": module("EDMPrecond", {"a": np.ones(1)})}, 4), "no 'model'"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            read_teacher(path)


def test_folders_and_npz_files_in_place_of_a_pickle(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; .* there is no .pkl file in it"):
        read_teacher(tmp_path)
    (tmp_path / "snapshot.pkl").touch()
    with pytest.raises(ConfigError, match=r"is a folder; .* give one of snapshot\.pkl"):
        read_teacher(tmp_path)
    np.savez(tmp_path / "ref.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ConfigError, match="is an npz file, .* statistics go to ddistill.evaluate"):
        read_teacher(tmp_path / "ref.npz")


def test_networks_without_their_options_are_refused(tmp_path):
    inner = {"model.enc.a.weight": np.ones(1)}
    net = module("EDMPrecond", inner, None, kinds={"model": ("SongUNet",)})
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled({"ema": net}, 4))
    with pytest.raises(ConfigError, match="_init_kwargs"):
        read_teacher(path)


def test_parameters_are_those_that_the_network_asks_for(folder):
    for case in CASES:
        found = teacher(case, folder)
        options = dict(found.network)
        net = networks.build(options.pop("name"), **options)
        image, time = jnp.zeros((1, *found.image_shape)), jnp.zeros(1)
        wanted = jax.eval_shape(net.init, jax.random.key(0), image, time)["params"]
        shapes = {k: v.shape for k, v in traverse_util.flatten_dict(wanted).items()}
        ours = {k: v.shape for k, v in traverse_util.flatten_dict(found.params).items()}
        assert ours == shapes


def test_a_module_in_two_places_is_refused():
    """Ten levels of one module named thirty times each are a small file and an endless walk."""
    inner = Record("Conv2d", {"_parameters": {"weight": np.zeros(1)}})
    outer = Record("SongUNet", {"_modules": {"a": inner, "b": inner}})
    with pytest.raises(ConfigError, match="its module 'b' is in two places"):
        outer.tensors()
