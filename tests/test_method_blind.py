"""Planning, training and the machine know no method: neither its name nor its hyperparameters."""

import ast
import dataclasses
import io
import re
import tokenize
from pathlib import Path

import pytest

from ddistill.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent / "ddistill"
ROOMS = ("planning", "training", "runtime")

# The objective "pairs" is left out: its stages train nothing, and making and reading pairs is a
# part of planning and training. "pid" is also the number of a process.
METHODS = {*OBJECTIVES, "pd", "cfd", "rcfd", "msd"} - {"pairs", "pid"}
FIELDS = {
    field.name
    for name, objective in OBJECTIVES.items()
    if name in METHODS
    for field in dataclasses.fields(objective)
}
# Hyperparameters that are also words of training in general.
COMMON = {
    "backward": "the backward pass",
    "error": "an exception",
    "features": "what taps of a network return, for any method",
    "highest": "a bound of numbers",
    "levels": "noise levels",
    "loss": "every update has one",
    "lowest": "a bound of numbers",
    "output": "of a network or a console",
    "shapes": "of arrays",
    "steps": "train steps",
    "tap": "a place in a network where features are read",
    "top": "the noisiest level",
    "weight": "of a network, or of a term",
}


def words(text: str) -> set[str]:
    """The identifiers in a text."""
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text))


def found_in(source: str, wanted: set[str]) -> list[str]:
    """Wanted words among the identifiers, strings and comments of a module, with their lines."""
    kinds = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT}
    kinds |= {getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"{token.start[0]}: {word}"
        for token in tokens
        if token.type in kinds
        for word in sorted(words(token.string))
        if word.lower() in wanted
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_no_method_and_no_hyperparameter_of_one_is_named(room):
    wanted = METHODS | (FIELDS - COMMON.keys())
    found = [
        f"{path.relative_to(ROOT)}:{hit}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for hit in found_in(path.read_text(encoding="utf-8"), wanted)
    ]
    assert not found


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_of_a_method_is_imported(room):
    """What all methods share is in these modules of `objectives`."""
    shared = {"base", "distances", "inputs", "parts", "pairs", "sampling"}
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = (
                (getattr(node, "module", None) or "") if isinstance(node, ast.ImportFrom) else ""
            )
            if module.startswith("ddistill.objectives.") and module.split(".")[2] not in shared:
                found.append(f"{path.relative_to(ROOT)}: {module}")
    assert not found


@pytest.mark.parametrize("room", ROOMS)
def test_errors_name_common_hyperparameters_of_no_method(room):
    """`objective.NAME` in a message is a hyperparameter, also where NAME is a common word."""
    names = "|".join(sorted(FIELDS))
    found = [
        f"{path.relative_to(ROOT)}: {hit}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for hit in re.findall(rf"\bobjective\.(?:{names})\b", path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_search_finds_a_name_in_code_strings_and_comments():
    source = 'if plan.objective.substeps:  # SFDDM\n    raise E(f"{x} needs gan_weight")\n'
    hits = found_in(source, METHODS | FIELDS - COMMON.keys())
    assert hits == ["1: substeps", "1: SFDDM", "2: gan_weight"]


def test_common_words_are_hyperparameters_and_in_use():
    texts = [p.read_text(encoding="utf-8") for room in ROOMS for p in (ROOT / room).rglob("*.py")]
    used = {word.lower() for text in texts for word in words(text)}
    assert COMMON.keys() <= FIELDS & used
