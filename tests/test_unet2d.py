"""Our U-Net against diffusers' UNet2DModel: settings, names, layouts and outputs."""

import dataclasses

import jax
import numpy as np
import pytest

from ddistill.interop.unet2d import leaves, read_options, to_params, to_tensors, write_options
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


def random_tensors(net, shape, seed=0):
    """Tensors of all names, none of them at a value where a mistake would not show."""
    rng = np.random.default_rng(seed)
    made = {}
    for leaf, size in leaves(net, shape):
        for name, x in to_tensors_of(leaf, np.zeros(size, np.float32)):
            spread = 1.0 if x.ndim < 2 else x[0].size ** -0.5
            made[name] = (spread * rng.standard_normal(x.shape)).astype(np.float32)
    return made


def to_tensors_of(leaf, whole):
    from ddistill.interop.unet2d import _TO

    for name, part in zip(leaf.names, np.split(whole, len(leaf.names), axis=-1)):
        yield name, _TO[leaf.kind](part)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_and_tensors_survive_the_way_there_and_back(name):
    net, shape = ours(CONFIGS[name])
    tensors = random_tensors(net, shape)
    params = to_params(net, shape, tensors, "here")
    if net.num_classes:
        tensors["class_embedding.weight"] = np.concatenate(
            [tensors["class_embedding.weight"]], axis=0
        )
    again = dict(to_tensors(net, shape, params))
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    back, same_shape = ours(write_options(net, shape))
    # Our own files count the null class among the rows of the table.
    rows = 1 if net.num_classes else 0
    assert dataclasses.replace(back, num_classes=back.num_classes - rows) == net
    assert same_shape == shape


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_diffusers(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = CONFIGS[name]
    theirs = diffusers.UNet2DModel(**{k: v for k, v in config.items() if k[0] != "_"}).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for x in theirs.parameters():
            noise = torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
            x.copy_(0.1 * noise + (1.0 if x.ndim == 1 else x))
    net, (height, width, channels) = ours(config)
    tensors = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    params = to_params(net, (height, width, channels), tensors, "here")
    z = rng.standard_normal((3, height, width, channels)).astype(np.float32)
    time = np.array([0, 17, 999])
    labels = np.array([0, 4, 2]) if net.num_classes else None
    with torch.no_grad():
        wanted = theirs(
            torch.from_numpy(z.transpose(0, 3, 1, 2)),
            torch.from_numpy(time),
            class_labels=None if labels is None else torch.from_numpy(labels),
        ).sample.numpy()
    found = jax.jit(net.apply)({"params": params}, z, time.astype(np.float32), labels)
    wanted = wanted.transpose(0, 2, 3, 1)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
