"""Model cards of exports: metadata that the hub reads, honest scores, and a picture."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import yaml
from exported import diffusers_model, levels_run, run
from PIL import Image

from ddistill.errors import ConfigError
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row, RowFacts, rows_from_scores, write_rows
from ddistill.evaluation.sampling import run_digest
from ddistill.export.__main__ import collect, main, with_hub_ids
from ddistill.export.facts import BaseModel, rows_of
from ddistill.export.front_matter import front_matter, identifier, licence_metadata, model_index
from ddistill.export.model_card import model_card
from ddistill.export.picture import _small
from ddistill.interop.diffusers import read_teacher
from ddistill.runtime.files import write_arrays
from ddistill.text import markdown, printable
from ddistill.trained_run import open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(levels_run(), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exported(folder):
    return collect(open_run(folder), nfe=4)


def metadata(card: str) -> dict:
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert body.startswith("# ")
    return yaml.safe_load(front)


PROTOCOL = Protocol(
    features="digits_classifier", features_hash="abc", reference="digits/train", reference_n=1437,
    samples=2048, sampler="ddim", nfe=6, ema=None, clip=1.0, noise_seed=1234, quantised=True,
)  # fmt: skip


def scores(settings, sampler_run, protocol=PROTOCOL, **values) -> list[Row]:
    facts = RowFacts(
        experiment=settings.name, method=sampler_run.method, data="digits", nfe=sampler_run.nfe,
        students=sampler_run.students, width=sampler_run.width, seed=settings.seed,
        protocol=protocol.string(), train_seconds=1.0, teacher_calls=1, command="c", machine="m",
    )  # fmt: skip
    return rows_from_scores(values, facts)


@pytest.mark.parametrize(
    "name",
    [
        "caf\udce9",
        "a: b\n--- #",
        "\U0001f600",
        '"q" \\',
        "$x^$ `c` <b>",
        "{{j}} %",
        "no",
        "1e3",
        "---",
    ],
)
def test_cards_hold_names_of_any_kind(exported, name):
    """Front matter that is not YAML makes a hub refuse the card."""
    named = dataclasses.replace(
        exported,
        settings=dataclasses.replace(exported.settings, name=name),
        data=name,
        licence=name,
        rows=tuple(scores(levels_run(), exported.sampler_run, fd_infinity=1.5)),
    )
    card = model_card(named, "pass", "diffusers")
    card.encode()
    found = metadata(card)
    assert found["license"] == "other"
    assert re.fullmatch(r"[a-z0-9.-]+", found["license_name"])
    (index,) = found["model-index"]
    assert index["name"] == printable(name)
    assert index["results"][0]["dataset"]["name"] == printable(name)
    body = card.split("\n---\n", 1)[1]
    assert body.startswith(f"# {markdown(name)}: SFDDM")
    assert f"* Data: {markdown(name)}, images" in body
    assert f"* Licence: {markdown(name)}" in body


def test_licences_that_the_hub_knows_and_others():
    assert licence_metadata("Apache-2.0") == {"license": "apache-2.0"}
    assert licence_metadata("") == {"license": "unknown"}
    other = licence_metadata("apache-2.0; My own: v2")
    assert other == {"license": "other", "license_name": "apache-2.0-my-own-v2"}
    assert identifier("\u732b") == "unnamed"


def test_the_licence_of_a_card_is_read_again(tmp_path):
    folder = diffusers_model(tmp_path / "model")
    card = folder / "README.md"
    for front, expected in (
        (front_matter(licence_metadata("My own")), "my-own"),
        (front_matter(licence_metadata("mit")), "mit"),
        ("---\r\nlicense:\r\n- mit\r\n- isc\r\n---\r\n", "mit; isc"),
        ("---\nlicense: {a: b\n---\n", ""),
        ("---\n- license\n---\n", ""),
        ("license: mit\n", ""),
        ("---\nx: 2001-99-99\nlicense: mit\n---\n", ""),
    ):
        card.write_bytes(front.encode())
        assert read_teacher(folder).licence == expected, front


def test_ids_are_checked(exported):
    with pytest.raises(ConfigError, match="--dataset='digits' should be an id of the hub: ORG/"):
        with_hub_ids(exported, "", "digits")
    assert with_hub_ids(exported, "", "") == exported
    model = BaseModel("me/it", "c" * 40)
    named = dataclasses.replace(exported, base_models=(model,))
    card = model_card(named, "pass", "diffusers")
    assert metadata(card)["base_model"] == ["me/it"]
    assert f"huggingface.co/me/it), commit {'c' * 40}" in card


# --------------------------------------------------------------------------------------- scores


def test_scores_say_in_which_features_and_of_how_many_images_they_are():
    settings, sampler_run = levels_run(), collect_stub()
    rows = scores(
        settings, sampler_run, fd_infinity=Estimate(1.25, 1.0, 1.5), precision=0.75, fid=2.0,
        psnr_to_teacher=20.0, ms_per_image=3.0,
    )  # fmt: skip
    ((model),) = model_index("m", "My digits", "", rows)
    result = model["results"][0]
    assert result["dataset"] == {"type": "my-digits", "name": "My digits"}
    found = {m["type"]: m for m in result["metrics"]}
    assert found.keys() == {"fd_infinity", "precision", "fd", "psnr_to_teacher"}
    main_score = found["fd_infinity"]
    assert main_score["name"] == (
        "FD\N{INFINITY} (digits_classifier features, extrapolated from 2048 samples, "
        "95 % interval 1 to 1.5)"
    )
    assert main_score["value"] == 1.25
    assert main_score["args"]["interval_95"] == [1.0, 1.5]
    assert main_score["args"]["reference"] == "digits/train (1437 images)"
    # A distance in other features than Inception's is no FID, whatever its row is called.
    assert found["fd"]["name"].startswith("FD (digits_classifier) (digits_classifier features")
    assert found["psnr_to_teacher"]["name"] == "PSNR to teacher, dB (2048 samples)"
    counted = dataclasses.replace(
        PROTOCOL, floor=360, count=360, subsets=10, splits=2, subset_seed=0
    )
    recall = model_index("m", "d", "", scores(settings, sampler_run, counted, recall=0.5))
    (metric,) = recall[0]["results"][0]["metrics"]
    assert "360 of 2048 samples at a time" in metric["name"]
    assert metric["args"]["count"] == 360
    inception = dataclasses.replace(PROTOCOL, features="inception-2015-12-05")
    few = scores(settings, sampler_run, inception, fid=2.0)
    many = scores(settings, sampler_run, dataclasses.replace(inception, samples=50_000), fid=2.0)
    kinds = [model_index("m", "d", "a/b", r)[0]["results"][0]["metrics"][0] for r in (few, many)]
    assert [(m["type"], m["name"].partition(" (")[0]) for m in kinds] == [
        ("fd", "FID proxy"),
        ("fid", "FID"),
    ]
    assert model_index("m", "d", "", []) == []
    old = [dataclasses.replace(row, protocol="of another version") for row in many]
    assert model_index("m", "d", "", old)[0]["results"][0]["metrics"][0]["name"] == "FD"


def collect_stub():
    """What `scores` reads of a sampler run."""

    class Stub:
        method, nfe, students, width = "o2mkd", 6, 2, 8

    return Stub()


def test_a_card_has_the_scores_of_its_own_student(folder):
    """Rows of one method and NFE differ in the number of students, the width and the sampler."""
    run = open_run(folder)
    sampler_run = run.sampler_run("pair")
    ours = {
        "experiment": "levels",
        "method": "o2mkd",
        "nfe": 6,
        "students": 2,
        "width": 8,
        "seed": 0,
    }
    common = {
        "data": "digits",
        "metric": "fd",
        "protocol": "p",
        "train_seconds": 0.0,
        "teacher_calls": 0,
        "command": "c",
        "machine": "m",
    }
    others = ({"students": 4}, {"width": 16}, {"nfe": 3}, {"seed": 1}, {"experiment": "levels/x"})
    rows = [Row(**{**common, **ours, "value": 1.0})]
    rows += [Row(**{**common, **ours, **other, "value": 2.0}) for other in others]
    assert [r.value for r in rows_of(sampler_run, rows, run.settings)] == [1.0]
    others = ({"guidance": 3.0}, {"sampler": "heun"}, {"ema": 0.9}, {})
    protocols = [dataclasses.replace(PROTOCOL, **other).string() for other in others]
    rows = [
        Row(**{**common, **ours, "protocol": p, "value": float(i)}) for i, p in enumerate(protocols)
    ]
    assert [r.value for r in rows_of(sampler_run, rows, run.settings)] == [3.0]


def test_the_hubs_own_library_reads_the_card(folder, tmp_path):
    """The hub's server checks more than its client, which alone can be asked without a network."""
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.repocard_data import model_index_to_eval_results

    copy = evaluated(folder, tmp_path)
    out = tmp_path / "out"
    main(
        [
            "--to=safetensors",
            "--dataset=me/digits",
            f"--cache={tmp_path / 'shared'}",
            str(copy),
            str(out),
        ]
    )
    card = hub.ModelCard.load(out / "README.md")
    assert not card.data.to_dict().keys() - {
        "license", "library_name", "pipeline_tag", "tags", "datasets", "model-index",
    }  # fmt: skip
    assert card.data.pipeline_tag == "unconditional-image-generation"
    name, results = model_index_to_eval_results(hub.metadata_load(out / "README.md")["model-index"])
    assert name == "levels"
    assert [(r.metric_type, r.metric_value, r.dataset_type) for r in results] == [
        ("fd_infinity", 1.25, "me/digits"),
        ("precision", 0.75, "me/digits"),
    ]
    assert results[0].metric_args["interval_95"] == [1.0, 1.5]
    assert card.data.eval_results == results


