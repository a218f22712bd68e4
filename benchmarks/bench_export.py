"""Does what ships cost what a network that never had branches costs? Main's export beside it, in turns."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from timing import in_turns, quartiles, speedup
from timm.models import save_for_hf
from torch import nn

import sidebranch as sb

MODELS = {"cifar_resnet32": 32, "resnet18": 224, "resnet50": 224}  # sides of images
CPU = torch.device("cpu")


def export_rows(budget: float) -> list[dict[str, Any]]:
    """Latency of main's export by that of the network that was never branched; medians of each turn's ratio."""
    rows = []
    for name, side in MODELS.items():
        plain = timm.create_model(name, num_classes=100).eval()
        branched = sb.attach(timm.create_model(name, num_classes=100))
        branched(torch.randn(4, 3, side, side))  # a step has been taken: running statistics are not those of the start
        with tempfile.TemporaryDirectory() as folder:
            save_for_hf(sb.extract(branched.eval(), "main"), folder, safe_serialization=True)  # as deploy/ writes it
            shipped = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            runs = {"torch": (_in_torch(plain), _in_torch(shipped))}
            runs["onnxruntime"] = (_in_onnx(plain, side, Path(folder)), _in_onnx(shipped, side, Path(folder)))
            for runtime, (never, ours) in runs.items():
                for batch in (1, 32):
                    images = torch.randn(batch, 3, side, side)
                    times = in_turns({"never": partial(never, images), "ours": partial(ours, images)}, CPU, budget)
                    rows.append(
                        {
                            "model": name,
                            "runtime": runtime,
                            "batch": batch,
                            "turns": len(times["ours"]),
                            "never_branched_ms": quartiles(times["never"]),
                            "export_ms": quartiles(times["ours"]),
                            "ratio": speedup(times["ours"], times["never"]),
                        }
                    )
    return rows


def _in_torch(net: nn.Module) -> Callable[[torch.Tensor], object]:
    return torch.inference_mode()(net)


def _in_onnx(net: nn.Module, side: int, folder: Path) -> Callable[[torch.Tensor], object]:
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image, dynamic = torch.zeros(2, 3, side, side), ({0: "batch"},)
        torch.onnx.export(net, (image,), path, dynamic_shapes=dynamic, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda images: session.run(None, {given.name: images.numpy()})
