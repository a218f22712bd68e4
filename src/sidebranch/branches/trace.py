"""A backbone's forward pass as a graph, with the value of every node, and its tail after any module.

In: a backbone and the size of an image. Out: a `Trace`: a `torch.fx` graph of blocks, the nodes where it can be cut,
and the graph from a cut to the logits. While it is traced, the pass runs on meta tensors: shapes are known, control
flow that depends on them is followed, and nothing is computed.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn import functional
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from sidebranch.branches.tracer import Call, Tracer, is_read_later, note_copy, value_of, was_changed
from sidebranch.errors import UserError, reason

# Exceptions that a forward pass may raise on a wrong input, or while it is traced.
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    IndexError,
    AttributeError,
    KeyError,
    NotImplementedError,
)


BATCH = 2
OWN = "give branches of your own: branches=[sb.SideBranch(...)]"


class ShapesOfNorms(TorchFunctionMode):
    """Batch norm of meta tensors as its output's shape alone; torch decomposes it in Python, a third of a trace."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.batch_norm and isinstance(args[0], Tensor) and args[0].is_meta:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def meta_copy(module: nn.Module) -> Any:
    """A copy of the module on the meta device, without memory for weights."""
    memo: dict[int, Any] = {}
    if any(isinstance(each, UninitializedParameter) for each in module.parameters()):
        raise UserError(f"{type(module).__name__} has lazy layers; run one batch through it first")
    for each in module.parameters():
        memo[id(each)] = nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad)
    for each in module.buffers():
        memo[id(each)] = torch.empty_like(each, device="meta")
    try:
        return copy.deepcopy(module, memo)
    except FAILURES as error:
        raise UserError(f"{type(module).__name__} cannot be copied: {reason(error)}") from error


@dataclass(eq=False)
class Trace:
    """One forward pass.

    Attributes:
        root: the backbone on the meta device, which the graph's names refer to.
        graph: of blocks, with plain sequences opened; a node's `meta["value"]` is its output.
        calls: path of a module to its calls, in order.
        cuts: the nodes that every path from the images to the logits goes through.
    """

    root: nn.Module
    graph: fx.Graph
    calls: dict[str, list[Call]]
    cuts: set[fx.Node]

    @property
    def images(self) -> Tensor:
        return value_of(next(iter(self.graph.nodes)))

    @property
    def logits(self) -> Tensor:
        return value_of(self.graph.output_node().args[0])

    def fork(self, at: str) -> fx.Node:
        """The node that a branch at this module forks from.

        Raises:
            UserError: a branch cannot fork there; it says why.
        """
        calls = self.calls.get(at, [])
        if not calls:
            raise UserError(f"no fork at '{at}': the forward pass does not run it as a module of its own")
        if len(calls) > 1:
            raise UserError(f"no fork at '{at}': the forward pass runs it {len(calls)} times")
        node = calls[0].output
        if node is None or not isinstance(value_of(node), Tensor):
            raise UserError(f"no fork at '{at}': it does not give one tensor")
        if node not in self.cuts:
            raise UserError(f"no fork at '{at}': a path from the images to the logits bypasses it")
        if was_changed(node):
            raise UserError(f"no fork at '{at}': a later operation changes its output in place; fork after that")
        return node

    def places(self) -> dict[str, fx.Node]:
        """Modules where a branch can fork, in order of execution; of modules with the same output, the outermost."""
        found: dict[fx.Node, str] = {}
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        for path, calls in self.calls.items():
            node = calls[0].output
            if len(calls) > 1 or node is None or node not in self.cuts or not is_feature(value_of(node)):
                continue
            if not was_changed(node) and (node not in found or path.count(".") < found[node].count(".")):
                found[node] = path
        return {path: node for node, path in sorted(found.items(), key=lambda item: order[item[0]])}

    def tail(self, fork: fx.Node, end: fx.Node | None = None) -> tuple[fx.Graph, dict[str, Call]]:
        """The graph from the fork's output to the logits, or to a later cut, and the calls of its modules.

        Sizes that are read before the fork are constants in it, except for the batch size.
        """
        graph, copies = fx.Graph(), {}
        copies[fork] = graph.placeholder("features")
        copies[fork].meta = dict(fork.meta)
        past = _past(fork, self.graph)
        nodes = list(self.graph.nodes)
        limit = len(nodes) if end is None else nodes.index(end)
        needed = self._sources(end or self.graph.output_node(), {*past, fork}, limit)
        batch = graph.call_method("size", (copies[fork], 0))
        batch.meta["value"] = BATCH

        def carried(node: fx.Node) -> Any:
            return _size(node, batch) if node in past else copies[node]

        for node in self.graph.nodes:
            if node in needed:
                copies[node] = graph.node_copy(node, carried)
                note_copy(node, copies)
        if not batch.users:
            graph.erase_node(batch)
        if end is not None:
            graph.output(copies[end])
        runs = {path: calls[0] for path, calls in self.calls.items() if len(calls) == 1}
        return graph, {
            path: Call(copies[run.input], copies[run.output])
            for path, run in runs.items()
            if run.input in copies and run.output in copies and run.output is not fork
        }

    def stem(self, fork: fx.Node) -> fx.Graph:
        """The graph from the images to the fork's output."""
        graph, copies = fx.Graph(), {}
        nodes = list(self.graph.nodes)
        needed = {nodes[0], *self._sources(fork, set(), nodes.index(fork))}
        for node in nodes:
            if node in needed:
                copies[node] = graph.node_copy(node, lambda each: copies[each])
                note_copy(node, copies)
        graph.output(copies[fork])
        return graph

    def _sources(self, end: fx.Node, outside: set[fx.Node], limit: int) -> set[fx.Node]:
        """The nodes that `end` depends on, but for those outside.

        With in-place operations among the first `limit` nodes whose input is read later, though their output is not
        used.
        """
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        needed: set[fx.Node] = set()
        stack = [end]
        while stack:
            node = stack.pop()
            if node not in needed and node not in outside:
                needed.add(node)
                stack.extend(node.all_input_nodes)
            if not stack:
                left = [each for each in order if each not in needed and each not in outside and order[each] < limit]
                stack = [each for each in left if is_read_later(each, order, needed)]
        return needed


