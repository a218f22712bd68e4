"""How a side branch is made, and whether it keeps the papers' rules."""

from sidebranch.branches.early_exit import EarlyExit
from sidebranch.branches.extract import OneClassifier, extract
from sidebranch.branches.grow import Grown, Growth, grow, movable
from sidebranch.branches.last_stride import keep_resolution, last_stage, last_stride_one
from sidebranch.branches.rules import BranchCheck, Structure, check_branches
from sidebranch.branches.simple import THINNED, Kind, check_kind, pooled_head
from sidebranch.branches.stem import small_input
from sidebranch.branches.tail import Tail, conv_weights_by_fan_out

__all__ = [
    "THINNED",
    "BranchCheck",
    "EarlyExit",
    "Grown",
    "Growth",
    "Kind",
    "OneClassifier",
    "Structure",
    "Tail",
    "check_branches",
    "check_kind",
    "conv_weights_by_fan_out",
    "extract",
    "grow",
    "keep_resolution",
    "last_stage",
    "last_stride_one",
    "movable",
    "pooled_head",
    "small_input",
]
