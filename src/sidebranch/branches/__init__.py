"""How a side branch is made."""

from sidebranch.branches.tail import Tail, conv_weights_by_fan_out

__all__ = ["Tail", "conv_weights_by_fan_out"]
