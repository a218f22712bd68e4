"""Train image classifiers with side branches, ship them without."""

from sidebranch.attach import attach
from sidebranch.errors import UserError
from sidebranch.model import BranchedModel, Outputs, SideBranch
from sidebranch.objective import Loss, Objective, baseline, dhm, dks, dsl, kd
from sidebranch.sampling import Bernoulli, Categorical, Draw, Fixed
from sidebranch.zoo import load_reference

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "BranchedModel",
    "Categorical",
    "Draw",
    "Fixed",
    "Loss",
    "Objective",
    "Outputs",
    "SideBranch",
    "UserError",
    "attach",
    "baseline",
    "dhm",
    "dks",
    "dsl",
    "kd",
    "load_reference",
]
