"""The transformer DiT: sizes, outputs, options, and diffusers' settings and tensors."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_dit import dit_tensors
from tiny_sd import recomputed

from ddistill import networks
from ddistill.errors import ConfigError
from ddistill.interop.dit import (
    DEFAULTS,
    read_options,
    to_params,
    to_tensors,
    write_options,
)
from ddistill.networks import attention
from ddistill.networks.dit import SIZES, DiT, dit_shapes, named_size, positions

SIDE, CHANNELS = 4, 3
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": CHANNELS,
    "num_layers": 2,
    "sample_size": SIDE,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}
CONFIGS = {
    "plain": TINY,
    "other norm": {**TINY, "norm_eps": 0.01},
    "patches of 1": {**TINY, "patch_size": 1},
    "first release": {
        **TINY,
        **{"_class_name": "Transformer2DModel", "out_channels": 2 * CHANNELS},
        **{"attention_bias": True, "activation_fn": "gelu-approximate", "norm_num_groups": 32},
        **{"norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "dropout": 0.0},
        **{"cross_attention_dim": None, "num_vector_embeds": None, "upcast_attention": False},
        **{"double_self_attention": False, "only_cross_attention": False},
        **{"use_linear_projection": False, "_diffusers_version": "0.12.0.dev0"},
    },
    "unconditional": {**TINY, "num_embeds_ada_norm": 1, "_unconditional": True},
}
SHAPE = (SIDE, SIDE, CHANNELS)


def ours(config):
    options, shape = read_options(config, "transformer/config.json")
    assert shape == SHAPE
    return DiT(**options)


def inputs():
    z = np.random.default_rng(1).standard_normal((3, *SHAPE)).astype(np.float32)
    return z, np.array([0.0, 17.0, 999.0], np.float32), np.array([0, 5, 2])


@functools.cache
def found_at(name):
    """Our network of a config, its tensors and its outputs."""
    net = ours(CONFIGS[name])
    tensors = dit_tensors(net, CHANNELS)
    params = to_params(net, SHAPE, tensors, "here")
    z, time, cond = inputs()
    run = jax.jit(lambda params, *given: net.apply({"params": params}, *given))
    return net, tensors, run(params, z, time, cond if net.num_classes else None)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_and_tensors_survive_the_way_there_and_back(name):
    net = ours(CONFIGS[name])
    tensors = dit_tensors(net, CHANNELS)
    again = dict(to_tensors(net, CHANNELS, to_params(net, SHAPE, tensors, "here")))
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    assert ours(json.loads(json.dumps(write_options(net, SHAPE)))) == net


def theirs(config, tensors):
    """diffusers' outputs, without the channels of a variance."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    options = {key: value for key, value in config.items() if key in DEFAULTS}
    net = diffusers.DiTTransformer2DModel(**options).eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=True)
    z, time, cond = map(torch.from_numpy, inputs())
    if config.get("_unconditional"):
        cond = torch.zeros_like(cond)
    with torch.no_grad():
        out = net(z.permute(0, 3, 1, 2), time, cond).sample
    return out.permute(0, 2, 3, 1).numpy()[..., :CHANNELS]


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_diffusers(name):
    _, tensors, found = found_at(name)
    wanted = theirs(CONFIGS[name], tensors)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


# What diffusers 0.42.1 (torch 2.13) gives at row 2, column 3, channel 1 of the three images.
STORED = {
    "plain": (-0.42565799, 0.49567184, 1.68020368),
    "other norm": (-0.42622930, 0.49434507, 1.68151498),
    "patches of 1": (0.58741808, -0.38334101, 3.71505046),
    "first release": (1.00533891, 0.81622261, 1.60654664),
    "unconditional": (-0.11776382, 0.20039611, 1.39416790),
}


@pytest.mark.parametrize("name", STORED)
def test_outputs_are_those_that_diffusers_gave(name):
    np.testing.assert_allclose(found_at(name)[-1][:, 2, 3, 1], STORED[name], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "ada_norm"}, "norm_type='ada_norm' is not supported. Allowed: 'ada_norm_z"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu' is not supported"),
        ({"attention_bias": False}, "attention_bias=False is not supported"),
        ({"out_channels": 5}, "out_channels=5 and in_channels=3. Allowed: 3, or 6"),
        ({"patch_size": 3}, "sample_size=4 must divide by patch_size=3"),
        ({"attention_head_dim": 3}, "width=6 must divide by 4"),
        ({"num_layer": 3}, "num_layer=3 is not an option .* Did you mean 'num_layers'"),
        ({"num_layers": 0}, "num_layers=0 must be an integer above 0"),
        ({"dropout": 1.0}, "dropout=1.0 must be a number in"),
        ({"_class_name": "PixArtTransformer2DModel"}, ".*only DiTTransformer2DModel can be read"),
        ({"_class_name": "Transformer2DModel"}, "attention_bias=False is not supported"),
        (
            {**CONFIGS["first release"], "cross_attention_dim": 768},
            "cross_attention_dim=768 is not supported",
        ),
    ],
)
def test_settings_that_are_not_supported_are_named(change, message):
    with pytest.raises(ConfigError, match=f"transformer/config.json: {message}"):
        read_options({**TINY, **change}, "transformer/config.json")


