"""What a step of each row of a study costs: results/STUDY/costs.json.

python benchmarks/branch_costs.py [STUDY] [--only ROW ...] [--budget SECONDS] [flags of `sidebranch train`]
Steps of all rows take turns, on a batch at hand; times are multiples of the baseline's in the same turn.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from our_step import OurStep
from timing import in_turns, quartiles

import sidebranch as sb
from sidebranch.config.schema import Config
from sidebranch.inspect.cost import costs
from sidebranch.network import build_network
from sidebranch.runs.folder import environment
from sidebranch.study.spec import read_study
from sidebranch.train.setup import build_objective, build_sampler

RESULTS = Path(__file__).parent.parent / "results"
# Groups of b1 and b2's convolutions, as published: their cost alone, to see whether training is worth it.
GROUPED = {f"convolutions of {groups} groups": groups for groups in (2, 4, 8)} | {"depth-wise convolutions": 0}


def shape_of(config: Config) -> tuple[int, int, int]:
    side = config.data.image_size if config.data.name == "folder" else 32
    return 3, side, side


def step_of(config: Config, device: torch.device) -> OurStep:
    net = build_network(config, 100, shape_of(config))
    sampler = build_sampler(config.sampling, net.names)
    return OurStep(net, build_objective(config), device, config.branches.batch_fraction, sampler)


def grouped(config: Config, groups: int, device: torch.device) -> OurStep:
    """DHM as published, with grouped 3x3 convolutions in its branches; of 0 groups: with as many as there can be."""
    net = build_network(config, 100, (3, 32, 32))
    for body in net.branches.values():
        for path, layer in list(body.named_modules()):
            if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
                sizes = layer.in_channels, layer.out_channels, 3, layer.stride, 1
                parent, _, name = path.rpartition(".")
                count = groups or math.gcd(layer.in_channels, layer.out_channels)
                setattr(body.get_submodule(parent), name, torch.nn.Conv2d(*sizes, groups=count, bias=False))  # pyright: ignore[reportArgumentType]
    return OurStep(net, sb.dhm(), device)


def multiplies(net: sb.BranchedModel, config: Config) -> float:
    """Multiply-adds of one image's forward pass, as a multiple of main's; a part of the batch counts as much less."""
    main, *branches = [each.macs for each in costs(net, shape_of(config))]
    return 1 + config.branches.batch_fraction * sum(branches) / main


def share_on(config: Config) -> float:
    """Share of the epochs in which the branches train."""
    branches, epochs = config.branches, config.optim.epochs
    return ((branches.stop_epoch or epochs) - branches.start_epoch) / epochs if config.has_branches else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="cheap-branches")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds")
    options, flags = parser.parse_known_args()
    device = torch.device("cpu")
    rows = {row.variant: row.config(flags) for row in read_study(options.study).rows}
    rows = {name: config for name, config in rows.items() if not options.only or name in options.only}
    if costlier := [
        name for name, config in rows.items() if config.optim.ema or {*config.teachers} - {"best", "ensemble"}
    ]:
        raise SystemExit(f"averages and the past are not in this step: leave out {costlier} with --only")
    steps = {name: step_of(config, device) for name, config in rows.items()}
    shares = {name: share_on(config) for name, config in rows.items()}
    for name, groups in GROUPED.items() if options.study == "cheap-branches" and not options.only else ():
        steps[name], shares[name] = grouped(rows["DHM"], groups, device), 1.0
    first = rows["baseline"]
    size = first.data.batch_size
    images, labels = torch.randn(size, *shape_of(first)), torch.randint(0, 100, (size,))
    calls = {name: lambda step=step: step(images, labels) for name, step in steps.items()}
    times = in_turns(calls, device, options.budget)
    base, found = times["baseline"], []
    for name, taken in times.items():
        ratios = [shares[name] * one / other + 1 - shares[name] for one, other in zip(taken, base, strict=True)]
        # A drawn step costs one thing or another: the mean over steps is what an epoch costs.
        time = statistics.fmean(ratios) if "drawn" in name else statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        row = {"variant": name, "time": round(time, 3), "low": round(low, 3), "high": round(high, 3)}
        row["macs"] = round(multiplies(steps[name].net, rows[name] if name in rows else rows["DHM"]), 3)
        found.append(row | {"ms": quartiles(taken)})
        print(f"{time:5.2f} ({low:.2f}-{high:.2f})  {name}")
    out = RESULTS / options.study / "costs.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": environment(device), "rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
