"""CLIP models that users bring: both encoders, layouts of files, and the CLIP score."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from clip_cases import DIM, SIDE, write_clip, write_open_clip
from inception_cases import pictures
from PIL import Image
from tiny_sd import write_json

from ddistill.errors import ConfigError
from ddistill.evaluation.metrics.clip_score import clip_detector, clip_score, text_embeddings
from ddistill.evaluation.metrics.features import extract
from ddistill.interop import clip_text, clip_vision
from ddistill.interop.clip import MEAN, STD, check_digest, find_clip, load_clip
from ddistill.interop.leaves import count
from ddistill.interop.tensors import file_digest, read_tensors, write_tensors
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.clip_vision import CLIPVision

pytest.importorskip("tokenizers")

FILE = "model.safetensors"
TEXTS = ("a photo of the cat", "two red dog", "thick", "a photo of the small thin digit three")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return load_clip(find_clip(folder))


@pytest.fixture(scope="module")
def images():
    return pictures(5, 20)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder, of which a test may change a file."""
    return shutil.copytree(folder, tmp_path / "model")


def by_hand(pixels):
    """CLIP's input, with Pillow: square images, so that nothing is cropped."""
    made = [Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pixels]
    return (np.stack([np.asarray(m) for m in made]) / 255.0 - MEAN) / STD


def embedded(model, pixels):
    """Unit vectors of images."""
    detector = clip_detector(model, batch=4)
    return extract(detector.apply, pixels, detector.batch, pixels=True)[0]


# -------------------------------------------------------------------------------------- the model


def test_embeddings_are_unit_vectors_of_projected_states(model, images):
    found = embedded(model, images)
    state = model.vision.apply({"params": model.params["vision"]}, by_hand(images))
    wanted = np.asarray(state) @ model.params["image_projection"]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    detector = clip_detector(model, batch=4)
    assert (detector.dim, detector.network, detector.resize) == (DIM, "clip", f"bicubic-{SIDE}")
    assert detector.text == f"clip-4-8@{model.sha256[:8]}/{DIM}"


def test_grey_images_are_grey_in_three_channels(model, images):
    grey = images[..., :1]
    three = np.repeat(grey, 3, axis=-1)
    np.testing.assert_array_equal(embedded(model, grey), embedded(model, three))


def test_the_score_is_the_mean_cosine_and_prefixes_are_read(model, images):
    own = embedded(model, images[:4])
    read = {prefix: text_embeddings(model, TEXTS, prefix) for prefix in ("", "a photo of ")}
    for prefix, texts in read.items():
        found = clip_score(own, texts)
        ids = model.tokenizer([prefix + text for text in TEXTS])
        _, pooled = model.text.apply({"params": model.params["text"]}, ids)
        wanted = np.asarray(pooled) @ model.params["text_projection"]
        cosines = (own * wanted).sum(axis=1) / np.linalg.norm(wanted, axis=1)
        assert found.value == pytest.approx(cosines.mean(), abs=1e-6)
        assert cosines.min() <= found.low < found.value < found.high <= cosines.max()
    assert np.abs(read[""] - read["a photo of "]).max() > 1e-2


def test_more_texts_than_a_batch_are_embedded_in_their_order(model):
    many = [*TEXTS] * 17
    found = text_embeddings(model, many)
    assert found.shape == (68, DIM)
    np.testing.assert_allclose(found[64:], text_embeddings(model, TEXTS), atol=1e-6)


# What transformers 5.24 (torch 2.13) gives for the unit vectors: image 1, text 3.
STORED = {
    "quick_gelu": (
        (0.40588084, 0.47236452, 0.31817365, 0.20127799, 0.01958016, 0.68556678),
        (0.4959816, 0.60564524, -0.49194893, -0.09863123, 0.12865408, 0.34482223),
    ),
    "gelu": (
        (0.4046849, 0.47142559, 0.31860486, 0.19976175, 0.02279503, 0.68706226),
        (0.50792474, 0.59976935, -0.48706502, -0.09546102, 0.12981871, 0.34509599),
    ),
}


