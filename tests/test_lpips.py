"""LPIPS gives what torch gives with the same weights, and refuses other files."""

import dataclasses

import numpy as np
import pytest
from runs import plans_of, tiny_settings

from ddistill.errors import ConfigError
from ddistill.evaluation.checks import check_evaluation
from ddistill.evaluation.metrics.lpips import NETWORKS, Lpips, read_lpips, shapes
from ddistill.evaluation.perceptual import with_lpips, with_weights
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.sampling import Samples
from ddistill.evaluation.sampling_plan import planned_runs
from ddistill.evaluation.scored import ScoredRun
from ddistill.settings import EvaluationSettings

# Layers of torchvision's networks up to the last that LPIPS compares: (in, out, kernel, stride,
# padding) of a convolution, "r" for ReLU, (window, stride) of max pooling; and the ends of slices.
_C3 = (1, 1)
LAYERS = {
    "alex": (
        [(3, 64, 11, 4, 2), "r", (3, 2), (64, 192, 5, 1, 2), "r", (3, 2), (192, 384, 3, *_C3), "r",
         (384, 256, 3, *_C3), "r", (256, 256, 3, *_C3), "r"],
        (2, 5, 8, 10, 12),
    ),
    "vgg": (
        [(3, 64, 3, *_C3), "r", (64, 64, 3, *_C3), "r", (2, 2), (64, 128, 3, *_C3), "r",
         (128, 128, 3, *_C3), "r", (2, 2), (128, 256, 3, *_C3), "r", (256, 256, 3, *_C3), "r",
         (256, 256, 3, *_C3), "r", (2, 2), (256, 512, 3, *_C3), "r", (512, 512, 3, *_C3), "r",
         (512, 512, 3, *_C3), "r", (2, 2), (512, 512, 3, *_C3), "r", (512, 512, 3, *_C3), "r",
         (512, 512, 3, *_C3), "r"],
        (4, 9, 16, 23, 30),
    ),
}  # fmt: skip


