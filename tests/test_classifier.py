"""Classifiers: their published sizes, their batch statistics, and torch's numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill import networks
from ddistill.errors import ConfigError
from ddistill.networks.classifier import FINAL_MAP, normalise
from ddistill.networks.weights import Weights
from ddistill.objectives import Batch, make_objective
from ddistill.objectives.classification import Classification, Classifier
from ddistill.runtime.rng import stream_key
from ddistill.training.state import create_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings

SMALL = {
    "resnet": {"width": 4, "blocks": (1, 1)},
    "densenet": {"growth": 2, "blocks": (2, 1)},
}


def small(name, shape=(1, 8, 8, 3), **options):
    module = networks.build(name, **{**SMALL[name], **options})
    return module, jax.jit(module.init)(jax.random.key(0), jnp.zeros(shape))


def pictures(count, seed=0):
    return jax.random.uniform(jax.random.key(seed), (count, 8, 8, 3), minval=-1.0, maxval=1.0)


@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    # Counted by hand from arXiv 1512.03385 and 1608.06993 with a 3x3 stem and ten classes.
    [("resnet", 11_173_962, 512), ("densenet", 18_104_458, 1920)],
)
def test_released_networks_have_their_published_sizes(name, parameters, features):
    module = networks.build(name)
    (logits, pooled), variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    )
    assert logits.shape == (2, 10)
    assert pooled.shape == (2, features)
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(variables["params"]))
    assert count == parameters


@pytest.mark.parametrize("name", SMALL)
def test_features_are_what_the_logits_are_linear_in_and_never_negative(name):
    module, variables = small(name)
    logits, features = jax.jit(module.apply)(variables, pictures(5))
    assert np.all(features >= 0)
    head = variables["params"]["logits"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_features_are_means_of_the_final_map(name):
    module, variables = small(name)
    weights = Weights(variables["params"], variables["batch_stats"])
    classifier = Classifier(weights, module)
    logits, features, taps = classifier.with_features(pictures(3), (FINAL_MAP,))
    assert taps[FINAL_MAP].shape == (3, 4, 4, features.shape[-1])
    np.testing.assert_allclose(taps[FINAL_MAP].mean((1, 2)), features, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal((logits, features), classifier(pictures(3)))
    with pytest.raises(ConfigError, match="feature tap.*'last'.*final_map"):
        classifier.with_features(pictures(3), ("last",))


@pytest.mark.parametrize("name", SMALL)
def test_running_statistics_do_not_depend_on_the_batch_and_training_ones_do(name):
    module, variables = small(name)
    classifier = Classifier(Weights(variables["params"], variables["batch_stats"]), module)
    x = pictures(6)
    alone, together = classifier(x[:1]), classifier(x)
    chex.assert_trees_all_close(alone, jax.tree.map(lambda a: a[:1], together), atol=1e-5)
    key = jax.random.key(1)
    trained, new = classifier.train(x, key)
    assert np.abs(trained - together[0]).max() > 1e-2
    assert jax.tree.structure(new) == jax.tree.structure(variables["batch_stats"])
    # One tenth of the way to the batch's own mean, for the first norm of the network.
    stem = module.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    seen = stem[1]["intermediates"]["stem_conv"]["__call__"][0]
    np.testing.assert_allclose(
        new["stem_norm"]["mean"], 0.1 * seen.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        new["stem_norm"]["var"], 0.9 + 0.1 * seen.var(axis=(0, 1, 2)), rtol=1e-4
    )


def train_step():
    module, variables = small("resnet", num_classes=3)
    objective = make_objective({"name": "classification", "shift": 1, "cutout": 2})
    optimizers = {"student": optax.sgd(0.1)}
    s = StepSettings(objective, {"student": module}, "eps", optimizers)
    state = create_state(
        {"student": variables["params"]},
        optimizers,
        (),
        statistics={"student": variables["batch_stats"]},
    )
    return jax.jit(make_step(s)), state, StepInputs(None, tiny.tables())


def test_a_step_trains_the_weights_and_moves_the_statistics():
    step, state, inputs = train_step()
    labels = jnp.arange(6) % 3
    after, metrics = step(state, inputs, pictures(6), labels, stream_key(0, "x"))
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()),
        (state.params, state.statistics),
        (after.params, after.statistics),
    )
    assert min(jax.tree.leaves(moved)) > 0
    assert set(metrics) == {"loss", "accuracy", "grad_norm"}


def test_a_network_without_batch_norm_has_no_statistics():
    module = networks.build("digits_classifier", width=8, feature_dim=4)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    logits, statistics = Classifier(Weights(params), module).train(
        jnp.zeros((2, 8, 8, 1)), jax.random.key(0)
    )
    assert logits.shape == (2, 10)
    assert not statistics


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 1.0), min_size=3, max_size=3),
)
def test_normalisation_is_that_of_pixels_in_zero_to_one(mean, std):
    x = np.linspace(-1, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3).astype(np.float32)
    pixels = (x.astype(np.float64) + 1) / 2
    np.testing.assert_allclose(
        normalise(jnp.asarray(x), mean, std), (pixels - mean) / std, rtol=1e-4, atol=1e-5
    )


def test_the_default_normalisation_changes_nothing():
    x = pictures(2)
    assert normalise(x, (0.5,), (0.5,)) is x


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet", {"stem": "smal"}, "network.stem='smal'"),
        ("resnet", {"mean": (0.5, 0.5)}, "network.mean.*2 values"),
        ("resnet", {"std": (0.0,)}, "network.std"),
        ("resnet", {"mean": ("a",)}, "network.mean.*numbers"),
        ("densenet", {"blocks": (1, 1, 1, 1, 1)}, "halves both sides 4 times"),
    ],
)
def test_classifiers_that_cannot_work_are_refused(name, options, text):
    with pytest.raises(ConfigError, match=text):
        small(name, **options)


def test_the_large_stem_quarters_the_sides():
    module, variables = small("resnet", stem="large", blocks=(1,))
    _, seen = module.apply(
        variables, pictures(1), capture_intermediates=True, mutable=["intermediates"]
    )
    out = seen["intermediates"]["level_0_block_0"]["__call__"][0]
    assert out.shape == (1, 2, 2, 4)


# --------------------------------------------------------------------------------- augmentation


def test_cutout_paints_one_square_and_nothing_else():
    objective = Classification(cutout=3, fill=0.25)
    images = jnp.full((400, 8, 8, 3), -0.5)
    keys = jax.random.split(jax.random.key(0), 400)
    cut = np.asarray(jax.vmap(objective._cut)(keys, images))
    assert set(np.unique(cut)) == {-0.5, 0.25}
    painted = (cut == 0.25).all(axis=-1)
    sizes = painted.sum(axis=(1, 2))
    assert sizes.max() == 9
    assert sizes.min() >= 4
    for mask in painted:
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        assert mask.sum() == len(rows) * len(columns)
        assert np.ptp(rows) == len(rows) - 1
    assert painted.mean(axis=0).min() > 0, "every pixel can be painted"


def test_shift_moves_the_image_and_fills_the_border():
    objective = Classification(shift=2, fill=0.5)
    image = jnp.arange(64.0).reshape(8, 8, 1)
    moved = np.asarray(objective._shift(jax.random.key(3), image))
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), constant_values=0.5)
    crops = [padded[i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    assert sum(np.array_equal(moved, crop) for crop in crops) == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"cutout": -1}, "cutout=-1"), ({"fill": 1.5}, "fill=1.5"), ({"shift": -2}, "shift=-2")],
)
def test_impossible_augmentations_are_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        Classification(**changes)


def test_accuracy_counts_right_answers():
    module, variables = small("resnet", num_classes=3)
    classifier = Classifier(Weights(variables["params"], variables["batch_stats"]), module)
    x, keys = pictures(12), jax.random.split(jax.random.key(0), 12)
    logits, _ = classifier.train(x, keys[0])
    right = jnp.argmax(logits, axis=-1)
    labels = jnp.where(jnp.arange(12) < 9, right, (right + 1) % 3)
    _, metrics, _ = Classification().loss(
        {"student": classifier}, Batch(x, labels, None, keys), tiny.tables()
    )
    assert float(metrics["accuracy"]) == pytest.approx(0.75)


# ---------------------------------------------------------------------------------------- torch


def torch_parity(name, build):
    """Largest difference of logits and features between our network and torch's, random weights."""
    torch = pytest.importorskip("torch")
    module, variables = small(name)
    key = iter(jax.random.split(jax.random.key(7), 1000))
    # Every value random and norms far from the identity, so that nothing can be left out.
    variables = jax.tree.map(
        lambda x: 0.5 + 0.5 * jax.random.uniform(next(key), x.shape), variables
    )
    x = np.asarray(pictures(3))
    ours = module.apply(variables, x)
    with torch.no_grad():
        theirs = build(
            torch, jax.tree.map(np.asarray, variables), torch.tensor(x.transpose(0, 3, 1, 2))
        )
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b.numpy(), rtol=2e-4)