# -------------------------------------------------------------------------------------- picture


def evaluated(folder, tmp_path):
    """A copy of the run with scores, and samples of the teacher and of the last student."""
    shutil.copytree(folder.parent / "shared", tmp_path / "shared")
    copy = shutil.copytree(folder, tmp_path / "levels")
    opened = open_run(copy, tmp_path / "shared")
    student = opened.sampler_run("pair")
    rows = scores(opened.settings, student, fd_infinity=Estimate(1.25, 1.0, 1.5), precision=0.75)
    write_rows(copy / "results.json", rows)
    teacher = next(r for r in opened.sampler_runs if r.role == "reference_teacher")
    for value, sampler_run in ((-1.0, teacher), (1.0, student)):
        write_arrays(
            copy / "samples" / f"{sampler_run.key}.npz",
            digest=run_digest(sampler_run, opened.settings.evaluation),
            images=np.full((8, 8, 8, 1), value, np.float32),
            ms_per_image=1.0,
        )
    return copy


def test_the_picture_shows_teacher_and_student_of_the_evaluation(folder, tmp_path, capsys):
    copy = evaluated(folder, tmp_path)
    out = tmp_path / "out"
    command = ["--to=safetensors", f"--cache={tmp_path / 'shared'}", str(copy), str(out)]
    main(command)
    card = (out / "README.md").read_text()
    assert "![samples](samples.png)" in card
    assert "the images of a column start from the same noise" in card
    with Image.open(out / "samples.png") as image:
        grey = np.asarray(image.convert("L")).astype(int)
    assert (out / "samples.png").stat().st_size < 100_000
    black, white = np.argwhere(grey == 0), np.argwhere(grey == 255)
    assert len(black) > 8 * 40 * 40  # the teacher's, above the student's
    assert white[:, 0].max() > black[:, 0].max()
    # Samples that cannot be read, or were made with other settings, leave the export as it is.
    sample = next(p for p in (copy / "samples").iterdir() if "pair" in p.name)
    sample.write_bytes(b"damaged")
    shutil.rmtree(out)
    main(command)
    assert not (out / "samples.png").exists()
    assert "samples.png" not in (out / "README.md").read_text()


def test_large_samples_are_made_smaller():
    assert _small(np.zeros((2, 256, 128, 3), np.float32)).shape == (2, 64, 32, 3)
    assert _small(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 8, 8, 1)
