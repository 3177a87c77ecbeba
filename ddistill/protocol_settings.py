"""Settings of a published protocol of text-to-image models, a part of `ddistill.settings`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProtocolSettings:
    """A published protocol, under which samples of its prompts are scored (docs/evaluation.md).

    Attributes:
      name: "coco30k_dmd", "coco30k_bk", or "" for none. A protocol samples its own number of
        prompts, whatever `evaluation.samples` is.
      prompts: its file of prompts: one a line, or a .csv table with the columns file_name and text.
      real: folder of its real images, a latent set that keeps them, or an .npz file that
        `ddistill evaluate --protocol=NAME --save_reference=FILE` has written; "" for no FID.
      inception: weights of FID's network; "" looks where `ddistill evaluate` does.
      clip: folder of a CLIP model of transformers or open_clip; "" for no CLIP score.
      clip_digest: first digits, eight or more, of the SHA-256 of its weights; "" for any weights.
    """

    name: str = ""
    prompts: str = ""
    real: str = ""
    inception: str = ""
    clip: str = ""
    clip_digest: str = ""
