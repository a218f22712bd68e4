"""The core: networks with side branches, their objective, and sampling. Needs torch alone."""

from sidebranch.core.ensemble import Ensemble
from sidebranch.core.exits import ExitPolicy
from sidebranch.core.methods import baseline, best_teacher, byot, dhm, dks, dsl, kd, mean_teacher, one, pcl
from sidebranch.core.model import BranchedModel, Outputs, SideBranch
from sidebranch.core.objective import Loss, Objective
from sidebranch.core.sampling import Bernoulli, Categorical, Draw, Fixed, MovingRoots
from sidebranch.core.triplet import TripletLoss

__all__ = [
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
]
