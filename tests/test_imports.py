"""The order in which the modules of the package import one another."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ddistill"

# From the ground up. A module imports modules of its own line and of lines above it, and never in a
# circle; docs/architecture.md says why.
ORDER = (
    "errors",
    "extensions",
    "typing",
    "conditions",
    "text",
    "checkpoint_names",
    "protocol_settings",
    "settings",
    "parsing",
    "schedules",
    "diffusion",
    "low_rank",
    "denoiser",
    "wrapped_denoiser",
    "partitions",
    "students",
    "mapping",
    "runtime",
    "networks",
    "interop",
    "optimizers",
    "objectives",
    "samplers",
    "command_line",
    "data",
    "recipes",
    "planning.manifests",
    "planning.identity",
    "planning.plan",
    "planning.context",
    "planning.build",
    "planning.lineage",
    "planning.checks",
    "planning",
    "training",
    "evaluation.metrics",
    "evaluation.records",
    "evaluation.figures",
    "evaluation.student_samplers",
    "evaluation.sampling_plan",
    "evaluation.any_steps",
    "evaluation.diverged",
    "evaluation.prompts",
    "evaluation.context",
    "evaluation.feature_networks",
    "evaluation.sampling",
    "evaluation.previews",
    "evaluation.interpolation",
    "evaluation.scorer",
    "evaluation.scored",
    "evaluation.reconstructions",
    "evaluation.words",
    "evaluation.perceptual",
    "evaluation.prompted",
    "evaluation.checks",
    "evaluation.trust",
    "evaluation.attempts",
    "evaluation.report",
    "evaluation.evaluate_run",
    "evaluation.comparison",
    "register",
    "config_names",
    "config_files",
    "workdir",
    "experiment",
    "generation",
    "run_files",
    "trained_run",
    "trained_pipeline",
    "run_training",
    "export",
    "system_info",
    "compare",
    "record",
    "scoring_options",
    "evaluate",
    "main",
    "doctor",
    "commands",
    "__main__",
)


@cache
def modules() -> dict[str, Path]:
    """Every module of the package but packages themselves, by its dotted name below `ddistill`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports, also inside functions and for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def module_of(name: str) -> str:
    """The module of the package that a dotted name belongs to."""
    name = name.removeprefix("ddistill").removeprefix(".")
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """By module, the modules of the package that it imports."""
    return {
        name: frozenset(
            module
            for imported in imports(ast.parse(path.read_text(encoding="utf-8")))
            if imported.split(".")[0] == "ddistill" and (module := module_of(imported)) != name
        )
        for name, path in modules().items()
    }


def rank(module: str) -> int:
    """The line of `ORDER` that a module belongs to: the one with the longest matching name."""
    lines = [line for line in ORDER if module == line or module.startswith(f"{line}.")]
    assert lines, f"'{module}' is not in ORDER: put it where it may be imported from"
    return ORDER.index(max(lines, key=len))


def test_no_module_imports_one_that_stands_above_it():
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        if name
        for other in others
        if other and rank(other) > rank(name)
    ]
    assert not wrong


def test_no_modules_import_one_another_in_a_circle():
    left = {name: set(others) - {""} for name, others in graph().items() if name}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"circle among {sorted(left)}"


def test_importing_the_package_imports_nothing_of_it_but_what_starts_and_ends_programs():
    assert graph()[""] <= {"runtime.ending", "runtime.large_pages", "trained_run"}


def test_no_import_is_made_for_types_alone():
    """Such imports hide circles."""
    files = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert not [name for name, text in files.items() if "TYPE_CHECKING" in text]


@pytest.mark.parametrize("slow", ["matplotlib", "scipy", "sklearn", "tensorflow_datasets"])
def test_a_run_starts_without_libraries_that_are_slow_to_import(slow):
    seen, left = set(), {"main", "experiment"}
    while left:
        name = left.pop()
        seen.add(name)
        tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
        first = {i for node in tree.body for i in imports(node) if not is_code(node)}
        assert slow not in {i.split(".")[0] for i in first}, name
        parents = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
        left |= ({module_of(i) for i in first if i.split(".")[0] == "ddistill"} | parents) - seen


def is_code(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def test_functions_import_no_module_of_the_package():
    """Such imports hide circles too.

    Programs make them, so that `--help` is quick, and the evaluation, so that no run waits for
    matplotlib at its start.
    """
    found = []
    for name, path in modules().items():
        if name in ("", "main", "evaluation.evaluate_run"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [f"{name}: {i}" for i in imports(node) if i.split(".")[0] == "ddistill"]
    assert not found
