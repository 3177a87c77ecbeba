"""Ablation of SFDDM's terms on digits: the released recipe, and the number of sub-steps.

Command:   ./launch/local.sh --config=configs/sfddm_ablation_digits.py
           (":full" adds one-step students, and k = c for 4 steps: 65 teacher calls an example)
Hardware:  any CPU with two cores.
Score:     see docs/results.md.

All students have the teacher and the batch of configs/sfddm_digits.py, 700 updates, and start from
the teacher's weights (the released recipe: from fresh weights). "off" is output matching alone
(squared error of v, truncated-SNR weight); the hidden-variable distance equals it for k = 1 and a
teacher that takes DDIM steps. "ddim" stands for DDIM steps of the teacher instead of
DPM-Solver++(2M), "no past" for a first step of first order in every interval.
"""

from ddistill import recipes


def ours(levels, variant, substeps=8, **loss):
    return recipes.digits_student(levels, substeps=substeps, loss=loss, variant=variant)


def released(levels):
    return recipes.sfddm_released(levels, prediction="v", steps=700, batch_size=64)


def students():
    return {
        **{f"released_n{levels}": released(levels) for levels in (4, 2, 1)},
        "n4_off": ours(4, "off", hidden_weight=0.0, output_weight=1.0),
        "n4_k1": ours(4, "k=1", substeps=1),
        "n4_k2": ours(4, "k=2", substeps=2),
        "n4_k4": ours(4, "k=4", substeps=4),
        "n4_k2_no_past": ours(4, "k=2 no past", substeps=2, lookback=False),
        "n4_k4_ddim": ours(4, "k=4 ddim", substeps=4, solver="ddim"),
    }


def expensive():
    return {
        "n4_kc": ours(4, "k=c", substeps=0),
        "n1_off": ours(1, "off", hidden_weight=0.0, output_weight=1.0),
        "n1_k2": ours(1, "k=2", substeps=2),
        "n1_k4": ours(1, "k=4", substeps=4),
        "n1_k8_ddim": ours(1, "k=8 ddim", substeps=8, solver="ddim"),
    }


def get_config(variant: str = ""):
    more = expensive() if variant == "full" else {}
    settings = recipes.digits("sfddm_ablation_digits", {**students(), **more})
    kept = ("classifier", "teacher", "released_n4", "n4_k4")
    return recipes.digits_config(settings, variant, kept, variants=("", "smoke", "full"))
