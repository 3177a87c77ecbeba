"""Guidance as an input of the student on scikit-learn's 8x8 digits: LCM and PD, scales 1 to 4.

Command:   ./launch/local.sh --config=configs/guided_digits.py
           ./launch/local.sh --config=configs/guided_digits.py --config.evaluation.guidance=3.0
Hardware:  two CPU cores.
Score:     not measured.

One student for a range of guidance scales (arXiv 2210.03142, 2310.04378), scored at
`evaluation.guidance`; `ddistill.load(RUN).sample(guidance=3.0)` takes any scale of the range. The
stage "lcm_fixed" learns the scale 2 alone.
"""

import dataclasses

from ddistill import recipes

RANGE = (1.0, 4.0)
SCALE = 2.0


def get_config(variant: str = ""):
    lcm = {"levels": 64, "loss": {"level_skip": 4, "guidance_range": RANGE}}
    fixed = {"levels": 64, "loss": {"level_skip": 4}, "guidance": SCALE, "variant": "fixed scale"}
    students = {
        **recipes.digits_consistency("lcm", **lcm),
        "lcm_fixed": recipes.digits_consistency("lcm", **fixed)["lcm"],
        **recipes.digits_halvings(16, 1, loss={"guidance_range": RANGE}),
    }
    settings = recipes.digits_conditional("guided_digits", students)
    evaluation = dataclasses.replace(settings.evaluation, guidance=SCALE)
    settings = dataclasses.replace(settings, evaluation=evaluation)
    kept = ("classifier", "teacher", "lcm", "pd_n8", "pd_n4")
    return recipes.digits_config(settings, variant, kept)
