"""ddistill: one slow diffusion teacher into one or many fast students.

import ddistill

images = ddistill.load("runs/sfddm_digits").sample(16, seed=0, nfe=4)
"""

import sys
from typing import Any

if sys.argv[:1] == ["-m"]:  # `python -m ddistill.PROGRAM`, whose imports take seconds
    from ddistill.runtime.ending import answer_while_importing

    answer_while_importing()

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, looked up when it is used: importing the package alone does not import jax."""
    if name == "load":
        from ddistill.trained_run import load

        return load
    raise AttributeError(f"module 'ddistill' has no attribute {name!r}")
