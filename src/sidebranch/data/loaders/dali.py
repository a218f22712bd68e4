"""Batches of encoded images, decoded and resized by NVIDIA DALI on its CPU threads or on a CUDA device.

In: files and labels. Out: the batches of `EncodedLoader`: the same crops of the same files in the same order. A batch
that DALI cannot decode is decoded by Pillow, which names the unreadable files.
"""

from __future__ import annotations

import importlib
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidebranch.data.augmentation.batched import IMAGENET, Normalisation
from sidebranch.data.augmentation.crops import Crop, FolderTransform, crop_of, cut
from sidebranch.data.loaders.order import Rank, batches_of, steps_of
from sidebranch.data.sources.decoding import UNREADABLE
from sidebranch.data.sources.images import ImageSplit
from sidebranch.errors import UserError

DEPTH = 2  # batches in the pipeline


@dataclass
class _Batch:
    """Input of the pipeline: files as bytes, their crops and labels; and the paths of unreadable files."""

    files: list[bytes]
    paths: list[str]
    crops: list[Crop]
    labels: Tensor
    bad: list[str]


class DaliLoader:
    """Normalised float32 batches on the device and their labels; the arguments are `EncodedLoader`'s.

    Raises:
        UserError: DALI is not installed.
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: FolderTransform,
        batch_size: int,
        *,
        device: torch.device,
        training: bool,
        seed: int = 0,
        workers: int = 0,
        drop_last: bool = False,
        on_corrupt: Literal["error", "skip"] = "error",
        normalisation: Normalisation = IMAGENET,
        rank: Rank = Rank(),
    ) -> None:
        self.split, self.transform, self.batch_size = split, transform, batch_size
        self.device, self.training, self.seed, self.threads = device, training, seed, max(1, workers)
        self.drop_last, self.on_corrupt, self.normalisation, self.rank = drop_last, on_corrupt, normalisation, rank
        self.corrupt: set[str] = set()
        self._pipeline: Any = None
        _dali()  # raises if DALI is missing

    def __len__(self) -> int:
        """Batches per epoch."""
        return steps_of(len(self.split), self.batch_size, shuffle=self.training, drop_last=self.drop_last)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [N, 3, H, W] and labels [N] of this epoch, from batch `start` on; N is 0 where all were skipped."""
        order = {"seed": self.seed, "epoch": epoch, "shuffle": self.training, "drop_last": self.drop_last}
        indices = batches_of(len(self.split), self.batch_size, **order, rank=self.rank, groups=self.split.groups)
        pending: deque[_Batch] = deque()
        with ThreadPoolExecutor(self.threads) as readers:
            try:
                for index in indices[start:]:
                    batch = self._read(readers, index.tolist(), epoch)
                    pending.append(batch)
                    self._feed(batch)
                    if len(pending) == DEPTH:
                        yield self._take(pending)
                while pending:
                    yield self._take(pending)
            finally:
                if pending:  # stopped early: the pending batches would come out in the next epoch
                    self._pipeline = None

    def _read(self, readers: ThreadPoolExecutor, index: list[int], epoch: int) -> _Batch:
        batch = _Batch([], [], [], torch.empty(0), [])
        good = []
        for at, file in zip(index, readers.map(self._bytes_of, index), strict=True):
            path = self.split.name(at)
            try:
                with Image.open(io.BytesIO(file)) as opened:  # the header only
                    batch.crops.append(crop_of(self.transform, opened, self.training, self.seed, epoch, at))
            except UNREADABLE:
                batch.bad.append(path)
                continue
            good.append(at)
            batch.files.append(file)
            batch.paths.append(path)
        batch.labels = self.split.labels[good]
        return batch

    def _bytes_of(self, index: int) -> bytes:
        """The content of a file; empty if it cannot be read."""
        try:
            return self.split.read(index)
        except OSError:
            return b""

    def _feed(self, batch: _Batch) -> None:
        if not batch.files:
            return
        if self._pipeline is None:
            self._pipeline = _pipeline(self.transform.size, self.batch_size, self.threads, self.device)
        self._pipeline.feed_input("files", [np.frombuffer(file, np.uint8) for file in batch.files])
        self._pipeline.feed_input("start", np.array([(each.top, each.left) for each in batch.crops], np.float32))
        self._pipeline.feed_input("end", np.array([(each.bottom, each.right) for each in batch.crops], np.float32))
        self._pipeline.feed_input("mirrored", np.array([each.mirrored for each in batch.crops], np.int32))
        self._pipeline.schedule_run()

    def _take(self, pending: deque[_Batch]) -> tuple[Tensor, Tensor]:
        """The oldest batch."""
        batch = pending.popleft()
        if not batch.files:
            images = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        elif self._pipeline is None:
            images = self._by_pillow(batch)
        else:
            try:
                (output,) = self._pipeline.share_outputs()
                images = torch.from_dlpack(output.as_tensor()).clone()
                self._pipeline.release_outputs()
            except (RuntimeError, IndexError):  # DALI cannot decode one of the files
                self._pipeline = None
                images = self._by_pillow(batch)
                for each in pending:
                    self._feed(each)
        if batch.bad and self.on_corrupt == "error":
            raise UserError(f"cannot read the image '{batch.bad[0]}'; remove it, or pass --data.on_corrupt skip")
        self.corrupt.update(batch.bad)
        labels = batch.labels.to(self.device, non_blocking=True)
        return self.normalisation(images.to(self.device, non_blocking=True)), labels

    def _by_pillow(self, batch: _Batch) -> Tensor:
        """The same images, decoded by Pillow; unreadable files go to `bad`."""
        squares, good = [], []
        for place, (path, file, crop) in enumerate(zip(batch.paths, batch.files, batch.crops, strict=True)):
            try:
                with Image.open(io.BytesIO(file)) as opened:
                    squares.append(cut(opened, crop, self.transform.size))
                good.append(place)
            except UNREADABLE:
                batch.bad.append(path)
        batch.labels = batch.labels[good]
        return torch.stack(squares) if squares else torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _pipeline(size: int, batch_size: int, threads: int, device: torch.device) -> Any:
    """Bytes, boxes and flips to uint8 [N, 3, size, size]."""
    dali = _dali()
    on_gpu = device.type == "cuda"
    fn, types = dali.fn, dali.types
    made = dali.Pipeline(batch_size, threads, (device.index or 0) if on_gpu else None, prefetch_queue_depth=DEPTH)
    with made:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
        end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
        mirrored = fn.external_source(name="mirrored", dtype=types.INT32, ndim=0)
        images = fn.decoders.image(
            files, device="mixed" if on_gpu else "cpu", adjust_orientation=False, jpeg_fancy_upsampling=True
        )
        square = fn.resize(
            images, size=[size, size], roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR, antialias=True
        )
        made.set_outputs(fn.transpose(fn.flip(square, horizontal=mirrored), perm=[2, 0, 1]))
    made.build()
    return made


def _dali() -> Any:
    try:
        return importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise UserError(
            "data.backend dali needs NVIDIA DALI (Linux): pip install 'sidebranch[dali]', or for CUDA 12 "
            "nvidia-dali-cuda120; or take --data.backend draft"
        ) from error
