"""Ours against the slow reference, in one run on the machine at hand: `make bench`.

    python benchmarks/bench.py [--only PART ...] [--seconds 5] [--output results/bench/DEVICE.json]

"Reference" is benchmarks/reference.py. "Ours" is what `sidebranch train` does by default on this resolve. The two take
turns, step by step, so that a noisy machine disturbs both alike; ratios are medians of each turn's ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import reference
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sidebranch as sb
from sidebranch.config.schema import EvalConfig, RuntimeConfig
from sidebranch.data.augmentation.batched import Augmentation, Normalisation
from sidebranch.data.augmentation.crops import FolderTransform
from sidebranch.data.loaders.dali import DaliLoader
from sidebranch.data.loaders.encoded import EncodedLoader
from sidebranch.data.loaders.in_memory import InMemoryLoader
from sidebranch.data.sources.arrays import ArraySplit
from sidebranch.data.sources.images import FileSource, ImageSplit
from sidebranch.device import WORTH_COMPILING, compile_network, resolve
from sidebranch.metrics import People, Ranker, distances_between, rank
from sidebranch.metrics.meter import Meter
from sidebranch.runs.folder import environment
from sidebranch.train.finiteness import Finiteness

METHODS = ("baseline", "dsl", "dhm")
# Name to batch and side of the images.
ON_CPU = {
    "cifar_resnet32": (128, 32),
    "cifar_resnet110": (128, 32),
    "wrn_16_8": (128, 32),
    "densenet_40_12": (128, 32),
    "resnet18": (16, 224),
}
ON_CUDA = ON_CPU | {"resnet18": (256, 224), "wrn_28_10": (128, 32), "resnet50": (256, 224)}
# What makes branches cost less, on cifar_resnet32: branches, their share of a batch, sampler.
FLAGS: dict[str, tuple[Callable[[], sb.BranchedModel], float, sb.Bernoulli | sb.Fixed]] = {
    "baseline": (lambda: network("cifar_resnet32", "baseline"), 1.0, sb.Fixed()),
    "DHM as published": (lambda: network("cifar_resnet32", "dhm"), 1.0, sb.Fixed()),
    "branches.batch_fraction 0.5": (lambda: network("cifar_resnet32", "dhm"), 0.5, sb.Fixed()),
    "sampling bernoulli 0.5, branch, per step": (
        lambda: network("cifar_resnet32", "dhm"),
        1.0,
        sb.Bernoulli(0.5, "branch", "step"),
    ),
    "model.branches auto, branches.width 1": (lambda: grown(0.5), 1.0, sb.Fixed()),
    "the same, branches.keep 0.4, branches.batch_fraction 0.5": (lambda: grown(0.4), 0.5, sb.Fixed()),
}


class OurStep:
    """As the engine does, with the choices that it makes for this resolve."""

    def __init__(
        self,
        net: sb.BranchedModel,
        method: str,
        device: torch.device,
        share: float = 1.0,
        sampler: sb.Bernoulli | sb.Fixed = sb.Fixed(),
    ) -> None:
        choices = resolve(RuntimeConfig(), device, steps=WORTH_COMPILING)
        self.layout = torch.channels_last if choices.channels_last else torch.contiguous_format
        self.net = net.to(device).to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        compile_network(self.net, choices.compile)
        self.bf16 = choices.precision == "bf16-mixed"
        self.optimizer = torch.optim.SGD(
            net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, fused=device.type == "cuda"
        )
        self.objective = {"baseline": sb.baseline, "dsl": sb.dsl, "dhm": sb.dhm}[method]()
        self.sampler, self.share, self.done = sampler, share, 0
        self.meter, self.finiteness = Meter(net.names, device), Finiteness(net.names, device)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        self.done += 1
        draw = self.sampler(self.net.names, seed=0, epoch=0, step=self.done)
        rows = None if self.share == 1 else round(self.share * len(images))
        images = images.contiguous(memory_format=self.layout)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.net(images, live=draw.live, rows=rows)
        loss = self.objective(outputs, labels, mimics=draw.mimics)
        loss.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.add(outputs.names, [each.detach() for each in outputs.logits], labels, loss.supervision)
        self.finiteness.watch(0, loss.total.detach(), outputs.names, loss.supervision, loss.mimicry)


def network(name: str, method: str, classes: int = 100) -> sb.BranchedModel:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=classes)
    return sb.attach(backbone, [] if method == "baseline" else None)


def grown(keep: float) -> sb.BranchedModel:
    torch.manual_seed(0)
    backbone = timm.create_model("cifar_resnet32", num_classes=100)
    return sb.attach(backbone, "auto", growth=sb.Growth(keep=keep, width=1.0))


def seconds(step: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def in_turns(
    steps: Mapping[str, Callable[[], object]], device: torch.device, budget: float, warm: bool = False
) -> dict[str, list[float]]:
    """Times of each, taking turns: at least 3 turns, then until the budget in seconds is used."""
    for step in () if warm else steps.values():
        seconds(step, device)
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    started = time.perf_counter()
    while len(next(iter(times.values()))) < 3 or time.perf_counter() - started < budget:
        for kind, step in steps.items():
            times[kind].append(seconds(step, device))
    return times


def quartiles(taken: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(taken, n=4)
    return {"median": round(middle * 1e3, 2), "low": round(low * 1e3, 2), "high": round(high * 1e3, 2)}


def speedup(slow: list[float], fast: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(slow, fast, strict=True)), 2)


def ceilings(device: torch.device) -> dict[str, float]:
    """What the machine can do: a large matrix product, FLOP/s, and a large copy, bytes/s (read and written)."""
    size = 2048 if device.type == "cpu" else 8192
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device, dtype=dtype)
        taken = min(seconds(lambda a=a: a @ a, device) for _ in range(8))
        found[f"matmul_{str(dtype).removeprefix('torch.')}"] = 2 * size**3 / taken
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * len(source) / min(seconds(lambda: target.copy_(source), device) for _ in range(5))
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def step_rows(device: torch.device, budget: float) -> Iterable[dict[str, Any]]:
    for name, (batch, side) in (ON_CPU if device.type == "cpu" else ON_CUDA).items():
        images = torch.randn(batch, 3, side, side, device=device)
        labels = torch.randint(0, 100, (batch,), device=device)
        for method in METHODS:
            slow = reference.Step(network(name, method).to(device), method)
            fast = OurStep(network(name, method), method, device)
            with FlopCounterMode(display=False) as counter:
                fast.net(images)
            steps = {"reference": partial(slow, images, labels), "ours": partial(fast, images, labels)}
            peaks = {f"{kind}_peak_mib": peak_mib(step, device) for kind, step in steps.items()}
            times = in_turns(steps, device, budget, warm=True)
            row = {"model": name, "method": method, "batch": batch, "side": side, "turns": len(times["ours"])}
            row |= {f"{kind}_ms": quartiles(taken) for kind, taken in times.items()}
            median = statistics.median(times["ours"])
            row |= {
                "speedup": speedup(times["reference"], times["ours"]),
                "images_per_second": round(batch / median, 1),
                "flops": float(f"{3 * counter.get_total_flops() / median:.3g}"),
            }
            yield row | peaks


def loss_row(device: torch.device, budget: float) -> dict[str, Any]:
    logits = [torch.randn(256, 1000, device=device, requires_grad=True) for _ in range(3)]
    labels = torch.randint(0, 1000, (256,), device=device)
    steps = {kind: partial(run, logits, labels) for kind, run in LOSSES.items()}
    times = in_turns(steps, device, budget)
    row: dict[str, Any] = {"rows": 256, "classes": 1000, "classifiers": 3, "turns": len(times["ours"])}
    row |= {f"{kind}_ms": quartiles(taken) for kind, taken in times.items()}
    return row | {"speedup": speedup(times["reference"], times["ours"])}


def _reference_loss(logits: list[Tensor], labels: Tensor) -> None:
    reference.loss(logits, labels, True, []).backward()


def _our_loss(logits: list[Tensor], labels: Tensor) -> None:
    sb.dhm()(sb.Outputs(("main", "b1", "b2"), tuple(logits)), labels).total.backward()


LOSSES: dict[str, Callable[[list[Tensor], Tensor], None]] = {"reference": _reference_loss, "ours": _our_loss}


def loss_memory(kind: str, device_type: str) -> float:
    """What the loss and its backward pass add at the peak, by the logits' own memory; for a process of its own."""
    device = torch.device(device_type)
    logits = [torch.randn(1024, 21841, device=device, requires_grad=True) for _ in range(3)]
    labels = torch.randint(0, 21841, (1024,), device=device)
    small = [each.detach()[:4, :8].clone().requires_grad_() for each in logits]
    LOSSES[kind](small, labels[:4] % 8)
    own = sum(each.nbytes for each in logits) / 2**20
    before = peak_mib(lambda: None, device)
    return round((peak_mib(lambda: LOSSES[kind](logits, labels), device) - before) / own, 2)


