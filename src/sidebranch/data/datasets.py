"""A data set by its name in the config: its splits, and loaders of them on a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sidebranch.config.data import DataConfig
from sidebranch.data.augmentation.batched import IMAGENET, Augmentation
from sidebranch.data.augmentation.crops import FolderTransform, PersonTransform
from sidebranch.data.corruption import corrupt_labels
from sidebranch.data.loaders.dali import DaliLoader
from sidebranch.data.loaders.encoded import EncodedLoader
from sidebranch.data.loaders.in_memory import InMemoryLoader
from sidebranch.data.loaders.order import Rank, class_steps
from sidebranch.data.sources import arrays
from sidebranch.data.sources.arrays import ArraySplit
from sidebranch.data.sources.folder import folder
from sidebranch.data.sources.hub import PREFIX, hub
from sidebranch.data.sources.images import ImageSplit
from sidebranch.data.sources.reid import ReIDSet, reid
from sidebranch.data.sources.shards import is_sharded, shards
from sidebranch.device import cores
from sidebranch.errors import UserError
from sidebranch.seeding import generator


class Loader(Protocol):
    """Batches of an epoch, from any step on: float32 images [N, C, H, W] and labels [N], on the device.

    Attributes:
        corrupt: names of the unreadable images that were left out.
    """

    corrupt: set[str]

    def __len__(self) -> int: ...
    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, read once.

    Attributes:
        train: the training split, cut to the limit, with corrupted labels if the config says so.
        val: the validation split, or what else is validated on.
        shape: of a training image as the network sees it: channels, height, width.
        reid: person identities and cameras, in re-identification; `val` are its test images then.
        held_out: the training images that the limit leaves out, with their own labels; None without a limit, or if they
            are validated on.
    """

    config: DataConfig
    seed: int
    train: ArraySplit | ImageSplit
    val: ArraySplit | ImageSplit
    shape: tuple[int, ...]
    reid: ReIDSet | None = None
    held_out: ArraySplit | ImageSplit | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def described(self) -> dict[str, Any]:
        """What is needed to feed the trained network: size, normalisation of pixels in [0, 1], class names."""
        scale = self.val.normalisation if isinstance(self.val, ArraySplit) else IMAGENET
        known = {"input_size": list(self.eval_shape), "mean": list(scale.mean), "std": list(scale.std)}
        if self.config.name == "folder":
            known |= {"resize": self.config.resize, "interpolation": self.config.interpolation}
            known |= {"squash": True} if self.config.squash else {}
        return {**known, "classes": list(self.classes)}

    @property
    def eval_shape(self) -> tuple[int, ...]:
        """Shape of a validation image as the network sees it."""
        size = self.config.eval_size
        return (3, size, size) if self.config.name == "folder" and size else self.shape

    @property
    def epoch_images(self) -> int:
        """Training images per epoch, over all processes."""
        size, instances = self.config.batch_size, self.config.instances
        return class_steps(self.train.labels, size, instances) * size if instances else len(self.train)

    def numbered(self) -> Dataset:
        """The same with the training images' numbers in place of their labels."""
        return replace(self, train=self.train.relabelled(torch.arange(len(self.train))))

    def train_loader(self, device: torch.device, rank: Rank = Rank()) -> Loader:
        """Shuffled and augmented."""
        return self._loader(self.train, device, rank, training=True)

    def val_loader(self, device: torch.device, rank: Rank = Rank()) -> Loader:
        """Every image once, in the order of the source."""
        return self._loader(self.val, device, rank, training=False)

    def _loader(self, split: ArraySplit | ImageSplit, device: torch.device, rank: Rank, training: bool) -> Loader:
        config = self.config
        drop_last = config.drop_last and training
        if isinstance(split, ArraySplit):
            augmentation = Augmentation(config.padding, config.padding_mode, config.flip) if training else None
            return InMemoryLoader(
                split,
                config.batch_size,
                device=device,
                seed=self.seed,
                augmentation=augmentation,
                drop_last=drop_last,
                rank=rank,
            )
        common = {
            "device": device,
            "training": training,
            "seed": self.seed,
            "workers": min(config.workers, max(1, _cores_of(rank))),
            "drop_last": drop_last,
            "on_corrupt": config.on_corrupt,
            "rank": rank,
        }
        if self.reid is not None:
            if training and config.instances and config.batch_size % (config.instances * rank.world_size):
                raise UserError(
                    f"data.batch_size is {config.batch_size}; with data.instances {config.instances} in "
                    f"{rank.world_size} processes it must be a multiple of {config.instances * rank.world_size}"
                )
            transform = PersonTransform(
                (self.shape[1], self.shape[2]), config.resize, config.padding, config.flip, config.erase
            )
            return EncodedLoader(split, transform, config.batch_size, instances=config.instances, **common)
        repeats = config.repeats if training else 1
        decoders = {
            "draft": partial(EncodedLoader, repeats=repeats),
            "torchvision": partial(EncodedLoader, exact=True, repeats=repeats),
            "dali": DaliLoader,
        }
        return decoders[config.backend](
            split,
            FolderTransform(
                size=config.image_size if training else self.eval_shape[1],
                resize=config.resize,
                squash=config.squash,
                interpolation=config.interpolation,
                scale=config.scale,
                flip=config.flip,
                policy=config.policy,
                magnitude=config.magnitude,
                erase=config.erase,
            ),
            config.batch_size,
            **common,
        )


