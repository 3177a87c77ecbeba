"""EDM's network pickles as plain records, without running the code in them.

The format (arXiv 2206.00364, NVlabs/edm): a pickle of a dictionary; "ema" is the network. An
object of one of EDM's classes is a call of `torch_utils.persistence._reconstruct_persistent_obj`
with its class's name, its state and the source text of the module that the class is from. EDM's own
reader executes that text. Here it is skipped, and the object becomes a `Record`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.pickles import DAMAGE, PLAIN, Call, StrictUnpickler, damaged
from ddistill.interop.torch_files import ZIP, open_file, parse_torch


class Record:
    """An object of a class that does not exist here.

    Attributes:
      class_name: of its class.
      state: its attributes by name.
    """

    def __init__(self, class_name: str = "container", state: Mapping[str, object] | None = None):
        self.class_name, self.state = class_name, dict(state or {})

    def __setstate__(self, state: object) -> None:
        """Takes the attributes of an object that was pickled in the plain way."""
        if not isinstance(state, dict):
            raise ValueError(f"an object's state is a {type(state).__name__}")
        self.state.update(state)

    def __new__(cls, *args: object, **kwargs: object) -> "Record":
        """Makes one without attributes, which is how pickle makes an object."""
        made = super().__new__(cls)
        made.class_name, made.state = "container", {}
        return made

    @property
    def options(self) -> dict[str, object]:
        """The arguments of its constructor, by name.

        Raises:
          ConfigError: they were not kept, or some were given by position.
        """
        named = self.state.get("_init_kwargs")
        if not isinstance(named, dict) or self.state.get("_init_args"):
            raise ConfigError(
                f"its {self.class_name} does not say by name with which options it was made "
                "(_init_kwargs), as EDM's networks do."
            )
        return dict(named)

    def child(self, name: str) -> "Record | None":
        """The submodule of this name; None if there is none."""
        found = self._table("_modules").get(name)
        return found if isinstance(found, Record) else None

    def tensors(self) -> dict[str, np.ndarray]:
        """All parameters and buffers, by their dotted names.

        Raises:
          ConfigError: something else than tensors is among them, or a module is in two places.
        """
        found: dict[str, np.ndarray] = {}
        self._collect("", found, set())
        return found

    def _collect(self, prefix: str, found: dict[str, np.ndarray], seen: set[int]) -> None:
        # A pickle can name one module many times, or inside of itself.
        if id(self) in seen:
            raise ConfigError(f"its module '{prefix[:-1]}' is in two places.")
        seen.add(id(self))
        for name, value in {**self._table("_parameters"), **self._table("_buffers")}.items():
            if isinstance(value, np.ndarray):
                found[f"{prefix}{name}"] = value
            elif value is not None:
                raise ConfigError(f"'{prefix}{name}' is a {type(value).__name__}, not a tensor.")
        for name, module in self._table("_modules").items():
            if isinstance(module, Record):
                module._collect(f"{prefix}{name}.", found, seen)
            elif module is not None:
                raise ConfigError(f"'{prefix}{name}' is a {type(module).__name__}, not a module.")

    def _table(self, name: str) -> dict[str, object]:
        table = self.state.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{name} of its {self.class_name} is a {type(table).__name__}.")
        return table


class _Dict(dict):
    """A dictionary whose class EDM has derived from Python's."""

    def __setstate__(self, state: object) -> None:
        """Leaves attributes alone; without this method a pickle could set those of the class."""


def _persistent(meta: object) -> Record:
    """An object of one of EDM's classes. `module_src`, the source of its class, is not read."""
    if not isinstance(meta, dict):
        raise ValueError(f"an object described by a {type(meta).__name__}")
    name, state = meta["class_name"], meta["state"]
    if meta.get("type") != "class" or not isinstance(name, str) or not isinstance(state, dict):
        raise ValueError("an object of a class that is not described as EDM does")
    return Record(name, state)


def _storage(source: str, data: object) -> np.ndarray:
    """A tensor's storage, which lies in the pickle as a torch file of its own."""
    if not isinstance(data, bytes):
        raise ValueError(f"a storage in a {type(data).__name__}")
    found = parse_torch(data, f"{source} (a tensor in it)")
    if type(found) is not np.ndarray:
        raise ValueError("a tensor without a storage")
    return found


def read_objects(path: Path) -> dict[str, object]:
    """The dictionary in one of EDM's pickles, with a `Record` for every object of its classes.

    Raises:
      ConfigError: the file is missing, damaged, of another kind, or names anything beside EDM's
        objects, tensors and plain containers.
    """
    source = str(path)
    with open_file(path) as file:
        start = file.read(len(ZIP))
        if start == ZIP and path.suffix == ".npz":
            raise ConfigError(
                f"{source} is an npz file, of statistics or images, and no pickle. A network is in "
                "a network-snapshot-*.pkl; statistics go to ddistill.evaluate --reference."
            )
        if start == ZIP:
            raise ConfigError(
                f"{source} is a file of torch.save, such as EDM's training-state-*.pt. Give the "
                "network's pickle (network-snapshot-*.pkl), which holds the averaged weights."
            )
        if not start.startswith(b"\x80"):
            raise ConfigError(f"{source} is not a pickle; it begins with {start!r}.")
        file.seek(0)
        allowed = {
            **PLAIN,
            "torch_utils.persistence._reconstruct_persistent_obj": Call(_persistent),
            "torch.storage._load_from_bytes": Call(functools.partial(_storage, source)),
            "torch.nn.modules.container.ModuleDict": Record,
            "torch.nn.modules.container.ModuleList": Record,
            "dnnlib.util.EasyDict": _Dict,
        }
        try:
            found = StrictUnpickler(file, source, allowed).load()
        except ConfigError:
            raise
        except DAMAGE as error:
            raise damaged(source, error) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{source} holds a {type(found).__name__}, not a dictionary with 'ema'.")
    return found
