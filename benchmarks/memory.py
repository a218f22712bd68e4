"""Peak memory of one DHM training step, with and without activation checkpointing; each in a process of its own.

    python benchmarks/memory.py [--model cifar_resnet1202] [--batch 16] [--output results/bench/memory-cpu.json]

On a CPU the peak is that of the process's resident memory, of which what it held before the network was built is given
beside it. On a CUDA device it is the allocator's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import timm
import torch

import sidebranch as sb
from sidebranch.runs.folder import environment
from sidebranch.train.recompute import checkpoint_activations

GIB = 1024**3


def peak_of(model: str, batch: int, checkpointed: bool) -> dict[str, float | str | int | bool]:
    """One step with SGD and momentum, float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resident()
    net = sb.attach(timm.create_model(model, num_classes=100)).to(device)
    if checkpointed:
        checkpoint_activations(net, (3, 32, 32))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch, 3, 32, 32, device=device), torch.randint(0, 100, (batch,), device=device)
    started = time.perf_counter()
    for _ in range(2):  # the second has the momentum
        optimizer.zero_grad(set_to_none=True)
        sb.dhm()(net(images), labels).total.backward()
        optimizer.step()
    seconds = (time.perf_counter() - started) / 2
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident()
    return {
        "model": model,
        "batch": batch,
        "checkpoint_activations": checkpointed,
        "peak_gib": round(peak / GIB, 2),
        "process_before_gib": round(before / GIB, 2),
        "seconds_a_step": round(seconds, 1),
    }


def resident() -> int:
    """Highest resident memory of this process so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet1202")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("results/bench/memory-cpu.json"))
    options = parser.parse_args()
    rows = []
    for checkpointed in (True, False):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(peak_of, (options.model, options.batch, checkpointed)))
        print(rows[-1], flush=True)
    facts = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
