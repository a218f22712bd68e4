"""Data sets, put in order or made before training."""

from sidebranch.prepare.folders import check_folder, imagenet_val_moves, move, read_imagenet_labels
from sidebranch.prepare.synthetic_reid import write_synthetic_reid

__all__ = ["check_folder", "imagenet_val_moves", "move", "read_imagenet_labels", "write_synthetic_reid"]
