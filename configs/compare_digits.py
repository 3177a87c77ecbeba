"""Methods with a diffusion teacher, all from one teacher, on scikit-learn's 8x8 digits.

Command:   ./launch/local.sh --config=configs/compare_digits.py
           python -m ddistill.compare runs/compare_digits   (more runs: more seeds)
Hardware:  two CPU cores.
Score:     see docs/results.md.

SFDDM, PD, CFD, RCFD and RDD; SFD and SFD-v; BOOT and PID; CD, LCM, CT, iCT and ECT; DDIL with PD
and with CD; and the teacher's DDIM and DPM-Solver++ at the same numbers of steps. Stages are shared
with the runs of the configs of each method. PD, CFD, RCFD and RDD have equal numbers of updates:
they share the halvings down to 8 steps and continue with 400, 800 and 800. CFD, RCFD and RDD
compare images in the features of the stage "feature_classifier"; the stage "classifier" scores
samples. Methods with a flow-matching teacher and class-conditional ones have other configs.
"""

import dataclasses

from ddistill import recipes


def get_config(variant: str = ""):
    students = {
        "sfddm_n8": recipes.digits_student(8, substeps=2),
        **recipes.digits_students(),
        **recipes.digits_halvings(32, 1),
        **recipes.digits_sfd(),
        **recipes.digits_from_noise("pid"),
        **recipes.digits_from_noise("boot"),
    }
    for method in ("cd", "lcm", "ct", "ict", "ect"):
        students |= recipes.digits_consistency(method)
    students |= recipes.digits_ddil() | recipes.digits_sfd_v()
    for method in ("rdd", "cfd", "rcfd"):
        students |= recipes.digits_chain(method)
    settings = recipes.digits("compare_digits", students)
    evaluation = dataclasses.replace(
        settings.evaluation,
        teacher_samplers={"ddim": (1, 2, 4, 8, 16, 32), "dpm_solver_pp": (1, 2, 4, 8, 16)},
    )
    settings = dataclasses.replace(settings, evaluation=evaluation)
    kept = ("classifier", "teacher", "feature_classifier", "sfddm_n4", "pd_n16", "pd_n8", "cfd_n4")
    kept += ("rdd_n4", "sfd_n4", "pid", "boot", "cd", "ct")
    return recipes.digits_config(settings, variant, kept)
