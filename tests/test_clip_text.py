"""CLIP's text encoder: transformers' names, sizes and outputs, and what positions see."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sd import listing, random_tensors, recomputed

from ddistill.errors import ConfigError
from ddistill.interop.clip_text import (
    PREFIX,
    leaves,
    read_options,
    to_params,
    to_tensors,
    write_options,
)
from ddistill.interop.leaves import count, names_and_shapes
from ddistill.networks import build
from ddistill.networks.clip_text import CLIPText

END = 29
# A config as Stable Diffusion 1.5 has it: the ids of its special tokens are wrong.
TINY = {
    **{"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": END + 1},
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "max_position_embeddings": 12, "hidden_act": "quick_gelu"},
    **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "torch_dtype": "float32"},
}
CONFIGS = {"1.5": TINY, "2.1": {**TINY, "hidden_act": "gelu", "eos_token_id": END}}
# Start, text, end, and padding by the end token or by token 0.
TOKENS = np.array(
    [[28, 5, 3, 9, END, END, END, END], [28, END, 0, 0, 0, 0, 0, 0], [28, 7, 7, 7, 2, 1, 4, END]]
)
ENDS = (4, 1, 7)


@functools.cache
def made(name):
    """Our encoder of a config, its tensors, and its outputs at `TOKENS`."""
    net = CLIPText(**read_options(CONFIGS[name], "text_encoder/config.json"))
    tensors = random_tensors(leaves(net))
    return net, tensors, encode(net, tensors, TOKENS)


def encode(net, tensors, tokens):
    return net.apply({"params": to_params(net, tensors, "here")}, jnp.asarray(tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_and_tensors_survive_the_way_there_and_back(name):
    net, tensors, _ = made(name)
    again = dict(to_tensors(net, to_params(net, tensors, "here")))
    assert again.keys() == tensors.keys()
    assert all(key.startswith(PREFIX) for key in again)
    for key, x in tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    assert CLIPText(**read_options(write_options(net), "here")) == net


# What transformers 5.24 (torch 2.13) gives for the state [0, 2, 3] and the pooled output [2, 1].
STORED = {
    "1.5": (-1.48202884, 0.39715081),
    "2.1": (-1.49111211, 0.39691174),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_that_transformers_gave(name):
    states, pooled = made(name)[-1]
    np.testing.assert_allclose((states[0, 2, 3], pooled[2, 1]), STORED[name], atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _, tensors, found = made(name)
    config = {k: v for k, v in CONFIGS[name].items() if k not in ("architectures", "torch_dtype")}
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()
    bare = not any(key.startswith(PREFIX) for key in model.state_dict())
    named = {k.removeprefix(PREFIX) if bare else k: v for k, v in tensors.items()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in named.items()}, strict=False)
    assert {k for k in model.state_dict() if not k.endswith("position_ids")} == named.keys()
    with torch.no_grad():
        wanted = model(torch.from_numpy(TOKENS))
    for ours, theirs in zip(found, (wanted.last_hidden_state, wanted.pooler_output)):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_files_with_and_without_the_prefix_and_with_positions_load_to_the_same():
    net, tensors, (states, _) = made("1.5")
    bare = {name.removeprefix(PREFIX): x for name, x in tensors.items()}
    positions = np.arange(12)[None]
    whole = {
        "vision_model.embeddings.class_embedding": np.zeros(3, np.float32),
        "visual_projection.weight": np.zeros((2, 2), np.float32),
        "text_projection.weight": np.zeros((2, 2), np.float32),
        "logit_scale": np.float32(1.0),
    }
    for file in (
        bare,
        {**bare, "embeddings.position_ids": positions},
        {**tensors, f"{PREFIX}embeddings.position_ids": positions, **whole},
    ):
        np.testing.assert_array_equal(encode(net, file, TOKENS)[0], states)
    with pytest.raises(ConfigError, match="1 tensors have no place .* text_model.head.weight"):
        to_params(net, {**bare, "head.weight": np.zeros(2, np.float32)}, "here")


def test_tokens_change_no_position_before_them():
    net, tensors, (states, _) = made("2.1")
    changed = TOKENS.copy()
    changed[:, 5:] = 6
    other, _ = encode(net, tensors, changed)
    np.testing.assert_array_equal(other[:, :5], states[:, :5])
    assert np.abs(other[:, 5:] - states[:, 5:]).max() > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_pooled_output_is_the_state_of_the_first_end_token(name):
    states, pooled = made(name)[-1]
    np.testing.assert_array_equal(pooled, states[np.arange(3), np.array(ENDS)])


@pytest.mark.parametrize(
    "options, parameters, keys",
    [
        ({}, 123_060_480, "3a39d8acef0ccd33"),
        (
            {**{"width": 1024, "layers": 23, "heads": 16, "hidden": 4096}, "activation": "gelu"},
            340_387_840,
            None,
        ),
    ],
)
def test_full_size_encoders_have_their_parameters(options, parameters, keys):
    table = leaves(CLIPText(**options))
    assert count(table) == parameters
    if keys:
        found = names_and_shapes(table)
        assert (len(found), listing(found)) == (196, keys)


def test_remat_computes_layers_again_and_bfloat16_changes_little():
    net, tensors, (states, _) = made("1.5")
    variables = {"params": to_params(net, tensors, "here")}
    parts = [recomputed(net.clone(remat=remat).apply, variables, TOKENS) for remat in (False, True)]
    assert parts == [0, 2]
    half, _ = encode(net.clone(dtype="bfloat16"), tensors, TOKENS)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - states).max() < 0.2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["CLIPTextModelWithProjection"]}, "only CLIPTextModel can be read"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not known. .* Allowed: gelu, quick_gelu"),
        ({"use_attention_mask": True}, "use_attention_mask=true is not supported"),
        ({"hidden_sise": 8}, "hidden_sise=8 is not an option .* Did you mean 'hidden_size'"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=16"),
        ({"vocab_size": "30"}, "vocab_size='30' must be an integer above 0"),
        ({"layer_norm_eps": None}, "layer_norm_eps=None must be a number"),
    ],
)
def test_other_encoders_are_refused_by_the_option(changes, message):
    with pytest.raises(ConfigError, match=f"text_encoder/config.json: .*{message}"):
        read_options({**TINY, **changes}, "text_encoder/config.json")


def test_fields_and_texts_that_cannot_work_are_refused():
    net, tensors, _ = made("1.5")
    with pytest.raises(ConfigError, match="Texts of 13 tokens were given; positions=12"):
        encode(net, tensors, np.zeros((1, 13), np.int32))
    with pytest.raises(ConfigError, match="heads=5 does not divide width=768"):
        build("clip_text", heads=5)
    with pytest.raises(ConfigError, match="activation='relu'"):
        build("clip_text", activation="relu")