@pytest.mark.parametrize("activation", STORED)
def test_embeddings_are_those_that_transformers_gave(tmp_path, images, activation):
    model = load_clip(find_clip(write_clip(tmp_path / "model", activation)))
    image = embedded(model, images)[1]
    np.testing.assert_allclose(image, STORED[activation][0], atol=1e-5)
    np.testing.assert_allclose(text_embeddings(model, TEXTS)[3], STORED[activation][1], atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("activation", STORED)
def test_embeddings_are_those_of_transformers(tmp_path, images, activation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = write_clip(tmp_path / "model", activation)
    given = json.loads((path / "config.json").read_text())
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**given)).eval()
    named = {k: torch.from_numpy(np.array(x)) for k, x in read_tensors(path / FILE).items()}
    named["logit_scale"] = named["logit_scale"].reshape(())
    missing = theirs.load_state_dict(named, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("position_ids") for key in missing.missing_keys)
    ours = load_clip(find_clip(path))
    ids = ours.tokenizer(TEXTS)
    pixels = torch.from_numpy(by_hand(images).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        made = theirs(input_ids=torch.from_numpy(ids).long(), pixel_values=pixels)
    image = embedded(ours, images)
    np.testing.assert_allclose(image, made.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(text_embeddings(ours, TEXTS), made.text_embeds.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "vision, text, parameters",
    [
        ({}, {"width": 512, "heads": 8, "hidden": 2048}, (87_456_000, 63_165_952)),
        (
            {**{"patch": 14, "width": 1408, "layers": 40, "heads": 16}, "hidden": 6144},
            {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
            (1_011_203_840, 352_984_064),
        ),
    ],
)
def test_full_size_encoders_have_their_parameters(vision, text, parameters):
    found = (
        count(clip_vision.leaves(CLIPVision(**vision))),
        count(clip_text.leaves(CLIPText(**text))),
    )
    assert found == parameters


# ------------------------------------------------------------------------------------- the files


def test_both_layouts_hold_the_same_model(folder, tmp_path):
    theirs = load_clip(find_clip(folder))
    ours = load_clip(find_clip(write_open_clip(tmp_path / "open")))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert dataclasses.replace(ours.vision, activation="quick_gelu") == theirs.vision
    assert dataclasses.replace(ours.text, activation="quick_gelu") == theirs.text
    assert (ours.mean, ours.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (theirs.mean, theirs.std) == (MEAN, STD)
    assert ours.text.activation == ours.vision.activation == "gelu"


def test_the_digest_is_that_of_the_weights(folder):
    files = find_clip(folder)
    assert files.digest == file_digest(folder / FILE)
    check_digest(files.digest, files.digest[:8].upper(), "the folder", "clip_digest")
    check_digest(files.digest, "", "the folder", "clip_digest")
    wrong = "0" * 8 if files.digest[0] != "0" else "1" * 8
    with pytest.raises(ConfigError, match=f"clip_digest='{wrong}': .* {files.digest[:16]}"):
        check_digest(files.digest, wrong, "the folder", "clip_digest")
    for few in ("12", "the whole"):
        with pytest.raises(ConfigError, match="first 8 or more digits"):
            check_digest(files.digest, few, "the folder", "clip_digest")


def without(name):
    def change(folder):
        tensors = read_tensors(folder / FILE)
        del tensors[name]
        write_tensors(folder / FILE, tensors)

    return change


def edited(name, **changes):
    def change(folder):
        found = json.loads((folder / name).read_text())
        write_json(folder / name, {**found, **changes})

    return change


def removed(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


BAD = {
    "without a projection": (without("visual_projection.weight"), "lacks visual_projection.weight"),
    "without the text's": (without("text_projection.weight"), "needs the projections of both"),
    "without a tensor": (without("vision_model.post_layernorm.bias"), "'vision_model.post_layer"),
    "one encoder": (edited("config.json", model_type="clip_text_model"), "needs both encoders"),
    "another space": (edited("config.json", projection_dim=7), r"projection_dim=7 asks for \(7, D"),
    "another activation": (edited("config.json", vision_config={"hidden_act": "relu"}), "'relu'"),
    "another resizing": (edited("preprocessor_config.json", resample=2), "only bicubic"),
    "another size": (edited("preprocessor_config.json", size=224), "size=224; .* has 12 pixels"),
    "damaged colours": (edited("preprocessor_config.json", image_std=[0, 1, 1]), "three numbers"),
    "no weights": (removed("model.safetensors"), "holds neither config.json with model"),
    "no tokenizer": (removed("vocab.json", "merges.txt"), "vocab.json is missing"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_other_files_are_refused_on_one_line(copied, change, message):
    change(copied)
    with pytest.raises(ConfigError, match=message) as caught:
        load_clip(find_clip(copied))
    assert "\n" not in str(caught.value)


def test_paths_without_a_model_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for name, message in (("none", "does not exist"), ("file", "is a file"), ("", "holds neither")):
        with pytest.raises(ConfigError, match=message):
            find_clip(tmp_path / name)


@pytest.mark.parametrize(
    "group, changes, message",
    [
        ("vision_cfg", {"timm_model_name": "vit"}, "timm_model_name='vit' is not supported"),
        ("text_cfg", {"hf_model_name": "bert"}, "hf_model_name='bert' is not supported"),
        ("vision_cfg", {"layers": "2"}, "layers='2' must be an integer above 0"),
        ("vision_cfg", {"layerz": 2}, "Did you mean 'layers'"),
    ],
)
def test_other_towers_of_open_clip_are_refused(tmp_path, group, changes, message):
    path = write_open_clip(tmp_path / "open")
    found = json.loads((path / "open_clip_config.json").read_text())
    found["model_cfg"][group] |= changes
    write_json(path / "open_clip_config.json", found)
    with pytest.raises(ConfigError, match=message):
        load_clip(find_clip(path))


def test_images_of_another_size_and_fields_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"\(8, 8, 3\) were given; image_size=224"):
        jax.eval_shape(CLIPVision().init, jax.random.key(0), np.zeros((1, 8, 8, 3)))
    with pytest.raises(ConfigError, match="patch=5 does not divide image_size=224"):
        jax.eval_shape(CLIPVision(patch=5).init, jax.random.key(0), np.zeros((1, 224, 224, 3)))
