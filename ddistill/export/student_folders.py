"""Students that no pipeline of diffusers samples: a network each, ddistill.json and pipeline.py."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ddistill.export.autoencoder import write_autoencoder
from ddistill.export.diffusers_files import write_config
from ddistill.export.facts import Exported
from ddistill.export.model_card import model_card
from ddistill.interop.pipeline_folders import VAE
from ddistill.runtime.files import write_text
from ddistill.typing import Params


def write_students(
    exported: Exported,
    out: Path,
    write_one: Callable[[Path, Params], None],
    facts: Mapping[str, object],
) -> None:
    """Writes the networks, the autoencoder of their latents, pipeline.py and README.md.

    Args:
      exported: the students.
      out: the folder.
      write_one: writes the network with these parameters into a folder.
      facts: what ddistill.json says beside the names of the networks.
    """
    names = [f"student_{k}" for k in range(len(exported.students))]
    for name, student in zip(names, exported.students):
        write_one(out / name, student.params)
    vae = {VAE: VAE} if write_autoencoder(exported, out) else {}
    write_config(out / "ddistill.json", {**facts, "unets": names, **vae})
    shutil.copy(Path(__file__).with_name("pipeline.py"), out / "pipeline.py")
    labels = "labels=[0] * 16" if exported.conditional else "batch_size=16"
    how = f"""
from pipeline import Students

images = Students(".")({labels})  # [N, H, W, C] uint8
"""
    # Not "diffusers", with which the hub would show code for a pipeline of its own.
    write_text(out / "README.md", model_card(exported, how, "ddistill", ("diffusers",)))
