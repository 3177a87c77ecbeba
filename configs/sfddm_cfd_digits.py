"""SFDDM whose hidden variable is also compared in a classifier's features, on 8x8 digits.

Command:   ./launch/local.sh --config=configs/sfddm_cfd_digits.py
Hardware:  two CPU cores.
Score:     not measured yet.

A combination that neither paper has: SFDDM's target (arXiv 2405.14961), CFD's distance (arXiv
2211.12039, temperature 1) added to the distance in v. "features alone" drops the latter. Students
of four steps with the teacher, batch and updates of configs/sfddm_digits.py.
"""

import dataclasses

from ddistill import recipes


def student(variant: str, **terms: float):
    stage = recipes.digits_student(4, substeps=2, tau=1.0, **terms)
    return dataclasses.replace(stage, classifier="feature_classifier", variant=variant)


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    students = {
        "feature_classifier": recipes.digits_feature_classifier(),
        "sfddm_n4": recipes.digits_student(4, substeps=2),
        "with_features": student("with features", classifier_weight=0.1),
        "features_alone": student("features alone", classifier_weight=1.0, hidden_weight=0.0),
    }
    settings = recipes.digits("sfddm_cfd_digits", students)
    if variant == "smoke":
        kept = ("classifier", "teacher", "feature_classifier", "with_features")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
