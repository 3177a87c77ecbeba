"""The strict format of results.json, the protocol string, and what is published of a machine."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from ddistill.evaluation.metrics.protocols import PromptedParts
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.records import names
from ddistill.evaluation.records.environment import command_string, machine_string
from ddistill.evaluation.records.protocol import Protocol, summarise, variant
from ddistill.evaluation.records.rows import Row, RowFacts, read_rows, rows_from_scores, write_rows

PROTOCOL = Protocol(
    features="digits_classifier",
    features_hash="1a2b3c4d",
    reference="digits/train",
    reference_n=1437,
    samples=5000,
    sampler="ddim",
    nfe=4,
    ema=0.999,
    clip=1.0,
    noise_seed=0,
    quantised=True,
)
RESAMPLED = dataclasses.replace(
    PROTOCOL, floor=360, count=300, subsets=100, splits=8, subset_seed=2020
)
ROW = Row(
    experiment="sfddm_digits",
    method="sfddm",
    data="digits",
    nfe=4,
    students=1,
    width=32,
    seed=0,
    metric="fd",
    value=4.25,
    protocol=PROTOCOL.string(),
    train_seconds=310.5,
    teacher_calls=1_280_000,
    command="python -m ddistill.main --config=configs/sfddm_digits.py",
    machine="some processor, 2 cores, no accelerator",
)
KEYS = (
    "experiment method data nfe students width seed metric value protocol train_seconds"
    " teacher_calls command machine"
)


def test_protocol_string_is_what_users_read():
    assert PROTOCOL.string() == (
        "features=digits_classifier@1a2b3c4d reference=digits/train:1437 samples=5000 sampler=ddim"
        " nfe=4 ema=0.999 clip=1 noise_seed=0 uint8=yes guidance=none"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": None, "clip": None, "quantised": False, "guidance": 1.5},
        {"ema": 0.999943, "sampler": "none", "nfe": 0, "noise_seed": 7},
        {"floor": 360, "count": 360, "subsets": 100, "splits": 8, "subset_seed": 0, "strata": True},
        {"floor": 360, "count": 360, "subsets": 0, "splits": 0, "subset_seed": 0},
    ],
)
def test_protocol_round_trip(changes):
    protocol = dataclasses.replace(PROTOCOL, **changes)
    assert Protocol.parse(protocol.string()) == protocol


def test_any_change_of_protocol_changes_its_string():
    others = {
        "features": "x", "features_hash": "y", "reference": "z", "reference_n": 2, "samples": 3,
        "sampler": "heun", "nfe": 7, "ema": 0.99, "clip": None, "noise_seed": 1,
        "quantised": False, "guidance": 2.0, "floor": 1, "count": 1, "subsets": 1, "splits": 1,
        "subset_seed": 1, "strata": True, "prompted": PromptedParts(*"abcdefg"),
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(Protocol)}
    strings = {dataclasses.replace(RESAMPLED, **{k: v}).string() for k, v in others.items()}
    assert len(strings | {RESAMPLED.string(), PROTOCOL.string()}) == len(others) + 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": "two words"}, "protocol.features='two words'"),
        ({"sampler": ""}, "protocol.sampler"),
        ({"reference": "a=b"}, "protocol.reference"),
        ({"samples": 0}, "protocol.samples=0"),
        ({"nfe": True}, "protocol.nfe=True"),
        ({"ema": math.nan}, "protocol.ema=nan"),
        ({"quantised": 1}, "protocol.quantised=1"),
        ({"floor": 360}, r"protocol.floor, count, .*must be integers of at least 0, or all None"),
    ],
)
def test_protocol_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PROTOCOL, **changes)


def test_parse_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"missing: \['clip'\]"):
        Protocol.parse(RESAMPLED.string().replace(" clip=1", ""))
    with pytest.raises(ValueError, match="strata='maybe' must be yes or no"):
        Protocol.parse(RESAMPLED.string().replace("strata=no", "strata=maybe"))
    with pytest.raises(ValueError, match=r"unknown: \['sampled'\]"):
        Protocol.parse(PROTOCOL.string().replace("samples=", "sampled="))


def test_only_the_inception_graph_and_50k_samples_make_a_fid():
    inception = dataclasses.replace(PROTOCOL, features="inception-2015-12-05", samples=50_000)
    assert inception.label == "FID"
    assert dataclasses.replace(inception, samples=49_999).label == "FID proxy"
    assert PROTOCOL.label == "FD (digits_classifier)"


def test_row_keys_are_the_contract(tmp_path):
    write_rows(tmp_path / "results.json", [ROW])
    assert list(json.loads((tmp_path / "results.json").read_text())[0]) == KEYS.split()


def test_the_protocol_says_how_scores_were_resampled():
    assert RESAMPLED.string() == PROTOCOL.string() + (
        " floor=360 count=300 subsets=100 splits=8 subset_seed=2020 strata=no"
    )


def test_rows_with_interval_tuning_and_warning_round_trip(tmp_path):
    path = tmp_path / "results.json"
    rich = dataclasses.replace(ROW, low=4.0, high=4.5, tuned_on=(0, 1), warnings="Weak.", seed=1)
    write_rows(path, [ROW, rich])
    assert read_rows(path) == [ROW, rich]
    plain, full = json.loads(path.read_text())
    assert list(plain) == KEYS.split()  # what says nothing is not written
    assert list(full) == [*KEYS.split(), "low", "high", "tuned_on", "warnings"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"low": 4.0}, "low=4.0, high=None must be an interval"),
        ({"low": 4.5, "high": 5.0}, "with value=4.25 in it"),
        ({"low": math.nan, "high": 5.0}, "low=nan"),
        ({"tuned_on": (-1,)}, r"tuned_on=\(-1,\) must be seeds"),
        ({"warnings": "a\nb"}, "one line of text"),
    ],
)
def test_additions_of_rows_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROW, **changes)


def test_scoring_anew_with_other_subsets_measures_the_same():
    again = dataclasses.replace(ROW, protocol=RESAMPLED.string())
    assert again.identity == ROW.identity


def test_rows_round_trip(tmp_path):
    path = tmp_path / "sub" / "results.json"
    rows = [
        ROW,
        dataclasses.replace(ROW, metric="recall", value=0.1 + 0.2),
        dataclasses.replace(ROW, seed=1, value=-0.0),
    ]
    write_rows(path, rows)
    assert read_rows(path) == rows
    write_rows(path, [])
    assert read_rows(path) == []
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_rows_from_scores_fills_in_the_common_keys():
    common = dataclasses.asdict(ROW)
    for key in ("metric", "value", "low", "high"):
        del common[key]
    rows = rows_from_scores({"fd": 1, "precision": Estimate(0.5, 0.4, 0.6)}, RowFacts(**common))
    assert [(r.metric, r.value, r.low, r.high) for r in rows] == [
        ("fd", 1.0, None, None), ("precision", 0.5, 0.4, 0.6),
    ]  # fmt: skip
    assert dataclasses.replace(rows[0], value=4.25) == ROW


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("value", math.nan, r"value=nan must be a finite number.*sfddm_digits.*'fd'"),
        ("value", math.inf, "value=inf"),
        ("value", "4.2", "value='4.2'"),
        ("value", True, "value=True"),
        ("train_seconds", math.nan, "train_seconds=nan"),
        ("nfe", 4.0, "nfe=4.0 must be an integer"),
        ("nfe", -1, "nfe=-1"),
        ("seed", False, "seed=False"),
        ("experiment", " ", "experiment=' '"),
        ("machine", "two\nlines", "machine"),
        ("method", "sfdm", "method='sfdm' is not known. Did you mean 'sfddm'"),
        ("metric", "presision", "metric='presision' is not known. Did you mean 'precision'"),
    ],
)
def test_row_refuses(key, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROW, **{key: value})


def _file(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("protocol"), "bad.json: row 1: key 'protocol' is missing"),
        (
            lambda d: d.update(trainseconds=1),
            "bad.json: row 1: key 'trainseconds' is not known. Did you mean 'train_seconds'",
        ),
        (lambda d: d.update(value=None), "bad.json: row 1: value=None"),
        (lambda d: d.update(method="sfdm"), "bad.json: row 1: method='sfdm'.*'sfddm'"),
    ],
)
def test_read_names_file_row_and_key(tmp_path, change, message):
    good, bad = dataclasses.asdict(ROW), dataclasses.asdict(ROW)
    change(bad)
    with pytest.raises(ValueError, match=message):
        read_rows(_file(tmp_path, [good, bad]))


def test_read_refuses_nan_other_json_and_missing_files(tmp_path):
    row = json.dumps(dataclasses.asdict(ROW))
    with pytest.raises(ValueError, match=r"bad.json: not valid JSON: NaN is no score"):
        read_rows(_file(tmp_path, f"[{row.replace('4.25', 'NaN')}]"))
    with pytest.raises(ValueError, match=r"bad.json: not valid JSON"):
        read_rows(_file(tmp_path, f"[{row}"))
    with pytest.raises(ValueError, match=r"bad.json: expected a list of rows, got dict"):
        read_rows(_file(tmp_path, {"rows": []}))
    with pytest.raises(ValueError, match=r"bad.json: row 0: expected an object, got int"):
        read_rows(_file(tmp_path, [3]))
    with pytest.raises(ValueError, match=r"absent.json: cannot be read"):
        read_rows(tmp_path / "absent.json")


def test_write_refuses_two_rows_of_one_identity_and_leaves_the_file(tmp_path):
    path = tmp_path / "results.json"
    write_rows(path, [ROW])
    with pytest.raises(ValueError, match=r"results.json: two rows.*4.25 and 9"):
        write_rows(path, [ROW, dataclasses.replace(ROW, value=9.0, machine="other")])
    assert read_rows(path) == [ROW]


def test_identity_ignores_the_detector_hash_and_keeps_the_variant():
    def with_protocol(**changes):
        return dataclasses.replace(
            ROW, protocol=dataclasses.replace(PROTOCOL, **changes).string()
        ).identity

    assert with_protocol(features_hash="ffffffff") == ROW.identity
    for changes in ({"ema": None}, {"sampler": "heun"}, {"samples": 10}, {"features": "x"}):
        assert with_protocol(**changes) != ROW.identity
    assert dataclasses.replace(ROW, value=1.0, command="x", machine="y").identity == ROW.identity
    for key, value in {"seed": 1, "width": 8, "students": 2, "data": "x", "metric": "fid"}.items():
        assert dataclasses.replace(ROW, **{key: value}).identity != ROW.identity


def test_variant_drops_parts_on_request():
    text = variant(PROTOCOL.string(), drop=("nfe", "noise_seed"))
    assert "features=digits_classifier reference" in text
    assert "nfe" not in text
    assert "noise_seed" not in text


def test_summarise_splits_common_from_own():
    heun = dataclasses.replace(PROTOCOL, sampler="heun", nfe=7).string()
    real = dataclasses.replace(PROTOCOL, sampler="none", nfe=0, ema=None).string()
    eight = dataclasses.replace(PROTOCOL, nfe=8).string()
    shared, own = summarise(
        [("ddim", PROTOCOL.string()), ("ddim", eight), ("heun", heun), ("real", real)]
    )
    assert "samples=5000" in shared
    assert "nfe" not in shared
    assert "ema" not in shared
    assert own == [
        ("ddim", "sampler=ddim ema=0.999"),
        ("heun", "sampler=heun ema=0.999"),
        ("real", "sampler=none ema=none"),
    ]
    assert summarise([]) == ("", [])


def test_methods_and_metrics_can_be_added(monkeypatch):
    monkeypatch.setattr(names, "METHODS", dict(names.METHODS))
    monkeypatch.setattr(names, "METRICS", dict(names.METRICS))
    with pytest.raises(ValueError, match="ddistill.register.method adds a method"):
        dataclasses.replace(ROW, method="dmd3")
    names.register_method("dmd3", "DMD3")
    names.register_metric("lpips", "LPIPS", meaning="Distance.", better="lower")
    row = dataclasses.replace(ROW, method="dmd3", metric="lpips")
    assert row.method == "dmd3"
    names.register_method("dmd3", "DMD3")  # the same again is no trouble
    with pytest.raises(ValueError, match="'dmd3' is taken"):
        names.register_method("dmd3", "another")
    with pytest.raises(ValueError, match="lower case"):
        names.register_method("DMD 3", "x")
    with pytest.raises(ValueError, match="role='boss'"):
        names.register_method("boss", "x", role="boss")
    with pytest.raises(ValueError, match="better='up'"):
        names.register_metric("m", "x", meaning="Meaning.", better="up")


def test_machine_string_names_hardware_only():
    import platform

    gpus = [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")] * 4
    assert machine_string(gpus).endswith(", 4x NVIDIA H100")
    cpu = machine_string([SimpleNamespace(platform="cpu", device_kind="cpu")])
    assert cpu.endswith(", no accelerator")
    assert " core" in cpu
    assert "\n" not in cpu
    assert len(platform.node()) < 3 or platform.node() not in cpu


def test_command_string_has_no_paths_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [
        "/home/someone/x/ddistill/main.py",
        f"--config={tmp_path}/configs/a.py:smoke",
        "--workdir=/scratch/someone/runs/a",
        f"{tmp_path}/b.py",
        "--note=two words",
    ]
    assert command_string(argv) == (
        "python -m ddistill.main --config=configs/a.py:smoke --workdir=a b.py '--note=two words'"
    )
