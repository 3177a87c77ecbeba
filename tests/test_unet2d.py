"""Our U-Net against diffusers' UNet2DModel: settings, names, layouts and outputs."""

import dataclasses
import zlib
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from flax import traverse_util

from ddistill.errors import ConfigError
from ddistill.interop.config_values import AVERAGE_NOTES
from ddistill.interop.unet2d import read_options, write_options
from ddistill.interop.unet2d_weights import leaves, to_params, to_tensors
from ddistill.networks.unet import UNet

# google/ddpm-cifar10-32, -church-256, -bedroom-256 and -celebahq-256 (the last three alike), with
# fewer channels and pixels.
DDPM = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 8,
    "out_channels": 3,
    "time_embedding_type": "positional",
}


def levels(count, *attending):
    """Block types of a network whose levels `attending` attend, on both ways."""
    at = [i in attending for i in range(count)]
    return {
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in at],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(at)],
    }


CIFAR = {**DDPM, "sample_size": 8, "block_out_channels": [16, 32, 32, 32], **levels(4, 1)}
CHURCH = {**DDPM, "sample_size": 32, "block_out_channels": [8, 8, 16, 16, 32, 32], **levels(6, 4)}
RESNET = {
    **CIFAR,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "down_block_types": [
        "ResnetDownsampleBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "ResnetDownsampleBlock2D",
    ],
    "up_block_types": [
        "ResnetUpsampleBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "ResnetUpsampleBlock2D",
    ],
}
CONFIGS = {
    "ddpm-cifar10-32": CIFAR,
    "ddpm-church-256": CHURCH,
    "diffusers' defaults": {
        "sample_size": 16,
        "block_out_channels": [32, 32, 64, 64],
        "norm_num_groups": 8,
    },
    "scale and shift": {**CIFAR, "resnet_time_scale_shift": "scale_shift"},
    "scale and shift, a norm in the middle": {
        **CIFAR,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
    },
    "residual blocks resample": RESNET,
    "residual blocks resample, scale and shift": {
        **RESNET,
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": 8,
    },
    "no attention, grey, oblong": {
        **CIFAR,
        **levels(4),
        "add_attention": False,
        "in_channels": 1,
        "out_channels": 1,
        "sample_size": [8, 16],
    },
    "classes": {**CIFAR, "num_class_embeds": 5},
    "one level": {
        **CIFAR,
        "block_out_channels": [16],
        **levels(1, 0),
    },
}


def ours(config):
    options, shape = read_options(config, "config.json")
    return UNet(**options), shape


def random_tensors(net, shape):
    """Tensors of all names, each from a seed of its own; norms are near 1, the rest around 0."""
    zeros = traverse_util.unflatten_dict(
        {leaf.path: np.zeros(size, np.float32) for leaf, size in leaves(net, shape)}
    )
    made = {}
    for name, x in to_tensors(net, shape, zeros):
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(x.shape)
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = 0.2 if x.ndim == 1 else x[0].size ** -0.5
        made[name] = (middle + spread * noise).astype(np.float32)
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_and_tensors_survive_the_way_there_and_back(name):
    net, shape = ours(CONFIGS[name])
    tensors = random_tensors(net, shape)
    params = to_params(net, shape, tensors, "here")
    again = dict(to_tensors(net, shape, params))
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    back, same_shape = ours(write_options(net, shape))
    # Our own files count the null class among the rows of the table.
    rows = 1 if net.num_classes else 0
    assert dataclasses.replace(back, num_classes=back.num_classes - rows) == net
    assert same_shape == shape


