"""Export, verified: nothing stands under the final name that a fresh process did not read back and agree with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from sidebranch.branches.early_exit import EarlyExit
from sidebranch.core.exits import Answers
from sidebranch.deploy import read_back
from sidebranch.deploy.card import write_card
from sidebranch.deploy.formats import ABOUT, WRITERS, write_exits, write_onnx
from sidebranch.deploy.shipped import EARLY_EXIT, Shipped, validation_images
from sidebranch.errors import UserError, reason

IMAGES = 1000  # of the validation set, that an export is compared on
SAME_EXIT = 0.995  # share of the images that must take the exit that they take in the training network
TOLERANCE = 1e-4  # of a probability; other kernels add in another order


@dataclass(frozen=True)
class Comparison:
    """An export beside the training network, on validation images.

    Attributes:
        images: that both saw.
        difference: the largest, of a probability; early exit: of the images that took the same exit.
        agreement: images with the same answer, in percent.
        before: the training network's top-1 error, in percent.
        after: the export's.
        bytes: of the exported files.
        parameters: of the module.
        macs: multiply-adds for one image; early exit: their mean.
        milliseconds: number of images in a batch to its mean time, over batches of different images.
    """

    images: int
    difference: float
    agreement: float
    before: float
    after: float
    bytes: int
    parameters: int
    macs: int
    milliseconds: Mapping[str, float]


def export(
    shipped: Shipped,
    kind: str,
    output: Path,
    errors: Mapping[str, float],
    environment: Mapping[str, Any],
    preprocessing: bool = False,
) -> Comparison:
    """Writes a folder in a format, reads it back in a fresh process, and compares.

    Args:
        shipped: the network.
        kind: `timm`, `onnx`, `onnx-int8` or `pt2`.
        output: the folder; it must not exist.
        errors: classifier to its error in the run, in percent, for the card.
        environment: of the run, for the card.
        preprocessing: onnx: take photos as uint8 [N, H, W, C] and give probabilities.

    Raises:
        UserError: the folder exists, the format cannot hold the network, or what was read back differs.
    """
    if output.exists():
        raise UserError(f"'{output}' exists; give another --output")
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        staged = Path(temporary) / output.name
        about, found = _write(shipped, kind, staged, preprocessing)
        write_card(staged / "README.md", shipped, kind, about, found, errors, environment)
        os.replace(staged, output)
    return found


def measure(shipped: Shipped, kind: str) -> Comparison:
    """The same of an export that is not kept."""
    with tempfile.TemporaryDirectory() as temporary:
        return _write(shipped, kind, Path(temporary) / "export")[1]


def _write(shipped: Shipped, kind: str, folder: Path, preprocessing: bool = False) -> tuple[dict[str, Any], Comparison]:
    folder.mkdir()
    try:
        more = {}
        if shipped.classifier == EARLY_EXIT:
            more = {"early_exit": write_exits(shipped, folder)}
        elif preprocessing:
            write_onnx(shipped, folder, with_preprocessing=True)
        else:
            WRITERS[kind](shipped, folder)
    except (UserError, OSError):
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"--format {kind} needs {error.name}: pip install 'sidebranch[export]'") from error
    except Exception as error:  # of torch's exporters, which raise many kinds
        raise UserError(f"torch cannot export {shipped.about['model']} as {kind}: {_last_line(error)}") from error
    about = dict(shipped.about) | more | ({"output": "probabilities", "input": "uint8"} if preprocessing else {})
    (folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found = _compare(shipped, kind, folder, about, folder.parent)
    if kind != "onnx-int8" and found.difference > TOLERANCE:
        raise UserError(
            f"the {kind} export differs from the training network by {found.difference:.2g} in a probability, more "
            f"than {TOLERANCE:g}, and has other answers for {100 - found.agreement:.2f} % of the images; nothing was "
            "kept"
        )
    return about, found


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "<class" in line or "Error" in line]
    return lines[0] if lines else reason(error)


def _compare(shipped: Shipped, kind: str, folder: Path, about: Mapping[str, Any], work: Path) -> Comparison:
    images, labels = validation_images(shipped.dataset, IMAGES)
    if about.get("input") == "uint8":
        mean, std = (torch.tensor(about[each]).view(-1, 1, 1) for each in ("mean", "std"))
        pixels = (255 * (images * std + mean)).round().clamp(0, 255)
        given, images = pixels.to(torch.uint8).permute(0, 2, 3, 1), (pixels / 255 - mean) / std
    else:
        given = images
    told = [shipped.answers(batch) for batch in images.split(64)]
    answers = Answers(*map(torch.cat, zip(*told, strict=True)))
    expected, exits = answers.probabilities.double().numpy(), answers.exits.numpy()
    samples, result = work / "samples.npz", work / "result.json"
    np.savez(samples, images=given.contiguous().numpy(), output=about["output"])
    reader = f"{kind}+sidebranch" if kind == "timm" and _needs_sidebranch(shipped) else kind
    reader = EARLY_EXIT if shipped.classifier == EARLY_EXIT else reader
    command = [sys.executable, str(Path(read_back.__file__)), reader, str(folder), str(samples), str(result)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    if ran.returncode:
        message = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"a fresh process could not read the {kind} export back: {message}; nothing was kept")
    read = json.loads(result.read_text(encoding="utf-8"))
    found, classes = np.asarray(read["probabilities"]), labels.numpy()
    same = np.asarray(read["exits"]) == exits  # at a threshold, the last bit decides
    differing = np.abs(found - expected)[same if same.mean() >= SAME_EXIT else ...]
    return Comparison(
        images=len(images),
        difference=float(differing.max()),
        agreement=100 * float((found.argmax(1) == expected.argmax(1)).mean()),
        before=100 * float((expected.argmax(1) != classes).mean()),
        after=100 * float((found.argmax(1) != classes).mean()),
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        parameters=sum(each.numel() for each in shipped.module.parameters()),
        macs=round(shipped.module.macs(answers)) if isinstance(shipped.module, EarlyExit) else _macs(shipped),
        milliseconds=read["milliseconds"],
    )


def _macs(shipped: Shipped) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shipped.module(torch.zeros(1, *shipped.size))
    return counter.get_total_flops() // 2


def _needs_sidebranch(shipped: Shipped) -> bool:
    return type(shipped.module).__module__.startswith("sidebranch.")
