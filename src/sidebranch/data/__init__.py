"""Images and labels, in an order and with an augmentation that are functions of (seed, epoch, index) alone."""

from sidebranch.data.arrays import ArraySplit, cifar10, cifar100, digits
from sidebranch.data.augment import Augmentation, Normalisation
from sidebranch.data.corruption import corrupt_labels
from sidebranch.data.crop import FolderTransform, PersonTransform
from sidebranch.data.dali import DaliLoader
from sidebranch.data.device_loader import DeviceLoader
from sidebranch.data.folder import IMAGENET, FolderLoader
from sidebranch.data.hub import PREFIX as HUB_PREFIX
from sidebranch.data.hub import hub
from sidebranch.data.images import Files, ImageSplit
from sidebranch.data.order import Shard, class_steps
from sidebranch.data.reid import ReIDSet, reid
from sidebranch.data.scan import folder, scanned
from sidebranch.data.shards import is_sharded, shards, write_shards

__all__ = [
    "HUB_PREFIX",
    "IMAGENET",
    "ArraySplit",
    "Augmentation",
    "DaliLoader",
    "DeviceLoader",
    "Files",
    "FolderLoader",
    "FolderTransform",
    "ImageSplit",
    "Normalisation",
    "PersonTransform",
    "ReIDSet",
    "Shard",
    "cifar10",
    "cifar100",
    "class_steps",
    "corrupt_labels",
    "digits",
    "folder",
    "hub",
    "is_sharded",
    "reid",
    "scanned",
    "shards",
    "write_shards",
]
