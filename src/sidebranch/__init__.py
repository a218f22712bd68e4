"""Train image classifiers with side branches, ship them without.

Names are imported when they are first used, so that `import sidebranch` takes no time; the papers' networks are
registered with timm when timm is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sidebranch._registration import register_networks

if TYPE_CHECKING:
    from sidebranch._attach import attach
    from sidebranch.branches import (
        BranchCheck,
        EarlyExit,
        Grown,
        Growth,
        OneClassifier,
        check_branches,
        extract,
        grow,
        last_stride_one,
        movable,
        pooled_head,
        small_input,
    )
    from sidebranch.core import (
        Bernoulli,
        BranchedModel,
        Categorical,
        Draw,
        Ensemble,
        ExitPolicy,
        Fixed,
        Loss,
        MovingRoots,
        Objective,
        Outputs,
        SideBranch,
        TripletLoss,
        baseline,
        best_teacher,
        byot,
        dhm,
        dks,
        dsl,
        kd,
        mean_teacher,
        one,
        pcl,
    )
    from sidebranch.errors import UserError
    from sidebranch.zoo import block_branch, load_reference

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "BranchCheck",
    "BranchedModel",
    "Categorical",
    "Draw",
    "EarlyExit",
    "Ensemble",
    "ExitPolicy",
    "Fixed",
    "Grown",
    "Growth",
    "Loss",
    "MovingRoots",
    "Objective",
    "OneClassifier",
    "Outputs",
    "SideBranch",
    "TripletLoss",
    "UserError",
    "attach",
    "baseline",
    "best_teacher",
    "block_branch",
    "byot",
    "check_branches",
    "dhm",
    "dks",
    "dsl",
    "extract",
    "grow",
    "kd",
    "last_stride_one",
    "load_reference",
    "mean_teacher",
    "movable",
    "one",
    "pcl",
    "pooled_head",
    "small_input",
]

# Module to the public names in it; a test compares it with the imports above.
_MODULES = {
    "_attach": ("attach",),
    "branches": (
        "BranchCheck",
        "EarlyExit",
        "Grown",
        "Growth",
        "OneClassifier",
        "check_branches",
        "extract",
        "grow",
        "last_stride_one",
        "movable",
        "pooled_head",
        "small_input",
    ),
    "core": (
        "Bernoulli",
        "BranchedModel",
        "Categorical",
        "Draw",
        "Ensemble",
        "ExitPolicy",
        "Fixed",
        "Loss",
        "MovingRoots",
        "Objective",
        "Outputs",
        "SideBranch",
        "TripletLoss",
        "baseline",
        "best_teacher",
        "byot",
        "dhm",
        "dks",
        "dsl",
        "kd",
        "mean_teacher",
        "one",
        "pcl",
    ),
    "errors": ("UserError",),
    "zoo": ("block_branch", "load_reference"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sidebranch' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"sidebranch.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_networks()