def test_tensors_are_used_once_and_copies_agree():
    net = ours(TINY)
    tensors = dit_tensors(net, CHANNELS)
    copy = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight"

    def refused(change, message):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(ConfigError, match=f"here: .*{message}"):
            to_params(net, SHAPE, changed, "here")

    refused({copy: tensors[copy] + 1}, f"{copy} differs from .*blocks.0")
    refused({copy: None}, f"{copy}' is missing")
    refused({"proj_out_2.bias": None}, "proj_out_2.bias' is missing")
    refused({"proj_out_3.bias": np.zeros(2)}, "1 tensors have no place .*proj_out_3.bias")
    refused({"proj_out_2.bias": np.zeros(2)}, r"proj_out_2.bias has shape \(2,\)")
    refused({"pos_embed.pos_embed": np.zeros((1, 4, 8))}, "are not the sinusoids of a DiT")
    places = {"pos_embed.pos_embed": np.asarray(positions(2, 2, 8))[None]}
    to_params(net, SHAPE, {**tensors, **places}, "here")


def test_what_diffusers_does_not_have_is_not_written():
    for change in ({"qk_norm": True}, {"double_norm": True}, {"extras": ("end_time",)}):
        net = DiT(width=8, depth=1, heads=2, out_channels=CHANNELS, **change)
        with pytest.raises(ConfigError, match=f"network.{next(iter(change))}=.*not an option"):
            write_options(net, SHAPE)


# ------------------------------------------------------------------------------- the network


