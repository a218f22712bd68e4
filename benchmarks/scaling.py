"""How a step scales over processes on one machine: this file, run, writes results/bench/scaling.json.

For 1, 2 and 4 gloo processes with a thread each: images a second, the share of the step that the gradients' all-reduce
takes (the same step without it, taken in turns), and the bytes that each process reduces. On fewer cores than processes
the cores are shared, which the row says.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from lightning.fabric import Fabric

import sidebranch as sb
from sidebranch.distributed.unused_gradients import UnusedGradients

RESULT = Path(__file__).parent.parent / "results" / "bench" / "scaling.json"
MODEL, BATCH = "cifar_resnet32", 128
KINDS = {
    "baseline": (False, sb.Fixed()),
    "dhm": (True, sb.Fixed()),
    "dhm, branches sampled": (True, sb.Bernoulli(0.5, "branch", "step")),
}
TURNS = 9
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- measured: benchmarks/scaling.py --page writes from here -->", "<!-- to here -->"
SECONDS = 256 / 1000  # assumed: the baseline's, for a device's share
WORK = {"baseline": 1.0, "DHM": 2.03, "DHM, branches sampled": 1.52}  # by the baseline's


class Step:
    """A step of this process's share of the batch."""

    def __init__(
        self,
        fabric: Fabric,
        has_branches: bool,
        sampler: sb.Fixed | sb.Bernoulli | sb.Categorical,
        model: str = MODEL,
        images: tuple[int, int] = (BATCH, 32),
    ) -> None:
        self.fabric, self.sampler = fabric, sampler
        torch.manual_seed(0)
        self.net = sb.attach(timm.create_model(model, num_classes=100), None if has_branches else [])
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = fabric.setup_module(self.net)
        self.unused_gradients = UnusedGradients()
        self.unused_gradients.attach(self.network._forward_module)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9)
        self.objective = sb.dhm() if has_branches else sb.baseline()
        share, side = images[0] // fabric.world_size, images[1]
        self.images = torch.randn(share, 3, side, side).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 100, (share,))

    def __call__(self, number: int, together: bool) -> float:
        """Its time in seconds, until all processes are done, with the gradients reduced together or not."""
        started = time.perf_counter()
        draw = self.sampler(self.net.names, seed=0, epoch=0, step=number)
        out = [body for branch, body in self.net.branches.items() if branch not in draw.live]
        self.unused_gradients.unused = {each for body in out for each in body.parameters()}
        is_apart = self.fabric.world_size > 1 and not together
        with self.fabric.no_backward_sync(self.network, enabled=is_apart):
            outputs = self.network(self.images, live=draw.live)
            self.fabric.backward(self.objective(outputs, self.labels, mimics=draw.mimics).total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.barrier()
        return time.perf_counter() - started


def rows_of_one_count(threads: int) -> list[dict[str, object]]:
    """In each of the processes that torchrun or the plain interpreter started."""
    torch.set_num_threads(threads)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="cpu",
        devices=world,
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        precision="bf16-mixed" if torch.cpu.get_capabilities().get("avx512_bf16") else "32-true",
    )
    fabric.launch()
    rows = []
    for kind, (has_branches, sampler) in KINDS.items():
        step = Step(fabric, has_branches, sampler)
        for number in range(3):
            step(number, True)
        step.unused_gradients.sent = 0
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(TURNS):
            # DDP does not bear steps apart of other branches than the step together has.
            for together in (True, False) if isinstance(sampler, sb.Fixed) else (True,):
                times[together].append(step(number, together))
        whole = statistics.mean(times[True])
        alone = statistics.mean(times[False]) if times[False] else None
        rows.append(
            {
                "kind": kind,
                "processes": world,
                "threads": threads,
                "images_per_second": round(BATCH / whole, 1),
                "step_ms": round(1000 * whole, 1),
                "quartiles_ms": [round(1000 * each, 1) for each in statistics.quantiles(times[True])[::2]],
                "communication": round(max(0.0, 1 - alone / whole), 3) if world > 1 and alone else None,
                "reduced_mb": round(step.unused_gradients.sent / TURNS / 1e6, 2) if world > 1 else 0.0,
            }
        )
    return rows if fabric.is_global_zero else []


def gradients() -> dict[str, float]:
    """Megabytes of ResNet-50's gradients that two processes reduce, by the branches that live in the step."""
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true", precision="32-true")
    fabric.launch()
    found = {}
    for live in ("baseline", "none", "b1", "b2", "b1+b2"):
        sampler = sb.Fixed() if live == "baseline" else sb.Categorical({live: 1.0}, "branch", "step")
        step = Step(fabric, live != "baseline", sampler, "resnet50", (4, 64))
        for number in range(2):  # DDP puts its buckets together anew after the first
            step(number, True)
        step.unused_gradients.sent = 0
        step(2, True)
        found[live] = round(step.unused_gradients.sent / 1e6, 1)
    return found if fabric.is_global_zero else {}


