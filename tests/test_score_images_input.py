"""python -m ddistill.evaluate: what is refused, and the command."""

import json
import pickle

import numpy as np
import pytest
from inception_cases import pictures
from PIL import Image
from scored import DIM, Notes, make_sets, options, project, run, save_folder, tiny_detector

from ddistill import evaluate as cli
from ddistill.errors import ConfigError, DataError
from ddistill.evaluate import Options, evaluate, main
from ddistill.evaluation.metrics.score_set import chosen_metrics
from ddistill.runtime.interrupt import StopRequest


@pytest.fixture
def sets(tmp_path):
    return make_sets(tmp_path)


# -------------------------------------------------------------------------------------- bad files


def spoil(folder, what):
    """Puts `bad` or `bad.npz` there."""
    eye = {"mu": np.zeros(DIM), "sigma": np.eye(DIM)}
    arrays = {
        "keys": {"mean": np.zeros(3)},
        "wide": {"mu": np.zeros(2023), "sigma": np.eye(2023)},
        "unlike": {"mu": np.zeros(DIM), "sigma": np.eye(DIM + 1)},
        "nan": {**eye, "mu": np.full(DIM, np.nan)},
        "nchw": {"arr_0": np.zeros((4, 3, 8, 8), np.uint8)},
        "scale": {"images": np.full((4, 8, 8, 3), 200.0, np.float32)},
        "ints": {"arr_0": np.zeros((4, 8, 8, 3), np.int64)},
        "diverged": {"images": np.full((4, 8, 8, 3), np.inf, np.float32)},
        "cut": {"arr_0": np.zeros((4, 8, 8, 3), np.uint8)},
        "pickle": {"arr_0": np.array([{}], dtype=object)},
        "both": {"arr_0": pictures(4, 8), "images": pictures(4, 8)},
        "dark": {"arr_0": pictures(4, 8).astype(np.float32) / 1000},
    }
    texts = {
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "page": b"\n<!DOCTYPE html><html></html>",
        "nothing": b"",
    }
    if what in texts:
        (folder / "bad.npz").write_bytes(texts[what])
    if what == "folder":
        (folder / "bad.npz").mkdir()
    if what in arrays:
        np.savez(folder / "bad.npz", **arrays[what])
    if what == "cut":
        path = folder / "bad.npz"
        path.write_bytes(path.read_bytes()[:-100])
    if what == "empty":
        (folder / "bad").mkdir()
        (folder / "bad" / "notes.txt").write_text("no image")
    if what == "mixed":
        save_folder(folder / "bad", pictures(2, 8))
        Image.fromarray(pictures(1, 9)[0]).save(folder / "bad" / "large.png")
    if what == "broken":
        save_folder(folder / "bad", pictures(2, 8))
        path = folder / "bad" / "0001.png"
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    "what, message",
    [
        ("keys", r"bad\.npz holds the arrays mean\. A reference has 'mu' and 'sigma'"),
        ("wide", r"bad\.npz has 2023 features, and .*/2048 has 6: it was made with another"),
        ("unlike", r"mu has the shape \(6,\) and sigma \(7, 7\)"),
        ("nan", "mu or sigma holds values that are not finite"),
        ("cut", r"bad\.npz cannot be read as an npz file .* damaged or truncated"),
        ("pickle", "the array 'arr_0' cannot be read"),
        ("missing", r"bad\.npz does not exist"),
        ("dark", r"bad\.npz: 'arr_0' .float32. has values .* Give --reference_range="),
        ("pointer", r"bad\.npz is a git-lfs pointer and not the file itself; run 'git lfs pull'"),
        ("folder", r"bad\.npz is a folder with the name of a file"),
    ],
)
def test_bad_references(sets, what, message):
    folder, *_ = sets
    spoil(folder, what)
    with pytest.raises(DataError, match=message):
        run(options(folder, "bad.npz"))


@pytest.mark.parametrize(
    "what, message",
    [
        ("keys", r"bad\.npz holds the arrays mean, and no images. Files of images have 'arr_0'"),
        ("nchw", r"'arr_0' has the shape \(4, 3, 8, 8\), not \[N, H, W, 1 or 3\]"),
        ("scale", r"values from 200 to 200, .* several ranges or none. Give --range=.* as uint8"),
        ("ints", r"'arr_0' \(int64\) has values from 0 to 0, .* Give --range="),
        ("both", r"holds 'arr_0' and 'images', and either could be the images. Keep one"),
        ("pointer", r"bad\.npz is a git-lfs pointer and not the file itself; run 'git lfs pull'"),
        ("page", r"bad\.npz is a web page \(HTML\) saved under this name"),
        ("nothing", r"bad\.npz is empty \(0 bytes\)"),
        ("diverged", "not finite; the sampler has diverged"),
        ("empty", r"the path .*bad holds no images, only other files \(1 .txt\)"),
        ("mixed", r"large\.png is 9x9x3, the first image is 8x8x3. Set --image_size"),
        ("broken", r"0001\.png cannot be read: .* Repair or remove it"),
    ],
)
def test_bad_samples(sets, what, message):
    folder, *_ = sets
    spoil(folder, what)
    path = "bad.npz" if (folder / "bad.npz").exists() else "bad"
    with pytest.raises(DataError, match=message):
        run(options(folder, path=path))