def check_size(input_size: Any) -> None:
    """Raises UserError if this is not channels, height, width."""
    sizes = input_size if isinstance(input_size, Sequence) else ()
    if len(sizes) != 3 or not all(isinstance(each, int) and each > 0 for each in sizes):
        raise UserError(f"the input size is {input_size}; it must be channels, height, width, such as (3, 224, 224)")


def trace(backbone: nn.Module, input_size: Sequence[int], *, training: bool = False) -> Trace:
    """Runs two blank images through a copy of the backbone on the meta device.

    Args:
        backbone: images to logits; left as it is.
        input_size: of an image: channels, height, width.
        training: the mode in which the pass is followed.

    Raises:
        UserError: the backbone does not take such images, or its forward pass cannot be followed.
    """
    if hasattr(backbone, "_orig_mod"):
        raise UserError("the backbone is compiled already; attach branches first, then compile the whole")
    if "forward" in vars(backbone) or backbone._forward_hooks or backbone._forward_pre_hooks:
        raise UserError(
            f"{type(backbone).__name__} has a forward hook or a patched forward, which branches made from it would not "
            f"have; remove it, or wrap the model in a module"
        )
    root = _one_input(meta_copy(backbone))
    for each in root.modules():  # users' hooks watch their module, not its copies
        for hooks in (each._forward_hooks, each._forward_pre_hooks, each._backward_hooks, each._backward_pre_hooks):
            hooks.clear()
    dtype = next((each.dtype for each in root.parameters()), torch.float32)
    images = torch.empty(BATCH, *input_size, device="meta", dtype=dtype)
    if not training:  # both modes were tried before
        _run_plainly(root, images)
    root.train(training)
    failure: Exception | None = None
    for opens in (_is_stage, _is_sequence):
        tracer = Tracer(images, opens)
        try:
            with torch.no_grad(), ShapesOfNorms():
                graph = tracer.trace(root)
        except (*FAILURES, TraceError) as error:
            failure = failure or error
            continue
        return Trace(root, graph, tracer.calls, cuts_of(graph))
    assert failure is not None
    raise UserError(
        f"the forward pass of {type(backbone).__name__} cannot be followed: {reason(failure)}; {OWN}"
    ) from failure


def _one_input(root: nn.Module) -> nn.Module:
    """The defaults of the forward pass's other arguments, such as masks."""
    kind = type(root)

    def forward(self: nn.Module, images: Tensor) -> Any:
        return kind.forward(self, images)

    root.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return root


def _remedy(error: Exception) -> str:
    if "meta" in str(error):  # the tensors that it was tried with have no values
        return f"its forward pass depends on values; {OWN}"
    return "the size that it takes is given as input_size, channels, height and width"


