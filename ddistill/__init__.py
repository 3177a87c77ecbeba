"""ddistill: one slow diffusion teacher into one or many fast students.

import ddistill

images = ddistill.load("runs/sfddm_digits").sample(16, seed=0, nfe=4)
"""

import importlib
import sys
from typing import Any

if sys.argv[:1] == ["-m"]:  # `python -m ddistill.PROGRAM`, whose imports take seconds
    from ddistill.runtime.ending import answer_while_importing
    from ddistill.runtime.large_pages import is_ours, restart_with_large_pages

    if is_ours(sys.orig_argv):  # and no other program that imports this package
        restart_with_large_pages()
    answer_while_importing()

__version__ = "0.2.0"

# Looked up when they are used: importing the package alone does not import jax.
_LAZY = {
    "Callback": "ddistill.training.callbacks",
    "load": "ddistill.trained_run",
    "train": "ddistill.run_training",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ddistill' has no attribute {name!r}")
