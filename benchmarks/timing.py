"""Times and memory of steps, measured in turns so that a noisy machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


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
