"""Why grouped convolutions save less time than multiply-adds: results/bench/grouped.json.

python benchmarks/grouped.py [--budget SECONDS]
A 3x3 convolution of 128 images on one thread, bfloat16, channels-last, forward and both backward passes, in turns:
cifar_resnet32's three stages and those of a branch twice as wide. Depth-wise: as many groups as channels.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from timing import in_turns
from torch.nn.functional import conv2d

from sidebranch.runs.folder import environment

OUT = Path(__file__).parent.parent / "results" / "bench" / "grouped.json"
SHAPES = ((16, 32), (32, 16), (64, 8), (32, 32), (64, 16), (128, 8))  # channels, side
GROUPS = (1, 2, 4, 8)
BATCH = 128


def convolution(channels: int, side: int, groups: int) -> Callable[[], object]:
    """One forward pass, and the gradients of input and weight."""
    images, weight = (
        torch.randn(*shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()
        for shape in ((BATCH, channels, side, side), (channels, channels // groups, 3, 3))
    )
    upstream = torch.randn_like(images)

    def step() -> object:
        return torch.autograd.grad(conv2d(images, weight, padding=1, groups=groups), (images, weight), upstream)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    torch.set_num_threads(1)
    device = torch.device("cpu")
    cases = [(channels, side, groups) for channels, side in SHAPES for groups in (*GROUPS, channels)]
    calls = {str(case): convolution(*case) for case in cases}
    times = in_turns(calls, device, parser.parse_args().budget)
    rows = []
    for channels, side, groups in cases:
        taken, dense = times[str((channels, side, groups))], times[str((channels, side, 1))]
        share = statistics.median(one / other for one, other in zip(taken, dense, strict=True))
        rows.append(
            {
                "channels": channels,
                "side": side,
                "groups": groups,
                "ms": round(statistics.median(taken) * 1e3, 3),
                "time": round(share, 3),  # of the dense convolution's
                "macs": round(1 / groups, 3),
            }
        )
        print(rows[-1])
    OUT.write_text(json.dumps({"environment": environment(device), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
