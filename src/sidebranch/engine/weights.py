"""The file that ships: the plain backbone, under its own keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sidebranch.engine.files import write_atomically


def write_backbone(
    weights: Mapping[str, Tensor],
    path: Path,
    name: str,
    num_classes: int,
    in_chans: int,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Writes a safetensors file that `timm.create_model(name, checkpoint_path=...)` reads; its header says of what.

    Args:
        weights: the state dict of the network without its branches.
        path: of the file; written whole or not at all.
        name: timm's, of the network.
        num_classes: K.
        in_chans: channels of the images.
        inputs: what a user of the weights must know of the images: `Inputs.described`; None if that is not known.
    """
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
    header = {"model": name, "num_classes": str(num_classes), "in_chans": str(in_chans)}
    header |= {key: json.dumps(value) for key, value in (inputs or {}).items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))
