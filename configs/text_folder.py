"""Latent diffusion of your own captioned images, as far as the teacher.

Command:   ./launch/local.sh --config=configs/text_folder.py:latents:SET
Hardware:  two CPU cores for images of 32 pixels.
Data:      a set of captioned images. `ddistill data latents SOURCE SET --pipeline=pixels
           --image-size=32 --test-fraction=0.1 --pixels=all` makes it of a folder with captions, of
           annotations of COCO or of webdataset tars (docs/latents.md).
Score:     none: it depends on the images. The report shows prompts under pictures.

An autoencoder (arXiv 2112.10752) makes latents of a quarter of the side. A U-Net of 4 million
parameters with cross-attention learns them together with its text encoder. ':latents:SET' takes the
size of the vocabulary from the set.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.text_folder_config(variant)