def test_sizes_have_the_numbers_of_parameters_of_the_paper():
    """33 to 675 million (arXiv 2212.09748 table 4), with classes and a variance."""
    wanted = {"S/2": 33, "XL/2": 675}
    for name, millions in wanted.items():
        net = DiT(**named_size(name), num_classes=1000, learned_sigma=True)
        shapes = jax.tree.leaves(dit_shapes(net, 4))
        assert round(sum(np.prod(x.shape, dtype=np.int64) for x in shapes) / 1e6) == millions
    assert {name: size.width // size.heads for name, size in SIZES.items()}["XL"] == 72
    with pytest.raises(ConfigError, match="'XL/3' is not known"):
        named_size("XL/3")


OWN = {"width": 8, "depth": 3, "heads": 2, "out_channels": CHANNELS, "num_classes": 5}


def drawn(net, seed=0):
    """Parameters without zeros."""
    flat, tree = jax.tree.flatten(dit_shapes(net, CHANNELS))
    rng = np.random.default_rng(seed)
    values = [0.5 * rng.standard_normal(x.shape).astype(np.float32) for x in flat]
    return jax.tree.unflatten(tree, values)


def test_a_fresh_network_gives_zeros_and_its_blocks_return_their_input():
    z, time, cond = inputs()
    for options in ({}, {"double_norm": True, "qk_norm": True}):
        net = networks.build("dit", **{**OWN, "depth": 2}, **options)
        params = jax.jit(lambda z, net=net: net.init(jax.random.key(0), z, time)["params"])(z)
        taps = ("block_0", "block_1")
        out, features = net.apply({"params": params}, z, time, cond, taps=taps)
        assert not np.any(out)
        np.testing.assert_array_equal(features["block_0"], features["block_1"])
        assert np.std(features["block_0"]) > 0.1


def test_taps_are_maps_of_tokens():
    net = networks.build("dit", **OWN)
    z, time, cond = inputs()
    z = np.concatenate([z, z], axis=2)  # 4 x 8: images need not be squares
    taps = ("block_0", "block_1", "block_2", "mid", "last")
    out, features = net.apply({"params": drawn(net)}, z, time, cond, taps=taps)
    assert out.shape == z.shape
    assert out.dtype == jnp.float32
    assert {tap: x.shape for tap, x in features.items()} == dict.fromkeys(taps, (3, 2, 4, 8))
    np.testing.assert_array_equal(features["mid"], features["block_1"])
    # `last` gives the output by one linear layer, patch by patch.
    dense = drawn(net)["dense_out"]
    pixels = features["last"] @ dense["kernel"] + dense["bias"]
    patches = pixels.reshape(3, 2, 4, 2, 2, CHANNELS)
    np.testing.assert_allclose(out[:, 2:4, 4:6], patches[:, 1, 2], atol=1e-5)
    with pytest.raises(ConfigError, match="'block_3' is not known"):
        net.apply({"params": drawn(net)}, z, time, cond, taps=("block_3",))
    with pytest.raises(ConfigError, match="patch_size=2"):
        net.apply({"params": drawn(net)}, z[:, :3], time, cond)


def test_no_class_is_the_null_class():
    net = networks.build("dit", **OWN)
    z, time, cond = inputs()
    apply = functools.partial(net.apply, {"params": drawn(net)}, z, time)
    np.testing.assert_array_equal(apply(None), apply(np.full(3, 5)))
    assert np.abs(apply(None) - apply(cond))[0].max() > 1e-2


def test_channels_of_a_variance_do_not_change_the_output():
    wide = networks.build("dit", **OWN, learned_sigma=True)
    params = drawn(wide)
    last = params["dense_out"]
    kept = {
        "kernel": last["kernel"].reshape(8, 4, 2, CHANNELS)[:, :, 0].reshape(8, -1),
        "bias": last["bias"].reshape(4, 2, CHANNELS)[:, 0].reshape(-1),
    }
    z, time, cond = inputs()
    found = wide.apply({"params": params}, z, time, cond)
    plain = networks.build("dit", **OWN)
    wanted = plain.apply({"params": {**params, "dense_out": kept}}, z, time, cond)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_scores_of_normalised_queries_are_bounded():
    """With qk_norm the size of queries and keys does not matter."""
    net = networks.build("dit", **OWN, qk_norm=True)
    params = drawn(net)
    larger = jax.tree.map(lambda x: x, params)
    for i in range(3):
        qkv = larger[f"block_{i}"]["qkv"]
        factor = np.repeat([10.0, 10.0, 1.0], 8)
        qkv["kernel"], qkv["bias"] = qkv["kernel"] * factor, qkv["bias"] * factor
    z, time, cond = inputs()
    found = net.apply({"params": params}, z, time, cond)
    np.testing.assert_allclose(
        found, net.apply({"params": larger}, z, time, cond), rtol=1e-3, atol=1e-3
    )


def test_normalised_modulation_has_unit_scales_and_shifts():
    """What enters the last layer has a mean square of at most (1 + 1)^2 for any embedding."""
    sizes = {}
    for double in (False, True):
        net = networks.build("dit", **OWN, double_norm=double)
        params = drawn(net)
        params["modulation_out"]["kernel"] = 100 * params["modulation_out"]["kernel"]
        z, time, cond = inputs()
        _, features = net.apply({"params": params}, z, time, cond, taps=("last",))
        sizes[double] = float(np.abs(features["last"]).max())
    # |y| <= sqrt(8) each for a norm, a scale and a shift over 8 channels.
    assert sizes[True] < 8 + np.sqrt(8) < 50 < sizes[False]


def test_blocks_are_computed_again_and_attention_in_chunks_is_the_same(monkeypatch):
    plain, again = (networks.build("dit", **OWN, remat=remat) for remat in (False, True))
    params, (z, time, cond) = drawn(plain), inputs()

    def loss(net, params):
        return jnp.sum(jnp.square(net.apply({"params": params}, z, time, cond)))

    assert recomputed(functools.partial(loss, plain), params) == 0
    assert recomputed(functools.partial(loss, again), params) == 3
    wanted = jax.jit(jax.grad(functools.partial(loss, plain)))(params)
    monkeypatch.setattr(attention, "MOST_SCORES", 8)
    found = jax.jit(jax.grad(functools.partial(loss, again)))(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())


def test_bfloat16_is_near_and_dropout_is_drawn():
    exact, rough = (networks.build("dit", **OWN, dtype=d) for d in ("float32", "bfloat16"))
    params, (z, time, cond) = drawn(exact), inputs()
    wanted = exact.apply({"params": params}, z, time, cond)
    found = rough.apply({"params": params}, z, time, cond)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    net = networks.build("dit", **OWN, dropout=0.5)
    run = functools.partial(net.apply, {"params": params}, z, time, cond)
    np.testing.assert_array_equal(run(), wanted)
    first, second = (run(train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert np.abs(first - second).max() > 1e-2
