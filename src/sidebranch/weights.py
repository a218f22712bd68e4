"""Weights to start from: a file, a folder in timm's hub format, or a repository of the Hugging Face hub, to tensors.

Only safe formats are opened: safetensors, and torch's files with nothing but tensors and plain values in them. Imports
torch only where tensors are read, because a config's hashes are made before it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidebranch.errors import UserError, reason

if TYPE_CHECKING:
    from torch import Tensor, nn

HUB, LOCAL = "hf-hub:", "local-dir:"
FILE = "model.safetensors"  # in a folder or repository
HEADS = ("classifier.", "fc.", "head.")  # what networks of other libraries call their last layer


def weights_file(where: str) -> Path:
    """The file that `where` means; a file of the hub is downloaded, or taken from its cache.

    Args:
        where: a file; `local-dir:FOLDER`, which has a model.safetensors; or `hf-hub:OWNER/NAME`.

    Raises:
        UserError: there is none.
    """
    if where.startswith(HUB):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(where.removeprefix(HUB), FILE))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"cannot load {FILE} of '{where}' ({reason(error)}); check the name and the network, or run where the "
                "hub's cache (HF_HOME) has it"
            ) from error
    path = Path(where.removeprefix(LOCAL))
    if where.startswith(LOCAL):
        if not (path / FILE).is_file():
            raise UserError(f"'{where}' is no exported folder: it has no {FILE}")
        return path / FILE
    if path.is_dir():
        remedy = f"; write {LOCAL}{path}" if (path / FILE).is_file() else ""
        raise UserError(f"weights are a file, and '{where}' is a folder{remedy}")
    if not path.is_file():
        raise UserError(f"there is no file of weights '{where}'")
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a file, without the branches of the papers' public code, and what its header says of the images.

    Raises:
        UserError: it is damaged, or not safe to open.
    """
    from safetensors import SafetensorError, safe_open

    from sidebranch.zoo.reference import is_of_branch, read_reference

    if path.suffix != ".safetensors":
        return {key: each for key, each in read_reference(path).items() if not is_of_branch(key)}, {}
    try:
        with safe_open(path, "pt") as file:
            header = {key: _value(text) for key, text in (file.metadata() or {}).items()}
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights '{path}' are damaged: {reason(error)}") from error


def started_from(create: Callable[..., nn.Module], where: str, num_classes: int) -> tuple[nn.Module, str]:
    """A network of timm with weights of a file, by timm's own loading: stems of other channels are adapted, too.

    The classifier keeps its fresh weights where the file has none, or one for another number of classes. Every other
    tensor must be there.

    Args:
        create: makes the network, with arguments of `timm.create_model`.
        where: see `weights_file`.
        num_classes: K, of the network.

    Returns:
        The network, and a line that says which tensors were taken.

    Raises:
        UserError: there is no such file, or it is of another network.
    """
    path = weights_file(where)
    state, _ = read_weights(path)
    fresh = create(pretrained=False)
    own = fresh.state_dict()
    known: Mapping[str, Any] = getattr(fresh, "pretrained_cfg", {})
    names = known.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    if not any(key.startswith(heads) for key in state):  # another library's name for the classifier
        state = {key: value for key, value in state.items() if key in own or not key.startswith(HEADS)}
    kept = [
        key
        for key, value in own.items()
        if (key.startswith(heads) and (key not in state or state[key].shape != value.shape))
        or (key not in state and key.endswith("num_batches_tracked"))
    ]
    given = {**state, **{key: own[key] for key in kept}}
    first = next((value.shape[1] for key, value in state.items() if key == f"{known.get('first_conv')}.weight"), 3)
    overlay = {
        "state_dict": given,
        "num_classes": num_classes,  # of the tensors given, so that timm takes all or none
        "input_size": (first, *known.get("input_size", (3, 224, 224))[1:]),
        "label_offset": 0,
    }
    try:
        made = create(pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        missing = [key for key in own if key not in given]
        others = [key for key, value in given.items() if key not in own or value.shape != own[key].shape]
        found = {"missing": missing, "left over or of another shape": others}
        wrong = [f"{len(keys)} {what}, such as {keys[0]}" for what, keys in found.items() if keys]
        raise UserError(
            f"'{where}' has no weights of this network, {type(fresh).__name__} of {len(own)} tensors: "
            f"{'; '.join(wrong) or reason(error)}"
        ) from error
    heads_kept = [key for key in kept if key.startswith(heads)]
    line = f"{len(own) - len(kept)} of {len(own)} tensors are from '{where}'"
    if heads_kept:
        theirs = next((f"the file's is for {len(state[key])} classes" for key in heads_kept if key in state), "")
        line += f"; the classifier is fresh: {theirs or 'the file has none'}"
    return made, line


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
