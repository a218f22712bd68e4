"""What learns from what: the network, its branches, the objective, the teacher and the sampling."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

from sidebranch.config.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, PROBABILITY, SHARE, Range, check_ranges
from sidebranch.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """The backbone.

    Args:
        name: any name that timm.create_model knows (`cifar_resnet32`, ...).
        branches: `paper`, the side branches published for the network; `auto`, grown from its own tail as the group
            `branches` says; `default`, `paper` if there are any, else `auto`.
        pretrained: start the backbone from timm's pretrained weights, which are downloaded.
        weights: start the backbone from these, whatever `pretrained` says: a `.safetensors` or torch file of tensors;
            `local-dir:FOLDER`, as `sidebranch export --format timm` writes it; or `hf-hub:OWNER/NAME`. A classifier for
            another number of classes is replaced.
        sha256: of the file with these weights; filled in when a run starts, so that no others are taken for them.
        small_input: remove the down-samplings from an ImageNet stem, for images of 32x32 to 64x64.
        last_stride: stride of the last stage: 0, the network's own; 1, features of twice the resolution.
        bnneck: reid: a batch norm between the features and each classifier in training (Luo et al. 2019).
        options: more arguments for timm.create_model: `{drop_rate: 0.3}`.
    """

    name: str = "cifar_resnet32"
    branches: Literal["default", "paper", "auto"] = "default"
    pretrained: bool = False
    weights: str = ""
    sha256: str = ""
    small_input: bool = False
    last_stride: Literal[0, 1] = 0
    bnneck: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BranchesConfig:
    """The side branches: which, of what kind, how automatic ones grow, and when they train.

    Args:
        count: number of side branches; 3 adds ResNet-18's third. Ignored with `at` and `use`.
        use: names of the branches to build, such as [b1, b3]; all of `count` or `at` if empty.
        only: with method baseline: the branch that is trained alone, with the stem up to its fork (DHM Table 5). It
            takes main's place, and ships.
        kind: `blocks` of the backbone; thinned, `narrow` (half of main's width), `shallow` (one block a stage) or
            `shallow_wide` (one block a stage, twice as wide); or pooled features and fully connected layers, `ap_2fc`
            or `ap_conv_2fc` (DKS Table 3).
        at: auto: the modules to fork at (`sidebranch branches NAME` lists them); if empty, the ends of the last stages.
        keep: auto: share of the repeated blocks that all branches but the nearest to the top keep.
        width: auto: channels of the branch nearest the top, as a multiple of the backbone's.
        pool: auto: side of the squares of features that a branch averages before its first layer: 2 halves its
            resolution.
        init: auto: `fresh` weights, or a `copy` of the backbone's tail (needs width 1).
        roots: `end`, every branch forks at the end of its stage; `stage`, at a block of that stage that is drawn during
            training (DHM section 3.2), as the group `sampling` says.
        batch_fraction: share of every batch, drawn at random, that goes through the branches.
        start_epoch: number of epochs before the branches begin to train.
        stop_epoch: the epoch after which the branches no longer train; 0, never.
    """

    count: int = 2
    use: tuple[str, ...] = ()
    only: str = ""
    kind: Literal["blocks", "narrow", "shallow", "shallow_wide", "ap_2fc", "ap_conv_2fc"] = "blocks"
    at: tuple[str, ...] = ()
    keep: float = 0.5
    width: float = 2.0
    pool: int = 1
    init: Literal["fresh", "copy"] = "fresh"
    roots: Literal["end", "stage"] = "end"
    batch_fraction: float = 1.0
    start_epoch: int = 0
    stop_epoch: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "branches",
            count=AT_LEAST_1,
            keep=SHARE,
            width=Range(0.1, 16),
            pool=Range(1, 8),
            batch_fraction=SHARE,
            start_epoch=AT_LEAST_0,
            stop_epoch=AT_LEAST_0,
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The weights of the loss; the papers' are the defaults.

    Args:
        supervision: weights of the labels (lambda in DHM's Eq. 8), of main, b1, b2, ... `[1, 0.5, 0.5]`, or by name,
            `{main: 1, b1: 0.5}`, the others 0; the method's own if empty.
        mimicry: weight of every mimicry term; or the weights themselves (mu in DHM's Eq. 9), a row a teacher and a
            column a student, `[[0, 1], [1, 0]]`, or by names, `{b1->main: 1, main->*: 0.5}`, where * is everyone and
            the others are 0. The outside teacher of method kd is the last row, or `teacher`; several are the last rows,
            or `teacher1`, `teacher2` and so on.
        direction: who teaches whom in dks and dhm, if mimicry is one weight: `both`; `top_down`, only the deeper
            teaches; `bottom_up`, only the shallower.
        teachers: dks, dhm: further teachers of every classifier: `average`, the moving average of the network, by the
            mean probability of its classifiers (one more forward pass a step); `average.main`, `average.b1`, ..., one
            of them; `past`, the classifiers' mean prediction for the same image one epoch before; `past.main`, main's;
            `ensemble`, the mean of the classifiers' logits; `best`, the classifier with the lowest loss in the batch.
        average: decay of the moving average that teaches, unless optim.ema keeps one anyway.
        mimicry_ramp: epochs over which the weight of mimicry rises linearly from 0.
        temperature: of teachers and students in the mimicry terms.
        temperature_end: what it has become, in a line, at the last step; 0: it stays.
        divergence: of student from teacher: `kl`, the papers'; `standardised`, of logits with mean 0 and standard
            deviation 1 an image; `reverse`, KL(student || teacher); `decoupled`, of the label and of all other classes.
        decoupled: weights of its two parts, alpha and beta.
        label_smoothing: share of the label's probability that is spread evenly over all classes.
        triplet: reid: weight of the batch-hard triplet loss on every classifier's features; 0 for none. Needs
            data.instances. Triplets are mined over the batches of all processes.
        triplet_margin: reid: the margin of the triplet loss.
    """

    supervision: tuple[float, ...] | dict[str, float] = ()
    mimicry: float | tuple[tuple[float, ...], ...] | dict[str, float] = 1.0
    direction: Literal["both", "top_down", "bottom_up"] = "both"
    teachers: tuple[str, ...] = ()
    average: float = 0.99
    mimicry_ramp: int = 0
    temperature: float = 1.0
    temperature_end: float = 0.0
    divergence: Literal["kl", "standardised", "reverse", "decoupled"] = "kl"
    decoupled: tuple[float, float] = (1.0, 8.0)
    label_smoothing: float = 0.0
    triplet: float = 0.0
    triplet_margin: float = 0.3

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "objective",
            average=BELOW_1,
            decoupled=AT_LEAST_0,
            mimicry_ramp=AT_LEAST_0,
            temperature=ABOVE_0,
            temperature_end=AT_LEAST_0,
            label_smoothing=BELOW_1,
            triplet=AT_LEAST_0,
            triplet_margin=AT_LEAST_0,
        )
        for name in ("supervision", "mimicry"):
            value = getattr(self, name)
            if wrong := [each for each in _numbers(value) if each not in AT_LEAST_0]:
                shown = f"is {value}" if isinstance(value, (int, float)) else f"has the weight {wrong[0]}"
                raise UserError(f"objective.{name} {shown}; it must be {AT_LEAST_0}")