def peak_mib(step: Callable[[], object], device: torch.device) -> float:
    """Highest memory while a step runs: the allocator's on CUDA; the process's resident memory on Linux's CPUs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        seconds(step, device)
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    step()
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)


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
    step = OurStep(network("cifar_resnet32", "dhm"), "dhm", device)
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


def flag_rows(device: torch.device, budget: float) -> list[dict[str, Any]]:
    """What each flag that makes branches cheaper costs, as multiples of the baseline."""
    images = torch.randn(128, 3, 32, 32, device=device)
    labels = torch.randint(0, 100, (128,), device=device)
    steps = {}
    for flag, (make, share, sampler) in FLAGS.items():
        steps[flag] = OurStep(make(), "baseline" if flag == "baseline" else "dhm", device, share, sampler)
    times = in_turns({flag: partial(s, images, labels) for flag, s in steps.items()}, device, budget * len(FLAGS))
    macs = {flag: _macs(step, images) for flag, step in steps.items()}
    rows = []
    for flag, step in steps.items():
        rows.append(
            {
                "flag": flag,
                "macs": round(macs[flag] / macs["baseline"], 2),
                "time": round(statistics.mean(times[flag]) / statistics.mean(times["baseline"]), 2),
                "step_ms": quartiles(times[flag]),
                "peak_mib": peak_mib(partial(step, images, labels), device),
            }
        )
    return rows


def _macs(step: OurStep, images: Tensor) -> float:
    """Of a step's forward pass, the mean over 64 draws, in millions an image."""
    total = 0
    rows = None if step.share == 1 else round(step.share * len(images))
    counts: dict[tuple[str, ...], int] = {}
    for done in range(64):
        live = step.sampler(step.net.names, seed=0, epoch=0, step=done).live
        if live not in counts:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                step.net(images, live=live, rows=rows)
            counts[live] = counter.get_total_flops()
        total += counts[live]
    return total / 64 / 2 / len(images) / 1e6


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
    apart = max(abs(fast.mean_average_precision - slow[0]), abs(fast.cmc(1)[0] - slow[1]))
    return row | {"speedup": speedup(times["reference"], times["ours"]), "apart": apart}


