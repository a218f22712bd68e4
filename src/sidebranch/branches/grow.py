"""Side branches for any backbone, grown from a copy of its own tail.

In: a backbone. Out: branches that fork where its stages end, made of its own blocks, with as many down-samplings as
its own tail and its own kind of pool and classifier (rules 1 and 2 of DHM's supplement A); the nearest to the top
wider, the others shorter (rule 3).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sidebranch.branches.forks import alike, channels, find_forks, resolution
from sidebranch.branches.fresh import fill
from sidebranch.branches.simple import THINNED, Kind, check_kind, pooled_head
from sidebranch.branches.thin import thin
from sidebranch.branches.trace import FAILURES, Trace, check_size, has_weights, is_feature, trace
from sidebranch.branches.tracer import note_copy, value_of
from sidebranch.branches.widen import CannotWiden, widen
from sidebranch.core.model import SideBranch
from sidebranch.errors import UserError, nearest, reason

ONE_BLOCK = 1e-9  # a share of blocks that leaves one a stage


@dataclass(frozen=True)
class Growth:
    """How grown branches differ from the backbone's own tail.

    Args:
        keep: share of the repeated blocks that the branches below the nearest keep, in (0, 1].
        width: channels of the branch nearest the top, as a multiple of the backbone's.
        init: "fresh", weights from the backbone's init distribution; "copy", the tail's own weights.
        pool: side of the squares of its fork's features that each branch averages before its first layer: 2 gives it
            half the resolution, and a quarter of the multiply-adds.
    """

    keep: float = 0.5
    width: float = 2.0
    init: Literal["fresh", "copy"] = "fresh"
    pool: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"grown branches keep {self.keep} of the blocks; it must be a share above 0 and up to 1")
        if not 0.1 <= self.width <= 16:
            raise UserError(f"grown branches' width is {self.width}; it must be from 0.1 to 16 times the backbone's")
        if not 1 <= self.pool <= 8:
            raise UserError(f"grown branches pool squares of side {self.pool}; it must be from 1 to 8")
        if self.init not in ("fresh", "copy"):
            raise UserError(f"grown branches start '{self.init}'; choose from: fresh, copy")
        if self.init == "copy" and self.width != 1:
            raise UserError(f"a branch that starts as a copy cannot be {self.width:g} times as wide; give width 1")


@dataclass(frozen=True)
class Grown:
    """A branch, and the requests that could not be met.

    Attributes:
        blocks: number of repeated blocks in the branch, and in the backbone's tail.
        width: its channels, as a multiple of the backbone's.
        notes: one sentence per request that could not be met.
    """

    branch: SideBranch
    blocks: tuple[int, int]
    width: float
    notes: tuple[str, ...]


def grow(
    backbone: nn.Module,
    at: Sequence[str] = (),
    *,
    count: int = 2,
    use: Sequence[str] = (),
    kind: Kind = "blocks",
    growth: Growth = Growth(),
    input_size: Sequence[int] | None = None,
) -> list[Grown]:
    """Branches for a backbone, b1, nearest the top, first.

    Args:
        backbone: images to logits [N, K]; not changed. The branches get its device and dtype.
        at: paths of the modules to fork at, in any order; if none, the ends of the last stages before the final one,
            or evenly spaced blocks where the resolution does not drop in stages.
        count: number of branches; ignored with `at` and `use`.
        use: names of the branches to grow; all if empty.
        kind: "blocks", as `growth` says; or another, see `block_branch` and `pooled_head`.
        growth: depth, width and initial weights of the branches.
        input_size: of an image: channels, height, width. Stages are found at the size that timm gives for the model;
            the branches must also work at this one.

    Raises:
        UserError: the backbone's forward pass cannot be followed, or there is no fork; it says why.
    """
    if not isinstance(count, int) or count < 1:
        raise UserError(f"the number of branches is {count}; it must be at least 1")
    if input_size is not None:
        check_size(input_size)
    if isinstance(at, str):
        raise UserError(f"at is '{at}'; give a list of paths, such as ['{at}']")
    if len(set(at)) < len(at):
        raise UserError(f"two branches fork at one place: {', '.join(at)}")
    check_kind(kind)
    if kind != "blocks" and growth != Growth():
        raise UserError(f"branches of kind {kind} have their own form; leave growth out")
    if use:
        count = max(map(_place_of, use))
    if at and count > len(at) and use:
        raise UserError(f"there is no branch b{count}: branches fork at {len(at)} places, {', '.join(at)}")
    traced, forks = _grow_somewhere(backbone, at, count, input_size)
    wanted = {f"b{place}": path for place, path in enumerate(forks, 1) if not use or f"b{place}" in use}
    like = next(backbone.parameters())
    if kind.startswith("ap_"):
        return [_pooled(traced, name, path, kind, like) for name, path in wanted.items()]
    grown = _grow_all(traced, backbone, wanted, kind, growth)
    for each in grown:
        fill(each.branch.body, backbone, copied=growth.init == "copy", device=like.device)
        each.branch.body.train(backbone.training)
    return grown


def movable(
    branches: Sequence[SideBranch], backbone: nn.Module, input_size: Sequence[int] | None = None
) -> list[SideBranch]:
    """The same branches with movable roots: over the blocks of their stage whose output has the same shape.

    Raises:
        UserError: the backbone's forward pass cannot be followed.
    """
    traced = trace_own(backbone, input_size)
    return [replace(branch, at=alike(traced, branch.places[-1])) for branch in branches]


def _place_of(name: str) -> int:
    """3 of "b3"."""
    if not name.startswith("b") or not name[1:].isdecimal() or name == "b0":
        raise UserError(f"no branch can be called '{name}'; grown branches are b1, nearest the top, b2, b3, ...")
    return int(name[1:])


def _grow_somewhere(
    backbone: nn.Module, at: Sequence[str], count: int, input_size: Sequence[int] | None
) -> tuple[Trace, list[str]]:
    """The forks, found at the model's likely size, and a trace whose tails work at the given size."""
    traced = trace_own(backbone, input_size)
    forks = _chosen(traced, backbone, at, count)
    if input_size is not None and tuple(input_size) != tuple(traced.images.shape[1:]):
        here = trace(backbone, input_size)
        if not all(_same(traced.tail(traced.fork(path))[0], here.tail(here.fork(path))[0]) for path in forks):
            traced = here
    return traced, forks


