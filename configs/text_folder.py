"""Text-conditional latent diffusion on a folder of captioned images."""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.text_folder_config(variant)
