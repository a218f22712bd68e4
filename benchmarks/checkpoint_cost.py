"""What a checkpoint costs the steps around it, ResNet-50 with its published branches: results/bench/checkpoint.json.

The copy to memory stops training; the writing goes on behind it and slows steps down. Both together, by the ten minutes
from one checkpoint to the next, are the share that `runtime.checkpoint_minutes` costs.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch

import sidebranch as sb
from sidebranch.config.schema import RuntimeConfig
from sidebranch.runs import checkpoint
from sidebranch.runs.atomic_files import BackgroundWriter

RESULT = Path(__file__).parent.parent / "results" / "bench" / "checkpoint.json"


def main() -> None:
    net = sb.attach(timm.create_model("resnet50", num_classes=1000))
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])

    def step() -> float:
        started = time.perf_counter()
        sb.dhm()(net(images), labels).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    step()
    saving = BackgroundWriter()
    copies, writes, alone, beside = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            alone += [step() for _ in range(10)]
            started = time.perf_counter()
            state = checkpoint.snapshot({"model": net.state_dict(), "optimizer": optimizer.state_dict()})
            copies.append(time.perf_counter() - started)
            saving.submit(lambda state=state: checkpoint.save(Path(folder) / "last.ckpt", state))
            job, started = saving._job, time.perf_counter()
            while job is not None and not job.done():
                beside.append(step())
            saving.finish()
            writes.append(time.perf_counter() - started)
        size = (Path(folder) / "last.ckpt").stat().st_size
    saving.close()
    copy, write = statistics.median(copies), statistics.median(writes)
    slower = statistics.median(beside) / statistics.median(alone)
    seconds = copy + write * (1 - 1 / slower)
    row = {
        "model": "resnet50",
        "megabytes": round(size / 1e6),
        "copy_s": round(copy, 3),
        "write_s": round(write, 2),
        "steps_slower_while_writing": round(slower, 3),
        "share_of_ten_minutes": round(seconds / (60 * RuntimeConfig.checkpoint_minutes), 5),
    }
    RESULT.write_text(json.dumps(row, indent=1) + "\n")
    print(row)


if __name__ == "__main__":
    main()