# --------------------------------------------------------------------------------------- the flags


@pytest.mark.parametrize(
    "flags, message",
    [
        (["fake"], "--reference is missing"),
        (["nowhere", "--reference=real.npz"], "nowhere does not exist"),
        (["fake", "--reference=train"], "is no finished run: it has no evaluation.json"),
        (["fake", "--reference=real.npz", "--metrics=fid,kidd"], "'kidd' is not known. Did you"),
        (["fake", "--reference=real.npz", "--save_reference=x"], "x must end in .npz"),
        (["fake", "--reference=real.npz", "--batch=0"], "--batch=0 must be 1 or more"),
        (["fake", "--reference=real.npz", "--range=0,2"], "--range='0,2' is not known. .* -1,1"),
        (["fake", "--reference=x", "--reference_range=1"], "--reference_range='1' is not known"),
        (["fake", "--reference=real.npz", "--neighbours=0"], "--neighbours=0 must be 1"),
        (["fake", "--reference=real.npz", "--weights=none.pth"], "none.pth: the path does not"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be(sets, monkeypatch, flags, message):
    monkeypatch.chdir(sets[0])
    with pytest.raises(SystemExit, match=message):
        main(flags)


def test_the_command(sets, monkeypatch, capsys):
    folder, *_ = sets
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "load_inception", lambda path, other: (path, other))
    asked = []

    def detector(weights, batch, feature, logits, resize):
        asked.append((weights, batch, feature, logits, resize))
        return tiny_detector()

    monkeypatch.setattr(cli, "inception_detector", detector)
    main(["fake", "--reference=real.npz", "--metrics=fid", "--weights=w.pth", "--batch=5"])
    assert asked == [(("w.pth", False), 5, "2048", False, "tf1")]
    text = capsys.readouterr().out
    assert "fid_proxy" in text
    command = json.loads((folder / "fake.scores" / "scores.json").read_text())["command"]
    assert command.startswith("python -m ddistill.evaluate fake --reference=real.npz")


def test_references_of_edm2(sets):
    """A pickle of statistics of several networks by name."""
    folder, _, real = sets
    features = project(real)[0].astype(np.float64)
    fid = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}
    np.savez(folder / "edm.npz", **fid)
    content = {"fid": fid, "fd_dinov2": {"mu": np.zeros(3), "sigma": np.eye(3)}}
    (folder / "edm2.pkl").write_bytes(pickle.dumps(content))
    scores = [run(options(folder, name))[0][0].scores for name in ("edm.npz", "edm2.pkl")]
    assert scores[0] == scores[1]
    (folder / "other.pkl").write_bytes(pickle.dumps({"ema": None, "mu": np.zeros(3)}))
    with pytest.raises(DataError, match=r"other\.pkl holds 'ema', 'mu'\. A pickle of statistics"):
        run(options(folder, "other.pkl"))
    np.save(folder / "mu.npy", fid["mu"])
    with pytest.raises(DataError, match=r"mu\.npy: the array has the shape \(6,\), not \[N, H,"):
        run(options(folder, "mu.npy"))


def test_two_sets_in_different_units(sets):
    """Samples in [0, 1] are at no distance from the same images in bytes, and the text says so."""
    folder, _, real = sets
    np.save(folder / "units.npy", real / 255)
    (made,), said = run(options(folder, path="units.npy"))
    assert made.scores["fid_proxy"] == pytest.approx(0, abs=1e-9)
    assert "units.npy: float64 read as [0, 1]" in said
    np.savez(folder / "dark.npz", arr_0=(real / 1000).astype(np.float32))
    (bright,), _ = run(options(folder, path="dark.npz", range="0,1"))
    (grey,), _ = run(options(folder, path="dark.npz", range="-1,1"))
    assert bright.scores["fid_proxy"] != grey.scores["fid_proxy"]  # kept features are not mixed up


def test_a_range_that_means_nothing_is_refused(sets, tmp_path):
    folder, *_ = sets
    with pytest.raises(
        DataError, match="--range=0,1 is for arrays; image files, as in .*fake, define their"
    ):
        run(options(folder, range="0,1"))
    save_folder(folder / "a.b", pictures(3, 8))
    with pytest.raises(DataError, match="--reference_range=0,1 is for arrays"):
        run(options(folder, "a.b", reference_range="0,1"))
    (folder / "evaluation.json").write_text("{}")
    with pytest.raises(ConfigError, match="--range=0,1: samples of a run are in"):
        run(options(folder, path=".", range="0,1"))


def test_chosen_metrics():
    assert chosen_metrics("") == ()
    assert chosen_metrics("kid, fid") == ("kid", "fid")


def test_a_run_that_is_not_finished(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="the evaluation of the run .* is not finished"):
        evaluate(
            Options(str(tmp_path), "x.npz"), tiny_detector(), Notes(), StopRequest(), "command"
        )
