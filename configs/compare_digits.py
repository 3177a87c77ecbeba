"""SFDDM, PD, CFD and RCFD from one teacher on scikit-learn's 8x8 digits.

Command:   ./launch/local.sh --config=configs/compare_digits.py
           python -m ddistill.compare runs/compare_digits   (more runs: more seeds)
Hardware:  two CPU cores.
Score:     see docs/results.md.

Students of 8, 4, 2 and 1 steps beside the teacher's DDIM and DPM-Solver++ at as many. What
configs/{sfddm,pd,cfd,rcfd}_digits.py have trained is found, and the other way round. PD, CFD and
RCFD make equal updates: they share the halvings down to 8 steps, and go on with 400, 800 and 800.
CFD and RCFD compare images in the features of the stage "feature_classifier"; the stage
"classifier" scores.
"""

import dataclasses

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    students = {
        "sfddm_n8": recipes.digits_student(8, substeps=2),
        **recipes.digits_students(),
        **recipes.digits_halvings(32, 1),
        **recipes.digits_chain("cfd", recipes.CFD_DENSENET201),
        **recipes.digits_chain("rcfd", recipes.RCFD_RESNET18),
    }
    settings = recipes.digits("compare_digits", students)
    evaluation = dataclasses.replace(
        settings.evaluation,
        teacher_samplers={"ddim": (1, 2, 4, 8, 16, 32), "dpm_solver_pp": (1, 2, 4, 8, 16)},
    )
    settings = dataclasses.replace(settings, evaluation=evaluation)
    if variant == "smoke":
        kept = (
            "classifier",
            "teacher",
            "feature_classifier",
            "sfddm_n4",
            "pd_n16",
            "pd_n8",
            "cfd_n4",
        )
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
