"""Parts of config files: stages with published or default settings, experiments, variants.

Recipes return the dataclasses of `ddistill.settings` with all hyperparameters listed, so that the
command line can override each of them. `to_config` makes the `ConfigDict`; `digits_config` and
`image_config` do so for the variants of a config file.
"""

from ddistill.recipes.autoencoder import autoencoder_stage, digits_autoencoder
from ddistill.recipes.cifar import (
    CIFAR,
    cfd_cifar,
    cfd_imagenet64,
    feature_classifier_stage,
    pd_cifar,
)
from ddistill.recipes.common import (
    Budget,
    check_variant,
    network,
    objective,
    scorer_stage,
    teacher_stage,
    to_config,
    with_teacher,
)
from ddistill.recipes.consistency import consistency
from ddistill.recipes.digits import (
    annealed,
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
from ddistill.recipes.digits_paths import (
    SMOOTH_TIME,
    digits_catch_up,
    digits_consistency,
    digits_ddil,
    digits_disback,
    digits_flow,
    digits_from_noise,
    digits_scm,
    digits_sfd,
    digits_sfd_v,
    digits_two_time,
)
from ddistill.recipes.disback import disback
from ddistill.recipes.flow import catch_up, catch_up_cifar, flow_teacher
from ddistill.recipes.msd import msd, pairs_stage, tsm_stage
from ddistill.recipes.msd_paper import msd_cifar, msd_imagenet64
from ddistill.recipes.o2mkd import DDPM_32, DDPM_256, O2MKDPaper, o2mkd, o2mkd_256, o2mkd_paper
from ddistill.recipes.own_images import own_images, own_images_config
from ddistill.recipes.path_cifar import cd_cifar, ect_cifar, pid_cifar, scm_cifar, sfd_cifar
from ddistill.recipes.progressive import (
    CFD_DENSENET201,
    DDIL,
    RCFD_RESNET18,
    RDD_DENSENET201,
    feature_halvings,
    halvings,
    progressive,
    released_optimizer,
)
from ddistill.recipes.sfddm import (
    SFDDMPaper,
    sfddm_default,
    sfddm_lsun,
    sfddm_paper,
    sfddm_released,
)
from ddistill.recipes.stable_diffusion import (
    lcm_sd15,
    msd_sd15,
    msd_small_sd15,
    o2mkd_sd15,
    sfddm_sd15,
    stable_diffusion_config,
)
from ddistill.recipes.text_digits import (
    text_digits,
    text_digits_network,
    text_digits_students,
    text_digits_teacher,
)
from ddistill.recipes.text_folder import text_folder, text_folder_config
from ddistill.recipes.trajectory import from_noise, sfd, sfd_v
from ddistill.recipes.two_time import meanflow_cifar, meanflow_imagenet256, scm, two_time
from ddistill.recipes.variants import digits_config, image_config, smoke, smoke_on_digits

__all__ = [
    "CFD_DENSENET201",
    "CIFAR",
    "DDIL",
    "DDPM_32",
    "DDPM_256",
    "RCFD_RESNET18",
    "RDD_DENSENET201",
    "SMOOTH_TIME",
    "Budget",
    "O2MKDPaper",
    "SFDDMPaper",
    "annealed",
    "autoencoder_stage",
    "catch_up",
    "catch_up_cifar",
    "cd_cifar",
    "cfd_cifar",
    "cfd_imagenet64",
    "check_variant",
    "consistency",
    "digits",
    "digits_autoencoder",
    "digits_catch_up",
    "digits_chain",
    "digits_conditional",
    "digits_conditional_network",
    "digits_config",
    "digits_consistency",
    "digits_ddil",
    "digits_disback",
    "digits_feature_classifier",
    "digits_flow",
    "digits_from_noise",
    "digits_halvings",
    "digits_msd",
    "digits_network",
    "digits_scm",
    "digits_sfd",
    "digits_sfd_v",
    "digits_small_msd",
    "digits_specialists",
    "digits_student",
    "digits_students",
    "digits_two_time",
    "disback",
    "ect_cifar",
    "feature_classifier_stage",
    "feature_halvings",
    "flow_teacher",
    "from_noise",
    "halvings",
    "image_config",
    "lcm_sd15",
    "meanflow_cifar",
    "meanflow_imagenet256",
    "msd",
    "msd_cifar",
    "msd_imagenet64",
    "msd_sd15",
    "msd_small_sd15",
    "network",
    "o2mkd",
    "o2mkd_256",
    "o2mkd_paper",
    "o2mkd_sd15",
    "objective",
    "own_images",
    "own_images_config",
    "pairs_stage",
    "pd_cifar",
    "pid_cifar",
    "progressive",
    "released_optimizer",
    "scm",
    "scm_cifar",
    "scorer_stage",
    "sfd",
    "sfd_cifar",
    "sfd_v",
    "sfddm_default",
    "sfddm_lsun",
    "sfddm_paper",
    "sfddm_released",
    "sfddm_sd15",
    "smoke",
    "smoke_on_digits",
    "stable_diffusion_config",
    "teacher_stage",
    "text_digits",
    "text_digits_network",
    "text_digits_students",
    "text_digits_teacher",
    "text_folder",
    "text_folder_config",
    "to_config",
    "tsm_stage",
    "two_time",
    "with_teacher",
]
