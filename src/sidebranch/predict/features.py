"""Photographs to features, and the nearest to a photograph. In: an opened run. Out: a .npz file, or rows of it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from sidebranch.data.augmentation.batched import Normalisation
from sidebranch.data.augmentation.crops import PersonTransform
from sidebranch.errors import UserError
from sidebranch.predict.model import Opened
from sidebranch.predict.photos import Batch, batches
from sidebranch.runs.atomic_files import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float

KEYS = {"features", "images", "model", "classifier", "checkpoint", "recipe"}
CONCAT = "concat"


@dataclass(frozen=True, eq=False)
class Table:
    """Features of photographs.

    Attributes:
        features: [N, D], float32, of length 1.
        images: [N], their files.
        model: the folder or file that made them.
        classifier: whose features they are.
        checkpoint: of a run, "last" or "best".
        recipe: of the network, for a checkpoint of other code; else empty.
    """

    features: Float[np.ndarray, "n d"]
    images: tuple[str, ...]
    model: str
    classifier: str
    checkpoint: Literal["last", "best"]
    recipe: str


def embed(
    model: Opened, paths: Sequence[str], classifier: str = "main", size: int = 64, done=lambda count: None
) -> Iterator[tuple[Float[np.ndarray, "n d"], Batch]]:
    """The unit features of photographs, in batches: what goes into a classifier's last layer.

    Args:
        model: of a run, or of the file that it ships.
        paths: of the photographs.
        classifier: "main", "b1", ..., or "concat", all of them side by side.
        size: of a batch.
        done: called with the number of files after every batch.

    Raises:
        UserError: an exported program has no features, or there is no such classifier.
    """
    net = model.network
    if net is None:
        raise UserError(
            "an exported program gives answers, not features; embed with the run's folder or model.safetensors"
        )
    if not net.classifiers:
        net.watch_features()
    known = (*net.names, CONCAT) if len(net.names) > 1 else net.names
    if classifier not in known:
        raise UserError(f"this model has no features of '{classifier}'; it has those of {', '.join(known)}")
    _, height, width = model.size
    transform = model.transform if height == width else PersonTransform((height, width))
    scale = Normalisation(tuple(model.about["mean"]), tuple(model.about["std"]))
    device = next(net.parameters()).device
    for batch in batches(paths, transform, scale, size, done=done):
        rows = np.empty((0, 0), np.float32)
        if batch.paths:
            with torch.inference_mode():
                outputs = net(batch.images.to(device))
            found = [torch.nn.functional.normalize(each.float(), dim=-1) for each in outputs.features]
            chosen = found if classifier == CONCAT else [found[outputs.names.index(classifier)]]
            rows = torch.nn.functional.normalize(torch.cat(chosen, -1), dim=-1).cpu().numpy()
        yield rows, batch


def write_table(table: Table, path: Path) -> None:
    """Writes a .npz file, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(
                file,
                features=table.features,
                images=np.array(table.images),
                model=table.model,
                classifier=table.classifier,
                checkpoint=table.checkpoint,
                recipe=table.recipe,
            )

    write_atomically(path, write)


def read_table(path: Path) -> Table:
    """What `write_table` wrote.

    Raises:
        UserError: it is missing, damaged, or another file.
    """
    if not path.is_file():
        named = path if path.suffix == ".npz" else "features.npz"
        raise UserError(f"no file of features '{path}'; make one: sidebranch embed MODEL FOLDER --output {named}")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            if missing := KEYS - set(file.files):
                raise UserError(
                    f"'{path}' is no file of features: it has no {sorted(missing)[0]}; make it anew: sidebranch embed"
                )
            images, features = tuple(map(str, file["images"])), file["features"]
            if features.ndim != 2 or len(features) != len(images):
                raise ValueError(f"features of shape {features.shape} of {len(images)} images")
            which = "best" if str(file["checkpoint"]) == "best" else "last"
            return Table(features, images, str(file["model"]), str(file["classifier"]), which, str(file["recipe"]))
    except UserError:
        raise
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"'{path}' is damaged or no file of features; make it anew: sidebranch embed") from error


def nearest(table: Table, query: Float[np.ndarray, " d"], count: int) -> list[tuple[str, float]]:
    """The files nearest to a query, and the cosine of their features; ties in the file's order."""
    cosines = table.features @ query
    order = np.argsort(-cosines, kind="stable")[:count]
    return [(table.images[each], float(cosines[each])) for each in order]
