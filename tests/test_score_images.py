"""python -m ddistill.evaluate: folders, npz files and runs, references, going on."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from inception_cases import extractor, fidelity, pictures, random_state, torch_features
from PIL import Image
from scored import (
    DIM,
    SMALL,
    frechet_of,
    make_sets,
    options,
    project,
    run,
    save_folder,
    tiny_detector,
)

from ddistill.data import Dataset
from ddistill.errors import ConfigError, DataError
from ddistill.evaluate import Options
from ddistill.evaluation.metrics import feature_store
from ddistill.evaluation.metrics.detector import inception_detector
from ddistill.evaluation.metrics.image_sets import dataset_images, open_image_set
from ddistill.evaluation.metrics.inception_metrics import (
    MetricSettings,
    inception_score,
    kernel_distance,
)
from ddistill.evaluation.metrics.precision_recall import precision_recall
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.sampler_runs import SamplerRunRecord, write_sampler_runs
from ddistill.interop.inception import InceptionWeights, from_state_dict
from ddistill.runtime.interrupt import Interrupted, StopRequest

# ------------------------------------------------------------------------------------- the scores


@pytest.fixture
def sets(tmp_path):
    return make_sets(tmp_path)


def test_a_folder_against_an_npz_file(sets):
    folder, fake, real = sets
    (made,), said = run(options(folder), command="the command")
    (f, logits), (r, _) = project(fake), project(real)
    neighbours = precision_recall(r, f)
    scores = dict(made.scores)
    assert scores.pop("fid_proxy_infinity") < scores["fid_proxy"]
    assert made.intervals.keys() == {"fid_proxy", "fid_proxy_infinity", *neighbours}
    assert any(line.startswith("  fid_proxy ") and line.endswith("]") for line in said)
    assert scores == pytest.approx(
        {
            "fid_proxy": frechet_of(f, r),
            "is": inception_score(logits, 2)[0],
            "is_std": inception_score(logits, 2)[1],
            "kid": kernel_distance(f, r, 5, 10)[0],
            "kid_std": kernel_distance(f, r, 5, 10)[1],
            **neighbours,
        },
        rel=1e-5,
    )
    assert made.proxy
    assert said[0] == "fake: 37 samples, proxy (papers: 50000 samples)"
    content = json.loads((folder / "fake.scores" / "scores.json").read_text())
    assert content["command"] == "the command"
    assert content["scores"] == [json.loads(json.dumps(dataclasses.asdict(made)))]
    parts = dict(part.split("=", 1) for part in made.protocol.split())
    assert parts["features"] == "inception-2015-12-05@6726825d/2048"
    assert parts["reference"].startswith("real.npz:45@")
    assert parts["samples"].startswith("fake:37@")
    assert parts["size"] == "8x8/none"
    assert parts["uint8"] == "yes"
    assert parts["kid"] == "poly3:5x10"
    assert parts["metric_seed"] == "2020"


def test_images_against_themselves(sets):
    folder, *_ = sets
    np.savez(folder / "again.npz", arr_0=pictures(37, 8, seed=1))
    (made,), _ = run(options(folder, "again.npz"))
    assert made.scores["fid_proxy"] == pytest.approx(0, abs=1e-9)
    assert made.scores["precision"] == made.scores["recall"] == 1
    assert made.scores["kid"] < 1e-3


def test_names_say_what_is_no_fid(sets):
    folder, *_ = sets
    (made,), _ = run(options(folder), tiny_detector("inception-unverified"))
    assert "fd_inception_unverified_2048" in made.scores
    assert "unverified_is" in made.scores
    assert not any(name.startswith("fid") for name in made.scores)
    (made,), _ = run(options(folder), tiny_detector(feature="768"))
    assert "fd_inception_2015_12_05_768" in made.scores
    assert not any(name.startswith("fid") for name in made.scores)


def test_enough_samples_are_no_proxy(sets, monkeypatch):
    folder, *_ = sets
    monkeypatch.setattr("ddistill.evaluation.metrics.score_set.FULL_COUNT", 37)
    (made,), said = run(options(folder, metrics=("fid",)))
    assert list(made.scores) == ["fid", "fid_infinity"]
    assert made.intervals["fid"][0] < made.scores["fid"] < made.intervals["fid"][1]
    (plain,), _ = run(
        options(folder, metrics=("fid",), settings=MetricSettings(subsets=0, splits=0))
    )
    assert plain.scores == {"fid": pytest.approx(made.scores["fid"], rel=1e-6)}
    assert not plain.intervals
    assert "subsets=20 splits=1" in made.protocol
    assert "subsets=0 splits=0" in plain.protocol
    assert said[0] == "fake: 37 samples"


def test_floats_are_quantised_as_papers_do(sets):
    folder, fake, _ = sets
    floats = (fake + 0.5 - 128) / 127.5 + np.random.default_rng(0).uniform(
        -0.49, 0.49, fake.shape
    ) / 127.5
    np.savez(folder / "floats.npz", images=floats.astype(np.float32))
    np.testing.assert_array_equal(open_image_set(folder / "floats.npz").images, fake)


def test_a_copied_folder_has_the_same_hash(sets):
    folder, fake, _ = sets
    first = open_image_set(folder / "fake")
    again = open_image_set(save_folder(folder / "copy" / "fake", fake))
    assert first.digest == again.digest


def test_folders_of_equal_names_sizes_and_times_are_not_the_same(tmp_path):
    sets = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for i in range(3):  # bmp files of one shape have one size
            path = folder / f"{i}.bmp"
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
            os.utime(path, (1_000_000, 1_000_000))
        sets.append(open_image_set(folder))
    assert sets[0].digest != sets[1].digest


def test_a_data_sets_hash_is_of_its_pixels():
    def made(value):
        images = np.full((2, 4, 4, 1), value, np.uint8)
        return Dataset("made", images, np.zeros(2, np.int32), 1, ("0",), provenance="the same")

    assert dataset_images(made(1), "train").digest != dataset_images(made(2), "train").digest
    assert dataset_images(made(1), "train").digest == dataset_images(made(1), "train").digest


def test_grey_images_and_image_size(sets):
    folder, *_ = sets
    save_folder(folder / "grey", pictures(3, 16)[..., 0])
    images = open_image_set(folder / "grey", image_size=8)
    assert images.images.shape == (3, 8, 8, 3)
    assert images.resize == "centre-lanczos-8"
    assert images.digest != open_image_set(folder / "grey").digest


@pytest.mark.parity
def test_folders_end_to_end_against_torch_fidelity(tmp_path):
    """The real network up to its first tap, with random weights, on 4 devices."""
    metric, state = fidelity("metric_fid"), random_state()
    import torch

    fake, real = pictures(23, 16, seed=1), pictures(26, 16, seed=2)
    network = extractor(("64",), state)
    theirs = [torch.tensor(torch_features(network, x)["64"]) for x in (fake, real)]
    statistics = [metric.fid_features_to_statistics(x) for x in theirs]
    want = metric.fid_statistics_to_metric(*statistics, verbose=False)
    kid = fidelity("metric_kid").kid_features_to_metric(
        *theirs, kid_subsets=5, kid_subset_size=10, verbose=False
    )
    prc = fidelity("metric_prc").prc_features_to_metric(*theirs, verbose=False)

    save_folder(tmp_path / "fake", fake)
    save_folder(tmp_path / "real", real)
    weights = InceptionWeights(from_state_dict(state), "random" * 10)
    detector = inception_detector(weights, 16, "64", False, jax.devices()[:4])
    chosen = Options(str(tmp_path / "fake"), str(tmp_path / "real"), settings=SMALL)
    (made,), _ = run(chosen, detector)
    found = {name.removeprefix("unverified_"): value for name, value in made.scores.items()}
    assert found["fd_inception_unverified_64"] == pytest.approx(
        want["frechet_inception_distance"], rel=1e-3
    )
    assert found["kid"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3)
    assert found["precision"] == pytest.approx(prc["precision"], rel=1e-3)
    assert found["recall"] == pytest.approx(prc["recall"], rel=1e-3)
    assert "no is: the logits were not computed" in made.notes


@pytest.mark.slow
@pytest.mark.parity
def test_folders_with_the_whole_network_against_torch_fidelity(tmp_path):
    """2048 features and logits: FID and inception score of folders."""
    metric, state = fidelity("metric_fid"), random_state()
    import torch

    fake, real = pictures(20, 16, seed=1), pictures(8, 16, seed=2)
    network = extractor(("2048", "logits_unbiased"), state)
    theirs = [torch_features(network, x) for x in (fake, real)]
    statistics = [metric.fid_features_to_statistics(torch.tensor(x["2048"])) for x in theirs]
    fid = metric.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    score = fidelity("metric_isc").isc_features_to_metric(
        torch.tensor(theirs[0]["logits_unbiased"]), splits=2, shuffle=True, rng_seed=2020
    )["inception_score_mean"]

    save_folder(tmp_path / "fake", fake)
    save_folder(tmp_path / "real", real)
    weights = InceptionWeights(from_state_dict(state), "random" * 10)
    detector = inception_detector(weights, 4, "2048", True)
    # No halves: what is extrapolated from them is not looked at, and takes two decompositions.
    small = dataclasses.replace(SMALL, splits=0)
    asked = Options(
        str(tmp_path / "fake"), str(tmp_path / "real"), settings=small, metrics=("fid", "is")
    )
    (made,), _ = run(asked, detector)
    found = {name.removeprefix("unverified_"): value for name, value in made.scores.items()}
    assert found["fd_inception_unverified_2048"] == pytest.approx(fid, rel=1e-3)
    assert found["is"] == pytest.approx(score, rel=1e-3)
    # Random weights give scores near 1, the least that there is.
    assert score > 1.003
    assert found["is"] - 1 == pytest.approx(score - 1, rel=1e-2)


# -------------------------------------------------------------------------------------- going on


def test_a_stopped_evaluation_goes_on(sets, monkeypatch):
    folder, *_ = sets
    monkeypatch.setattr(feature_store.store_features, "__defaults__", (10,))  # images a part
    (whole,), _ = run(options(folder, out=str(folder / "whole")))
    stop, seen = StopRequest(), []

    def dying(pixels):
        seen.append(len(pixels))
        if len(seen) == 7:  # in the fourth part of the reference's features
            stop.name = "SIGTERM"
        return project(pixels)

    with pytest.raises(Interrupted, match=r"the features of real\.npz"):
        run(options(folder), tiny_detector(apply=dying), stop)
    assert not (folder / "fake.scores" / "scores.json").exists()
    before, seen[:] = len(seen), []
    (made,), _ = run(options(folder), tiny_detector(apply=dying))
    assert made == whole
    # Parts of 10 images are two batches of 8: the part that was stopped is computed again.
    assert before == 8
    # What is left: real images in parts of 10 and 5, samples in parts of 10, 10, 10 and 7.
    assert len(seen) == 2 + 1 + 2 + 2 + 2 + 1


def test_killed_while_writing(sets, monkeypatch):
    """A part is there whole or not at all; one that was damaged later is made again."""
    folder, *_ = sets
    calls = []

    def counted(pixels):
        calls.append(len(pixels))
        return project(pixels)

    (whole,), _ = run(options(folder), tiny_detector(apply=counted))
    first = len(calls)
    parts = sorted((folder / "fake.scores" / "features").glob("*/part_*.npz"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:-200])
    (made,), _ = run(options(folder), tiny_detector(apply=counted))
    assert made == whole
    assert 0 < len(calls) - first < first

    def failing(*args):
        raise OSError("disk full")

    parts[1].unlink()
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="disk full"):
        run(options(folder), tiny_detector(apply=counted))
    left = list((folder / "fake.scores" / "features").rglob("*"))
    assert parts[1] not in left
    assert not [path for path in left if path.name.endswith(".tmp")]


def test_only_own_folders_are_cleared_of_files_that_a_kill_left(sets):
    """`out` may be any folder, with others of the user below it."""
    folder, *_ = sets
    run(options(folder))
    out = folder / "fake.scores"
    (out / "photos").mkdir()
    own = next((out / "features").iterdir())
    name = ".x.npz.00000000-12-0123abcd.tmp"
    stays = [out / "photos" / name, out / ".plot.20240101-12345678.tmp"]
    for path in (out / name, own / name, *stays):
        path.touch()
        os.utime(path, (0, 0))
    run(options(folder))
    assert sorted(out.rglob("*.tmp")) == sorted(stays)


def test_other_images_or_weights_are_not_taken_for_these(sets):
    folder, *_ = sets
    (first,), _ = run(options(folder))
    changed = folder / "fake" / "0003.png"
    Image.fromarray(pictures(1, 8, seed=9)[0]).save(changed)
    (second,), _ = run(options(folder))
    assert first.scores["fid_proxy"] != second.scores["fid_proxy"]
    other = dataclasses.replace(tiny_detector(apply=lambda x: [-y for y in project(x)]), sha256="b")
    (third,), _ = run(options(folder), other)
    assert third.scores["is"] != second.scores["is"]


# ------------------------------------------------------------------------------------- references


def test_statistics_of_edm_and_adm(sets):
    folder, fake, real = sets
    f, r = project(fake)[0].astype(np.float64), project(real)[0].astype(np.float64)
    edm = {"mu": r.mean(0), "sigma": np.cov(r, rowvar=False)}
    np.savez(folder / "edm.npz", **edm)
    (made,), said = run(options(folder, "edm.npz"))
    assert made.scores["fid_proxy"] == pytest.approx(frechet_of(f, r), rel=1e-6)
    assert "kid" not in made.scores
    assert any("no kid: edm.npz has statistics and no single features" in line for line in said)
    assert "reference=edm.npz:unknown@" in made.protocol
    with pytest.raises(ConfigError, match="--metrics=prc: edm.npz has statistics"):
        run(options(folder, "edm.npz", metrics=("fid", "prc")))

    spatial = {"mu_s": np.zeros(9), "sigma_s": np.eye(9)}
    np.savez(folder / "adm.npz", **edm, **spatial, arr_0=real[:20])
    (made,), _ = run(options(folder, "adm.npz"))
    assert made.scores["fid_proxy"] == pytest.approx(frechet_of(f, r), rel=1e-6)
    want = precision_recall(project(real[:20])[0], project(fake)[0])
    assert made.scores["precision"] == want["precision"]
    assert "reference_features=20" in made.protocol


def test_statistics_of_ours_and_what_they_are_of(sets):
    folder, _, real = sets
    whole, said = run(options(folder, "", path="real.npz", save_reference=str(folder / "kept.npz")))
    assert whole == []
    assert "kept.npz" in said[0]
    with np.load(folder / "kept.npz") as file:
        assert int(file["count"]) == 45
        assert file["features"].shape == (45, DIM)
        np.testing.assert_allclose(file["mu"], project(real)[0].mean(0), rtol=1e-5)
    (made,), _ = run(options(folder, "kept.npz"))
    (same,), _ = run(options(folder))
    assert made.scores == pytest.approx(same.scores, rel=1e-12)
    with pytest.raises(DataError, match=r"holds features of .*/2048, .* scored in .*/768"):
        run(options(folder, "kept.npz"), tiny_detector(feature="768"))


def test_a_run_against_its_own_data(tmp_path):
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"data": {"name": "digits"}}))
    protocol = Protocol("net", "abc", "digits/train", 10, 30, "ddim", 4, 0.999, 1.0, 3, True, 1.5)
    runs = []
    for i, key in enumerate(("teacher_ddim_4", "student")):
        images = pictures(30, 8, seed=i)[..., :1] / 127.5 - 1
        np.savez(folder / "samples" / f"{key}.npz", images=images.astype(np.float32), digest="x")
        runs.append(
            SamplerRunRecord(
                key, f"label {i}", "ddim", "", 4, 8, "teacher", protocol.string(),
                5 * i, 1, 0, 0, 0.0,
            )
        )  # fmt: skip
    write_sampler_runs(folder / "evaluation.json", "x", runs)
    made, _ = run(options(tmp_path, "train", path="run"))
    assert [s.key for s in made] == ["teacher_ddim_4", "student"]
    assert [s.label for s in made] == ["label 0", "label 1"]
    assert "reference=digits-train:" in made[0].protocol
    end = "sampler=ddim nfe=4 ema=0.999 clip=1 noise_seed=3 guidance=1.5"
    assert [s.protocol.partition(end)[2] for s in made] == ["", " strata=yes"]
    content = json.loads((folder / "inception" / "scores.json").read_text())
    assert len(content["scores"]) == 2
