"""A network to files that others read. In: `Shipped` and a folder. Out: the files of one format in it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidebranch.branches.early_exit import EarlyExit
from sidebranch.deploy.segments import write_segments
from sidebranch.deploy.shipped import Shipped, training_images
from sidebranch.errors import UserError

CALIBRATION = 256  # training images that int8's ranges are taken from
IMAGES = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "num_classes")  # in timm's config
ABOUT = "sidebranch.json"  # in the folder: size, normalisation, classes; the same stands in the file where it can


class WithPreprocessing(nn.Module):
    """Photos [N, H, W, C], uint8, of the network's size to probabilities [N, K]."""

    def __init__(self, shipped: Shipped) -> None:
        super().__init__()
        self.network, self.is_logits = shipped.module, shipped.about["output"] == "logits"
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(shipped.about[name]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        scores = self.network((images.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        return scores.softmax(-1) if self.is_logits else scores


def write_timm(shipped: Shipped, folder: Path) -> None:
    """timm's own hub format: config.json and model.safetensors, for `timm.create_model("local-dir:FOLDER")`.

    Raises:
        UserError: the classifier is none of timm's networks, or its stem is not.
    """
    from timm.models import save_for_hf

    if shipped.classifier != "main":
        raise UserError(
            f"timm has no network for {shipped.classifier}; --format onnx and pt2 take it, timm takes --classifier main"
        )
    if shipped.config.model.small_input:
        raise UserError(
            "timm's network has another stem than one of model.small_input; take --format onnx or pt2, or load "
            "the run's model.safetensors after sb.small_input(timm.create_model(...))"
        )
    about = shipped.about
    module: Any = shipped.module
    known = getattr(module, "pretrained_cfg", {})
    module.pretrained_cfg = {
        **{key: value for key, value in known.items() if not key.startswith("test_")},
        **{key: about[key] for key in IMAGES},
        "label_names": list(about["classes"]),
    }
    arguments = {**shipped.config.model.options}
    if shipped.size[0] != 3:
        arguments["in_chans"] = shipped.size[0]
    save_for_hf(module, str(folder), model_args=arguments or None, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["label_names"] = list(about["classes"])
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_torchvision(shipped: Shipped, folder: Path) -> None:
    """A state dict for torchvision's network of the same name, in a torch file.

    Raises:
        UserError: it has none, or one with other weights.
    """
    from torchvision.models import get_model, list_models

    name, state = shipped.about["model"], shipped.module.state_dict()
    is_known = shipped.classifier == "main" and name in list_models()
    theirs = get_model(name, weights=None, num_classes=shipped.about["num_classes"]).state_dict() if is_known else {}
    if {key: value.shape for key, value in theirs.items()} != {key: value.shape for key, value in state.items()}:
        raise UserError(
            f"torchvision has no network with the weights of {name}, {shipped.classifier}; take another format"
        )
    torch.save({key: value.contiguous() for key, value in state.items()}, folder / "model.pth")


def write_pt2(shipped: Shipped, folder: Path) -> None:
    """A program of torch.export, for any number of images."""
    with _quiet():
        torch.export.save(_program(shipped.module, shipped), folder / "model.pt2")


def write_onnx(shipped: Shipped, folder: Path, with_preprocessing: bool = False) -> None:
    """ONNX, for any number of images, with the classes and the normalisation in its metadata."""
    import onnx

    module, image = shipped.module, torch.zeros(2, *shipped.size)
    if with_preprocessing:
        module, image = WithPreprocessing(shipped).eval(), image.permute(0, 2, 3, 1).to(torch.uint8)
    path = folder / "model.onnx"
    output = "probabilities" if with_preprocessing else shipped.about["output"]
    with _quiet():
        torch.onnx.export(
            module,
            (image,),
            path,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    made = onnx.load(path)
    onnx.helper.set_model_props(made, {key: _word(value) for key, value in shipped.about.items()})
    onnx.checker.check_model(made)
    onnx.save(made, path)


def write_exits(shipped: Shipped, folder: Path) -> dict[str, Any]:
    """Early exit as one ONNX file an exit, and a runner; returns what the runner must know."""
    assert isinstance(shipped.module, EarlyExit)
    with _quiet():
        return write_segments(shipped.module, folder, shipped.size)


def write_onnx_int8(shipped: Shipped, folder: Path) -> None:
    """ONNX in int8: ONNX Runtime's static quantisation, its ranges taken from training images."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self, images: np.ndarray) -> None:
            self.batches = iter([{"images": images[at : at + 32]} for at in range(0, len(images), 32)])

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self.batches, None)

    write_onnx(shipped, folder)
    path, prepared = folder / "model.onnx", folder / "prepared.onnx"
    with _quiet():
        quant_pre_process(str(path), str(prepared))
        images = training_images(shipped.dataset, CALIBRATION).numpy()
        quantize_static(str(prepared), str(path), Images(images), per_channel=True)
    prepared.unlink()


WRITERS: dict[str, Callable[[Shipped, Path], None]] = {
    "timm": write_timm,
    "onnx": write_onnx,
    "onnx-int8": write_onnx_int8,
    "torchvision": write_torchvision,
    "pt2": write_pt2,
}


def _program(module: nn.Module, shipped: Shipped) -> torch.export.ExportedProgram:
    dynamic = {0: torch.export.Dim("batch")}
    return torch.export.export(module, (torch.zeros(2, *shipped.size),), dynamic_shapes=(dynamic,), strict=False)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _quiet() -> Any:
    """Without the exporters' remarks to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