# What diffusers 0.42.1 (torch 2.13) gives at pixel (3, 5), channel 0, of three images.
STORED = {
    "ddpm-cifar10-32": (0.65265751, -0.33910143, 0.40950567),
    "ddpm-church-256": (-0.23809360, -0.10895059, 0.03962742),
    "diffusers' defaults": (1.02969086, 0.16347951, -0.02189753),
    "scale and shift": (0.59434050, -0.38993120, 0.33905596),
    "scale and shift, a norm in the middle": (0.56894761, -0.39035058, 0.34086257),
    "residual blocks resample": (0.14822426, -0.48280889, 0.44259077),
    "residual blocks resample, scale and shift": (0.33672845, -0.53260863, 0.35043824),
    "no attention, grey, oblong": (0.71704149, 0.58512706, 0.33092076),
    "classes": (0.67148966, -0.34908831, 0.41433728),
    "one level": (0.23047420, 0.65197951, -0.32783675),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_diffusers(name):
    net, (height, width, channels) = ours(CONFIGS[name])
    tensors = random_tensors(net, (height, width, channels))
    if net.num_classes:  # diffusers has no null class
        tensors["class_embedding.weight"] = tensors["class_embedding.weight"][:-1]
    params = to_params(net, (height, width, channels), tensors, "here")
    z = np.random.default_rng(1).standard_normal((3, height, width, channels)).astype(np.float32)
    time, labels = np.array([0, 17, 999]), np.array([0, 4, 2]) if net.num_classes else None
    found = jax.jit(net.apply)({"params": params}, z, time.astype(np.float32), labels)
    np.testing.assert_allclose(found[:, 3, 5, 0], STORED[name], atol=1e-4)
    if find_spec("torch") and find_spec("diffusers"):
        wanted = theirs(CONFIGS[name], tensors, z, time, labels)
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def theirs(config, tensors, z, time, labels):
    """What diffusers says with these tensors, of which it takes every one and misses none."""
    import torch
    from diffusers import UNet2DModel

    model = UNet2DModel(**{k: v for k, v in config.items() if k[0] != "_"}).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    known = {} if labels is None else {"class_labels": torch.from_numpy(labels)}
    images = torch.from_numpy(z.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return model(images, torch.from_numpy(time), **known).sample.numpy().transpose(0, 2, 3, 1)


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "UNet2DConditionModel"}, "'UNet2DConditionModel'; only UNet2DModel"),
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported. Allowed: 'silu', 'swish'"),
        ({"center_input_sample": True}, "center_input_sample=True is not supported"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier' is not supported"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' is not supported"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor=2 is not supported"),
        ({"out_channels": 6}, "in_channels=3, out_channels=6. They must be equal"),
        ({"sample_size": None}, "sample_size is missing"),
        ({"block_out_channels": [16, 24, 32, 32]}, "every width must be a multiple of the first"),
        ({"block_out_channels": [16, 32]}, "4 down_block_types, 4 up_block_types and 2"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "level 1 is AttnDownBlock2D .* and UpBlock2D"),
        (
            {"down_block_types": ["SkipDownBlock2D"] + ["DownBlock2D"] * 3},
            "block type 'SkipDownBlock2D' is not supported",
        ),
        ({"downsample_type": "resnet"}, "resample in different ways"),
        ({"attn_norm_num_groups": 4}, r"attn_norm_num_groups=4 is not supported"),
        ({"block_out_channels": 128}, "block_out_channels=128 must be a list of integers above 0"),
        ({"block_out_channels": [0, 8]}, "block_out_channels=.0, 8. must be a list of integers"),
        ({"layers_per_block": "2"}, "layers_per_block='2' must be an integer above 0"),
        ({"down_block_types": None}, "down_block_types=None must be a list of block types"),
        ({"up_block_types": [1, 2]}, "up_block_types=.1, 2. must be a list of block types"),
        ({"dropout": None}, "dropout=None must be a number"),
        ({"num_class_embeds": "a"}, "num_class_embeds='a' must be an integer above 0, or null"),
        ({"sample_size": [8]}, r"sample_size=.8. must be an integer above 0, or .height, width."),
        ({"norm_eps": "x"}, "norm_eps='x' must be a number"),
        ({"norm_eps": 0}, r"norm_eps=0 must be a number in \(0, 1\)"),
        ({"norm_eps": float("nan")}, "norm_eps=nan must be a number in"),
        ({"dropout": 1.0}, r"dropout=1.0 must be a number in \[0, 1\)"),
        ({"dropout": "0.1"}, "dropout='0.1' must be a number in"),
        ({"freq_shift": True}, "freq_shift=True is not supported. Allowed: 0, 1"),
        ({"center_input_sample": 0}, "center_input_sample=0 is not supported"),
        ({"sample_size": "32"}, "sample_size='32' must be an integer above 0"),
        ({"sample_size": 32.0}, "sample_size=32.0 must be an integer above 0"),
        ({"in_channels": True}, "in_channels=True must be an integer above 0"),
        ({"_class_name": None}, "_class_name is None; only UNet2DModel"),
        ({"decya": 0.999}, "decya=0.999 is not an option of UNet2DModel"),
        ({"dropuot": 0.1}, "dropuot=0.1 is not an option .* Did you mean 'dropout'"),
    ],
)
def test_settings_that_our_network_does_not_have_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_options({**CIFAR, **changes}, "config.json")