def _random_weights(name, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for key, shape in shapes(name).items():
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        values = rng.standard_normal(shape, np.float32) * np.float32(scale)
        made[key] = np.abs(values) if key.startswith("lin") else values
    return made


def _torch_distance(torch, name, weights, a, b):
    """As the package lpips computes it, layer by layer."""
    modules, ends = [], LAYERS[name][1]
    for i, layer in enumerate(LAYERS[name][0]):
        if layer == "r":
            modules.append(torch.nn.ReLU())
        elif len(layer) == 2:
            modules.append(torch.nn.MaxPool2d(*layer))
        else:
            conv = torch.nn.Conv2d(*layer)
            part = next(s for s, end in enumerate(ends) if i < end) + 1
            for kind in ("weight", "bias"):
                getattr(conv, kind).data = torch.tensor(weights[f"net.slice{part}.{i}.{kind}"])
            modules.append(conv)

    def features(x):
        shift, scale = ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
        x = torch.tensor(np.broadcast_to(x, (*x.shape[:3], 3)).transpose(0, 3, 1, 2).copy())
        x = (x - torch.tensor(shift)[:, None, None]) / torch.tensor(scale)[:, None, None]
        found = []
        for i, module in enumerate(modules):
            x = module(x)
            if i + 1 in ends:
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found

    total = 0
    for i, (x, y) in enumerate(zip(features(a), features(b))):
        weight = torch.tensor(weights[f"lin{i}.model.1.weight"])
        total = total + torch.nn.functional.conv2d((x - y) ** 2, weight).mean(dim=(1, 2, 3))
    return total.numpy()


@pytest.mark.parametrize(("name", "channels"), [("alex", 3), ("vgg", 1)])
def test_distances_are_those_of_torch(tmp_path, name, channels, compiled):
    torch = pytest.importorskip("torch")
    weights = _random_weights(name)
    state = {key: torch.tensor(value) for key, value in weights.items()}
    state["lins.0.model.1.weight"] = state["lin0.model.1.weight"]  # as the package saves it
    state["scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    torch.save(state, tmp_path / "weights.pth")
    lpips = read_lpips(str(tmp_path / "weights.pth"))
    assert (lpips.name, lpips.metric) == (name, f"lpips_{name}_to_teacher")
    a, b = np.random.default_rng(1).uniform(-1, 1, (2, 3, 36, 32, channels)).astype(np.float32)
    with torch.no_grad():
        wanted = _torch_distance(torch, name, weights, a, b)
    np.testing.assert_allclose(lpips.distances(a, b, 2), wanted, rtol=1e-4)
    before = len(compiled)
    assert lpips.distances(a, a, 2).max() == 0
    assert len(compiled) == before


def test_a_file_of_another_network_is_refused_in_one_line(tmp_path):
    torch = pytest.importorskip("torch")
    path = str(tmp_path / "weights.pth")
    state = {key: torch.zeros(shape) for key, shape in shapes("alex").items()}
    for change, text in (
        ({"net.slice1.0.weight": torch.zeros(3)}, "has another shape of net.slice1.0.weight"),
        ({"head.weight": torch.zeros(3)}, "has the unknown head.weight"),
    ):
        torch.save({**state, **change}, path)
        with pytest.raises(ConfigError, match=text) as caught:
            read_lpips(path)
        assert "\n" not in str(caught.value)
    del state["lin2.model.1.weight"]
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"lacks lin2.model.1.weight"):
        read_lpips(path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_lpips(str(tmp_path / "none.pth"))


def test_small_images_are_refused_before_training(tmp_path):
    evaluation = EvaluationSettings(classifier="", lpips_weights="any.pth")
    settings = dataclasses.replace(tiny_settings(), evaluation=evaluation)
    plans = list(plans_of(settings, tmp_path / "run").values())
    with pytest.raises(ConfigError, match="32 pixels per side or more, and these have 8"):
        check_evaluation(settings, plans)
    evaluation = EvaluationSettings(classifier="", interpolations=-1)
    with pytest.raises(ConfigError, match=r"interpolations=-1 must be 0 \(none\) or above"):
        check_evaluation(dataclasses.replace(settings, evaluation=evaluation), plans)


def test_runs_that_are_compared_get_a_row_and_the_teacher_none(tmp_path):
    class Constant:
        metric = "lpips_alex_to_teacher"

        def distances(self, a, b, batch):
            return np.abs(a - b).mean(axis=(1, 2, 3))

    settings = dataclasses.replace(
        tiny_settings(),
        evaluation=EvaluationSettings(classifier="", teacher_samplers={"ddim": (2, 8)}),
    )
    runs = planned_runs(settings, list(plans_of(settings, tmp_path / "run").values()))
    scored = [
        ScoredRun(run, Samples(np.full((4, 8, 8, 1), float(i)), 1.0), {}, np.zeros(4, int))
        for i, run in enumerate(runs)
    ]
    found = {s.run.key: s.scores for s in with_lpips(scored, Constant(), 2)}
    values = {key: next(iter(s.values())).value for key, s in found.items() if s}
    assert values == {"teacher_ddim_2": 1.0, "student": 3.0}  # not the teacher of 8 steps


def test_rows_of_lpips_name_the_weights():
    rows = [
        Row("x", "ddim", "digits", 2, 0, 8, 0, metric, 1.0, "p", 0.0, 0, "run", "machine",
            reference_teacher="ddim-16")
        for metric in ("psnr_to_teacher", "lpips_alex_to_teacher")
    ]  # fmt: skip
    names = [row.reference_teacher for row in with_weights(rows, Lpips("alex", {}, "0123456789"))]
    assert names == ["ddim-16", "ddim-16 lpips=01234567"]


def test_every_layer_of_the_networks_has_a_shape():
    for name, network in NETWORKS.items():
        convolutions = [layer for layer in LAYERS[name][0] if layer != "r" and len(layer) == 5]
        kernels = [s for key, s in shapes(name).items() if key.startswith("net") and len(s) == 4]
        assert [(i, o, k, k) for i, o, k, *_ in convolutions] == [
            (i, o, k, h) for o, i, k, h in kernels
        ]
        assert sum(map(len, network.slices)) == len(convolutions)
