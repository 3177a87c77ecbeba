"""Weights as one safetensors file with the names of ddistill, and ddistill.json."""

import json
from pathlib import Path

import jax

from ddistill.export.facts import Exported
from ddistill.export.model_card import model_card
from ddistill.export.trees import flatten
from ddistill.interop.tensors import write_tensors
from ddistill.runtime.files import write_text


def write(exported: Exported, out: Path) -> str:
    """Writes weights.safetensors, ddistill.json and README.md into the folder `out`.

    Parameters of K students have a leading axis `[K]`. ddistill.json holds levels, owners and the
    settings of the network.

    Returns:
      A short description of the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    flat = flatten(jax.device_get(exported.denoiser.params))
    write_tensors(out / "weights.safetensors", flat)
    manifest = json.dumps(exported.manifest(), indent=2)
    write_text(out / "ddistill.json", manifest + "\n")
    example = """
from safetensors.numpy import load_file

weights = load_file("weights.safetensors")  # names as in ddistill's networks
"""
    write_text(out / "README.md", model_card(exported, example, "ddistill", ("jax",)))
    return f"{sum(x.size for x in flat.values()):,} parameters"
