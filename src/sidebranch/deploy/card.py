"""The model card of an export, in Hugging Face's format; `card.md.j2` says how it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidebranch.deploy.shipped import Shipped

if TYPE_CHECKING:
    from sidebranch.deploy.ship import Comparison

TIMM = """import timm, torch
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
with torch.inference_mode():
    probabilities = model(transform(Image.open("photo.jpg").convert("{mode}"))[None]).softmax(-1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()])"""
ONNX = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
({output},) = session.run(None, {{"images": images}})  # {input}"""
PT2 = """import torch

model = torch.export.load("model.pt2").module()
{output} = model(images)  # {input}"""
EXITS = """from run import EarlyExit  # run.py of this folder; ONNX Runtime and NumPy

network = EarlyExit(".")
probabilities, exits = network(images)  # {input}"""
VISION = """import torch, torchvision

model = torchvision.models.{model}(num_classes={classes})
model.load_state_dict(torch.load("model.pth", weights_only=True))
{output} = model.eval()(images)  # {input}"""
USE = {"torchvision": VISION, "early_exit": EXITS, "timm": TIMM, "onnx": ONNX, "onnx-int8": ONNX, "pt2": PT2}
LIBRARIES = {"timm": "timm", "onnx": "onnx", "onnx-int8": "onnx", "pt2": "pytorch", "torchvision": "torchvision"}


def write_card(
    path: Path,
    shipped: Shipped,
    kind: str,
    about: Mapping[str, Any],
    found: Comparison,
    errors: Mapping[str, float],
    environment: Mapping[str, Any],
) -> None:
    """Writes README.md.

    Args:
        path: of the file, beside the exported ones.
        shipped: the network.
        kind: the format.
        about: what goes in and comes out.
        found: how it compares with the training network.
        errors: classifier to its error in the run, in percent.
        environment: of the run.
    """
    from huggingface_hub import EvalResult, ModelCardData
    from jinja2 import Environment, PackageLoader

    config = shipped.config
    measured = EvalResult(
        task_type="image-classification",
        dataset_type=config.data.title,
        dataset_name=config.data.title,
        metric_type="accuracy",
        metric_value=round(100 - found.after, 4),
        metric_name=f"top-1 accuracy on {found.images} validation images, %",
    )
    front = ModelCardData(
        library_name=LIBRARIES[kind],
        pipeline_tag="image-classification",
        tags=["image-classification", "sidebranch", config.method],
        model_name=f"{about['model']}, {about['classifier']}",
        eval_results=[measured],
    )
    size = shipped.size
    shape = f"[N, {size[1]}, {size[2]}, {size[0]}], uint8" if "input" in about else f"[N, {', '.join(map(str, size))}]"
    mode = "L" if size[0] == 1 else "RGB"
    is_early_exit = about["classifier"] == "early_exit"
    digest = hashlib.sha256()
    for each in sorted(path.parent.glob("exit*.onnx" if is_early_exit else "model.*")):
        digest.update(each.read_bytes())
    page = Environment(loader=PackageLoader("sidebranch.deploy", "."), keep_trailing_newline=True)
    text = page.get_template("card.md.j2").render(
        front=front.to_yaml(),
        about=about,
        method=config.method,
        data=config.data.title,
        use=USE["early_exit" if is_early_exit else kind].format(
            mode=mode, output=about["output"], input=shape, model=about["model"], classes=about["num_classes"]
        ),
        is_own=kind == "timm" and type(shipped.module).__module__.startswith("sidebranch."),
        errors=errors,
        found=found,
        recipe=config.name,
        seed=config.seed,
        trained=str(shipped.trained),
        environment=environment,
        sha256=digest.hexdigest(),
    )
    path.write_text(text, encoding="utf-8")
