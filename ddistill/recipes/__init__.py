"""Parts that config files share: stages with their published or default settings, and `smoke`.

Recipes return the dataclasses of `ddistill.settings` with every hyperparameter spelt out, so that
each of them can be overridden on the command line; `to_config` makes the `ConfigDict`.
"""

from ddistill.recipes.cifar import cfd_cifar, cfd_imagenet64, pd_cifar
from ddistill.recipes.common import (
    check_variant,
    network,
    objective,
    teacher_stage,
    to_config,
    with_teacher,
)
from ddistill.recipes.digits import (
    digits,
    digits_chain,
    digits_conditional,
    digits_conditional_network,
    digits_feature_classifier,
    digits_halvings,
    digits_msd,
    digits_network,
    digits_small_msd,
    digits_specialists,
    digits_student,
    digits_students,
)
from ddistill.recipes.msd import msd, pairs_stage, tsm_stage
from ddistill.recipes.msd_paper import msd_cifar, msd_imagenet64
from ddistill.recipes.o2mkd import DDPM_32, DDPM_256, o2mkd, o2mkd_paper
from ddistill.recipes.progressive import (
    CFD_DENSENET201,
    RCFD_RESNET18,
    halvings,
    progressive,
    released_optimizer,
)
from ddistill.recipes.sfddm import sfddm_default, sfddm_paper, sfddm_released
from ddistill.recipes.shrink import smoke, smoke_on_digits

__all__ = [
    "CFD_DENSENET201",
    "DDPM_32",
    "DDPM_256",
    "RCFD_RESNET18",
    "cfd_cifar",
    "cfd_imagenet64",
    "check_variant",
    "digits",
    "digits_chain",
    "digits_conditional",
    "digits_conditional_network",
    "digits_feature_classifier",
    "digits_halvings",
    "digits_msd",
    "digits_network",
    "digits_small_msd",
    "digits_specialists",
    "digits_student",
    "digits_students",
    "halvings",
    "msd",
    "msd_cifar",
    "msd_imagenet64",
    "network",
    "o2mkd",
    "o2mkd_paper",
    "objective",
    "pairs_stage",
    "pd_cifar",
    "progressive",
    "released_optimizer",
    "sfddm_default",
    "sfddm_paper",
    "sfddm_released",
    "smoke",
    "smoke_on_digits",
    "teacher_stage",
    "to_config",
    "tsm_stage",
    "with_teacher",
]
