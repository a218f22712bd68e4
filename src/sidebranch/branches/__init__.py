"""How a side branch is made, and whether it keeps the papers' rules."""

from sidebranch.branches.grow import Grown, Growth, grow, movable
from sidebranch.branches.last_stride import keep_resolution, last_stage, last_stride_one
from sidebranch.branches.rules import BranchCheck, Structure, check_branches
from sidebranch.branches.simple import pooled_head
from sidebranch.branches.stem import small_input
from sidebranch.branches.tail import Tail, conv_weights_by_fan_out

__all__ = [
    "BranchCheck",
    "Grown",
    "Growth",
    "Structure",
    "Tail",
    "check_branches",
    "conv_weights_by_fan_out",
    "grow",
    "keep_resolution",
    "last_stage",
    "last_stride_one",
    "movable",
    "pooled_head",
    "small_input",
]