def feature_ranking_row(device_type: str) -> dict[str, Any]:
    """The same from features: cosine distances and ranking; in a process of its own, for its peak of memory."""
    device = torch.device(device_type)
    torch.manual_seed(0)
    queries, gallery = (
        People(each.identities.to(device), each.cameras.to(device)) for each in (_people(QUERIES), _people(GALLERY))
    )
    asked, stored = torch.randn(QUERIES, FEATURES, device=device), torch.randn(GALLERY, FEATURES, device=device)

    def once() -> None:
        ranker, start = Ranker(queries, gallery), 0
        for distances in distances_between(asked, stored, "cosine", EvalConfig().chunk):
            ranker(distances, start)
            start += len(distances)

    taken = [seconds(once, device) for _ in range(8)][1:]
    peak = peak_mib(once, device) / 1024
    return {"features": FEATURES, "ours_ms": quartiles(taken), "peak_gib": round(peak, 2)}


def replica_row(device: torch.device, budget: float) -> dict[str, Any]:
    """Images a second of several runs at once, all together, by those of one alone; each a process, threads shared."""
    count = 2 if device.type == "cpu" else 8
    threads = torch.get_num_threads()
    alone = _throughput(1, threads, device, budget)
    together = _throughput(count, max(1, threads // count), device, budget)
    row: dict[str, Any] = {"model": "cifar_resnet32", "method": "dhm", "replicas": count}
    row |= {"alone_images_per_second": round(sum(alone)), "together_images_per_second": round(sum(together))}
    return row | {"ratio": round(sum(together) / sum(alone), 2)}


def _throughput(count: int, threads: int, device: torch.device, budget: float) -> list[float]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(count)
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            wanted = [pool.submit(_replica, barrier, device.type, threads, budget) for _ in range(count)]
            return [each.result() for each in wanted]


def _replica(barrier: Any, device_type: str, threads: int, budget: float) -> float:
    """Images a second of one run, from the moment that all are ready, for a budget of seconds."""
    torch.set_num_threads(threads)
    device = torch.device(device_type)
    step = OurStep(network("cifar_resnet32", "dhm"), "dhm", device)
    images, labels = torch.randn(128, 3, 32, 32, device=device), torch.randint(0, 100, (128,), device=device)
    for _ in range(3):
        seconds(partial(step, images, labels), device)
    barrier.wait()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < budget:
        seconds(partial(step, images, labels), device)
        steps += 1
    return 128 * steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["steps", "loss", "data", "flags", "replicas", "decode", "ranking"],
        default=[],
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of turns, a measurement")
    parser.add_argument("--output", type=Path, default=None, help="default: results/bench/DEVICE.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = options.output or Path("results/bench") / f"{device.type}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if options.only and path.exists() else {}
    if not found or "steps" in options.only:
        found |= {"environment": environment(device), "ceilings": ceilings(device)}

    def keep(name: str, value: Any) -> None:
        found[name] = value
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    if not options.only or "loss" in options.only:
        keep("loss", loss_row(device, options.seconds))
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            keep("loss_memory", {kind: pool.apply(loss_memory, (kind, device.type)) for kind in LOSSES})
        print("loss", found["loss"], found["loss_memory"], flush=True)
    if not options.only or "ranking" in options.only:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            features = pool.apply(feature_ranking_row, (device.type,))
        keep(
            "ranking",
            {"distances": ranking_row(options.seconds), "features": features, "environment": environment(device)},
        )
        print("ranking", found["ranking"], flush=True)
    if not options.only or "data" in options.only:
        keep("data", data_rows(device, options.seconds))
        print("data", found["data"], flush=True)
    if not options.only or "decode" in options.only:
        keep("decode", decode_rows(device, options.seconds / 2))
        for row in found["decode"]:
            print("decode", row, flush=True)
    if not options.only or "replicas" in options.only:
        keep("replicas", replica_row(device, options.seconds))
        print("replicas", found["replicas"], flush=True)
    if not options.only or "flags" in options.only:
        keep("flags", flag_rows(device, options.seconds))
        for row in found["flags"]:
            print(row, flush=True)
    if not options.only or "steps" in options.only:
        rows = []
        for row in step_rows(device, options.seconds):
            rows.append(row)
            keep("steps", rows)
            times = ", ".join(f"{kind} {row[f'{kind}_ms']['median']} ms" for kind in ("reference", "ours"))
            print(f"{row['model']} {row['method']}: {times}: {row['speedup']} times as fast", flush=True)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
