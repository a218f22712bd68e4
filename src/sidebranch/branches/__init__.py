"""How a side branch is made, and whether it keeps the papers' rules."""

from sidebranch.branches.rules import BranchCheck, Measure, check_branches
from sidebranch.branches.simple import pooled_head
from sidebranch.branches.tail import Tail, conv_weights_by_fan_out

__all__ = ["BranchCheck", "Measure", "Tail", "check_branches", "conv_weights_by_fan_out", "pooled_head"]
