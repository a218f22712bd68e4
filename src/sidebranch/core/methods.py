"""The methods of the field, each a value of `Objective`: who learns from the labels, and who teaches whom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import nn

from sidebranch.core.objective import Matrix, Objective, Vector
from sidebranch.errors import UserError

Direction = Literal["both", "top_down", "bottom_up"]


def baseline() -> Objective:
    """The main classifier learns from the labels; nothing else."""
    return Objective(_main_only, partial(_pairs, direction="both", weight=0.0))


def dsl() -> Objective:
    """Deep supervision: every classifier learns from the labels (Lee et al. 2015; Sun et al. 2019, Eq. 3)."""
    return Objective(_everyone, partial(_pairs, direction="both", weight=0.0))


def dks(
    direction: Direction = "both",
    weight: float = 1.0,
    temperature: float = 1.0,
    *,
    teachers: Sequence[str] = (),
    divergence: str = "kl",
    decoupled: tuple[float, float] = (1.0, 8.0),
) -> Objective:
    """Deeply-supervised Knowledge Synergy: every classifier also teaches every other (Sun et al. 2019, Eq. 4).

    Args:
        direction: "both"; "top_down", only the deeper teaches; "bottom_up", only the shallower teaches.
        weight: of every mimicry term; 1 in the papers.
        temperature: 1 in the papers.
        teachers: names of further teachers, from which every classifier learns too; none in the papers.
        divergence: `kl` in the papers; `Objective` has the others.
        decoupled: weights of the two parts of `decoupled`.
    """
    if direction not in ("both", "top_down", "bottom_up"):
        raise UserError(f"the direction is '{direction}'; choose from: both, top_down, bottom_up")
    pairs = partial(_pairs, direction=direction, weight=weight, beyond=len(teachers))
    return Objective(_everyone, pairs, temperature, teachers=teachers, divergence=divergence, decoupled=decoupled)


def dhm(
    direction: Direction = "both",
    weight: float = 1.0,
    temperature: float = 1.0,
    *,
    teachers: Sequence[str] = (),
    divergence: str = "kl",
    decoupled: tuple[float, float] = (1.0, 8.0),
) -> Objective:
    """Dynamic Hierarchical Mimicking: DKS's arrays, masked by a draw at each epoch or step (Li & Chen 2020, Eqs. 6-9).

    The draw comes from a sampler (`sb.Bernoulli`, `sb.Categorical`) and is passed as `mimics`. In the paper's main
    experiments every classifier always takes part: there DHM and DKS are the same loss. The arguments are DKS's.
    """
    return dks(direction, weight, temperature, teachers=teachers, divergence=divergence, decoupled=decoupled)


def mean_teacher(weight: float = 1.0, temperature: float = 1.0, teacher: str = "average") -> Objective:
    """Every classifier learns from the labels and from one further teacher alone: no classifier teaches another.

    With the moving average of the network as the teacher, this is Mean Teacher's consistency (Tarvainen & Valpola 2017)
    on logits, and close to the "peer mean teacher" of PCL (Wu & Gong 2021), whose every peer learns from the averages
    of the others.

    Args:
        weight: of every classifier's mimicry.
        temperature: T.
        teacher: its name, in `taught`.
    """
    return Objective(_everyone, partial(_further_row, weight=weight), temperature, teachers=(teacher,))


def byot(weight: float = 0.1, temperature: float = 3.0) -> Objective:
    """Be Your Own Teacher, its two terms on logits (Zhang et al. 2019): main teaches every branch.

    Differs: the paper's third term, which draws the branches' features to main's, is left out; main's labels weigh 1
    there and here, a branch's `1 - weight`.

    Args:
        weight: of every branch's mimicry of main.
        temperature: T.
    """
    return Objective(partial(_byot_labels, weight=weight), partial(_main_row, weight=weight), temperature)


def one(weight: float = 1.0, temperature: float = 3.0) -> Objective:
    """On-the-fly Native Ensemble (Lan et al. 2018): every classifier learns from the mean of all logits.

    Differs: the gate of the ensemble is even instead of learnt, the ensemble itself does not learn from the labels, and
    the branches are those of the network instead of copies of its last stage.

    Args:
        weight: of every classifier's mimicry.
        temperature: T; 3 in the paper.
    """
    return mean_teacher(weight, temperature, "ensemble")


def best_teacher(weight: float = 1.0, temperature: float = 3.0) -> Objective:
    """The classifier with the lowest cross-entropy on the batch teaches the others; nobody else teaches.

    Of no paper. The best one itself learns from the labels alone.

    Args:
        weight: of every classifier's mimicry.
        temperature: T.
    """
    return mean_teacher(weight, temperature, "best")


def pcl(weight: float = 1.0, temperature: float = 3.0) -> Objective:
    """Peer Collaborative Learning (Wu & Gong 2021): the classifiers' ensemble and their moving averages teach.

    The mean of the classifiers' probabilities is DHM's array divided by C; the teacher `average` is given as `taught`.
    The paper's ramp over the first 80 of 300 epochs is `mimicry_scale`.

    Differs: its ensemble has a classifier of its own on all peers' features, which learns from the labels; its peers
    learn from the others' averages, here from the mean of all. Where sampling leaves only k of the C classifiers
    mimicking, their ensemble weighs k / C.

    Args:
        weight: of each of the two teachers.
        temperature: T; 3 in the paper.
    """
    return Objective(_everyone, partial(_ensemble_and_row, weight=weight), temperature, teachers=("average",))


def kd(
    teacher: nn.Module | Sequence[nn.Module],
    students: Literal["main", "branches", "all"] = "main",
    *,
    deep_supervision: bool = False,
    weight: float = 1.0,
    temperature: float = 1.0,
    divergence: str = "kl",
    decoupled: tuple[float, float] = (1.0, 8.0),
) -> Objective:
    """Knowledge distillation from an outside, frozen teacher (Hinton et al. 2015; the rows of DKS's Table 6).

    Args:
        teacher: images to logits over the same classes; of several networks, each teaches with its part of the weight,
            which under `kl` and `standardised` is to learn from their mean probability.
        students: who mimics the teacher.
        deep_supervision: whether the branches learn from the labels too ("+DS").
        weight: of every student's mimicry, of all networks together.
        temperature: T; DKS tried 1, 2, 5, 10 and 20.
        divergence: `kl`, or one of `Objective`'s others.
        decoupled: weights of the two parts of `decoupled`.

    Raises:
        UserError: the students, the divergence or the temperature are none, or there is no teacher.
    """
    if students not in ("main", "branches", "all"):
        raise UserError(f"the students are '{students}'; choose from: main, branches, all")
    labels = _everyone if deep_supervision else _main_only
    given = [teacher] if isinstance(teacher, (nn.Module, str)) else teacher
    if not isinstance(given, Sequence) or not given:
        raise UserError(f"kd needs a teacher, images to logits, or a list of them, not {teacher!r}")
    rows = partial(_outside_rows, students=students, weight=weight, networks=len(given))
    return Objective(labels, rows, temperature, teacher, divergence=divergence, decoupled=decoupled)


def _everyone(count: int) -> Vector:
    return (1.0,) * count


def _main_only(count: int) -> Vector:
    return (1.0,) + (0.0,) * (count - 1)


def _pairs(count: int, direction: Direction, weight: float, beyond: int = 0) -> Matrix:
    """Main is classifier 0 and the deepest, so the deeper of a pair has the smaller index; `beyond` teach everyone."""
    teaches = {"both": lambda p, q: p != q, "top_down": lambda p, q: p < q, "bottom_up": lambda p, q: p > q}[direction]
    inside = tuple(tuple(weight * teaches(p, q) for q in range(count)) for p in range(count))
    return inside + ((weight,) * count,) * beyond


def _byot_labels(count: int, weight: float) -> Vector:
    return (1.0,) + (1.0 - weight,) * (count - 1)


def _main_row(count: int, weight: float) -> Matrix:
    return tuple((weight if p == 0 else 0.0,) * count for p in range(count))


def _ensemble_and_row(count: int, weight: float) -> Matrix:
    return (*_pairs(count, "both", weight / count), (weight,) * count)


def _further_row(count: int, weight: float) -> Matrix:
    return (*(((0.0,) * count,) * count), (weight,) * count)


def _outside_rows(count: int, students: str, weight: float, networks: int) -> Matrix:
    row = tuple(weight / networks * (students == "all" or (q == 0) == (students == "main")) for q in range(count))
    return (*(((0.0,) * count,) * count), *(row,) * networks)
