"""Means and checks of the metrics of a log interval."""

import numpy as np

from ddistill.training.metrics_buffer import find_not_finite, mean_metrics


def test_a_metric_is_averaged_over_the_steps_of_its_update():
    metrics = {
        "loss": np.array([1.0, 3.0]),
        "gan": np.array([0.0, 4.0]),
        "ran/gan": np.array([0, 1]),
        "never": np.array([0.0, 0.0]),
        "ran/never": np.array([0, 0]),
    }
    assert mean_metrics(metrics) == ({"loss": 2.0, "gan": 4.0}, [])


def test_students_that_diverged_are_left_out_from_that_step_on():
    metrics = {
        "loss": np.array([[1.0, 2.0], [3.0, np.nan]]),
        "diverged": np.array([[0, 0], [0, 8]]),
    }
    means, of_students = mean_metrics(metrics)
    assert means == {"loss": 2.0}
    assert of_students == [{"loss": 2.0}, {"loss": 2.0}]
    gone = {"loss": np.array([[1.0, np.nan]]), "diverged": np.array([[0, 8]])}
    assert mean_metrics(gone) == ({"loss": 1.0}, [{"loss": 1.0}, {}])


def test_the_first_step_that_is_not_finite_is_named_with_its_student():
    metrics = {
        "norm": np.array([[1.0, 1.0], [1.0, np.inf], [np.nan, 1.0]]),
        "loss": np.array([[1.0, 1.0], [1.0, np.nan], [1.0, 1.0]]),
        "diverged": np.zeros((3, 2), int),
    }
    found = find_not_finite(10, metrics)
    assert found is not None
    assert (found.step, found.names, found.student) == (12, ("loss", "norm"), 1)
    assert np.isnan(found.value)
    assert find_not_finite(10, {"loss": np.ones(3)}) is None
    alone = find_not_finite(0, {"loss": np.array([np.inf, 1.0])})
    assert alone is not None
    assert (alone.step, alone.names, alone.student, alone.value) == (1, ("loss",), 0, np.inf)
