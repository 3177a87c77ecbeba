"""Every loss gives the numbers that are stored for it (`pinned_losses.json`)."""

import copy
import dataclasses

import pinned_losses
import pytest
from pinned_cases import CASES

from ddistill.objectives import OBJECTIVES, hyperparameters
from ddistill.objectives.matching.settings import MatchingSettings
from ddistill.objectives.mixing import MixedStates
from ddistill.objectives.scm import ContinuousConsistency

# What changes no loss: how many batches of pairs a file holds.
WITHOUT_NUMBERS = {("pairs", "shard")}


# Objectives of the same losses, whose hyperparameters need no cases in each of them.
FAMILIES = [
    ("cd", "ct"),
    ("classification", "rotation"),
    ("denoising", "degradation"),
    ("dmd", "dmd2", "ladd"),
    ("o2mkd", "tsm"),
]


@pytest.fixture(scope="module")
def stored():
    return pinned_losses.read()


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_stored(name, stored):
    assert name in stored, f"{name} has no stored numbers: python tests/pinned_losses.py --write"
    lines = pinned_losses.differences(stored[name], pinned_losses.numbers(name), name)
    assert not lines, "\n".join(["these numbers changed:", *lines])


def test_stored_numbers_are_of_these_cases(stored):
    assert set(stored) == set(CASES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_hyperparameter_is_varied(name):
    usual = hyperparameters(name)
    family = next((names for names in FAMILIES if name in names), (name,))
    own = [case.objective for case in CASES.values() if case.objective["name"] in family]
    unvaried = {key for key in usual if all(o.get(key, usual[key]) == usual[key] for o in own)}
    # Rollouts are the base class's, whichever method they are pinned with.
    unvaried -= {field.name for field in dataclasses.fields(MixedStates)}
    if name == "rcm":  # of two base classes, which are pinned with "scm" and with "dmd2"
        for base in (ContinuousConsistency, MatchingSettings):
            unvaried -= {field.name for field in dataclasses.fields(base)}
    assert unvaried <= {key for objective, key in WITHOUT_NUMBERS if objective == name}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        (("student", "values"), "dmd2/kl/student/values"),
        (("student", "gradients", "student"), "dmd2/kl/student/gradients/student"),
        (("fake+discriminator", "gradients", "fake"), "dmd2/kl/fake+discriminator/gradients/fake"),
        (("student", "fallback", "image"), "dmd2/kl/student/fallback/image"),
    ],
)
def test_another_number_is_named(path, label, stored):
    changed = copy.deepcopy(stored["dmd2/kl"])
    *parents, last = path
    own = changed
    for key in parents:
        own = own[key]
    largest = max(range(len(own[last])), key=lambda i: abs(own[last][i]))
    own[last][largest] *= 1 + 1e-5
    (line,) = pinned_losses.differences(stored["dmd2/kl"], changed, "dmd2/kl")
    assert line.startswith(f"{label}: stored ")


def test_a_missing_metric_is_named(stored):
    changed = copy.deepcopy(stored["tsm/usual"])
    del changed["student"]["metrics"]["x0_mse"]
    (line,) = pinned_losses.differences(stored["tsm/usual"], changed, "tsm/usual")
    assert line.startswith("tsm/usual/student/metrics: stored ['output_distance', 'x0_mse']")
