"""`ddistill evaluate` on images of prompts: CLIP score, and FID as a protocol says."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from clip_cases import write_clip
from inception_cases import pictures
from PIL import Image
from scored import SMALL, Notes, frechet_of, project, save_folder, tiny_detector

from ddistill.errors import ConfigError, DataError
from ddistill.evaluate import evaluate, main
from ddistill.evaluation.metrics import protocols
from ddistill.evaluation.metrics.clip_score import clip_detector, text_embeddings
from ddistill.evaluation.metrics.detector import RESIZES
from ddistill.evaluation.metrics.features import extract
from ddistill.evaluation.metrics.geometry import Geometry
from ddistill.evaluation.metrics.protocol_sets import fitted, sample_fit
from ddistill.evaluation.metrics.protocols import PROTOCOLS
from ddistill.evaluation.prompted import check_protocol
from ddistill.interop.clip import find_clip, load_clip
from ddistill.protocol_settings import ProtocolSettings
from ddistill.runtime.interrupt import StopRequest
from ddistill.scoring_options import Options
from ddistill.settings import EvaluationSettings, Settings

pytest.importorskip("tokenizers")

COUNT, REAL, SIZE = 10, 15, 24
TEXTS = tuple(f"a photo of the {word}" for word in ("cat", "dog", "one", "two", "three")) * 2
# The newcomer's protocol: one entry.
TINY = dataclasses.replace(
    PROTOCOLS["coco30k_bk"],
    name="tiny",
    prompts=COUNT,
    real=REAL,
    geometry=Geometry(8, crop=True, filter="bicubic"),
    prefix="a photo of ",
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(protocols.PROTOCOLS, TINY.name, TINY)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def model(clip):
    return load_clip(find_clip(clip))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with samples, real images and prompts."""
    root = tmp_path_factory.mktemp("sets")
    save_folder(root / "samples", pictures(COUNT, SIZE, seed=1))
    save_folder(root / "real", pictures(REAL, SIZE, seed=2))
    (root / "prompts.txt").write_text("\n".join(TEXTS) + "\n")
    return root


def detector():
    return dataclasses.replace(tiny_detector(), resize=RESIZES[TINY.fid_resize])


def options(sets, out, **changes):
    given = {"protocol": "tiny", "prompts": str(sets / "prompts.txt"), **changes}
    return Options(str(sets / "samples"), out=str(out), settings=SMALL, **given)


def score(chosen, clip=None, used=None):
    return evaluate(chosen, used or detector(), Notes(), StopRequest(), "ours", clip)


def cosines(model, pixels, prefix):
    detector = clip_detector(model, COUNT)
    images = extract(detector.apply, pixels, detector.batch, pixels=True)[0]
    return (images * text_embeddings(model, TEXTS, prefix)).sum(axis=1)


def test_a_protocol_gives_fid_and_clip_score_of_its_own_pixels(sets, model, tmp_path):
    chosen = options(sets, tmp_path, reference=str(sets / "real"))
    (found,) = score(chosen, model)
    fake = fitted(pictures(COUNT, SIZE, seed=1), sample_fit(TINY))
    real = fitted(pictures(REAL, SIZE, seed=2), TINY.geometry)
    assert found.scores["fid"] == pytest.approx(frechet_of(project(fake)[0], project(real)[0]))
    wanted = cosines(model, fake, TINY.prefix)
    assert found.scores["clip_score"] == pytest.approx(wanted.mean(), abs=1e-6)
    low, high = found.intervals["clip_score"]
    assert wanted.min() < low < wanted.mean() < high < wanted.max()
    parts = dict(part.partition("=")[::2] for part in found.protocol.split())
    assert not found.proxy
    assert parts["protocol"] == "tiny"
    assert parts["prefix"] == "a_photo_of"
    assert parts["fit"] == "centre-bicubic-8"
    assert parts["prompts"].startswith(f"prompts.txt:{COUNT}@")
    assert parts["real"].startswith(f"real:{REAL}@")
    assert parts["clip_model"] == f"clip-4-8@{model.sha256[:8]}"
    assert parts["fid"] == parts["features"] == detector().text
    assert parts["resize"] == "torch-bilinear-299"
    stored = json.loads((tmp_path / "scores.json").read_text())["scores"][0]
    assert stored["scores"] == found.scores


def test_statistics_of_the_real_images_can_be_kept_and_must_fit(sets, model, tmp_path):
    file = tmp_path / "real.npz"
    real = Options(
        str(sets / "real"), save_reference=str(file), out=str(tmp_path / "a"), protocol="tiny"
    )
    assert score(real) == []
    kept = score(options(sets, tmp_path / "b", reference=str(file)))
    read = score(options(sets, tmp_path / "c", reference=str(sets / "real")))
    assert kept[0].scores == pytest.approx(read[0].scores)
    with pytest.raises(
        DataError, match=r"holds features of .*/torch, and the samples .* in \S+/20"
    ):
        score(options(sets, tmp_path / "d", reference=str(file)), used=tiny_detector())
    other = Options(str(sets / "real"), save_reference=str(file), out=str(tmp_path / "e"))
    score(other)
    with pytest.raises(DataError, match=f"of {REAL} images, resize none; tiny needs {REAL} images"):
        score(options(sets, tmp_path / "f", reference=str(file)))


def test_the_clip_score_alone_needs_neither_protocol_nor_reference(sets, clip, tmp_path, capsys):
    flags = [str(sets / "samples"), f"--prompts={sets / 'prompts.txt'}", f"--clip={clip}"]
    main([*flags, f"--out={tmp_path}", "--batch=8"])
    (found,) = json.loads((tmp_path / "scores.json").read_text())["scores"]
    model = load_clip(find_clip(clip))
    wanted = cosines(model, pictures(COUNT, SIZE, seed=1), "").mean()
    assert found["scores"] == {"clip_score": pytest.approx(wanted, abs=1e-6)}
    assert f"clip_model=clip-4-8@{model.sha256[:8]} prefix=none" in found["protocol"]
    assert "fid=none" in found["protocol"]
    assert "clip_score" in capsys.readouterr().out


