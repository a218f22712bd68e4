"""Ours against the slow reference, in one run on the machine at hand: `make bench`.

    python benchmarks/bench.py [--only PART ...] [--models NAME ...] [--seconds 5] [--output results/bench/DEVICE.json]

"Reference" is benchmarks/reference.py. "Ours" is what `sidebranch train` does by default on this hardware. The two take
turns, step by step, so that a noisy machine disturbs both alike; ratios are medians of each turn's ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import reference
import torch
from bench_data import data_rows, decode_rows, feature_ranking_row, ranking_row
from bench_export import export_rows
from our_step import OurStep, grown, network
from timing import ceilings, in_turns, peak_mib, quartiles, seconds, speedup
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sidebranch as sb
from sidebranch.runs.folder import environment

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


def step_rows(device: torch.device, budget: float, models: Sequence[str]) -> Iterable[dict[str, Any]]:
    shapes = ON_CPU if device.type == "cpu" else ON_CUDA
    for name in models or shapes:
        batch, side = shapes[name]
        images = torch.randn(batch, 3, side, side, device=device)
        labels = torch.randint(0, 100, (batch,), device=device)
        for method in METHODS:
            slow = reference.Step(network(name, method).to(device), method)
            fast = OurStep(network(name, method), getattr(sb, method)(), device)
            # Of a network that is not compiled: a forward pass without its backward pass would disturb CUDA graphs.
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                slow.net(images)
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


def flag_rows(device: torch.device, budget: float) -> list[dict[str, Any]]:
    """What each flag that makes branches cheaper costs, as multiples of the baseline."""
    images = torch.randn(128, 3, 32, 32, device=device)
    labels = torch.randint(0, 100, (128,), device=device)
    steps = {}
    for flag, (make, share, sampler) in FLAGS.items():
        steps[flag] = OurStep(make(), sb.baseline() if flag == "baseline" else sb.dhm(), device, share, sampler)
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
    step = OurStep(network("cifar_resnet32", "dhm"), sb.dhm(), device)
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
        choices=["steps", "loss", "data", "flags", "replicas", "decode", "ranking", "export"],
        default=[],
    )
    parser.add_argument("--models", nargs="+", choices=list(ON_CUDA), default=[], help="of the steps")
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
    if not options.only or "export" in options.only:
        keep("export", export_rows(options.seconds))
        for row in found["export"]:
            print("export", row, flush=True)
    if not options.only or "flags" in options.only:
        keep("flags", flag_rows(device, options.seconds))
        for row in found["flags"]:
            print(row, flush=True)
    if not options.only or "steps" in options.only:
        rows = []
        for row in step_rows(device, options.seconds, options.models):
            rows.append(row)
            keep("steps", rows)
            times = ", ".join(f"{kind} {row[f'{kind}_ms']['median']} ms" for kind in ("reference", "ours"))
            print(f"{row['model']} {row['method']}: {times}: {row['speedup']} times as fast", flush=True)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
