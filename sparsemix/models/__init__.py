"""timm registry entries: the supernets, and the networks that a genotype describes.

Importing this package registers them, so ``timm.create_model("sparsemix_nb201", genotype=...)`` finds them.
"""

from .darts import DartsNetwork, sparsemix_darts_cifar, sparsemix_darts_imagenet, sparsemix_darts_supernet
from .densenet import CifarDenseNet, sparsemix_densenet_bc
from .nb201 import RESNET_LIKE, NB201Network, sparsemix_nb201, sparsemix_nb201_supernet

__all__ = [
    "RESNET_LIKE",
    "CifarDenseNet",
    "DartsNetwork",
    "NB201Network",
    "sparsemix_darts_cifar",
    "sparsemix_darts_imagenet",
    "sparsemix_darts_supernet",
    "sparsemix_densenet_bc",
    "sparsemix_nb201",
    "sparsemix_nb201_supernet",
]
