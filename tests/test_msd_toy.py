"""The toy of multi-student distillation: more students end nearer to the teacher."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.schedules import Level


@pytest.fixture
def toy(benchmarks):
    import msd_toy

    return msd_toy


def test_the_teacher_is_the_posterior_mean(toy):
    """Against sums over a grid of clean points, in float64."""
    teacher = toy.make_teacher()
    alpha, sigma, at = 0.8, 0.1, np.array([0.3, -0.1])
    axis = np.linspace(-1.2, 1.2, 601)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    std = float(teacher.std)
    for c in (0, 9):
        density = np.zeros(len(points))
        for mean in teacher.means[c].astype(np.float64):
            density += np.exp(-np.sum((points - mean) ** 2, -1) / (2 * std**2))
        density *= np.exp(-np.sum((at - alpha * points) ** 2, -1) / (2 * sigma**2))
        wanted = density @ points / density.sum()
        level = Level(*(jnp.full((1,), v, jnp.float32) for v in (alpha, sigma, 0.0)))
        found = teacher(jnp.asarray(at, jnp.float32)[None, None, None], level, jnp.array([c]))
        np.testing.assert_allclose(found.x0[0, 0, 0], wanted, atol=1e-3)


@pytest.mark.slow
def test_four_students_end_nearer_to_the_teacher_than_one(toy, tmp_path, capsys):
    outcome = toy.main(["--quick", "--seeds=0", f"--out={tmp_path}"])
    assert outcome.counts == (1, 4)
    one, four = outcome.scores[toy.BUDGETS[0]][:, 0]
    assert four[0] < 0.93 * one[0], "L1 from the same noise"
    assert four[1] < 0.93 * one[1], "sliced W1"
    assert four[1] > outcome.floor > 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert all(line.count("|") == 6 for line in rows)
    assert (tmp_path / "msd_toy.png").stat().st_size > 10_000
