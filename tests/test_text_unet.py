"""The text U-Net: diffusers' names, sizes and outputs, its fields, and the memory of attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sd import listing, random_tensors, recomputed

from ddistill.conditions import TextCondition
from ddistill.errors import ConfigError
from ddistill.interop.leaves import count, names_and_shapes
from ddistill.interop.text_unet import read_options, write_options
from ddistill.interop.text_unet_weights import leaves, to_params, to_tensors
from ddistill.networks import build
from ddistill.networks.text_unet import TextUNet

SHAPE, CONTEXT = (4, 8, 4), 12
SD1 = {
    "sample_size": [4, 8],
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "cross_attention_dim": CONTEXT,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SD2 = {**SD1, "attention_head_dim": [2, 4], "use_linear_projection": True}
ALL = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
CONFIGS = {
    "1.5": {**SD1, "layers_per_block": 2},
    "2.1-base": SD2,
    "2.1-v": {**SD2, "upcast_attention": True},
    "BK Base": SD1,
    "BK Small": {**SD1, "mid_block_type": None},
    "BK Tiny": {**SD1, **ALL, "mid_block_type": None},
    "unequal depths": {
        **SD2,
        **ALL,
        "block_out_channels": [8, 16],
        "layers_per_block": [1, 2],
        "transformer_layers_per_block": [1, 2],
    },
    "guidance as an input": {**SD1, "time_cond_proj_dim": 256},
}


def ours(config):
    options, shape = read_options(config, "unet/config.json")
    assert shape == (4, 8, 4)
    return TextUNet(**options)


def inputs(net, tokens=77):
    rng = np.random.default_rng(1)
    z = rng.standard_normal((3, *SHAPE)).astype(np.float32)
    states = rng.standard_normal((3, tokens, CONTEXT)).astype(np.float32)
    guidance = np.array([1.0, 3.0, 7.5], np.float32) if net.guidance_dim else None
    return z, np.array([0, 17, 999]), TextCondition(states, states[:, 0], guidance)


# Operations one by one compile faster than eight networks: their shapes are the same.
@functools.cache
def found_at(name):
    """Our network of a config, its tensors, the inputs and the outputs."""
    net = ours(CONFIGS[name])
    tensors = random_tensors(leaves(net, 4))
    given = inputs(net, 5 if name == "BK Base" else 77)
    return net, tensors, given, apply(net, to_params(net, 4, tensors, "here"), *given)


def apply(net, params, z, time, text, **options):
    return net.apply({"params": params}, z, jnp.asarray(time, jnp.float32), text, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_and_tensors_survive_the_way_there_and_back(name):
    net = ours(CONFIGS[name])
    tensors = random_tensors(leaves(net, 4))
    again = dict(to_tensors(net, 4, to_params(net, 4, tensors, "here")))
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    assert ours(write_options(net, SHAPE)) == net


# What diffusers 0.42.1 (torch 2.13) gives at row 3, column 5, channel 0 of the three latents.
STORED = {
    "1.5": (-0.01527312, -0.33780819, 0.75136894),
    "2.1-base": (0.10562679, 0.66631365, -0.52604520),
    "2.1-v": (0.10562679, 0.66631365, -0.52604520),
    "BK Base": (0.15339734, 0.52719337, -0.67940331),
    "BK Small": (0.10418729, 0.64725077, -0.32401609),
    "BK Tiny": (0.16306366, 0.84311402, -0.24898218),
    "unequal depths": (-0.14031379, -0.38017523, -0.37094146),
    "guidance as an input": (0.07779548, 0.65530717, -0.53231710),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_that_diffusers_gave(name):
    np.testing.assert_allclose(found_at(name)[-1][:, 3, 5, 0], STORED[name], atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_diffusers(name):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    _, tensors, given, found = found_at(name)
    wanted = theirs(CONFIGS[name], tensors, *given)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def theirs(config, tensors, z, time, text):
    """What diffusers says with these tensors, of which it takes every one and misses none."""
    import torch
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(**config).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    more = {}
    if text.guidance is not None:
        # LatentConsistencyModelPipeline.get_guidance_scale_embedding.
        rates = torch.exp(-torch.arange(128) * (np.log(10000.0) / 127))
        angles = 1000.0 * (torch.from_numpy(text.guidance) - 1.0)[:, None] * rates
        more["timestep_cond"] = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    latents = torch.from_numpy(z.transpose(0, 3, 1, 2).copy())
    states = torch.from_numpy(text.states)
    with torch.no_grad():
        output = model(latents, torch.from_numpy(time), states, **more).sample
    return output.numpy().transpose(0, 2, 3, 1)


# ----------------------------------------------------------------------------------- full size

XL = {
    **{"widths": (320, 640, 1280), "attends": (1, 2), "depth": (1, 2, 10), "heads": (5, 10, 20)},
    **{"context_dim": 2048, "linear_projection": True, "added_dim": 2816},
}
TWO = {
    **{"heads": (5, 10, 20, 20), "context_dim": 1024},
    **{"linear_projection": True, "upcast_attention": True},
}
TINY = {"widths": (320, 640, 1280), "attends": (0, 1, 2), "blocks": (1,), "middle": False}
SIZES = {
    "1.5": ({}, 859_520_964),
    "2.1": (TWO, 865_910_724),
    "XL": (XL, 2_567_463_684),
    "BK Base": ({"blocks": (1,)}, 579_384_964),
    "BK Small": ({"blocks": (1,), "middle": False}, 482_346_884),
    "BK Tiny": (TINY, 323_384_964),
}
# Number of tensors, and `listing` of their names and shapes in diffusers 0.42.1.
KEYS = {
    "1.5": (686, "06ab0a594a10b99f"),
    "2.1": (686, "102cedebfb24e477"),
    "XL": (1680, "1252d970e55232bb"),
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_networks_have_their_parameters_under_the_names_of_diffusers(name):
    options, parameters = SIZES[name]
    table = leaves(TextUNet(**options), 4)
    assert count(table) == parameters
    if name in KEYS:
        found = names_and_shapes(table)
        assert (len(found), listing(found)) == KEYS[name]


@pytest.mark.parity
def test_names_and_shapes_are_those_of_diffusers_full_size_network():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    wanted = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert names_and_shapes(leaves(TextUNet(), 4)) == wanted


# ------------------------------------------------------------------------- text, taps, options


@pytest.fixture(scope="module")
def small():
    """A network of two levels that all have transformers, its parameters and inputs."""
    net = ours({**SD1, **ALL})
    params = to_params(net, 4, random_tensors(leaves(net, 4)), "here")
    return net, params, inputs(net, 5)


def test_every_row_is_given_its_own_text(small):
    net, params, (z, time, text) = small
    plain = apply(net, params, z, time, text)
    swapped = dataclasses.replace(text, states=text.states[[1, 0, 2]])
    other = apply(net, params, z, time, swapped)
    np.testing.assert_allclose(other[2], plain[2], atol=1e-6)
    assert all(np.abs(other[i] - plain[i]).max() > 1e-3 for i in (0, 1))
    again = apply(net, params, z[[1, 0, 2]], time[[1, 0, 2]], swapped)
    np.testing.assert_allclose(again, plain[jnp.array([1, 0, 2])], atol=1e-5)


def test_taps_have_the_sizes_of_their_levels(small):
    net, params, given = small
    sizes = {
        **{"down_0": (4, 8, 8), "down_1": (2, 4, 8), "mid": (2, 4, 8)},
        **{"up_0": (2, 4, 8), "up_1": (4, 8, 8), "last": (4, 8, 8)},
    }
    out, features = apply(net, params, *given, taps=tuple(sizes))
    assert {name: x.shape[1:] for name, x in features.items()} == sizes
    np.testing.assert_array_equal(out, apply(net, params, *given))


def test_without_a_middle_its_tap_is_what_enters_the_way_up():
    net, tensors, given, _ = found_at("BK Small")
    _, found = apply(net, to_params(net, 4, tensors, "here"), *given, taps=("mid", "down_1"))
    np.testing.assert_array_equal(found["mid"], found["down_1"])


ONE = {"widths": (8,), "blocks": 1, "attends": (0,), "heads": 2, "norm_groups": 4}


@pytest.fixture(scope="module")
def one():
    """A network of one level."""
    net = build("text_unet", **ONE, context_dim=CONTEXT)
    return net, to_params(net, 4, random_tensors(leaves(net, 4)), "here"), inputs(net, 5)


def test_bfloat16_changes_little(one):
    net, params, given = one
    plain = apply(net, params, *given)
    half = jax.jit(functools.partial(apply, net.clone(dtype="bfloat16")))(params, *given)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - plain).max() < 0.1 * np.abs(plain).max()


def test_remat_computes_blocks_and_transformers_again(one):
    net, params, given = one
    nets = (net, net.clone(remat=True))
    parts = [recomputed(functools.partial(apply, n), params, *given) for n in nets]
    # One block on the way down, two in the middle, two on the way up, and four transformers.
    assert parts == [0, 9]


def test_dropout_needs_training(one):
    net, params, (z, time, text) = one
    net = net.clone(dropout=0.5)
    plain = apply(net, params, z, time, text)
    noisy = apply(net, params, z, time, text, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(plain, apply(one[0], params, z, time, text))
    assert np.abs(noisy - plain).max() > 1e-2


def test_the_vector_of_xl_is_an_input():
    net = build("text_unet", **ONE, context_dim=CONTEXT, added_dim=6)
    tensors = random_tensors(leaves(net, 4))
    assert tensors["add_embedding.linear_1.weight"].shape == (32, 6)
    params = to_params(net, 4, tensors, "here")
    z, time, text = inputs(net, 5)
    texts = [
        dataclasses.replace(text, added=added) for added in (np.zeros((3, 6)), np.ones((3, 6)))
    ]
    outputs = [apply(net, params, z, time, given) for given in texts]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    written = write_options(net, SHAPE)
    assert written["addition_embed_type"] == "text_time"
    assert TextUNet(**read_options(written, "here")[0]) == net


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "UNet2DModel"}, "'UNet2DModel'; only UNet2DConditionModel can be read"),
        ({"in_channels": 9}, "in_channels=9, out_channels=4. They must be equal.*inpainting"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type='text_proj' is not supp"),
        ({"num_attention_heads": 8}, "num_attention_heads=8 is not supported. Allowed: None"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' is not supported"),
        ({"only_cross_attention": True}, "only_cross_attention=True is not supported"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos=False is not supported. Allowed: True"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type='UNetMidBlock2D' is not support"),
        ({"sample_size": None}, "sample_size=None must be the height of the latents"),
        ({"attention_head_dim": [2, 4, 4]}, "must be an integer above 0, or 2 of them"),
        ({"attention_head_dim": 3}, "3 heads do not divide the 8 channels of level 0"),
        ({"cross_attention_dim": [8, 16]}, "the same for all levels"),
        ({"transformer_layers_per_block": [[1], 1]}, "transformer_layers_per_block=.*must be an"),
        ({"up_block_types": ["UpBlock2D"] * 2}, "level 0 is CrossAttnDown.* and UpBlock2D on the"),
        ({"down_block_types": ["DownBlock2D"]}, "1 down_block_types, 2 up_block_types and 2"),
        ({"layers_per_blok": 2}, "layers_per_blok=2 is not an option .* 'layers_per_block'"),
        ({"addition_embed_type": "text_time"}, "needs projection_class_embeddings_input_dim"),
        ({"time_embedding_dim": 64}, "time_embedding_dim=64 is not supported. Allowed: 32"),
        (
            {"down_block_types": ["CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"]},
            "block type 'SimpleCrossAttnDownBlock2D' is not supported. Did you mean",
        ),
    ],
)
def test_other_networks_are_refused_by_the_option(changes, message):
    with pytest.raises(ConfigError, match=f"unet/config.json: .*{message}") as error:
        ours({**SD1, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"attention_impl": "flash"}, "attention_impl='flash' is not known. .*chunked"),
        ({"widths": ()}, r"widths=\(\) must be one or more"),
        ({"blocks": (1, 2)}, r"blocks=\(1, 2\) must be one integer above 0, or 4 of them"),
        ({"attends": (4,)}, r"attends=\(4,\): levels are 0 to 3"),
        ({"heads": (7,)}, "7 heads do not divide the 320 channels of level 0"),
        ({"guidance_dim": 3}, "guidance_dim=3 must be 0, or even"),
        ({"dropout": 1.0}, "dropout=1.0 must be in"),
        ({"context_dim": 0}, "context_dim=0 must be 1 or more"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        build("text_unet", **fields)


def test_arguments_that_do_not_fit_are_refused(small):
    net, params, (z, time, text) = small
    wide = dataclasses.replace(text, states=text.states[..., :5])
    guided = dataclasses.replace(text, guidance=np.ones(3, np.float32))
    for given, message in (
        ((z[:, :3], time, text), "H and W that divide by 2"),
        ((z, time, None), "takes a TextCondition; NoneType was given"),
        ((z, time, wide), "The text has 5 channels, and context_dim=12"),
        ((z, time, guided), "TextCondition.guidance is given, and guidance_dim=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            apply(net, params, *given)
    with pytest.raises(ConfigError, match="feature tap='midd'.* Did you mean 'mid'"):
        apply(net, params, z, time, text, taps=("midd",))


def test_a_tensor_too_many_too_few_or_of_another_shape_is_named():
    net, tensors, _, _ = found_at("BK Small")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    lacking = {k: x for k, x in tensors.items() if k != name}
    for changed, message in (
        ({**tensors, "mid_block.x": tensors[name]}, "1 tensors have no place .* mid_block.x"),
        (lacking, f"'{name}' is missing"),
        ({**tensors, name: tensors[name][:, :-1]}, r"attn2.to_k.weight has shape \(8, 11\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            to_params(net, 4, changed, "here")
