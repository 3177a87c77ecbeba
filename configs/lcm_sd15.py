"""Latent consistency model of Stable Diffusion 1.5, with guidance as an input.

Command:   python -m ddistill.main --config=configs/lcm_sd15.py:diffusers:FOLDER
Data:      a folder of Stable Diffusion 1.5 in diffusers' format, ./stable-diffusion-v1-5, from
           `hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir
           stable-diffusion-v1-5`, or another with ':diffusers:FOLDER'; and a set of latents and
           captions in data/sd15_latents: `ddistill data latents SOURCE data/sd15_latents
           --pipeline=diffusers:stable-diffusion-v1-5 --image-size=512` (docs/latents.md).
           ':smoke' needs neither.
Hardware:  written for a node of GPUs or TPUs; not run by us.
Score:     ours: not reproduced.
Settings:  of the released command of diffusers (arXiv 2310.04378): a DDIM grid of 50 levels, Huber
           distance with 0.001, an average of 0.95 as the target, guidance scales 6 to 16. Batch,
           updates and optimiser are our choice. diffusers opens the student by its
           `time_cond_proj_dim` of 256.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.stable_diffusion_config(recipes.lcm_sd15, variant)
