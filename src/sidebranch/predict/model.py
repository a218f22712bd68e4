"""A trained model of any kind, opened. In: a run, an export, or a file. Out: `Opened`, pixels to answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidebranch.branches import last_stride_one, small_input
from sidebranch.config import recipe
from sidebranch.config.method import ModelConfig
from sidebranch.core.model import BranchedModel
from sidebranch.data.augmentation.batched import IMAGENET
from sidebranch.data.augmentation.crops import FolderTransform
from sidebranch.data.sources.arrays import CIFAR
from sidebranch.deploy.formats import ABOUT
from sidebranch.deploy.read_back import READERS, by_checked_program, by_own_runner
from sidebranch.deploy.restore import restored
from sidebranch.errors import UserError, nearest
from sidebranch.network import build_backbone, build_reference
from sidebranch.runs.folder import RunFolder
from sidebranch.weights import read_weights

ENSEMBLE, EXIT = "ensemble", "exit"
Answers = Mapping[str, Tensor]  # classifier to its probabilities or features; with early exit, EXIT to exits' numbers
KINDS = {"model.safetensors": "timm+sidebranch", "model.onnx": "onnx", "model.pt2": "pt2", "model.pth": "torchvision"}


@dataclass(frozen=True, eq=False)
class Opened:
    """A model and what its images must be.

    Attributes:
        about: input_size, mean, std, and how images are resized and cropped: as in the header of an exported file.
        classes: their names.
        names: of the classifiers that answer; the first counts.
        run: normalised images [N, C, H, W] to each classifier's probabilities [N, K], on the CPU.
        network: the network of a run or a file; None of an exported program.
        exits: of early exit, the classifiers that may answer, in their order.
    """

    about: Mapping[str, Any]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    run: Callable[[Tensor], Answers]
    network: BranchedModel | None = None
    exits: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return tuple(self.about["input_size"])

    @property
    def transform(self) -> FolderTransform:
        """From a photograph to the square that the network sees."""
        side = self.size[-1]
        known = self.about.get("interpolation", "bilinear"), self.about.get("resize", side)
        return FolderTransform(side, max(side, known[1]), self.about.get("squash", False), known[0])


def open_model(
    path: Path, classifier: str = "", which: Literal["last", "best"] = "last", recipe_name: str = ""
) -> Opened:
    """Opens a run's folder, an exported folder, a run's .safetensors file, or a checkpoint of the papers' public code.

    Args:
        path: of it.
        classifier: whose answer counts: "main", "b1", ..., "ensemble"; main of a run, if empty.
        which: checkpoint of a run.
        recipe_name: of the network, for a checkpoint of the public code.

    Raises:
        UserError: it is none of these, or has no such classifier.
    """
    if path.is_file() and (path.parent / ABOUT).is_file():  # the file in an exported folder stands for the folder
        path = path.parent
    if (path / ABOUT).is_file():
        return _exported(path, classifier)
    if path.is_dir():
        network, _, state = restored(RunFolder(path), which)
        return _of_network(network.eval(), state["inputs"], state["num_classes"], classifier)
    if not path.is_file():
        raise UserError(f"no model '{path}'; give a run's folder, an exported folder or a file of weights")
    if path.suffix == ".safetensors":
        return _of_header(path, classifier)
    if path.suffix == ".ckpt":
        raise UserError(f"'{path}' is a checkpoint of a run; give the run's folder")
    if not recipe_name:
        raise UserError(
            f"'{path}' does not say of which network it is; add --recipe, such as --recipe cifar100/resnet32"
        )
    config = recipe.load(recipe.find(recipe_name))
    data = config.data
    scale = CIFAR if data.name in ("cifar10", "cifar100") else IMAGENET
    width = (data.image_width or data.image_size // 2) if data.name == "reid" else data.image_size
    size = (3, data.image_size, width) if data.name in ("folder", "reid") else (3, 32, 32)
    about = {"input_size": size, "mean": scale.mean, "std": scale.std}
    about["resize"] = data.resize if data.name == "folder" else size[-1]
    network = build_reference(config, str(path), 0, size).eval()
    with torch.inference_mode():
        count = network(torch.zeros(1, *size)).main.shape[1]
    return _of_network(network, about, count, classifier)


def _of_network(net: BranchedModel, about: Mapping[str, Any], count: int, classifier: str) -> Opened:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device)
    known = (*net.names, ENSEMBLE) if len(net.names) > 1 else net.names
    names = _first(known, classifier)

    def run(images: Tensor) -> Answers:
        with torch.inference_mode():
            outputs = net(images.to(device))
        found = {name: each.float().softmax(-1).cpu() for name, each in zip(outputs.names, outputs.logits, strict=True)}
        found[ENSEMBLE] = torch.stack(list(found.values())).mean(0)
        return {name: found[name] for name in names}

    return Opened(about, _classes(about, count), names, run, net)


def _of_header(path: Path, classifier: str) -> Opened:
    """The plain backbone in the file that a run ships."""
    state, header = read_weights(path)
    if "model" not in header or "input_size" not in header:
        raise UserError(f"'{path}' has no header of sidebranch; predict with the run's folder or an exported one")
    if "classifier" in header:
        raise UserError(f"'{path}' is of one branch, {header['classifier']}; predict with the run's folder")
    backbone: nn.Module = build_backbone(
        ModelConfig(header["model"]), int(header["num_classes"]), int(header["in_chans"])
    )
    backbone = small_input(backbone) if header.get("small_input") else backbone
    backbone = last_stride_one(backbone) if header.get("last_stride") else backbone
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"'{path}' does not fit {header['model']} as timm makes it by default; predict with the run's folder"
        ) from error
    return _of_network(BranchedModel(backbone).eval(), header, int(header["num_classes"]), classifier)


def _exported(path: Path, classifier: str) -> Opened:
    """A folder of `sidebranch export`, by its format's runtime."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path / ABOUT}' is damaged; export it anew") from error
    kind = next((kind for file, kind in KINDS.items() if (path / file).is_file()), None)
    kind = "early_exit" if "early_exit" in about else kind
    if kind is None:
        raise UserError(f"'{path}' has none of {', '.join(KINDS)}; export it anew")
    readers = READERS | {"early_exit": by_own_runner, "pt2": by_checked_program}  # nothing in the folder may run
    try:
        network = readers[kind](path)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"'{path}' needs {error.name}: pip install 'sidebranch[export]'") from error
    except Exception as error:  # of the runtimes, which raise many kinds
        raise UserError(f"'{path}' cannot be read: {str(error).splitlines()[0][:200]}") from error
    names = _first((about["classifier"],), classifier)
    mean, std = (torch.tensor(about[each]).view(-1, 1, 1) for each in ("mean", "std"))
    exits = tuple(each["classifier"] for each in about.get("early_exit", {}).get("exits", ()))

    def run(images: Tensor) -> Answers:
        if about.get("input") == "uint8":
            images = (255 * (images * std + mean)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        scores = network(images.contiguous().numpy())
        if exits:
            return {names[0]: torch.from_numpy(scores[0]), EXIT: torch.from_numpy(scores[1])}
        scores = torch.from_numpy(scores)
        return {names[0]: scores if about["output"] == "probabilities" else scores.softmax(-1)}

    return Opened(about, _classes(about, about["num_classes"]), names, run, exits=exits)


def _first(known: Sequence[str], classifier: str) -> tuple[str, ...]:
    """The classifiers, the one that counts first."""
    if classifier == "early_exit" and classifier not in known:
        raise UserError(
            "early exit answers from its export: sidebranch export RUN --format onnx --classifier early_exit"
        )
    if classifier and classifier not in known:
        raise UserError(f"this model has no classifier '{classifier}'; {nearest(classifier, known)}")
    first = classifier or known[0]
    return (first, *(name for name in known if name != first))


def _classes(about: Mapping[str, Any], count: int) -> tuple[str, ...]:
    return tuple(about.get("classes") or map(str, range(count)))
