"""Config files by name: those of the current folder, then those that come with the package."""

import ast
import difflib
from collections.abc import Iterator
from pathlib import Path

# A wheel holds the config files inside the package; in a clone they lie beside it.
_INSIDE = Path(__file__).parent / "configs"
SHIPPED = _INSIDE if _INSIDE.is_dir() else _INSIDE.parent.parent / "configs"
# Folders of the user's own config files, relative to the current one.
LOCAL = (Path(), Path("configs"))


class ConfigFileError(Exception):
    """A config file, or a flag that changes it, that cannot be used; the text is one line.

    No `ValueError`, which absl would take for one of its own.
    """


def find_config(name: str) -> Path:
    """The config file that `--config=NAME` means, without a variant.

    Args:
      name: path of a file; or a path without `.py`. A name without a folder is looked up in the
        current folder, in `configs` there, and among the configs of the package.

    Raises:
      ConfigFileError: there is no such file; the message has the nearest name.
    """
    if not name:
        raise ConfigFileError("--config needs a file or a name: --config=sfddm_digits.")
    for path in _places(name):
        if path.is_file():
            return path
    if Path(name).is_dir():
        raise ConfigFileError(f"The config file {name} is a folder; name a file in it.")
    raise ConfigFileError(_unknown(name))


def local_configs() -> dict[str, Path]:
    """The user's own config files by the names that find them, in alphabetical order.

    Python files without a function `get_config` are left out, and so are the files of the package.
    """
    found: dict[str, Path] = {}
    for folder in LOCAL:
        for path in sorted(folder.glob("*.py")):
            if path.resolve().parent != SHIPPED.resolve() and _defines_get_config(path):
                found.setdefault(path.stem, path)
    return found


def shipped_configs() -> dict[str, Path]:
    """The config files of the package by name, in alphabetical order."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.py")) if path.stem != "__init__"}


def summary(path: Path) -> str:
    """The first line of a config file's docstring without its last full stop; "" without one."""
    tree = _parsed(path)
    text = ast.get_docstring(tree) if tree is not None else None
    return (text or "").split("\n")[0].strip().removesuffix(".")


def _places(name: str) -> Iterator[Path]:
    """Where a config of a name may be, the nearest place first."""
    path = Path(name)
    yield path
    if path.suffix == ".py":
        return
    file = path.with_name(f"{path.name}.py") if path.name else path
    if path.name == name:
        yield from (folder / file for folder in (*LOCAL, SHIPPED))
    else:
        yield file


def _unknown(name: str) -> str:
    path = Path(name)
    if path.suffix == ".py" or path.name != name:
        folders = (Path("configs"), path.parent)
        files = {file.name: str(file) for folder in folders for file in folder.glob("*.py")}
        known = {f"{stem}.py": stem for stem in shipped_configs()} | files
        close = difflib.get_close_matches(path.with_suffix(".py").name, known, 1, 0.5)
        hint = f" Did you mean '{known[close[0]]}'?" if close else ""
        return f"The config file {name} does not exist.{hint or _how(path)}"
    names = [*local_configs(), *shipped_configs()]
    close = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return (
        f"The config file {name} does not exist: there is no {name}.py here or in configs, and "
        f"ddistill has no config of that name.{hint or _how(path)} `ddistill list configs` lists "
        "all."
    )


def _how(path: Path) -> str:
    return "" if path.suffix else " A setting is changed by --config.KEY=VALUE."


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _defines_get_config(path: Path) -> bool:
    tree = _parsed(path)
    return tree is not None and any(
        isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body
    )