def _chosen(traced: Trace, backbone: nn.Module, at: Sequence[str], count: int) -> list[str]:
    """The paths to fork at, the nearest to the top first."""
    forks = {path: traced.fork(_known(path, backbone)) for path in at} if at else find_forks(traced, count)
    order = list(traced.graph.nodes)
    return sorted(forks, key=lambda path: -order.index(forks[path]))


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    """Whether two tails have the same code; sizes that are constants in it may differ."""
    return str(one.python_code("self").src) == str(other.python_code("self").src)


def _grow_all(traced: Trace, backbone: nn.Module, forks: Mapping[str, str], kind: Kind, growth: Growth) -> list[Grown]:
    """Branches on the meta device; forks are name to path."""
    size = traced.images.shape[1:]
    try:
        training = trace(backbone, size, training=True)
    except UserError:
        training = None
    if kind in THINNED:
        width, is_shallow = THINNED[kind]
        growth = Growth(keep=ONE_BLOCK if is_shallow else 1, width=width)
        return [_grow(traced, training, name, path, growth) for name, path in forks.items()]
    nearest_growth, others = replace(growth, keep=1.0), replace(growth, width=1.0)
    return [
        _grow(traced, training, name, path, nearest_growth if name == "b1" else others) for name, path in forks.items()
    ]


def _pooled(traced: Trace, name: str, at: str, kind: Kind, like: Tensor) -> Grown:
    """A pooled head at a fork, on the backbone's device."""
    features, size = value_of(traced.fork(at)), traced.images.shape[1:]
    if features.ndim != 4 or channels(features, size) != features.shape[1]:
        raise UserError(f"branches.kind {kind} pools feature maps [N, C, H, W]; '{at}' gives {tuple(features.shape)}")
    branch = pooled_head(name, at, features.shape[1], traced.logits.shape[1], convolution=kind == "ap_conv_2fc")
    return Grown(replace(branch, body=branch.body.to(like.device, like.dtype)), (0, 0), 0.0, ())


def trace_own(backbone: nn.Module, input_size: Sequence[int] | None = None) -> Trace:
    """The forward pass at the first accepted size: those the backbone was likely made for, then this one."""
    sizes = own_sizes(backbone) + ([] if input_size is None else [tuple(input_size)])
    for size in sizes[:-1]:
        with suppress(UserError):
            return trace(backbone, size)
    return trace(backbone, sizes[-1])


def own_sizes(backbone: nn.Module) -> list[tuple[int, ...]]:
    """Image sizes that a backbone was likely made for, likeliest first: timm's patches', its `input_size`, ImageNet's.

    The channels are those of the first convolution; timm's are tried too, for stems that fold pixels into channels.
    """
    config = getattr(backbone, "pretrained_cfg", None)
    known = config.get("input_size", (3, 224, 224)) if isinstance(config, dict) else (3, 224, 224)
    patched = getattr(getattr(backbone, "patch_embed", None), "img_size", None)  # of a ViT made for another size
    known = (known[0], *patched) if isinstance(patched, tuple) and len(patched) == 2 else known
    first = next((each for each in backbone.modules() if isinstance(each, nn.Conv2d)), None)
    channels = dict.fromkeys((known[0] if first is None else first.in_channels, known[0]))
    return [(each, *known[1:]) for each in channels]


