"""Images and labels, in an order and with an augmentation that are functions of (seed, epoch, index) alone."""

from sidebranch.data.arrays import ArraySplit, cifar10, cifar100, digits
from sidebranch.data.augment import Augmentation, Normalisation
from sidebranch.data.corruption import corrupt_labels
from sidebranch.data.crop import FolderTransform
from sidebranch.data.dali import DaliLoader
from sidebranch.data.device_loader import DeviceLoader
from sidebranch.data.folder import IMAGENET, FolderLoader, FolderSplit, folder
from sidebranch.data.order import Shard

__all__ = [
    "IMAGENET",
    "ArraySplit",
    "Augmentation",
    "DaliLoader",
    "DeviceLoader",
    "FolderLoader",
    "FolderSplit",
    "FolderTransform",
    "Normalisation",
    "Shard",
    "cifar10",
    "cifar100",
    "corrupt_labels",
    "digits",
    "folder",
]
