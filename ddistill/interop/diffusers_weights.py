"""The choice among several files of weights of a network of diffusers.

An average of the weights goes before the weights themselves, full precision before half precision
whether it lies in one file or in shards, and safetensors before torch's files. Averages under other
names than those of diffusers, and several averages, raise an error with the choices.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.shards import Index, read_index
from ddistill.interop.tensors import read_tensors
from ddistill.typing import JsonRecord

STEM = "diffusion_pytorch_model"
# Of the models of transformers inside a pipeline.
TRANSFORMERS = ("model", "pytorch_model")
_KINDS = ("safetensors", "bin")


def names_of(*stems: str) -> tuple[str, ...]:
    """The usual names of files of weights."""
    return tuple(
        f"{stem}{half}.{kind}" for stem in stems for half in ("", ".fp16") for kind in _KINDS
    )


WEIGHTS = names_of(STEM)
_OTHER_KINDS = ("pt", "pth", "ckpt", "pkl", "msgpack")
_HALF = {"fp16", "bf16", "float16", "bfloat16", "half"}
_FULL = {"fp32", "float32", "full"}
# Words in names of averages, alone or joined to a word of `_AVERAGED_THINGS`.
_AVERAGE = ("ema", "swa", "avg", "average", "averaged")
_AVERAGED_THINGS = ("", "unet", "model", "net", "weights", "params")
_NOT = {"non", "no", "not", "raw", "without"}
_SHARD = re.compile(r"-\d+-of-\d+")


@dataclass(frozen=True)
class Weights:
    """Files that hold the weights of a network.

    Attributes:
      named: the file, or the index of the shards.
      files: one file, or the shards in the order of their names.
      averaged: whether the name says that they are an average.
      index: the content of the index; None for one file.
    """

    named: Path
    files: tuple[Path, ...]
    averaged: bool
    index: Index | None = None

    def read(self) -> dict[str, np.ndarray]:
        """The tensors by name.

        Raises:
          ConfigError: a file is damaged, or shards do not agree with their index.
        """
        return self.index.read() if self.index else read_tensors(self.files[0])


@dataclass(frozen=True)
class _Candidate:
    path: Path
    # 0 for an average, 1 for the weights themselves, 2 for a name such as "non_ema".
    choice: int
    half: bool
    kind: int
    index: bool
    # The words by which several averages differ.
    variant: tuple[str, ...]

    @property
    def rank(self) -> tuple[int, bool, int, bool]:
        return self.choice, self.half, self.kind, self.index


def is_average(name: str) -> bool:
    """Whether the name of a file or a folder says that it holds an average of weights."""
    words = _words(name)
    return any(map(_says_average, words)) and not _NOT & set(words)


def average_folders(folder: Path, config: str) -> list[Path]:
    """The folders in a folder that hold averages, by their names and by what lies in them.

    Pictures drawn with an average, or logs of it, may lie in a folder of such a name too: one
    without weights counts only if it holds the file `config`, and no other folder holds weights.
    """
    named = sorted(path for path in folder.iterdir() if path.is_dir() and is_average(path.name))
    full = [path for path in named if any(_candidate(p) for p in path.iterdir() if p.is_file())]
    return full or [path for path in named if (path / config).is_file()]


def find_weights(
    network: Path, read_json: Callable[[Path], JsonRecord], stems: tuple[str, ...] = (STEM,)
) -> Weights:
    """The weights of a network's folder; see the module for the order.

    Args:
      network: the folder with config.json.
      read_json: reads an index; raises `ConfigError`.
      stems: what names of weights begin with.

    Raises:
      ConfigError: there are none, shards are missing, or it is not clear which average is meant.
    """
    names = sorted(path for path in network.iterdir() if path.is_file())
    known = [_candidate(path, stem) for stem in stems for path in names]
    found = sorted(filter(None, known), key=lambda c: c.rank)
    if not found:
        _refuse_none(network, stems)
    averages = [c for c in found if c.choice == 0]
    if len({c.variant for c in averages}) > 1:
        listed = ", ".join(c.path.name for c in averages)
        raise ConfigError(
            f"{network} holds several averages of the weights: {listed}. Leave one of them there."
        )
    first = found[0]
    if not first.index:
        return Weights(first.path, (first.path,), first.choice == 0)
    index = read_index(first.path, read_json(first.path))
    files = index.shards([c.path.name for c in found if not c.index])
    return Weights(first.path, files, first.choice == 0, index)


def check_averages(folder: Path, network: Path) -> None:
    """Raises `ConfigError` for files in `folder` that seem to be averages and would not be read.

    Args:
      folder: the network's own, or the one in which it lies.
      network: the folder that is read.
    """
    known = [c for c in map(_candidate, folder.iterdir()) if c is not None]
    indexed = any(c.index and c.choice == 0 for c in known)
    for path in sorted(folder.iterdir()):
        kind = path.suffix[1:].lower()
        if not path.is_file() or kind not in (*_KINDS, *_OTHER_KINDS) or not is_average(path.name):
            continue
        here = folder == network
        if here and (any(c.path == path for c in known) or (indexed and _SHARD.search(path.name))):
            continue
        wanted = f"{STEM}.ema.{kind if kind in _KINDS else 'safetensors'}"
        away = "move it elsewhere" if here else f"give {network}"
        how = "Name it" if kind in _KINDS else "It cannot be read in this form; convert it to"
        raise ConfigError(
            f"{path} seems to be an average of the weights of {network}. {how} {network / wanted} "
            f"to take it, or {away} to leave it out."
        )


def _candidate(path: Path, stem: str = STEM) -> _Candidate | None:
    """What the name of a file of weights, or of an index, says; None for other names."""
    name = path.name
    if not name.startswith(stem) or _SHARD.search(name):
        return None
    words = [w for w in _words(name.removeprefix(stem)) if w]
    kinds = [w for w in words if w in _KINDS]
    index = "index" in words and words[-1] == "json"
    if len(kinds) != 1 or not (index or words[-1] in _KINDS):
        return None
    said = [w for w in words if w not in (*_KINDS, "index", "json")]
    variant = tuple(w for w in said if w not in _HALF | _FULL)
    averaged, raw = is_average("-".join(said)), bool(_NOT & set(said))
    if variant and not averaged and not raw:
        return None
    return _Candidate(
        path=path,
        choice=0 if averaged else 2 if raw else 1,
        half=bool(_HALF & set(said)),
        kind=_KINDS.index(kinds[0]),
        index=index,
        variant=variant,
    )


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())


def _says_average(word: str) -> bool:
    word = word.rstrip("0123456789")
    return any(
        (word.startswith(a) and word.removeprefix(a) in _AVERAGED_THINGS)
        or (word.endswith(a) and word.removesuffix(a) in _AVERAGED_THINGS)
        for a in _AVERAGE
    )


def _refuse_none(network: Path, stems: tuple[str, ...]) -> None:
    there = sorted(
        path.name for kind in (*_KINDS, *_OTHER_KINDS) for path in network.glob(f"*.{kind}")
    )
    shards = [name for name in there if name.startswith(stems) and _SHARD.search(name)]
    if shards:
        kind = shards[0].rpartition(".")[2]
        raise ConfigError(
            f"{network} holds shards of weights without their index: {', '.join(shards[:5])}. Copy "
            f"the model's {stems[0]}.{kind}.index.json beside them."
        )
    more = f" It holds {', '.join(there[:5])}." if there else ""
    raise ConfigError(
        f"There are no weights in {network}.{more} One of these files is needed: "
        f"{', '.join(names_of(*stems))}."
    )
