"""MeanFlow on latents of ImageNet at 256 pixels: DiT-XL/2, one network evaluation.

Command:   ddistill data latents IMAGENET/train imagenet256 --pipeline=diffusers:PIPELINE
               --image-size=256 --flip --template='a photo of a {}'
           python -m ddistill.main --config=configs/meanflow_imagenet256.py
               --config.data.path=imagenet256
Data:      a set of latents of 32x32x4 with the class folders as labels (docs/latents.md). The
           authors' autoencoder is Stable Diffusion's, fine-tuned by the squared error; latents of
           another one give other scores.
Hardware:  written for a TPU slice; not run by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2505.13447): FID 3.43 at one network evaluation, 2.93
           at two; FastGen's run with a DiT-XL 3.19.
Released:  DiT-XL/2 (676 M parameters), times in [0, 1], batch 256, 240 epochs, Adam 1e-4 with beta2
           0.95, EMA 0.9999; t and r logit-normal (-0.4, 1), 75 % with r = t, p = 1, c = 0.01; a
           tenth of the labels dropped; guidance w = 1, k = 0.5, the defaults of the code.
Ours:      1024 rows of levels in place of continuous time. The stage "teacher" is flow matching
           with the same network, for comparison; the student does not start from it and does not
           call it. --config.stages.meanflow.init=teacher starts from its weights.
           The teacher is sampled with guidance w / (1 - k) = 2, which the student's images have.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.meanflow_imagenet256("small")
    return recipes.image_config(recipes.meanflow_imagenet256(), variant, small=small, levels=16)
