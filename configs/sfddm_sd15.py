"""Few-step students of Stable Diffusion 1.5: SFDDM at 4, 2 and 1 steps.

Command:   python -m ddistill.main --config=configs/sfddm_sd15.py:diffusers:FOLDER
Data:      a folder of Stable Diffusion 1.5 in diffusers' format, ./stable-diffusion-v1-5, from
           `hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir
           stable-diffusion-v1-5`, or another with ':diffusers:FOLDER'; and a set of latents and
           captions in data/sd15_latents: `ddistill data latents SOURCE data/sd15_latents
           --pipeline=diffusers:stable-diffusion-v1-5 --image-size=512` (docs/latents.md).
           ':smoke' needs neither.
Hardware:  written for a node of GPUs or TPUs; not run by us.
Score:     ours: not reproduced. The paper (arXiv 2405.14961) has no text-to-image experiment.
Settings:  guidance 7.5 of the teacher becomes the students', which need none. Batch and updates are
           those of BK-SDM (arXiv 2305.15798), the optimiser that of DMD2 (arXiv 2405.14867): our
           choice.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.stable_diffusion_config(recipes.sfddm_sd15, variant)
