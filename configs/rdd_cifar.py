"""RDD on CIFAR-10, the authors' settings: relations in a DenseNet-201's maps from 8 steps down.

Command:   python -m ddistill.main --config=configs/rdd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one GPU or TPU core; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2410.07679): FID at one step 1.47 below the best
           result before; its tables were not found.
Released:  20,000 updates per halving, batch 128, Adam from 5e-5 to 0 as a cosine, clipping at 1;
           tau 0.9, weights 1 and 0.1 of the two relations; a queue of 20,000 pixels, 128 new ones
           a step, compared with 4,096; the head has Adam at 5e-5 without schedule and clipping.
Ours:      teacher, classifier and halvings to 8 steps are those of configs/cfd_cifar.py; we did not
           find which chain the authors used. Rows of the queue are the features of one pixel; the
           released code mixes channels and pixels there.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.cfd_cifar("rdd", (16, 8, 4))
    return recipes.image_config(recipes.cfd_cifar("rdd"), variant, small=small, levels=0)
