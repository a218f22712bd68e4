"""Early exit as ONNX files, one an exit, since a graph with branches is what runtimes do not take.

In: an `EarlyExit` and a folder. Out: exit0-b2.onnx, exit1-main.onnx, ..., run.py, and what run.py must know of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidebranch.branches.early_exit import START, EarlyExit

RUNNER = "run.py"


class Segment(nn.Module):
    """One exit: what it takes of the features before it, in order, to its logits and the features that later ones take.

    Args:
        early: the whole.
        place: of the exit.

    Attributes:
        takes: names of the features that go in; "images" are the images.
        gives: names of the new features that come out after the logits.
    """

    def __init__(self, early: EarlyExit, place: int) -> None:
        super().__init__()
        step = early.steps[place]
        made = [after for _, after in step.trunks]
        self.at, self.pairs = step.at, step.trunks
        self.trunks = nn.ModuleList(early.trunk(pair) for pair in step.trunks)
        self.head = early.heads[step.name]
        self.takes = tuple(dict.fromkeys(each for each in (*(pair[0] for pair in step.trunks), step.at)))
        self.takes = tuple(each for each in self.takes if each not in made)
        self.gives = tuple(each for each in early.needed(place + 1) if each in made)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        known = dict(zip(self.takes, features, strict=True))
        for (before, after), trunk in zip(self.pairs, self.trunks, strict=True):
            known[after] = trunk(known[before])
        return (self.head(known[self.at]), *(known[each] for each in self.gives))


def write_segments(early: EarlyExit, folder: Path, size: Sequence[int]) -> dict[str, Any]:
    """Writes the files; returns what `run.py` reads of them."""
    known, exits = {START: torch.zeros(2, *size)}, []
    for place, step in enumerate(early.steps):
        segment = Segment(early, place).eval()
        file = f"exit{place}-{step.name}.onnx"
        given = [known[each] for each in segment.takes]
        torch.onnx.export(
            segment,
            (given,),
            folder / file,
            input_names=list(segment.takes),
            output_names=["logits", *segment.gives],
            dynamic_shapes=([{0: "batch"} for _ in given],),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        with torch.inference_mode():
            known |= dict(zip(segment.gives, segment(given)[1:], strict=True))
        exits.append(
            {
                "classifier": step.name,
                "file": file,
                "takes": list(segment.takes),
                "gives": list(segment.gives),
                "temperature": early.policy.temperatures.get(step.name, 1.0),
                "threshold": early.policy.thresholds.get(step.name, 0.0),  # everything leaves at the last
                "macs": step.macs,
            }
        )
    shutil.copyfile(Path(__file__).with_name("run_exits.py"), folder / RUNNER)
    return {"exits": exits, "measure": early.policy.measure, "averaged": early.policy.averaged}
