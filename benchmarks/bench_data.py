"""The benchmark's rows of data: augmentation, decoding, ranking."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import reference
import torch
from our_step import OurStep, network
from PIL import Image
from timing import in_turns, peak_mib, quartiles, seconds, speedup

import sidebranch as sb
from sidebranch.config.data import EvalConfig
from sidebranch.data.augmentation.batched import Augmentation, Normalisation
from sidebranch.data.augmentation.crops import FolderTransform
from sidebranch.data.loaders.dali import DaliLoader
from sidebranch.data.loaders.encoded import EncodedLoader
from sidebranch.data.loaders.in_memory import InMemoryLoader
from sidebranch.data.sources.arrays import ArraySplit
from sidebranch.data.sources.images import FileSource, ImageSplit
from sidebranch.metrics import People, Ranker, distances_between, rank


def data_rows(device: torch.device, budget: float) -> dict[str, Any]:
    """Augmentation alone, one thread on a CPU; and an epoch's steps with their data against those on one batch."""
    pixels = torch.randint(0, 256, (12800, 3, 32, 32), dtype=torch.uint8)
    normalisation = Normalisation(reference.CIFAR_MEAN, reference.CIFAR_STD)
    split = ArraySplit(pixels, torch.randint(0, 100, (12800,)), tuple(map(str, range(100))), normalisation)
    loader = InMemoryLoader(split, 128, device=device, augmentation=Augmentation(4, "zeros", True))
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels[:128]]
    batches = loader.batches()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def ours() -> None:
        nonlocal batches
        if next(batches, None) is None:
            batches = loader.batches()
            next(batches)

    times = in_turns({"reference": lambda: reference.augment(pictures), "ours": ours}, device, budget)
    torch.set_num_threads(threads)
    row: dict[str, Any] = {f"augmentation_{kind}_ms": quartiles(taken) for kind, taken in times.items()}
    row["augmentation_speedup"] = speedup(times["reference"], times["ours"])
    row["augmentation_images_per_second"] = round(128 / statistics.median(times["ours"]))
    step = OurStep(network("cifar_resnet32", "dhm"), sb.dhm(), device)
    images, labels = next(loader.batches())

    def fixed() -> None:
        for _ in range(10):
            step(images, labels)

    def fed() -> None:
        for batch in islice(loader.batches(), 10):
            step(*batch)

    times = in_turns({"fixed": fixed, "fed": fed}, device, 2 * budget)
    row["ten_steps_fixed_ms"], row["ten_steps_fed_ms"] = quartiles(times["fixed"]), quartiles(times["fed"])
    row["fed_over_fixed"] = round(1 / speedup(times["fixed"], times["fed"]), 3)
    return row


def decode_rows(device: torch.device, budget: float) -> list[dict[str, Any]]:
    """Images a second from JPEG files to normalised training batches, one thread, by size of the file's image."""
    rows = []
    for width, height in ((500, 375), (1000, 750), (4000, 3000)):
        with tempfile.TemporaryDirectory() as folder:
            paths = tuple(f"{folder}/{number}.jpg" for number in range(16))
            for path in paths:  # as much detail as in a photo
                coarse = torch.randint(0, 256, (height // 4, width // 4, 3), dtype=torch.uint8)
                Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
            split = ImageSplit.of(FileSource(paths), torch.zeros(16, dtype=torch.int64), ("one",))
            transform = FolderTransform()
            loaders = {
                "torchvision": EncodedLoader(split, transform, 16, device=device, training=True, exact=True),
                "draft": EncodedLoader(split, transform, 16, device=device, training=True),
                "dali": DaliLoader(split, transform, 16, device=device, training=True),
            }
            times = in_turns({name: partial(_an_epoch, each) for name, each in loaders.items()}, device, budget)
        medians = {name: round(16 / statistics.median(taken), 1) for name, taken in times.items()}
        rows.append({"width": width, "height": height, "images_per_second": medians})
    return rows


def _an_epoch(loader: EncodedLoader | DaliLoader) -> None:
    for _ in loader.batches():
        pass


QUERIES, GALLERY, IDENTITIES, CAMERAS, FEATURES = 3368, 15913, 751, 6, 2048  # Market-1501's test, without junk


def _people(count: int) -> People:
    return People(torch.randint(1, IDENTITIES + 1, (count,)), torch.randint(1, CAMERAS + 1, (count,)))


def ranking_row(budget: float) -> dict[str, Any]:
    """mAP and CMC of the whole gallery for every query, the distances given; on the CPU."""
    torch.manual_seed(0)
    queries, gallery, distances = _people(QUERIES), _people(GALLERY), torch.rand(QUERIES, GALLERY)
    steps: dict[str, Callable[[], object]] = {
        "reference": partial(reference.rank, distances, queries, gallery),
        "ours": partial(rank, distances, queries, gallery),
    }
    times = in_turns(steps, torch.device("cpu"), budget)
    slow, fast = reference.rank(distances, queries, gallery), rank(distances, queries, gallery)
    row: dict[str, Any] = {"queries": QUERIES, "gallery": GALLERY, "turns": len(times["ours"])}
    row |= {f"{kind}_ms": quartiles(taken) for kind, taken in times.items()}
    difference = max(abs(fast.mean_average_precision - slow[0]), abs(fast.cmc(1)[0] - slow[1]))
    return row | {"speedup": speedup(times["reference"], times["ours"]), "apart": difference}


def feature_ranking_row(device_type: str) -> dict[str, Any]:
    """The same from features: cosine distances and ranking; in a process of its own, for its peak of memory."""
    device = torch.device(device_type)
    torch.manual_seed(0)
    queries, gallery = (
        People(each.identities.to(device), each.cameras.to(device)) for each in (_people(QUERIES), _people(GALLERY))
    )
    queried, stored = torch.randn(QUERIES, FEATURES, device=device), torch.randn(GALLERY, FEATURES, device=device)

    def once() -> None:
        ranker, start = Ranker(queries, gallery), 0
        for distances in distances_between(queried, stored, "cosine", EvalConfig().chunk):
            ranker(distances, start)
            start += len(distances)

    taken = [seconds(once, device) for _ in range(8)][1:]
    peak = peak_mib(once, device) / 1024
    return {"features": FEATURES, "ours_ms": quartiles(taken), "peak_gib": round(peak, 2)}