def test_a_stopped_evaluation_uses_the_features_that_are_there(sets, model, tmp_path, monkeypatch):
    chosen = options(sets, tmp_path, reference=str(sets / "real"))
    first = score(chosen, model)

    def none(*_):
        raise AssertionError("computed again")

    again = dataclasses.replace(detector(), apply=none)
    assert score(chosen, model, again) == first


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"protocol": "tyni"}, ConfigError, "--protocol='tyni' is not known. Did you mean 'tiny'"),
        ({"prompts": ""}, ConfigError, "--prompts is missing"),
        ({"image_size": 8}, ConfigError, "a protocol has its own; omit it"),
        ({"protocol": "", "reference": "real"}, ConfigError, "needs --protocol, .*coco30k_bk"),
        ({"reference": "samples"}, DataError, "has 10 images; tiny compares with 15"),
        ({"protocol": "coco30k_dmd"}, DataError, "has 10 prompts; the protocol has 30,000"),
        ({"reference": "real/0000.png"}, DataError, "is a file; give a folder of images"),
    ],
)
def test_flags_that_cannot_work_are_refused_on_one_line(
    sets, model, tmp_path, changes, error, message
):
    if "reference" in changes:
        changes = {**changes, "reference": str(sets / changes["reference"])}
    with pytest.raises(error, match=message) as caught:
        score(options(sets, tmp_path, **changes), model)
    assert "\n" not in str(caught.value)


def test_prompts_without_anything_that_reads_them_are_refused(sets, tmp_path):
    with pytest.raises(ConfigError, match="has no effect: give --clip=FOLDER .* --protocol, one"):
        score(options(sets, tmp_path, protocol="", reference="x"))


def test_runs_and_wrong_digests_are_refused(sets, clip, tmp_path, capsys):
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ConfigError, match="scored under a protocol by config.evaluation.protocol"):
        score(Options(str(tmp_path), reference="train", protocol="tiny"))
    flags = [str(sets / "samples"), f"--prompts={sets / 'prompts.txt'}", f"--out={tmp_path}"]
    for wrong, message in (
        ([f"--clip={clip}", "--clip_digest=00000000"], "--clip_digest='00000000': "),
        (["--clip_digest=00000000"], "--clip_digest=00000000 is of --clip=FOLDER"),
        ([f"--clip={clip / 'none'}"], "none does not exist"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*flags, *wrong])
        shown = f"{caught.value} {capsys.readouterr().err}".strip()
        assert message in shown
        assert "\n" not in shown


def test_samples_that_are_jpeg_files_are_not_encoded_again(sets, model, tmp_path):
    folder = tmp_path / "jpeg"
    folder.mkdir()
    for i, pixels in enumerate(pictures(COUNT, SIZE, seed=1)):
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=TINY.stored)
    png = score(options(sets, tmp_path / "a"), model)[0]
    jpeg = score(dataclasses.replace(options(sets, tmp_path / "b"), path=str(folder)), model)[0]
    assert jpeg.scores == png.scores


# ------------------------------------------------------------------------------ settings of a run


@pytest.fixture
def protocol(sets, clip):
    """Settings of a protocol that can work, but for FID's weights."""
    return ProtocolSettings("tiny", str(sets / "prompts.txt"), clip=str(clip))


def checked(protocol, tokenizer="any"):
    evaluation = EvaluationSettings(protocol=protocol)
    settings = Settings("name", {}, (), {"name": "digits"}, evaluation=evaluation)
    check_protocol(settings, [SimpleNamespace(name="teacher", tokenizer=tokenizer)])


def test_settings_of_a_protocol_that_can_work_are_accepted(protocol, model):
    checked(ProtocolSettings())
    checked(ProtocolSettings(), None)
    checked(protocol)
    checked(dataclasses.replace(protocol, clip_digest=model.sha256[:12]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "coco30k"}, "protocol.name='coco30k' is not known. Did you mean 'coco30k_"),
        (
            {"name": ""},
            "protocol.prompts=.* has no effect, because config.*name is ''. Allowed: co",
        ),
        ({"prompts": ""}, "config.evaluation.protocol.prompts is missing"),
        ({"prompts": "none.txt"}, "protocol.prompts=none.txt: it cannot be read"),
        ({"name": "coco30k_bk"}, "has 10 prompts; the protocol has 30,000"),
        ({"clip": ""}, "protocol.real and config.evaluation.protocol.clip are empty"),
        ({"clip": "none"}, "The CLIP checkpoint none does not exist"),
        ({"clip_digest": "00000000"}, "protocol.clip_digest='00000000': .* has the SHA-256"),
        ({"real": "none"}, "protocol.real=none does not exist"),
    ],
)
def test_settings_of_a_protocol_that_cannot_work_are_refused(protocol, changes, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        checked(dataclasses.replace(protocol, **changes))
    assert "\n" not in str(caught.value)


def test_a_protocol_needs_a_network_that_reads_texts_and_fids_weights(protocol, sets, tmp_path):
    with pytest.raises(ConfigError, match="the teacher of this run reads no texts"):
        checked(protocol, None)
    (tmp_path / "weights").write_bytes(b"no weights")
    given = dataclasses.replace(
        protocol, real=str(sets / "real"), inception=str(tmp_path / "weights")
    )
    with pytest.raises(DataError, match="weights has the SHA-256"):
        checked(given)
