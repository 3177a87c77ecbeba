"""The autoencoder of Stable Diffusion: diffusers' names, sizes and outputs, and its latents."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sd import listing, random_tensors, recomputed

from ddistill.errors import ConfigError
from ddistill.interop.autoencoder_kl import (
    Scaling,
    leaves,
    read_options,
    to_params,
    to_tensors,
    write_options,
)
from ddistill.interop.leaves import count, names_and_shapes
from ddistill.networks import build
from ddistill.networks.autoencoder_kl import AutoencoderKL, draw, gaussian, sample_noise

TINY = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "sample_size": 8,
    "scaling_factor": 0.5,
}
CONFIGS = {
    "1.5": TINY,
    "three levels, grey": {
        **TINY,
        "block_out_channels": [4, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 3,
    },
    "bare": {
        **TINY,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "shift_factor": 0.1,
    },
}


@functools.cache
def made(name):
    """Our autoencoder of a config, its tensors, a picture, a latent, its moments and picture."""
    options, _ = read_options(CONFIGS[name], "vae/config.json")
    net = AutoencoderKL(**options)
    tensors = random_tensors(leaves(net))
    params = to_params(net, tensors, "here")
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 8, 12, net.out_channels)).astype(np.float32)
    z = rng.standard_normal((2, 3, 2, net.latent_channels)).astype(np.float32)
    moments = net.apply({"params": params}, x, method="encode")
    return net, tensors, x, z, moments, net.apply({"params": params}, z, method="decode")


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_and_tensors_survive_the_way_there_and_back(name):
    net, tensors, *_ = made(name)
    params = to_params(net, tensors, "here")
    again = dict(to_tensors(net, params))
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    options, scaling = read_options(CONFIGS[name], "here")
    assert scaling == Scaling(0.5, CONFIGS[name].get("shift_factor", 0.0))
    assert read_options(write_options(net, scaling, 8), "here") == (options, scaling)


# What diffusers 0.42.1 (torch 2.13) gives: moments at [1, 1, 2, 0] and [1, 1, 2, -1], and the
# picture at [1, 3, 2, 0].
STORED = {
    "1.5": (-0.48149845, 0.31006962, -0.15514253),
    "three levels, grey": (-0.27255625, -0.07475522, -0.14119968),
    "bare": (-0.12983078, -0.48933730, -1.36703432),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_that_diffusers_gave(name):
    *_, moments, picture = made(name)
    found = (moments[1, 1, 2, 0], moments[1, 1, 2, -1], picture[1, 3, 2, 0])
    np.testing.assert_allclose(found, STORED[name], atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_diffusers(name):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    _, tensors, x, z, *ours = made(name)
    for found, wanted in zip(ours, theirs(CONFIGS[name], tensors, x, z)):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def theirs(config, tensors, x, z):
    """Moments and pictures of diffusers with these tensors."""
    import torch
    from diffusers import AutoencoderKL as Theirs

    model = Theirs(**config).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    x, z = (torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in (x, z))
    with torch.no_grad():
        outputs = model.encode(x).latent_dist.parameters, model.decode(z).sample
    return [output.numpy().transpose(0, 2, 3, 1) for output in outputs]


def test_the_full_size_has_its_parameters_under_the_names_of_diffusers():
    table = leaves(AutoencoderKL())
    found = names_and_shapes(table)
    assert count(table) == 83_653_863
    assert (len(found), listing(found)) == (248, "a8eb7356226250e7")


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("trailing", [(), (1, 1)])
def test_old_names_and_shapes_of_the_attention_load_to_the_same(trailing):
    net, tensors, *_ = made("1.5")
    names = "|".join(map(re.escape, OLD))
    old = {}
    for name, x in tensors.items():
        inside = ".attentions." in name and "group_norm" not in name
        renamed = re.sub(names, lambda m: OLD[m.group()], name)
        old[renamed] = x.reshape(*x.shape, *trailing) if inside and x.ndim == 2 else x
    assert old.keys() != tensors.keys()
    same = jax.tree.map(
        np.array_equal, to_params(net, old, "here"), to_params(net, tensors, "here")
    )
    assert all(jax.tree.leaves(same))


def test_a_draw_is_the_mean_and_noise_of_the_deviation_within_bounds():
    moments = jnp.array([2.0, -1.0, 2 * np.log(3.0), -100.0]).reshape(1, 1, 1, 4)
    mean, log_variance = gaussian(moments)
    np.testing.assert_allclose(log_variance[0, 0, 0], [2 * np.log(3.0), -30.0], rtol=1e-6)
    np.testing.assert_array_equal(draw(moments, None), mean)
    found = draw(moments, jnp.ones((1, 1, 1, 2)))
    np.testing.assert_allclose(found[0, 0, 0], [5.0, -1.0], atol=1e-5)


def test_noise_belongs_to_the_image_and_not_to_its_chunk():
    key = jax.random.key(0)
    whole = sample_noise(key, 0, (5, 2, 2, 1))
    np.testing.assert_array_equal(sample_noise(key, 3, (2, 2, 2, 1)), whole[3:])
    assert len(np.unique(whole)) == 20


def test_a_call_decodes_what_it_encodes():
    net, tensors, x, _, moments, _ = made("1.5")
    variables = {"params": to_params(net, tensors, "here")}
    picture, found = net.apply(variables, x)
    np.testing.assert_allclose(found, moments, atol=1e-5)
    wanted = net.apply(variables, gaussian(moments)[0], method="decode")
    np.testing.assert_allclose(picture, wanted, atol=1e-5)
    assert net.factor == 2
    parts = [recomputed(net.clone(remat=remat).apply, variables, x) for remat in (False, True)]
    # Two levels of one block and two of two, and two middles of three parts.
    assert parts == [0, 12]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "AutoencoderTiny"}, "'AutoencoderTiny'; only AutoencoderKL can be read"),
        ({"latents_mean": [0.0] * 4}, "latents_mean=.* is not supported. Allowed: None"),
        ({"use_quant_conv": False}, "use_quant_conv=False and use_post_quant_conv=True must be eq"),
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported"),
        ({"scaling_factor": 0}, "scaling_factor=0 must be a number above 0"),
        ({"scaling_facter": 1.0}, "scaling_facter=1.0 is not an option .* 'scaling_factor'"),
        ({"in_channels": 1}, "in_channels=1 and out_channels=3 must be equal"),
        ({"block_out_channels": [4]}, "Allowed: 1 of DownEncoderBlock2D, one for each"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "Allowed: 2 of UpDecoderBlock2D"),
    ],
)
def test_other_autoencoders_are_refused_by_the_option(changes, message):
    with pytest.raises(ConfigError, match=f"vae/config.json: .*{message}"):
        read_options({**TINY, **changes}, "vae/config.json")


def test_sizes_that_do_not_fit_are_refused():
    net, tensors, x, z, *_ = made("1.5")
    variables = {"params": to_params(net, tensors, "here")}
    for given, method, message in (
        (x[:, :7], "encode", r"\(2, 7, 12, 3\) cannot be encoded: .* divide by 2"),
        (x[..., :1], "encode", r"\[B, H, W, 3\] is needed"),
        (z[..., :3], "decode", r"\[B, h, w, 4\] is needed"),
    ):
        with pytest.raises(ConfigError, match=message):
            net.apply(variables, given, method=method)
    with pytest.raises(ConfigError, match=r"widths=\(\) must be one or more"):
        build("autoencoder_kl", widths=())
    with pytest.raises(ConfigError, match="dtype='float16'"):
        build("autoencoder_kl", dtype="float16")
