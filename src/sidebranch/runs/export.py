"""The file that ships: the plain backbone's weights, under its own keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from sidebranch.runs.atomic_files import write_atomically


def write_backbone(
    weights: Mapping[str, Tensor],
    path: Path,
    name: str,
    num_classes: int,
    in_chans: int,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Writes a safetensors file that `timm.create_model(name, checkpoint_path=...)` reads. Equal weights, equal bytes.

    Args:
        weights: state dict of the network without its branches.
        path: of the file; written atomically.
        name: timm's name of the network.
        num_classes: K.
        in_chans: channels of the images.
        inputs: what a user of the weights must know about the images: `Dataset.described`; None if unknown.
    """
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
    header = {"model": name, "num_classes": str(num_classes), "in_chans": str(in_chans)}
    header |= {key: json.dumps(value) for key, value in (with_crop(inputs) if inputs else {}).items()}

    def write(temporary: Path) -> None:
        temporary.write_bytes(save(tensors, metadata=header))  # `save_file` leaves it to its owner alone
        _sort_header(temporary)

    write_atomically(path, write)


def with_crop(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the images, with `crop_pct`, `crop_mode` and `interpolation` as timm means them."""
    resize, (height, width) = inputs.get("resize"), inputs["input_size"][-2:]
    is_squashed = inputs.get("squash", False) or height != width  # persons fill their boxes
    crop = inputs["input_size"][-1] / resize if resize and not is_squashed else 1.0
    mode = "squash" if is_squashed else "center"
    return {"interpolation": "bilinear", **inputs, "crop_pct": crop, "crop_mode": mode}


def _sort_header(path: Path) -> None:
    """Puts the keys of a safetensors header in order: the library writes the metadata in random order."""
    with open(path, "rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # JSON may end in spaces
            file.seek(8)
            file.write(text.ljust(size))
