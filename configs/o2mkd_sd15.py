"""O2MKD on Stable Diffusion 1.5: four students for ranges of noise levels, two sizes.

Command:   python -m ddistill.main --config=configs/o2mkd_sd15.py:diffusers:FOLDER
Data:      a folder of Stable Diffusion 1.5 in diffusers' format, ./stable-diffusion-v1-5, from
           `hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir
           stable-diffusion-v1-5`, or another with ':diffusers:FOLDER'; and a set of latents and
           captions in data/sd15_latents: `ddistill data latents SOURCE data/sd15_latents
           --pipeline=diffusers:stable-diffusion-v1-5 --image-size=512` (docs/latents.md).
           ':smoke' needs neither.
Hardware:  written for a node of GPUs or TPUs; not run by us.
Score:     ours: not reproduced. The paper (arXiv 2410.04191) gives neither sizes nor settings for
           Stable Diffusion. BK-SDM's Small, one student of all levels, has FID 16.98 on COCO-30k
           with 25 steps, its teacher 13.05 (arXiv 2305.15798).
Settings:  BK-SDM's: the errors against the data and the teacher and the features of all levels with
           weight 1, AdamW 5e-5, batch 256, 50,000 updates. Students have its Small network, which
           starts from the teacher's layers, or half of the widths. K = 4, the equal number of
           updates of all students after the warm-up and a tenth of empty texts are our choice.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.stable_diffusion_config(recipes.o2mkd_sd15, variant)