def page() -> str:
    """The part of docs/scaling.md that is numbers."""
    measured = json.loads(RESULT.read_text(encoding="utf-8"))
    lines = [
        f"## Measured: {measured['model']}, batches of {measured['batch']}, {measured['cores']} CPU cores, gloo",
        "",
        "`make bench-scaling`; means of one run, bf16. Communication is the share of the step that goes when the",
        "gradients are not reduced. Two processes with a thread each are compared with one process with two threads.",
        "",
        "| | processes | threads each | images/s | communication | reduced, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        share = "" if row["communication"] is None else f"{row['communication']:.1%}"
        lines.append(
            f"| {row['kind']} | {row['processes']} | {row['threads']} | {row['images_per_second']:,.0f} | {share} | "
            f"{row['reduced_mb'] or ''} |"
        )
    rates = {(row["kind"], row["processes"], row["threads"]): row["images_per_second"] for row in measured["rows"]}
    gains = ", ".join(f"{rates[kind, 2, 1] / rates[kind, 1, 2]:.2f} ({kind})" for kind in KINDS)
    alone = ", ".join(f"{rates[kind, 2, 1] / rates[kind, 1, 1]:.2f} ({kind})" for kind in KINDS)
    lines += [
        "",
        f"Two processes against one on the same two cores: {gains}",
        f"times the images a second; against one process on one core: {alone}. Four processes",
        "share the two cores and gain nothing: what they lose is the price of processes. DDP's buckets hold 25 MB: all",
        "of this small network lies in few, its branches beside main, so that leaving branches out sends no less.",
        "",
        "## A model of the step, ResNet-50 at 224x224",
        "",
        "t = c + max(0, r - 2c/3) + d",
        "",
        "- c: computing of a device's share, two thirds of it the backward pass, which hides the all-reduce;",
        "- r = 2 (N - 1)/N B/w + 2 (N - 1) 20 us: a ring over N devices, B bytes of gradients, w bytes a second;",
        "- d: waiting for data, taken as 0.",
        "",
        "Assumed: 256 images a device, 1,000 images a second for the baseline, 2.03 times its arithmetic with branches",
        "(`sidebranch branches resnet50`), half of the excess with sampling. Each cell: r, and c/t.",
        "",
        "| | B, MB | w, GB/s | 8 GPUs | 64 | 512 |",
        "|---|---|---|---|---|---|",
    ]
    sent = measured["gradients_mb"]
    sampled = sum(sent[live] for live in ("none", "b1", "b2", "b1+b2")) / 4
    sizes = sent["baseline"], sent["b1+b2"], sampled
    for speed in (25.0, 1.25):
        for (kind, work), size in zip(WORK.items(), sizes, strict=True):
            cells = [_cell(size, work * SECONDS, speed, count) for count in (8, 64, 512)]
            lines.append(f"| {kind} | {size:.0f} | {speed} | {' | '.join(cells)} |")
    lines += [
        "",
        "Gradients that two processes reduced, ResNet-50 with its published branches, by those that live in the step:",
        ", ".join(f"{live} {size:.0f} MB" for live, size in sent.items()) + " (none: main alone). Each branch with",
        f"probability 1/2: {sampled:.0f} MB a step.",
    ]
    return "\n".join([*lines, ""])


def _cell(megabytes: float, computing: float, speed: float, count: int) -> str:
    reducing = 2 * (count - 1) / count * megabytes / 1e3 / speed + 2 * (count - 1) * 20e-6
    step = computing + max(0.0, reducing - 2 / 3 * computing)
    return f"{1000 * reducing:.0f} ms, {computing / step:.0%}"


def write_page(check: bool) -> int:
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    fresh = f"{head}{BEGIN}\n{page()}{END}{rest.split(END)[1]}"
    if check:
        return int(fresh != text)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


def main() -> int:
    if sys.argv[1:] in (["--page"], ["--check"]):
        return write_page(sys.argv[1] == "--check")
    if sys.argv[1:] == ["gradients"]:
        found = gradients()
        if found:
            print(json.dumps(found))
        return 0
    if len(sys.argv) > 1:
        rows = rows_of_one_count(int(sys.argv[1]))
        if rows:
            print(json.dumps(rows))
        return 0
    cores = len(os.sched_getaffinity(0))
    rows = []
    for count, threads in ((1, cores), (1, 1), (2, 1), (4, 1)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = (command if count > 1 else [sys.executable]) + [__file__, str(threads)]
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        rows += json.loads(output.stdout.strip().splitlines()[-1])
        print(*rows[-len(KINDS) :], sep="\n", flush=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    output = subprocess.run([*command, "gradients"], stdout=subprocess.PIPE, text=True, check=True)
    sent = json.loads(output.stdout.strip().splitlines()[-1])
    facts = {"cores": cores, "model": MODEL, "batch": BATCH, "torch": torch.__version__}
    RESULT.write_text(json.dumps(facts | {"gradients_mb": sent, "rows": rows}, indent=1) + "\n")
    return write_page(False)


if __name__ == "__main__":
    raise SystemExit(main())