def _known(path: str, backbone: nn.Module) -> str:
    paths = [name for name, _ in backbone.named_modules() if name]
    if path not in paths:
        raise UserError(f"no fork at '{path}', which is no module of the backbone; {nearest(path, paths)}")
    return path


def _grow(traced: Trace, training: Trace | None, name: str, at: str, growth: Growth) -> Grown:
    notes, size, fork = [], traced.images.shape[1:], traced.fork(at)
    graph, calls = traced.tail(fork)
    if not any(
        node.op == "call_module" and has_weights(traced.root.get_submodule(str(node.target))) for node in graph.nodes
    ):
        raise UserError(f"no fork at '{at}': nothing that learns follows it")
    if training is not None and not _same(
        _without_dropout(graph), _without_dropout(training.tail(training.fork(at))[0])
    ):
        notes.append(
            f"{name} runs the backbone's evaluation forward in training too: its forward pass depends on the mode"
        )
    kept, total = thin(graph, calls, traced.root, growth.keep)
    if growth.keep < 1 and kept == total:
        notes.append(f"{name} is as deep as main: no block that follows '{at}' repeats")
    body, width = module_of(traced.root, graph, "Tail"), 1.0
    if growth.width != 1:
        try:
            widen(body, growth.width, lambda value: is_feature(value) and resolution(value, size) > 1)
            width = growth.width
        except CannotWiden as error:
            notes.append(f"{name} is as wide as main: it cannot be widened at {error}")
            body = module_of(traced.root, graph, "Tail")
    if growth.pool > 1:
        features = value_of(fork)
        if features.ndim != 4 or channels(features, size) != features.shape[1]:
            raise UserError(f"branches that pool need feature maps [N, C, H, W]; '{at}' gives {tuple(features.shape)}")
        _pool_input(body, growth.pool)
    _try_out(body, fork, traced.logits, name)
    return Grown(SideBranch(name, at, body), (kept, total), width, tuple(notes))


def _pool_input(body: fx.GraphModule, side: int) -> None:
    """Averages squares of what comes in, those at the edge too."""
    body.add_module("pool_input", nn.AvgPool2d(side, ceil_mode=True))
    given = next(node for node in body.graph.nodes if node.op == "placeholder")
    with body.graph.inserting_after(given):
        pooled = body.graph.call_module("pool_input", (given,))
    given.replace_all_uses_with(pooled, delete_user_cb=lambda user: user is not pooled)
    body.recompile()


# Functional dropout has the mode of the tracing as a constant; as a module it follows the model's mode.
_DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def _without_dropout(graph: fx.Graph) -> fx.Graph:
    """The graph, its calls of dropout as if in evaluation."""
    graph = _copy(graph)
    for node in graph.nodes:
        if node.target in _DROPOUTS:
            node.args, node.kwargs = node.args[:1] or (node.kwargs["input"],), {}
    return graph


def module_of(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A part of a traced pass as a module with copies of the root's parts, which keep their paths."""
    graph = _copy(graph)
    parts: dict[str, Any] = {}
    for node in list(graph.nodes):
        target = str(node.target)
        if node.op == "call_module":
            parts.setdefault(target, copy.deepcopy(root.get_submodule(target)))
        elif node.op == "get_attr":
            parts.setdefault(target, attrgetter(target)(root))
        elif node.target in _DROPOUTS:
            probability = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            kind = _DROPOUTS[node.target]
            node.op, node.target = "call_module", f"dropout_{len(parts)}"
            parts[node.target] = kind(probability)
            node.args, node.kwargs = node.args[:1] or (node.kwargs["input"],), {}
    body = fx.GraphModule(parts, graph, name)
    type(body).__call__ = nn.Module.__call__  # fx's own prints the graph's source beside every error
    return body


def _copy(graph: fx.Graph) -> fx.Graph:
    new, copies = fx.Graph(), {}
    for node in graph.nodes:
        copies[node] = new.node_copy(node, lambda each: copies[each])
        note_copy(node, copies)
    return new


def _try_out(body: fx.GraphModule, fork: fx.Node, logits: Tensor, name: str) -> None:
    """One image must give one row of logits."""
    features = value_of(fork)[:1]
    try:
        with torch.inference_mode():
            given = body.eval().forward(features)
    except FAILURES as error:
        raise UserError(f"no branch {name}: the backbone's tail does not run on its own: {reason(error)}") from error
    if given.shape != (1, logits.shape[1]):
        raise UserError(f"no branch {name}: the backbone's tail gives {tuple(given.shape)} for one image, not logits")
