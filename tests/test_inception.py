"""FID's Inception network and its weight file, against torch-fidelity's and stored numbers."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_cases import extractor, fidelity, pictures, random_state, torch_features

from ddistill.errors import CheckpointError, ConfigError, DataError
from ddistill.evaluation.metrics.detector import inception_detector
from ddistill.evaluation.metrics.features import extract
from ddistill.interop import inception as interop
from ddistill.interop.folded_norms import tensor_shapes
from ddistill.interop.inception import InceptionWeights, from_state_dict, load_inception
from ddistill.networks.inception import TAPS, Inception, average_pool, max_pool, resize_tf1, shapes
from ddistill.runtime import compilation
from ddistill.runtime.compilation import forward_options

# What torch-fidelity 0.4.0 makes of `pictures(2, 32)` with `random_state(0)`, on torch 2.13: the
# values at COLUMNS of each tap for both images, the mean and standard deviation of all.
COLUMNS = [1, 17, 25, 62]
STORED: dict[str, tuple] = {
    "64": (
        [
            [0.0094618, 0.00633761, 0.000116508, 0.8081],
            [0.0140819, 0.0241658, 0.000383105, 0.79637],
        ],
        0.229562,
        0.295848,
    ),
    "192": (
        [[0.0, 0.0571048, 0.0, 0.000159873], [0.0, 0.0183107, 1.84959e-05, 0.0]],
        0.380289,
        0.473009,
    ),
    "768": (
        [[1.05571, 0.0, 0.00591013, 0.00681406], [1.07917, 0.0, 0.00376441, 0.0100769]],
        0.606066,
        0.863572,
    ),
    "2048": (
        [[1.46483, 1.29987, 0.0015614, 0.0], [1.51332, 1.35435, 0.00425726, 0.0]],
        0.847586,
        1.2229,
    ),
    "logits_unbiased": (
        [[3.91307, -4.16434, -1.11828, 3.78622], [3.8971, -4.30953, -1.13489, 3.73144]],
        0.0766548,
        2.15641,
    ),
    "logits": (
        [[4.01275, -4.31112, -1.10182, 3.71291], [3.99678, -4.45632, -1.11844, 3.65813]],
        0.0688706,
        2.16735,
    ),
}


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def params(state):
    return from_state_dict(state)


@pytest.fixture(scope="module")
def network(params):
    """All taps of uint8 images, compiled once a size."""
    module = Inception(tuple(TAPS))
    apply = jax.jit(
        lambda params, x: module.apply({"params": params}, x), compiler_options=forward_options()
    )
    return lambda pixels: {k: np.asarray(v) for k, v in apply(params, pixels).items()}


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


# ------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("tap", TAPS)
def test_features_are_those_that_torch_fidelity_gave(network, tap):
    found = network(pictures(2, 32))[tap]
    assert found.shape == (2, TAPS[tap])
    assert found.dtype == np.float32
    some, mean, deviation = STORED[tap]
    np.testing.assert_allclose(found[:, COLUMNS], some, rtol=1e-4, atol=1e-4 * abs(mean))
    assert found.mean() == pytest.approx(mean, rel=1e-4)
    assert found.std() == pytest.approx(deviation, rel=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("size", [32, 256])
def test_every_tap_is_torch_fidelitys(network, state, size):
    pixels = pictures(2, size, seed=size)
    ours, theirs = network(pixels), torch_features(extractor(TAPS, state), pixels)
    for tap in TAPS:
        assert relative(ours[tap], theirs[tap]) < 1e-4, tap
        np.testing.assert_allclose(ours[tap], theirs[tap], rtol=1e-4, atol=2e-5 * theirs[tap].std())


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(32, 32), (8, 20), (299, 299), (256, 400), (1, 1)])
def test_resizing_is_torch_fidelitys(shape):
    theirs = fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    import torch

    x = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.float32)
    want = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), size=(299, 299), align_corners=False)
    got = resize_tf1(jnp.asarray(x)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=3e-5)


def test_resizing_by_hand():
    x = jnp.asarray([0.0, 30.0, 90.0]).reshape(1, 1, 3, 1)
    # Pixel i of 6 lies at i / 2; no half pixel is added, and the last input pixel is repeated.
    want = [0, 15, 30, 60, 90, 90]
    np.testing.assert_allclose(resize_tf1(x, 6)[0, 0, :, 0], want, rtol=1e-6)
    np.testing.assert_allclose(resize_tf1(x, 3), jnp.broadcast_to(x, (1, 3, 3, 1)), rtol=1e-6)
    other = jax.image.resize(x, (1, 1, 6, 1), "bilinear")[0, 0, :, 0]
    assert np.abs(other - np.array(want)).max() > 5, "half-pixel centres would have gone unnoticed"


def test_average_pool_leaves_padding_out():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    got = average_pool(x)[0, :, :, 0]
    grid = np.arange(12.0).reshape(3, 4)
    for i in range(3):
        for j in range(4):
            around = grid[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            assert got[i, j] == pytest.approx(around.mean()), (i, j)


@pytest.mark.parametrize("size, stride, padding", [(7, 2, 0), (8, 2, 0), (5, 1, 1)])
def test_max_pool_is_the_windowed_maximum(size, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, size, size, 3)) - 5
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    window = ((1, 3, 3, 1), (1, stride, stride, 1), pads)
    want = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window)
    np.testing.assert_array_equal(max_pool(x, stride, padding), want)


def test_options_change_no_result(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 5))

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=numbers)

    want = jax.jit(convolve)(x, kernel)
    got = jax.jit(convolve, compiler_options=forward_options("cpu"))(x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert forward_options("gpu") is None

    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such option")

    monkeypatch.setattr(jax, "jit", refuse)
    compilation._known_options.cache_clear()
    assert forward_options("cpu") is None
    compilation._known_options.cache_clear()


def test_only_what_is_asked_for_is_needed(params):
    early = shapes(("64",))
    assert set(early) == {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"}
    few = {name: params[name] for name in early}
    got = Inception(("64",)).apply({"params": few}, pictures(1, 16))
    assert set(got) == {"64"}
    with pytest.raises(ConfigError, match=r"taps='2049' is not known. Did you mean '2048'"):
        shapes(("2049",))


def test_the_whole_network_has_the_parameters_of_the_file():
    leaves = jax.tree.leaves(shapes())
    # 94 convolutions with 4 vectors of a norm each, and a dense layer of 1008 classes.
    assert len(leaves) == 2 * 94 + 2
    assert sum(np.prod(x.shape) for x in leaves) == 23_833_744
    assert len(tensor_shapes(shapes(), interop.torch_layers())) == 94 * 5 + 2


@pytest.mark.parametrize("count, devices", [(5, 4), (4, 4), (1, 2)])
def test_shards_and_padding_change_nothing(params, count, devices):
    """5 images on 4 devices: a batch of 4, then one of which three are padding."""
    assert len(jax.devices()) >= 4
    pixels = pictures(count, 8)
    weights = InceptionWeights(params, interop.SHA256)
    one = inception_detector(weights, 8, "64", False, jax.devices()[:1])
    many = inception_detector(weights, 3, "64", False, jax.devices()[:devices])
    assert many.batch % devices == 0
    want = extract(one.apply, pixels, one.batch, pixels=True)
    got = extract(many.apply, pixels, many.batch, pixels=True)
    assert got[0].shape == (count, 64)
    assert got[1] is None
    assert relative(got[0], want[0]) < 1e-5


def test_grey_images_have_three_equal_channels(params):
    detector = inception_detector(InceptionWeights(params, interop.SHA256), 2, "64", False)
    grey = pictures(2, 8)[..., :1]
    got = extract(detector.apply, grey, detector.batch, pixels=True)[0]
    want = extract(detector.apply, grey.repeat(3, axis=-1), detector.batch, pixels=True)[0]
    np.testing.assert_array_equal(got, want)


# ----------------------------------------------------------------------------------- the weights


def test_folding_is_the_batch_norm(state, params):
    name = "Mixed_6b.branch7x7_2"
    norm = {k: state[f"{name}.bn.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
    kernel = state[f"{name}.conv.weight"]
    x = np.random.default_rng(0).normal(size=kernel.shape[1:])
    plain = (kernel * x).sum(axis=(1, 2, 3))
    root = np.sqrt(norm["running_var"].astype(np.float64) + 1e-3)
    want = (plain - norm["running_mean"]) / root * norm["weight"] + norm["bias"]
    layer = params["Mixed_6b"]["branch7x7_2"]
    got = (layer["kernel"] * x.transpose(1, 2, 0)[..., None]).sum(axis=(0, 1, 2)) + layer["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("fc.bias"), r"of its 472 tensors 1 missing \(first 'fc.bias'\)"),
        (
            lambda s: s.update({"AuxLogits.conv0.conv.weight": np.zeros(1)}),
            r"1 unknown \(first 'AuxLogits.conv0.conv.weight'\).*torchvision's Inception v3 is",
        ),
        (
            lambda s: s.update({"fc.weight": s["fc.weight"][:1000]}),
            r"'fc.weight' has the shape \(1000, 2048\), not \(1008, 2048\)",
        ),
        (
            lambda s: s["Mixed_5b.branch1x1.bn.running_var"].__setitem__(0, -1),
            "'Mixed_5b.branch1x1.bn.running_var' is a variance and holds values below 0",
        ),
        (lambda s: s["fc.bias"].__setitem__(3, np.nan), "'fc.bias' holds values that are not fin"),
    ],
)
def test_state_dicts_that_are_no_inception(state, change, message):
    changed = {name: values.copy() for name, values in state.items()}
    change(changed)
    with pytest.raises(CheckpointError, match=message):
        from_state_dict(changed)


def test_counters_are_left_out_and_nothing_else(state, params):
    counted = {**state, "Conv2d_1a_3x3.bn.num_batches_tracked": np.int64(0)}
    for a, b in zip(jax.tree.leaves(from_state_dict(counted)), jax.tree.leaves(params)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_torch_wrote(tmp_path, state, params, zipped):
    """The published file is of the older form, which torch wrote before version 1.6."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    tensors = {name: torch.tensor(values) for name, values in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="has the SHA-256 .* what it measures is no FID"):
        load_inception(path)
    found = load_inception(path, other=True)
    assert not found.genuine
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(params)):
        np.testing.assert_array_equal(a, b)
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(ConfigError, match=r"weights\.pth is damaged or was cut short"):
        load_inception(path, other=True)


def test_a_pointer_is_no_damaged_file(tmp_path):
    (tmp_path / "w.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"w\.pth: the file is a git-lfs pointer .* SHA-256"):
        load_inception(tmp_path / "w.pth")


def test_a_missing_file_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DDISTILL_INCEPTION", raising=False)
    with pytest.raises(DataError) as caught:
        load_inception()
    text = str(caught.value)
    for part in (str(tmp_path), "does not exist", *interop.NAMES, interop.SHA256, "--weights"):
        assert part in text
    assert "http" not in text
    other = tmp_path / "ddistill" / interop.NAMES[1]
    other.parent.mkdir()
    other.write_bytes(b"not it")
    with pytest.raises(DataError, match=f"{interop.NAMES[1]} has the SHA-256"):
        load_inception()
    monkeypatch.setenv("DDISTILL_INCEPTION", str(tmp_path))
    with pytest.raises(DataError, match="the path is a folder"):
        load_inception()
    assert interop.SHA256.startswith("6726825d")
    assert all("6726825d" in name for name in interop.NAMES)
