"""MSD on Stable Diffusion 1.5 with students of 16.5 % of the parameters, after TSM.

Command:   python -m ddistill.main --config=configs/msd_small_sd15.py:diffusers:FOLDER
Data:      a folder of Stable Diffusion 1.5 in diffusers' format, ./stable-diffusion-v1-5, from
           `hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir
           stable-diffusion-v1-5`, or another with ':diffusers:FOLDER'; and a set of latents and
           captions in data/sd15_latents: `ddistill data latents SOURCE data/sd15_latents
           --pipeline=diffusers:stable-diffusion-v1-5 --image-size=512` (docs/latents.md).
           ':smoke' needs neither.
Hardware:  written for a pod of TPUs or several nodes of GPUs; not run by us.
Score:     ours: not reproduced. The paper (arXiv 2410.23274) shows pictures of students that are
           83 % smaller, and no scores.
Settings:  widths 128, 256, 512 and 512 have 142.2 million parameters, which fits the paper's 83 %.
           All settings of TSM, and those of DMD2 (arXiv 2405.14867) for the rest, are our choice.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.stable_diffusion_config(recipes.msd_small_sd15, variant)
