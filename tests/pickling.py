"""Pickles as torch writes them, made without torch and of any content, hostile ones too."""

import collections
import io
import pickle
import zipfile
from typing import ClassVar

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}


class Named:
    """Pickles as the global `module.name`, called with `args`."""

    def __init__(self, path, args=()):
        self.path, self.args = path, args

    def __reduce__(self):
        return Global(self.path), self.args


class Global:
    """Pickles as the global `module.name` itself."""

    def __init__(self, path):
        self.path = path

    def __call__(self, *args):
        raise AssertionError("only its name is written")


class Storage:
    """Pickles as a reference to a storage of torch's.

    `kind` is its class, `key` its name in the file, and `view` what the older format adds.
    """

    def __init__(self, kind, key, values, view=()):
        self.kind, self.key, self.values, self.view = kind, key, np.asarray(values), view


class Writer(pickle._Pickler):
    """Writes globals by name, whether such a module exists or not, and storages as torch does."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_global_by_name(self, obj):
        module, _, name = obj.path.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    dispatch[Global] = save_global_by_name

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        count = len(obj.values)
        return ("storage", Global(obj.kind), obj.key, "cpu", count, *obj.view)


def pickled(obj, protocol=2):
    out = io.BytesIO()
    Writer(out, protocol).dump(obj)
    return out.getvalue()


def tensor(storage, offset, size, stride):
    args = (storage, offset, size, stride, False, collections.OrderedDict())
    return Named("torch._utils._rebuild_tensor_v2", args)


def zipped(path, obj, storages=(), compression=zipfile.ZIP_STORED, **extra):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weights/data.pkl", pickled(obj))
        archive.writestr("weights/version", "3\n")
        for storage in storages:
            archive.writestr(f"weights/data/{storage.key}", storage.values.tobytes())
        for name, text in extra.items():
            archive.writestr(f"weights/{name}", text)
    return path


def legacy(obj, storages=()):
    body = b"".join(pickled(x) for x in (MAGIC, 1001, MACHINE, obj, [s.key for s in storages]))
    for storage in storages:
        body += len(storage.values).to_bytes(8, "little") + storage.values.tobytes()
    return body
