"""Images and labels, and how re-identification compares them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidebranch.config.ranges import AT_LEAST_0, AT_LEAST_1, PROBABILITY, Range, check_ranges

Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class DataConfig:
    """Images and labels.

    Args:
        name: `digits` (part of scikit-learn), `cifar10`, `cifar100`, `folder`: images of any size; or `reid`: person
            re-identification.
        root: where the data are; CIFAR is downloaded there if it is missing. folder: a folder with train/CLASS/*.jpg
            and val/CLASS/*.jpg; a folder or an address of WebDataset shards that `sidebranch prepare shards` wrote; or
            `hf:NAME`, a data set of Hugging Face. reid: a folder laid out like Market-1501 or DukeMTMC-reID, or a CSV
            file with the columns path, identity, camera and split (train, query or gallery).
        batch_size: images per step, over all devices together.
        limit: train on the first `limit` images only (folder: the first in a fixed random order); 0 takes all.
        validate_on: `val`, or `held_out`: the training images that `limit` leaves, to choose settings by without
            looking at the images that are reported.
        val_limit: validate on so many images only, a fixed random subset; 0 takes all.
        padding: pixels around the image before a random crop; 0 turns cropping off (digits and CIFAR), or crops from a
            larger `resize` (reid).
        padding_mode: `zeros` (black) or `reflect`.
        flip: mirror half of the training images.
        drop_last: leave out an epoch's last batch if it is not full.
        corrupt_rate: share of the training labels to replace, to test robustness.
        corrupt_mode: replace by a `random` label, or by a `wrong` one.
        image_size: folder: side of the square that the network sees; reid: the height.
        image_width: reid: the width; 0 for half of image_size.
        eval_size: folder: side of the square at validation; 0 takes image_size.
        resize: folder: shorter side before cropping; reid: the height before cropping, if padding is 0.
        squash: folder: resize to a square of side `resize`, without keeping the aspect ratio, as DKS does.
        interpolation: folder: of resizing, `bilinear` or `bicubic`.
        scale: folder: training crops vary in scale and aspect ratio.
        policy: folder: torchvision's `randaugment` or `trivialaugment` after the crop.
        magnitude: folder: of randaugment, 0 to 30.
        erase: folder, reid: probability that a box of a training image is painted over.
        instances: reid: images of each identity in a batch, of batch_size / instances identities; 0 draws freely.
        repeats: folder: repeated augmentation: each image comes so many times in an epoch, of as many fewer images.
        backend: folder: `draft`, Pillow, which decodes a JPEG no larger than its crop needs; `torchvision`, its
            transforms on full images, as in the papers; `dali`, NVIDIA DALI, on a CUDA device if there is one.
        workers: folder, reid: processes that decode images, at most one per core.
        on_corrupt: folder, reid: `error` stops at an unreadable image; `skip` leaves it out and counts it.
        mixup: alpha of mixup, 0 for none. Each process draws its own mixing factor per step.
        cutmix: alpha of CutMix, 0 for none. With mixup too, each is used for half of the batches.
    """

    name: Literal["digits", "cifar10", "cifar100", "folder", "reid"] = "digits"
    root: str = "data"
    batch_size: int = 128
    limit: int = 0
    validate_on: Literal["val", "held_out"] = "val"
    val_limit: int = 0
    padding: int = 4
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = True
    drop_last: bool = False
    corrupt_rate: float = 0.0
    corrupt_mode: Literal["random", "wrong"] = "random"
    image_size: int = 224
    image_width: int = 0
    eval_size: int = 0
    resize: int = 256
    squash: bool = False
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    scale: bool = True
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    magnitude: int = 9
    erase: float = 0.0
    instances: int = 0
    repeats: int = 1
    backend: Literal["draft", "torchvision", "dali"] = "draft"
    workers: int = 4
    on_corrupt: Literal["error", "skip"] = "error"
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def title(self) -> str:
        """What the data are called: the name of their own folder, or of the known set."""
        own = Path(self.root).name if self.name in ("folder", "reid") else ""
        return own or self.name

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "data",
            batch_size=AT_LEAST_1,
            limit=Range(0, what="a number of images, or 0 for all"),
            val_limit=Range(0, what="a number of images, or 0 for all"),
            padding=Range(0, 512, what="a number of pixels up to 512, or 0 for no cropping"),
            corrupt_rate=PROBABILITY,
            image_size=AT_LEAST_1,
            image_width=Range(0, what="a width in pixels, or 0 for half the height"),
            eval_size=Range(0, what="a side in pixels, or 0 for data.image_size"),
            resize=AT_LEAST_1,
            magnitude=Range(0, 30),
            erase=PROBABILITY,
            instances=AT_LEAST_0,
            repeats=AT_LEAST_1,
            workers=AT_LEAST_0,
            mixup=Range(0, what="an alpha such as 0.2, or 0 for none"),
            cutmix=Range(0, what="an alpha such as 1, or 0 for none"),
        )


@dataclass(frozen=True)
class EvalConfig:
    """reid: how queries are compared with the gallery.

    Args:
        metric: `cosine` or `euclidean` distance.
        flip: average the features with those of the mirrored image.
        chunk: queries ranked at a time; bounds the memory, and changes only rounding.
    """

    metric: Metric = "cosine"
    flip: bool = False
    chunk: int = 256

    def __post_init__(self) -> None:
        check_ranges(self, "eval", chunk=AT_LEAST_1)