def _run_plainly(root: nn.Module, images: Tensor) -> None:
    """Runs both modes, so that errors in training mode are reported now."""
    for training in (True, False):
        root.train(training)
        try:
            with torch.no_grad(), ShapesOfNorms():
                logits = root(images)
        except FAILURES as error:
            size = "x".join(map(str, images.shape[1:]))
            raise UserError(
                f"{type(root).__name__} does not take images of {size}: {reason(error)}; {_remedy(error)}"
            ) from error
        if not isinstance(logits, Tensor):
            mode = "training" if training else "evaluation"
            raise UserError(
                f"{type(root).__name__} gives a {type(logits).__name__} in {mode} mode, not one tensor of logits; "
                f"a backbone gives logits [N, K] alone, without auxiliary outputs (aux_logits=False), features or masks"
            )
        if logits.ndim != 2:
            raise UserError(
                f"{type(root).__name__} gives {tuple(logits.shape)}, not logits [N, K]; give it a classifier"
            )


def is_feature(value: Any) -> bool:
    """Feature maps [N, C, H, W] or [N, H, W, C], or a sequence [N, L, C]."""
    return isinstance(value, Tensor) and value.ndim in (3, 4) and value.is_floating_point() and value.shape[0] == BATCH


def _is_sequence(module: nn.Module) -> bool:
    return type(module) is nn.Sequential


def _is_stage(module: nn.Module) -> bool:
    """A plain sequence, or a module made of blocks of one class or with a sequence of blocks."""
    holders = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    heavy = [child for child in module.children() if has_weights(child)]
    if _is_sequence(module) or (len(heavy) > 1 and len({type(each) for each in heavy}) == 1 and is_block(heavy[0])):
        return True
    return any(
        sum(is_block(each) for each in child.children()) > 1
        for child in module.children()
        if isinstance(child, holders)
    )


def has_weights(module: nn.Module) -> bool:
    """Whether it has weights of at least two dimensions, unlike a norm."""
    return any(each.ndim > 1 for each in module.parameters())


def is_block(module: nn.Module) -> bool:
    """Whether a module has children, with weights of at least two dimensions."""
    return any(True for _ in module.children()) and has_weights(module)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_holds_tensor, value))
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor)


def _past(fork: fx.Node, graph: fx.Graph) -> set[fx.Node]:
    """The nodes that do not depend on the fork, and sizes that depend on such nodes only."""
    past: set[fx.Node] = set()
    for node in graph.nodes:
        if node is fork:
            continue
        features = [each for each in node.all_input_nodes if _holds_tensor(value_of(each))]
        sizes = [each for each in node.all_input_nodes if each not in features]
        is_size = not _holds_tensor(value_of(node)) and node.op != "output"
        if (
            node.op == "placeholder"
            or any(each in past for each in features)
            or (is_size and not features and sizes and all(each in past for each in sizes))
        ):
            past.add(node)
    return past


def _size(node: fx.Node, batch: fx.Node) -> Any:
    """A size that is read before the fork: a constant, except for the number of images."""
    value = value_of(node)
    assert not _holds_tensor(value), f"{node} goes past the cut"
    if isinstance(value, torch.device):
        return batch.graph.call_function(getattr, (batch.args[0], "device"))
    if isinstance(value, torch.Size):
        return (batch, *value[1:]) if node.args[1] == "shape" else tuple(value)
    of_images = (node.target is operator.getitem and node.args[1] == 0) or (
        node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
    )
    return batch if of_images and value == BATCH else value


def cuts_of(graph: fx.Graph) -> set[fx.Node]:
    """The cuts, in one sweep: nodes after which no earlier node is used."""
    nodes = list(graph.nodes)
    order = {node: place for place, node in enumerate(nodes)}
    flows = [node for node in nodes if _holds_tensor(value_of(node)) or node.op == "output"]
    fed = {node for node in flows if node.op == "placeholder"}
    for node in flows:
        if any(each in fed for each in node.all_input_nodes):
            fed.add(node)
    useful: set[fx.Node] = {graph.output_node()}
    for node in reversed(flows):
        if any(each in useful for each in node.users):
            useful.add(node)
    cuts, pending = set(), -1
    for node in flows:
        if node not in fed or node not in useful or node.op == "output":
            continue
        if pending <= order[node]:
            cuts.add(node)
        pending = max(pending, *(order[user] for user in node.users if user in useful), -1)
    return {node for node in cuts if node.op != "placeholder"}
