"""MSD on Stable Diffusion 1.5: four one-step students for a quarter of the prompts each.

Command:   python -m ddistill.main --config=configs/msd_sd15.py:diffusers:FOLDER
Data:      a folder of Stable Diffusion 1.5 in diffusers' format, ./stable-diffusion-v1-5, from
           `hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir
           stable-diffusion-v1-5`, or another with ':diffusers:FOLDER'; and a set of latents and
           captions in data/sd15_latents: `ddistill data latents SOURCE data/sd15_latents
           --pipeline=diffusers:stable-diffusion-v1-5 --image-size=512` (docs/latents.md).
           ':smoke' needs neither.
Hardware:  written for a pod of TPUs or several nodes of GPUs; not run by us.
Score:     ours: not reproduced. Paper (arXiv 2410.23274), zero-shot FID on COCO-2014, K = 4: DM
           8.80, ADM 8.20; DMD2 with one student 8.35.
Settings:  K and the quadrants of pooled text embeddings are the paper's. It gives no rates: those
           of DMD2 (arXiv 2405.14867) are our choice, with a K-th of its batch of 2,048 for each
           student. A step is an update of the fake score; the student has one in ten.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.stable_diffusion_config(recipes.msd_sd15, variant)
