"""One training step of a CIFAR network with the papers' branches: ours against the plain way, in one run.

    python benchmarks/step.py [--model cifar_resnet32] [--repeats 15] [--output results/bench/step-HARDWARE.json]

"Plain" is written from the papers' formulas as one would at first: eager, float32, NCHW, one Kullback-Leibler kernel a
pair, a host synchronisation a term. "Ours" is what `sidebranch train` does by default on this hardware: its precision
and layout, the stacked loss, metrics accumulated on the device. The two take turns, step by step, so that a noisy
machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import sidebranch as sb
from sidebranch.engine.build import hardware
from sidebranch.engine.config import RuntimeConfig
from sidebranch.engine.meter import Finiteness, Meter
from sidebranch.engine.run_folder import environment

BATCH, CLASSES = 128, 100
METHODS = ("baseline", "dsl", "dhm")


def plain_step(name: str, method: str, device: torch.device, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Eager, float32, NCHW; a kernel and a synchronisation a term."""
    net = network(name, method).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, foreach=False)
    log = []

    def step() -> None:
        logits = net(images).logits
        total = torch.zeros((), device=device)
        for each in logits:
            term = F.cross_entropy(each, labels)
            log.append(term.item())
            total = total + term
        if method == "dhm":
            for p, teacher in enumerate(logits):
                for q, student in enumerate(logits):
                    if p != q:
                        term = F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="batchmean")
                        log.append(term.item())
                        total = total + term
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for each in logits:
            log.append((each.argmax(1) == labels).float().mean().item())

    return step


def our_step(name: str, method: str, device: torch.device, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """As the engine does, with the choices that it makes for this hardware."""
    choices = hardware(RuntimeConfig(), device)
    net = network(name, method).to(device)
    layout = torch.channels_last if choices.channels_last else torch.contiguous_format
    net = net.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    images = images.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    objective = {"baseline": sb.baseline, "dsl": sb.dsl, "dhm": sb.dhm}[method]()
    sampler = sb.Fixed()
    meter, finiteness = Meter(net.names, device), Finiteness(net.names, device)

    def step() -> None:
        draw = sampler(net.names, seed=0, epoch=0, step=0)
        with torch.autocast(device.type, torch.bfloat16, enabled=choices.precision == "bf16-mixed"):
            outputs = net(images, live=draw.live)
        loss = objective(outputs, labels, mimics=draw.mimics)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.add(outputs.names, torch.stack([each.detach() for each in outputs.logits]), labels, loss.supervision)
        finiteness.watch(0, loss.total.detach(), outputs.names, loss.supervision, loss.mimicry)

    return step


def network(name: str, method: str) -> sb.BranchedModel:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=CLASSES)
    return sb.attach(backbone, [] if method == "baseline" else "paper")


def seconds(step: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet32")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=None, help="default: results/bench/step-DEVICE.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    labels = torch.randint(0, CLASSES, (BATCH,), device=device)
    rows = []
    for method in METHODS:
        steps = {
            "plain": plain_step(options.model, method, device, images, labels),
            "ours": our_step(options.model, method, device, images, labels),
        }
        for step in steps.values():
            for _ in range(3):
                seconds(step, device)
        times: dict[str, list[float]] = {kind: [] for kind in steps}
        for _ in range(options.repeats):
            for kind, step in steps.items():
                times[kind].append(seconds(step, device))
        row: dict[str, str | float] = {"model": options.model, "method": method, "batch": BATCH}
        for kind, taken in times.items():
            low, middle, high = statistics.quantiles(taken, n=4)
            row |= {f"{kind}_ms": round(middle * 1e3, 1), f"{kind}_quartiles_ms": f"{low * 1e3:.1f}-{high * 1e3:.1f}"}
        ratios = [ours / plain for ours, plain in zip(times["ours"], times["plain"], strict=True)]
        row["ratio"] = round(statistics.median(ratios), 3)
        rows.append(row)
        each = ", ".join(f"{kind} {row[f'{kind}_ms']} ms ({row[f'{kind}_quartiles_ms']})" for kind in times)
        print(f"{options.model} {method}: {each}: {row['ratio']} of the time", flush=True)
    path = options.output or Path("results/bench") / f"step-{device.type}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(device), "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
