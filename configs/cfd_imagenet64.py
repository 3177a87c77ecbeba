"""CFD on class-conditional ImageNet at 64x64: features of a DenseNet-201 from 8 steps down.

Command:   python -m ddistill.main --config=configs/cfd_imagenet64.py
Data:      TFDS "imagenet_resized/64x64" prepared as array_record:
           python -m ddistill.data.prepare imagenet_resized/64x64
Hardware:  written for several GPUs or TPU cores; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2211.12039): CIFAR-10 only.
Released:  (RDD's code) tau 0.75, 50,000 updates per halving, batch 256, Adam 1e-4, 128 channels
           times (1, 2, 3, 4), 3 blocks, attention on the two inner levels.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.cfd_imagenet64((16, 8, 4))
    return recipes.image_config(recipes.cfd_imagenet64(), variant, small=small, levels=0)
