"""Text-to-image on captioned digits: autoencoder, teacher, and students of few steps or many.

Command:   ./launch/local.sh --config=configs/text_digits.py
Hardware:  two CPU cores.
Score:     autoencoder and teacher: docs/latents.md; students: not measured.

The data are scikit-learn's 8x8 digits with captions such as "a thin handwritten three". An
autoencoder (arXiv 2112.10752) makes latents of 4x4x4 of them, and the teacher learns its text
encoder. Students: SFDDM at 4, 2 and 1 steps, LCM, O2MKD and MSD with one and four students.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    kept = ("classifier", "autoencoder", "teacher", "sfddm_n4", "lcm", "o2mkd_warmup_w16")
    kept += ("o2mkd_w16_k4", "pairs", "dm_k4", "adm_k4")
    return recipes.digits_config(recipes.text_digits(), variant, kept)