def read_dataset(config: DataConfig, seed: int, needs_train: bool = True) -> Dataset:
    """Reads or scans the data set.

    Args:
        config: of the data.
        seed: of label corruption.
        needs_train: if false, images need no part to train on, for evaluation.

    Raises:
        UserError: it is missing, damaged or wrongly laid out, or smaller than the config needs.
    """
    people = None
    if config.name == "reid":
        people = reid(config.root, needs_train)
        train, val = people.train, people.test
        shape = (3, config.image_size, config.image_width or config.image_size // 2)
    elif config.name == "folder":
        is_held_out = config.validate_on == "held_out"
        train, val = read_images(config.root, "val" if is_held_out else "" if needs_train else "train")
        shape = (3, config.image_size, config.image_size)
    else:
        train, val = _arrays(config)
        shape = tuple(train.images.shape[1:])
    if not len(train):  # nothing of it is asked for
        config = replace(config, limit=0, drop_last=False, instances=0)
    if config.limit > len(train):
        raise UserError(f"data.limit is {config.limit}, but there are only {len(train)} training images")
    held_out = train.rest(config.limit) if config.limit and people is None else None
    if config.limit:
        train = train.first(config.limit)
    if config.validate_on == "held_out" and len(train):
        if held_out is None or not len(held_out):
            raise UserError("data.validate_on held_out needs a data.limit that leaves training images")
        val, held_out = held_out, None
    if config.val_limit > len(val):
        raise UserError(f"data.val_limit is {config.val_limit}, but there are only {len(val)} validation images")
    if config.val_limit:
        if people is not None:
            raise UserError("data.val_limit is for classification: re-identification needs the whole gallery")
        chosen = torch.randperm(len(val), generator=generator("validation limit"))[: config.val_limit].sort().values
        val = val.take(chosen)
    labels = corrupt_labels(train.labels, len(train.classes), config.corrupt_rate, config.corrupt_mode, seed)
    if config.drop_last and len(train) < config.batch_size:
        raise UserError(
            f"data.drop_last leaves nothing of {len(train)} training images: they do not fill one batch of "
            f"{config.batch_size}"
        )
    if config.instances and not class_steps(labels, config.batch_size, config.instances):
        raise UserError(
            f"{len(train.classes)} identities do not fill one batch of {config.batch_size} images, "
            f"{config.instances} each (data.instances); lower data.batch_size"
        )
    return Dataset(config, seed, train.relabelled(labels), val, shape, people, held_out)


def read_images(root: str, may_lack: Literal["", "train", "val"] = "") -> tuple[ImageSplit, ImageSplit]:
    """Train and val splits of a data set of Hugging Face, of shards, or of a folder of classes, which may lack one."""
    if is_sharded(root):  # first: an address may begin with hf:// too
        return shards(root)
    return hub(root) if root.startswith(PREFIX) else folder(root, may_lack)


def _cores_of(rank: Rank) -> int:
    """A process's share of the machine's cores; all it may run on if it was given cores of its own, as by SLURM."""
    return cores() if cores() < (os.cpu_count() or 1) else cores() // rank.local_size


def _arrays(config: DataConfig) -> tuple[ArraySplit, ArraySplit]:
    if config.name == "digits":
        return arrays.digits()
    return arrays.cifar10(config.root) if config.name == "cifar10" else arrays.cifar100(config.root)
