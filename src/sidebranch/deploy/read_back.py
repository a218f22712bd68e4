"""Reads an exported network as its user would: in a process of its own, by its format's runtime, without sidebranch.

python read_back.py FORMAT PATH SAMPLES.npz RESULT.json: the images in SAMPLES through the network at PATH; RESULT gets
the probabilities, the exits, and the mean milliseconds of a batch of 1 and of 32. Only the format "timm+sidebranch"
imports sidebranch, which registers its networks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Network = Callable[[Any], Any]  # images to scores, NumPy arrays; early exit, to probabilities and exits
TIMED = {1: 32, 32: 2}  # images in a batch to batches, of different images: with early exit, some take longer
REPEATS = 3


def by_timm(path: Path) -> Network:
    import timm

    return _by_torch(timm.create_model(f"local-dir:{path}", pretrained=True).eval())


def by_timm_and_sidebranch(path: Path) -> Network:
    import sidebranch  # noqa: F401 (registers its networks with timm)

    return by_timm(path)


def by_torchvision(path: Path) -> Network:
    import torch
    import torchvision

    about = json.loads((path / "sidebranch.json").read_text(encoding="utf-8"))
    network = torchvision.models.get_model(about["model"], weights=None, num_classes=about["num_classes"])
    network.load_state_dict(torch.load(path / "model.pth", weights_only=True))
    return _by_torch(network.eval())


def by_torch_export(path: Path) -> Network:
    import torch

    return _by_torch(torch.export.load(path / "model.pt2").module())


def by_onnx_runtime(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
    (inputs,) = session.get_inputs()
    return lambda images: session.run(None, {inputs.name: images})[0]


def by_early_exit(path: Path) -> Network:
    """By the folder's own run.py, which is what is tried here."""
    import runpy

    return runpy.run_path(str(path / "run.py"))["EarlyExit"](path, providers=["CPUExecutionProvider"])


def by_own_runner(path: Path) -> Network:
    """By this package's run.py, for a folder of which nothing should run."""
    import importlib

    runner: Any = importlib.import_module("sidebranch.deploy.run_exits")
    return runner.EarlyExit(path, providers=["CPUExecutionProvider"])


def by_checked_program(path: Path) -> Network:
    """As `by_torch_export`, unless the archive holds pickles, which torch would open.

    Raises:
        UserError: it holds one.
    """
    from zipfile import ZipFile

    from sidebranch.errors import UserError

    with ZipFile(path / "model.pt2") as archive:
        tables = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("_config.json")]
        if any(map(_uses_pickle, tables)):
            raise UserError(f"'{path}' holds a pickle, which could run code; no export of sidebranch does")
    return by_torch_export(path)


def _uses_pickle(config: Any) -> bool:
    """Whether an entry of the archive's tables is a pickle."""
    if isinstance(config, dict):
        return bool(config.get("use_pickle")) or any(map(_uses_pickle, config.values()))
    return isinstance(config, list) and any(map(_uses_pickle, config))


def _by_torch(network: Any) -> Network:
    import torch

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


READERS = {
    "timm": by_timm,
    "timm+sidebranch": by_timm_and_sidebranch,
    "torchvision": by_torchvision,
    "pt2": by_torch_export,
    "onnx": by_onnx_runtime,
    "onnx-int8": by_onnx_runtime,
    "early_exit": by_early_exit,
}


def main(kind: str, path: str, samples: str, result: str) -> None:
    network = READERS[kind](Path(path))
    with np.load(samples) as file:
        images, output = file["images"], str(file["output"])
    told = [network(images[at : at + 64]) for at in range(0, len(images), 64)]
    told = [each if isinstance(each, tuple) else (each, np.zeros(len(each), np.int64)) for each in told]
    scores, exits = (np.concatenate(each) for each in zip(*told))  # noqa: B905 (pairs)
    scores = scores.astype(np.float64)
    if output == "logits":
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
    times = {size: _milliseconds(network, _spread(images, size, count)) for size, count in TIMED.items()}
    Path(result).write_text(
        json.dumps({"probabilities": scores.tolist(), "exits": exits.tolist(), "milliseconds": times})
    )


def _spread(images: Any, size: int, count: int) -> list[Any]:
    """Batches of images from all over the set."""
    places = np.linspace(0, len(images) - 1, size * count).astype(int)
    return np.split(np.ascontiguousarray(images[places]), count)


def _milliseconds(network: Network, batches: list[Any]) -> float:
    """Mean time of a batch; the quickest of some passes, after one that is not counted."""
    passes = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        for images in batches:
            network(images)
        passes.append(1000 * (time.perf_counter() - started) / len(batches))
    return min(passes[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