@dataclass(frozen=True)
class TeacherConfig:
    """kd: the outside, frozen network that teaches; it sees the student's augmented images.

    Args:
        run: folder of a finished run, whose shipped network teaches; of several, `[a, b]`, each has its part of the
            weight, or its own by its name in `objective.mimicry`: `{teacher1->main: 0.7, teacher2->main: 0.3}`.
        model: or timm's name of a network.
        weights: its weights: a `.safetensors` file, or a checkpoint of the papers' public code; timm's own, downloaded,
            if empty. A file that does not say which images it is for is taken to be for timm's, if the network is
            timm's, else for the student's.
        students: who mimics it: `main`, the `branches`, or `all`.
        deep_supervision: whether the branches learn from the labels too ("+DS" in DKS Table 6).
        sha256: of the file with its weights, of several joined by commas; filled in when a run starts, so that no other
            teacher continues it.
    """

    run: tuple[str, ...] | str = ""
    model: str = ""
    weights: str = ""
    students: Literal["main", "branches", "all"] = "main"
    deep_supervision: bool = False
    sha256: str = ""

    @property
    def each(self) -> tuple[TeacherConfig, ...]:
        """One config a network."""
        if isinstance(self.run, str):
            return (self,)
        known = self.sha256.split(",") if self.sha256 else [""] * len(self.run)
        return tuple(replace(self, run=run, sha256=sha) for run, sha in zip_longest(self.run, known, fillvalue=""))


@dataclass(frozen=True)
class SamplingConfig:
    """Which branches take part, drawn during training (DHM section 3.2 and supplement D).

    Args:
        kind: `fixed`, all branches always (the papers' main experiments); `bernoulli`; `categorical`.
        p: bernoulli: the probability that a branch takes part.
        sets: categorical: set of branches to its probability: `{b1: 0.25, b2: 0.25, b1+b2: 0.5}`; `none` is the empty
            set.
        drops: what a branch that does not take part loses: its `mimicry`, or the whole `branch` is not computed.
        per: draw once per `epoch` or at every `step`.
        roots: with `--branches.roots stage`: branch to the probabilities of its places, `{b1: [0.2, 0.3, 0.5]}`; equal
            if left out.
    """

    kind: Literal["fixed", "bernoulli", "categorical"] = "fixed"
    p: float = 0.5
    sets: dict[str, float] = field(default_factory=dict)
    drops: Literal["mimicry", "branch"] = "mimicry"
    per: Literal["epoch", "step"] = "epoch"
    roots: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, "sampling", p=PROBABILITY)


def _numbers(value: Any) -> list[float]:
    """All numbers in nested sequences and dicts."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return [each for part in value for each in _numbers(part)] if isinstance(value, (tuple, list)) else [value]