def torch_conv(torch, variables, name, x, stride=1):
    kernel = torch.tensor(variables["params"][name]["kernel"].transpose(3, 2, 0, 1))
    return torch.nn.functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def torch_norm(torch, variables, name, x):
    s, p = variables["batch_stats"][name], variables["params"][name]
    values = [torch.tensor(v) for v in (s["mean"], s["var"], p["scale"], p["bias"])]
    return torch.nn.functional.batch_norm(x, *values, eps=1e-5)


def torch_head(torch, variables, x):
    pooled = x.mean(dim=(2, 3))
    head = variables["params"]["logits"]
    return pooled @ torch.tensor(head["kernel"]) + torch.tensor(head["bias"]), pooled


def test_resnet_is_torchs():
    def build(torch, v, x):
        x = torch.relu(torch_norm(torch, v, "stem_norm", torch_conv(torch, v, "stem_conv", x)))
        for name, stride in (("level_0_block_0", 1), ("level_1_block_0", 2)):
            block = {kind: v[kind][name] for kind in v}
            h = torch_conv(torch, block, "conv_0", x, stride)
            h = torch.relu(torch_norm(torch, block, "norm_0", h))
            h = torch_norm(torch, block, "norm_1", torch_conv(torch, block, "conv_1", h))
            if stride == 2:
                x = torch_conv(torch, block, "conv_skip", x, stride)
                x = torch_norm(torch, block, "norm_skip", x)
            x = torch.relu(h + x)
        return torch_head(torch, v, x)

    torch_parity("resnet", build)


def test_densenet_is_torchs():
    def build(torch, v, x):
        x = torch.relu(torch_norm(torch, v, "stem_norm", torch_conv(torch, v, "stem_conv", x)))
        for block, count in enumerate((2, 1)):
            for i in range(count):
                name = f"block_{block}_layer_{i}"
                h = torch.relu(torch_norm(torch, v, f"{name}_norm_0", x))
                h = torch_conv(torch, v, f"{name}_conv_0", h)
                h = torch.relu(torch_norm(torch, v, f"{name}_norm_1", h))
                x = torch.cat([x, torch_conv(torch, v, f"{name}_conv_1", h)], dim=1)
            if block == 0:
                x = torch.relu(torch_norm(torch, v, "transition_0_norm", x))
                x = torch_conv(torch, v, "transition_0_conv", x)
                x = torch.nn.functional.avg_pool2d(x, 2)
        return torch_head(torch, v, torch.relu(torch_norm(torch, v, "norm", x)))

    torch_parity("densenet", build)
