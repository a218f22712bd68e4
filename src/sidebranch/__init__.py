"""Train image classifiers with side branches, ship them without."""

from sidebranch.attach import attach
from sidebranch.branches import (
    BranchCheck,
    Grown,
    Growth,
    check_branches,
    grow,
    last_stride_one,
    movable,
    pooled_head,
    small_input,
)
from sidebranch.errors import UserError
from sidebranch.model import BranchedModel, Outputs, SideBranch
from sidebranch.objective import Loss, Objective, baseline, dhm, dks, dsl, kd
from sidebranch.sampling import Bernoulli, Categorical, Draw, Fixed, MovingRoots
from sidebranch.zoo import block_branch, load_reference

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "BranchCheck",
    "BranchedModel",
    "Categorical",
    "Draw",
    "Fixed",
    "Grown",
    "Growth",
    "Loss",
    "MovingRoots",
    "Objective",
    "Outputs",
    "SideBranch",
    "UserError",
    "attach",
    "baseline",
    "block_branch",
    "check_branches",
    "dhm",
    "dks",
    "dsl",
    "grow",
    "kd",
    "last_stride_one",
    "load_reference",
    "movable",
    "pooled_head",
    "small_input",
]