def test_notes_of_an_average_change_nothing():
    """What diffusers' EMAModel adds to the config.json of `unet_ema`."""
    notes = {
        "decay": 0.9999,
        "min_decay": 0.0,
        "optimization_step": 500,
        "update_after_step": 0,
        "use_ema_warmup": True,
        "inv_gamma": 1.0,
        "power": 0.75,
        "_diffusers_version": "0.42.1",
        "_use_default_values": ["dropout"],
    }
    assert ours({**CIFAR, **notes}) == ours(CIFAR)


@pytest.mark.parity
def test_the_notes_are_those_of_diffusers():
    training = pytest.importorskip("diffusers.training_utils")
    torch = pytest.importorskip("torch")
    written = set(training.EMAModel([torch.zeros(1)]).state_dict()) - {"shadow_params"}
    assert written <= AVERAGE_NOTES


def damaged(change):
    """What `to_params` says after `change` of the tensors."""
    net, shape = ours({**CIFAR, "block_out_channels": [8], **levels(1, 0)})
    tensors = random_tensors(net, shape)
    change(tensors)
    return to_params(net, shape, tensors, "weights.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.pop("conv_in.bias"),
            "weights.safetensors: the tensor 'conv_in.bias' is missi",
        ),
        (lambda t: t.update(extra=np.zeros(1)), "1 tensors have no place .* extra"),
        (
            lambda t: t.update({"conv_in.weight": t["conv_in.weight"][:, :2]}),
            r"conv_in.weight has shape \(8, 2, 3, 3\); the config.json beside it asks for "
            r"\(8, 3, 3, 3\)",
        ),
        (
            lambda t: t.update({"conv_in.bias": t["conv_in.bias"].astype(np.int32)}),
            "conv_in.bias is int32; float32, float16 or bfloat16 is needed",
        ),
        (
            lambda t: t.update({"conv_in.bias": np.full_like(t["conv_in.bias"], np.inf)}),
            "conv_in.bias holds values that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        damaged(change)


def test_half_precision_becomes_float32_exactly():
    def halve(tensors):
        tensors.update({k: v.astype(np.float16) for k, v in tensors.items()})

    whole, half = damaged(lambda tensors: None), damaged(halve)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(half)):
        assert b.dtype == np.float32
        np.testing.assert_array_equal(b, a.astype(np.float16).astype(np.float32))


def test_attention_under_its_old_names_is_the_same():
    def rename(tensors):
        new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in list(tensors):
            for now, then in new.items():
                if now in name:
                    tensors[name.replace(now, then)] = tensors.pop(name)

    for a, b in zip(*(jax.tree.leaves(damaged(c)) for c in (lambda tensors: None, rename))):
        np.testing.assert_array_equal(a, b)
