"""SFDDM with a feature distance between hidden variables, on scikit-learn's 8x8 digits.

Command:   ./launch/local.sh --config=configs/sfddm_cfd_digits.py
Hardware:  two CPU cores.
Score:     not measured.

A combination that neither paper has: SFDDM's target (arXiv 2405.14961) with CFD's distance (arXiv
2211.12039, temperature 1) added to the distance in v. "features alone" omits the distance in v.
Students of four steps with the teacher, batch and updates of configs/sfddm_digits.py.
"""

from ddistill import recipes


def student(variant: str, **loss: float):
    """A student of four steps that also compares features."""
    return recipes.digits_student(
        4,
        substeps=2,
        loss={"tau": 1.0, **loss},
        classifier="feature_classifier",
        variant=variant,
    )


def get_config(variant: str = ""):
    students = {
        "feature_classifier": recipes.digits_feature_classifier(),
        "sfddm_n4": recipes.digits_student(4, substeps=2),
        "with_features": student("with features", classifier_weight=0.1),
        "features_alone": student("features alone", classifier_weight=1.0, hidden_weight=0.0),
    }
    kept = ("classifier", "teacher", "feature_classifier", "with_features")
    return recipes.digits_config(recipes.digits("sfddm_cfd_digits", students), variant, kept)
