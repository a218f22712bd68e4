"""The training objective: which classifiers learn from the labels, and which teach which.

Every method is a choice of two arrays over the C classifiers of a network, main first:

    L = sum_c supervision[c] H(y, f_c) + T^2 sum_{p != q} mimicry[p, q] H(sg f_p, f_q)

Baseline, deep supervision, DKS (Sun et al. 2019, Eq. 4) and DHM (Li & Chen 2020, Eqs. 6-9) differ in these arrays
alone. `f_c` is the softmax of classifier c's logits, `sg` the stop-gradient, H the cross-entropy in nats. Every
further teacher is one more row of `mimicry`: an outside network (knowledge distillation), one made of the classifiers
(`teachers.py`), or any that a loop has logits of, such as the moving average of the network itself. The named methods
are in `methods.py`.

The mimicry term is linear in its teacher: to learn from the mean of all classifiers' probabilities is DHM with another
weight. Only teachers that are no such mean differ: another temperature, a moving average, a mean of logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from sidebranch.core import divergence as divergences
from sidebranch.core.checks import check_batch, check_teacher
from sidebranch.core.divergence import DIVERGENCES, standardised
from sidebranch.core.loss import FusedLoss
from sidebranch.core.teachers import OWN
from sidebranch.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]
Supervision = Sequence[float] | Mapping[str, float] | Callable[[int], Sequence[float]]
Mimicry = Sequence[Sequence[float]] | Mapping[str, float] | Callable[[int], Sequence[Sequence[float]]]
Taught: TypeAlias = "Tensor | Sequence[Tensor] | Classified | None"  # of one, or of several together
TEACHER = "teacher"  # the outside network's name in pairs; of several: teacher1, teacher2, ...
ANY = "*"  # everyone's


@runtime_checkable
class Classified(Protocol):
    """The part of a network's outputs that an objective reads (`sidebranch.Outputs` has it)."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def logits(self) -> tuple[Tensor, ...]: ...
    @property
    def network(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Loss:
    """One step's loss. Its terms are unweighted, in nats, in the order of the outputs' names, and detached.

    Attributes:
        total: scalar; the one to call `backward()` on.
        supervision: [C], mean cross-entropy of each classifier to the labels.
        mimicry: [P, C], mean cross-entropy of student q to teacher p. The diagonal is each classifier's own entropy:
            the first C rows less `diagonal[:, None]` are the Kullback-Leibler divergences; of `reverse`, all rows less
            `diagonal[None, :]`; of `decoupled`, all rows as they are. P is C and one for each further teacher, C the
            live classifiers. All zeros where nobody teaches; the row of a teacher that is silent in a step (`taught`
            None) weighs 0 and says nothing.
    """

    total: Float[Tensor, ""]
    supervision: Float[Tensor, " c"]
    mimicry: Float[Tensor, "p c"]


class Objective(nn.Module):
    """The loss of a network of C classifiers, from two arrays. A module without parameters and without a state.

    Args:
        supervision: [C] weights of the labels, lambda in DHM's Eq. 8; or a mapping of names, `{"main": 1, "b1": 0.5}`,
            the others 0; or a function from C to the weights.
        mimicry: [C, C] weights, mu in DHM's Eq. 9: entry [p, q] is how much p teaches q, and the diagonal is ignored;
            or a mapping of pairs, `{"b1->main": 1, "main->*": 0.5}`, the others 0, of two that mean the same pair the
            later; or a function from C to the weights. Further teachers are further rows, `teachers` first; the
            outside network's name in pairs is "teacher", those of several "teacher1", "teacher2" and so on.
        temperature: T; softens teachers and students in the mimicry terms, which are multiplied by T^2.
        teacher: an outside network, images to logits, or several, a row each. The objective keeps frozen copies in eval
            mode, which follow `.to()` and stay out of `state_dict()`. Calls then need `images`.
        teachers: names of further teachers. `ensemble` is the mean of the classifiers' logits and `best` the classifier
            with the lowest loss in the batch; the logits of all others are given to every call as `taught`.
        divergence: of student from teacher: `kl`, the papers'; `standardised`, the same of logits that each image's
            mean and standard deviation were taken from (Sun et al. 2024, "Logit standardization in knowledge
            distillation"); `reverse`, KL(student || teacher); `decoupled`, one part for the label and one for all
            other classes (Zhao et al. 2022). Only `kl` is fused; the others take more time and memory.
        decoupled: alpha and beta, the weights of the two parts.

    Differs: the papers' code minimises KL(f_p || f_q), which is H(f_p, f_q) less the teacher's entropy: another value,
    the same gradient. It adds 1e-8 to probabilities, which float32 log-softmax does not need.
    """

    def __init__(
        self,
        supervision: Supervision,
        mimicry: Mimicry,
        temperature: float = 1.0,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        teachers: Sequence[str] = (),
        divergence: str = "kl",
        decoupled: tuple[float, float] = (1.0, 8.0),
    ) -> None:
        super().__init__()
        if isinstance(teachers, str):
            raise UserError(f"teachers is '{teachers}'; give a list, such as ['{teachers}']")
        if len(set(teachers)) < len(teachers):
            raise UserError(f"teachers is {list(teachers)}; name each once")
        if min(decoupled) < 0:
            raise UserError(f"the weights of the decoupled parts are {decoupled}; they must be at least 0")
        self.supervision = supervision
        self.mimicry = mimicry
        self.temperature: float = _positive(temperature)
        self.teachers: tuple[str, ...] = tuple(teachers)
        self.divergence: str = _known(divergence)
        self.decoupled: tuple[float, float] = decoupled
        # In a tuple, so that it is no submodule: it has no place in state_dict, parameters or train().
        given = (teacher,) if isinstance(teacher, (nn.Module, str)) else teacher or ()
        if wrong := [each for each in given if not isinstance(each, nn.Module)]:
            raise UserError(f"a teacher is a module, images to logits, not {wrong[0]!r}")
        self._teachers = tuple(copy.deepcopy(each).eval().requires_grad_(False) for each in given)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen copy of the outside teacher, or of the first of several."""
        return self._teachers[0] if self._teachers else None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Called by `.to()`, `.cuda()` and the like: moves the teacher too."""
        for each in self._teachers:
            each._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def arrays(self, names: Sequence[str]) -> tuple[Vector, Matrix]:
        """The two arrays for a network with these classifiers; the mimicry's diagonal set to zero."""
        count, teachers = len(names), self.rows(names)
        if twice := [name for name in teachers if teachers.count(name) > 1]:
            raise UserError(f"two teachers are called '{twice[0]}'; give each its own name")
        rows = len(teachers)
        supervision = _vector(self.supervision, names)
        mimicry = _matrix(self.mimicry, teachers, names)
        if len(supervision) != count:
            raise UserError(f"supervision has {len(supervision)} weights for the {count} classifiers {_listed(names)}")
        if len(mimicry) != rows or any(len(row) != count for row in mimicry):
            shape = f"{len(mimicry)} x {len(mimicry[0]) if mimicry else 0}"
            raise UserError(f"mimicry is {shape}; the classifiers {_listed(names)} need {rows} x {count}")
        matrix = tuple(tuple(0.0 if p == q else float(row[q]) for q in range(count)) for p, row in enumerate(mimicry))
        return tuple(map(float, supervision)), matrix

    def extra_repr(self) -> str:
        of_three = [each(3) if callable(each) else each for each in (self.supervision, self.mimicry)]
        names = f", teachers={list(self.teachers)}" if self.teachers else ""
        settings = f"temperature={self.temperature:g}, divergence={self.divergence}{names}"
        return f"supervision={of_three[0]}, mimicry={of_three[1]}, {settings}"

    def rows(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the teachers, in the order of the mimicry's rows."""
        return (*names, *self.teachers, *self.outside)

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of the outside networks, in the order of their rows."""
        count = len(self._teachers)
        return (TEACHER,) * count if count < 2 else tuple(f"{TEACHER}{number}" for number in range(1, count + 1))

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """What this objective is for a network with these classifiers, in plain values."""
        supervision, mimicry = self.arrays(names)
        return {
            "students": list(names),
            "teachers": list(self.rows(names)),
            "supervision": list(supervision),
            "mimicry": [list(row) for row in mimicry],
            "temperature": self.temperature,
            "divergence": self.divergence,
        }

    def forward(
        self,
        outputs: Classified,
        targets: Tensor,
        *,
        mimics: Sequence[str] | None = None,
        images: Tensor | None = None,
        mimicry_scale: float = 1.0,
        temperature: float | None = None,
        taught: Mapping[str, Taught] | None = None,
    ) -> Loss:
        """The loss of one batch. Never waits for the device.

        Args:
            outputs: names and logits ([N, K] each), of all classifiers or of those that sampling left in. If the
                branches saw only the first n images, they learn from those, and all mimicry uses those.
            targets: [N] class indices of any integer dtype, or [N, K] probabilities. Indices outside 0 ... K - 1, such
                as an `ignore_index`, are refused on a CPU; a CUDA device stops with a device-side assertion.
            mimics: classifiers that teach and learn from one another in this step (Phi in DHM's Eq. 6); all if None.
            images: [N, ...], for the outside teacher if there is one.
            mimicry_scale: factor of all mimicry terms, for a ramp over training.
            temperature: T of this step, for a schedule over training; the objective's own if None.
            taught: further teacher to its logits, [N, K], or to those of several, [N, K] each, whose mean probability
                teaches; None for one that does not teach in this step. Their gradient is not taken.

        Raises:
            UserError: shapes or dtypes do not fit, a name is unknown, or `images` or `taught` are missing.
        """
        if not hasattr(outputs, "logits"):
            kind = type(outputs).__name__
            raise UserError(f"the objective takes all classifiers' outputs, net(images) of sb.attach; this is a {kind}")
        if not isinstance(targets, Tensor):
            raise UserError(f"targets are a {type(targets).__name__}; give a tensor")
        names, logits = outputs.names, outputs.logits
        check_batch(names, logits, targets)
        if unknown := [name for name in taught or () if name not in self.teachers]:
            known = f"this objective's are: {', '.join(self.teachers)}" if self.teachers else "this objective has none"
            raise UserError(f"there is no further teacher '{unknown[0]}' to be taught by; {known}")
        targets = targets if targets.is_floating_point() else targets.long()
        temperature = _positive(self.temperature if temperature is None else temperature)
        divergence = _known(self.divergence)
        if isinstance(mimics, str):
            raise UserError(f"mimics is a sequence of names, such as ('main', '{mimics}'), not one")
        for name in mimics or ():
            if name not in outputs.network:
                raise UserError(f"mimics names no classifier '{name}'; {nearest(name, outputs.network)}")
        taught = self._with_own(taught or {}, outputs, targets, mimics)
        silent = [name in taught and taught[name] is None for name in self.teachers]
        silent += [False] * len(self.outside)
        supervision, mimicry = _masked(*self.arrays(outputs.network), outputs.network, names, mimics, silent)
        device, dtype = logits[0].device, torch.promote_types(logits[0].dtype, torch.float32)
        outside = self._outside(images, taught, logits[0], temperature)
        is_meta = device.type == "meta"  # it has no autocast
        weights = _constant(supervision, device, dtype)
        pairs_weights = _constant(mimicry, device, dtype) if any(map(any, mimicry)) else None
        with nullcontext() if is_meta else torch.autocast(device.type, enabled=False):
            if divergence == "kl" or pairs_weights is None:
                settings = weights, pairs_weights, temperature, mimicry_scale, targets, outside
                total, labels, pairs = FusedLoss.apply(*settings, *logits)  # pyright: ignore[reportGeneralTypeIssues]
                if pairs_weights is None:
                    pairs = pairs.new_zeros(len(mimicry), len(names))
                return Loss(total, labels, pairs)
            total, labels, _ = FusedLoss.apply(weights, None, 1.0, 1.0, targets, None, *logits)  # pyright: ignore[reportGeneralTypeIssues]
            seen = min(map(len, logits))
            students = [each[:seen].to(dtype) for each in logits]
            outside = outside if outside is None else outside[:seen]
            common = students, outside, pairs_weights * mimicry_scale, temperature
            if divergence == "reverse":
                mutual, pairs = divergences.reverse(*common)
            elif divergence == "decoupled":
                classes = targets if targets.ndim == 1 else targets.argmax(1)
                mutual, pairs = divergences.decoupled(*common, classes[:seen], self.decoupled)
            else:
                settings = torch.zeros_like(weights), pairs_weights, temperature, mimicry_scale, targets[:seen]
                given = map(standardised, students)
                mutual, _, pairs = FusedLoss.apply(*settings, outside, *given)  # pyright: ignore[reportGeneralTypeIssues]
        return Loss(total + mutual, labels, pairs)

    @torch.no_grad()
    def _with_own(
        self, taught: Mapping[str, Taught], outputs: Classified, targets: Tensor, mimics: Sequence[str] | None
    ) -> Mapping[str, Taught]:
        """Adds the teachers that are made of the live classifiers, for the images that all of them saw."""
        wanted = [name for name in self.teachers if name in OWN and name not in taught]
        if not wanted:
            return taught
        seen, main = min(map(len, outputs.logits)), outputs.logits[0].detach()
        known = zip(outputs.names, outputs.logits, strict=True)
        heard = [each[:seen] for name, each in known if mimics is None or name in mimics]
        if not heard:
            return {**taught, **dict.fromkeys(wanted)}
        made = {name: OWN[name](heard, targets[:seen]) for name in wanted}
        return {**taught, **{name: torch.cat([each, main[seen:]]) for name, each in made.items()}}

    def _outside(
        self, images: Tensor | None, taught: Mapping[str, Taught], main: Tensor, temperature: float
    ) -> Tensor | None:
        """The further teachers' probabilities, [N, T, K], if there are any; main's for those that are silent."""
        found = []
        for name in self.teachers:
            if name not in taught:
                raise UserError(f"this objective learns from '{name}': call it with taught={{'{name}': logits}}")
            given: Any = main.detach() if taught[name] is None else taught[name]
            found.append(check_teacher(name, given, main))
        if self._teachers:
            if images is None:
                raise UserError(
                    "this objective has an outside teacher: call it as objective(outputs, targets, images=images)"
                )
            with torch.no_grad():
                found += [
                    check_teacher(name, each(images), main)
                    for name, each in zip(self.outside, self._teachers, strict=True)
                ]
        return torch.stack([self._softened(each, temperature) for each in found], 1) if found else None

    @torch.no_grad()
    def _softened(self, logits: Sequence[Tensor], temperature: float) -> Tensor:
        """The mean probability at this temperature, [N, K]."""
        precise = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in logits]
        if self.divergence == "standardised":
            precise = [standardised(each) for each in precise]
        return torch.stack([(each / temperature).softmax(-1) for each in precise]).mean(0)


def _positive(temperature: float) -> float:
    if not isinstance(temperature, Real) or not temperature > 0:
        raise UserError(f"the temperature is {temperature!r}; it must be a number above 0")
    return float(temperature)


def _known(divergence: str) -> str:
    if divergence not in DIVERGENCES:
        raise UserError(f"the divergence is '{divergence}'; choose from: {', '.join(DIVERGENCES)}")
    return divergence


def _vector(weights: Supervision, names: Sequence[str]) -> Sequence[float]:
    """Weights of the labels, in the order of the classifiers."""
    if not isinstance(weights, Mapping):
        return weights(len(names)) if callable(weights) else weights
    for name in weights:
        if name not in names:
            raise UserError(f"supervision names no classifier '{name}'; {nearest(name, names)}")
    return [weights.get(name, 0.0) for name in names]


def _matrix(weights: Mimicry, teachers: Sequence[str], students: Sequence[str]) -> Sequence[Sequence[float]]:
    """Weights of the pairs, a row a teacher and a column a student."""
    if not isinstance(weights, Mapping):
        return weights(len(students)) if callable(weights) else weights
    found = {(p, q): 0.0 for p in teachers for q in students if p != q}
    for pair, weight in weights.items():
        teacher, _, student = pair.replace(" ", "").partition("->")
        meant = [(p, q) for p, q in found if teacher in (p, ANY) and student in (q, ANY)]
        if not meant:
            known = nearest(pair, [f"{p}->{q}" for p, q in found])
            raise UserError(f"mimicry names no pair '{pair}', teacher->student; {known}")
        found |= dict.fromkeys(meant, weight)
    return [[found.get((p, q), 0.0) for q in students] for p in teachers]


def _masked(
    supervision: Vector,
    mimicry: Matrix,
    network: Sequence[str],
    live: Sequence[str],
    mimics: Sequence[str] | None,
    silent: Sequence[bool],
) -> tuple[Vector, Matrix]:
    """The arrays of the live classifiers; mimicry of silent teachers, and from or to others than `mimics`, is zero."""
    at = [network.index(name) for name in live]
    allowed = [mimics is None or name in mimics for name in network]
    further = zip(mimicry[len(network) :], silent, strict=True)
    outside = [tuple(weight * (not is_silent) for weight in row) for row, is_silent in further]
    inside = tuple(tuple(mimicry[p][q] * (allowed[p] and allowed[q]) for q in at) for p in at)
    return tuple(supervision[q] for q in at), inside + tuple(tuple(row[q] * allowed[q] for q in at) for row in outside)


def _constant(values: Vector | Matrix, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The array as a tensor on the device."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, device=device, dtype=dtype)
    return _copied(values, device, dtype)


@lru_cache(maxsize=256)
def _copied(values: Vector | Matrix, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copied to the device once: a copy from the host in every step would wait for the device."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
        return torch.tensor(values, device=device, dtype=dtype)


def _listed(names: Sequence[str]) -> str:
    return "(" + ", ".join(names) + ")"
