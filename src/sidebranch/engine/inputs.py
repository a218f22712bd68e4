"""From a data config to splits, and to loaders of them on a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sidebranch import data as sources
from sidebranch.engine.config import DataConfig
from sidebranch.errors import UserError


class Loader(Protocol):
    """Batches of an epoch, from any of its steps on: float32 images [N, C, H, W] and labels [N], on the device.

    Attributes:
        corrupt: paths of the files that were left out as they are no images.
    """

    corrupt: set[str]

    def __len__(self) -> int: ...
    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Inputs:
    """A data set, read once.

    Attributes:
        train: the training split, cut to the limit, its labels corrupted where asked.
        val: the validation split.
        shape: of an image as the network sees it: channels, height, width.
        reid: who is on the images, if that is the task; "val" are its test images then.
    """

    config: DataConfig
    seed: int
    train: sources.ArraySplit | sources.ImageSplit
    val: sources.ArraySplit | sources.ImageSplit
    shape: tuple[int, ...]
    reid: sources.ReIDSet | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def described(self) -> dict[str, Any]:
        """What one must know to feed the trained network: size, normalisation of pixels in [0, 1], class names."""
        scale = self.val.normalisation if isinstance(self.val, sources.ArraySplit) else sources.IMAGENET
        known = {"input_size": list(self.eval_shape), "mean": list(scale.mean), "std": list(scale.std)}
        if self.config.name == "folder":
            known["resize"] = self.config.resize
        return {**known, "classes": list(self.classes)}

    @property
    def eval_shape(self) -> tuple[int, ...]:
        """Of a validation image as the network sees it."""
        size = self.config.eval_size
        return (3, size, size) if self.config.name == "folder" and size else self.shape

    @property
    def epoch_images(self) -> int:
        """That an epoch trains on, over all processes together."""
        size, instances = self.config.batch_size, self.config.instances
        return sources.class_steps(self.train.labels, size, instances) * size if instances else len(self.train)

    def train_loader(self, device: torch.device, shard: sources.Shard = sources.Shard()) -> Loader:
        """Shuffled and augmented."""
        return self._loader(self.train, device, shard, training=True)

    def val_loader(self, device: torch.device, shard: sources.Shard = sources.Shard()) -> Loader:
        """In the order on disk, every image once."""
        return self._loader(self.val, device, shard, training=False)

    def _loader(
        self,
        split: sources.ArraySplit | sources.ImageSplit,
        device: torch.device,
        shard: sources.Shard,
        training: bool,
    ) -> Loader:
        config = self.config
        drop_last = config.drop_last and training
        if isinstance(split, sources.ArraySplit):
            augmentation = sources.Augmentation(config.padding, config.padding_mode, config.flip) if training else None
            return sources.DeviceLoader(
                split,
                config.batch_size,
                device=device,
                seed=self.seed,
                augmentation=augmentation,
                drop_last=drop_last,
                shard=shard,
            )
        common = {
            "device": device,
            "training": training,
            "seed": self.seed,
            "workers": min(config.workers, max(1, _own_cores(shard))),
            "drop_last": drop_last,
            "on_corrupt": config.on_corrupt,
            "shard": shard,
        }
        if self.reid is not None:
            if training and config.instances and config.batch_size % (config.instances * shard.world_size):
                raise UserError(
                    f"data.batch_size is {config.batch_size}; with data.instances {config.instances} in "
                    f"{shard.world_size} processes it must be a multiple of {config.instances * shard.world_size}"
                )
            seen = sources.PersonTransform(
                (self.shape[1], self.shape[2]), config.resize, config.padding, config.flip, config.erase
            )
            return sources.FolderLoader(split, seen, config.batch_size, instances=config.instances, **common)
        repeats = config.repeats if training else 1
        decoders = {
            "draft": partial(sources.FolderLoader, repeats=repeats),
            "torchvision": partial(sources.FolderLoader, exact=True, repeats=repeats),
            "dali": sources.DaliLoader,
        }
        return decoders[config.backend](
            split,
            sources.FolderTransform(
                config.image_size if training else self.eval_shape[1],
                config.resize,
                config.scale,
                config.flip,
                config.policy,
                config.magnitude,
                config.erase,
            ),
            config.batch_size,
            **common,
        )


def read_inputs(config: DataConfig, seed: int) -> Inputs:
    """Reads or scans the data set.

    Raises:
        UserError: it is missing, damaged or wrongly laid out, or the config asks for more than it has.
    """
    known = None
    if config.name == "reid":
        known = sources.reid(config.root)
        train, val = known.train, known.test
        shape = (3, config.image_size, config.image_width or config.image_size // 2)
    elif config.name == "folder":
        train, val = read_images(config.root)
        shape = (3, config.image_size, config.image_size)
    else:
        train, val = _arrays(config)
        shape = tuple(train.images.shape[1:])
    if config.limit > len(train):
        raise UserError(f"data.limit is {config.limit}, but there are only {len(train)} training images")
    if config.limit:
        train = train.first(config.limit)
    labels = sources.corrupt_labels(train.labels, len(train.classes), config.corrupt_rate, config.corrupt_mode, seed)
    if config.drop_last and len(train) < config.batch_size:
        raise UserError(
            f"data.drop_last leaves nothing of {len(train)} training images: they do not fill one batch of "
            f"{config.batch_size}"
        )
    if config.instances and not sources.class_steps(labels, config.batch_size, config.instances):
        raise UserError(
            f"{len(train.classes)} identities do not fill one batch of {config.batch_size} images, "
            f"{config.instances} each (data.instances); lower data.batch_size"
        )
    return Inputs(config, seed, train.relabelled(labels), val, shape, known)


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_images(root: str) -> tuple[sources.ImageSplit, sources.ImageSplit]:
    """Whatever the root is: a data set of Hugging Face, shards, or a folder of classes."""
    if root.startswith(sources.HUB_PREFIX):
        return sources.hub(root)
    return sources.shards(root) if sources.is_sharded(root) else sources.folder(root)


def _own_cores(shard: sources.Shard) -> int:
    """A process's share of the machine, unless it was given cores of its own, as SLURM does."""
    return cores() if cores() < (os.cpu_count() or 1) else cores() // shard.neighbours


def _arrays(config: DataConfig) -> tuple[sources.ArraySplit, sources.ArraySplit]:
    if config.name == "digits":
        return sources.digits()
    return sources.cifar10(config.root) if config.name == "cifar10" else sources.cifar100(config.root)
