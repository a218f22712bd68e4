"""A backbone's forward pass as a graph, with the value of every node, and its tail after any module.

In: a backbone and the size of an image. Out: a `Trace`: a `torch.fx` graph whose nodes are blocks, the places where it
may be cut, and the cut itself: a graph from one module's output to the logits. The pass runs on meta tensors while it
is traced, so that shapes are known, control flow that depends on them is followed, and nothing is computed.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute, TraceError
from torch.nn.parameter import UninitializedParameter

from sidebranch.errors import UserError

# What a forward pass may raise on an input that it does not take, or on a way of tracing that it does not bear.
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


def meta_copy(module: nn.Module) -> Any:
    """The module on the meta device: its structure, none of its memory."""
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


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Call(NamedTuple):
    """One run of a module: the nodes of its first input and of its output, None for what is no single value."""

    input: fx.Node | None
    output: fx.Node | None


@dataclass(eq=False)
class Trace:
    """One forward pass.

    Attributes:
        root: the backbone on the meta device, which the graph's names refer to.
        graph: blocks, stages' plain sequences opened; every node's `meta["value"]` is what it gave.
        calls: path of a module to its runs, in their order.
        cuts: the nodes through which everything flows that leads from the images to the logits.
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
            UserError: the place is no fork.
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
            raise UserError(f"no fork at '{at}': part of what leads to the logits goes past it")
        if was_changed(node):
            raise UserError(f"no fork at '{at}': a later operation changes its output in place; fork after that")
        return node

    def places(self) -> dict[str, fx.Node]:
        """Every module where a branch may fork, in the order of their runs; of those with one output, the outermost."""
        found: dict[fx.Node, str] = {}
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        for path, calls in self.calls.items():
            node = calls[0].output
            if len(calls) > 1 or node is None or node not in self.cuts or not is_feature(value_of(node)):
                continue
            if not was_changed(node) and (node not in found or path.count(".") < found[node].count(".")):
                found[node] = path
        return {path: node for node, path in sorted(found.items(), key=lambda item: order[item[0]])}

    def tail(self, fork: fx.Node) -> tuple[fx.Graph, dict[str, Call]]:
        """The graph from the fork's output to the logits, and its modules' runs.

        Sizes that were read before the fork are constants in it, but for the batch's.
        """
        graph, copies = fx.Graph(), {}
        copies[fork] = graph.placeholder("features")
        copies[fork].meta = dict(fork.meta)
        past = _past(fork, self.graph)
        needed = self._needed(fork, past)
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
        runs = {path: calls[0] for path, calls in self.calls.items() if len(calls) == 1}
        return graph, {
            path: Call(copies[run.input], copies[run.output])
            for path, run in runs.items()
            if run.input in copies and run.output in copies and run.output is not fork
        }

    def _needed(self, fork: fx.Node, past: set[fx.Node]) -> set[fx.Node]:
        """The nodes after the fork that the logits are made of."""
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        needed: set[fx.Node] = set()
        stack = [self.graph.output_node()]
        while stack:
            node = stack.pop()
            if node not in needed and node is not fork and node not in past:
                needed.add(node)
                stack.extend(node.all_input_nodes)
            if not stack:  # what changes in place something that is read afterwards, though nobody takes its output
                stack = [
                    each
                    for each in self.graph.nodes
                    if each not in needed and each not in past and is_read_later(each, order, needed)
                ]
        return needed


def check_size(input_size: Any) -> None:
    """Refuses what is no size of an image."""
    sizes = input_size if isinstance(input_size, Sequence) else ()
    if len(sizes) != 3 or not all(isinstance(each, int) and each > 0 for each in sizes):
        raise UserError(f"the input size is {input_size}; it must be channels, height, width, such as (3, 224, 224)")


def trace(backbone: nn.Module, input_size: Sequence[int], *, training: bool = False) -> Trace:
    """Runs two blank images through a copy of the backbone that holds no memory.

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
            f"{type(backbone).__name__} has a forward hook or a forward pass of its own, which branches cut out of it "
            f"would not have; take it off, or wrap the model in a module"
        )
    root = _one_input(meta_copy(backbone))
    for each in root.modules():  # what users hang on a module watches that module, not its copies
        for hooks in (each._forward_hooks, each._forward_pre_hooks, each._backward_hooks, each._backward_pre_hooks):
            hooks.clear()
    dtype = next((each.dtype for each in root.parameters()), torch.float32)
    images = torch.empty(BATCH, *input_size, device="meta", dtype=dtype)
    if not training:  # both modes were tried then
        _run_plainly(root, images)
    root.train(training)
    failure: Exception | None = None
    for opens in (_is_stage, _is_sequence):
        tracer = _Tracer(images, opens)
        try:
            with torch.no_grad():
                graph = tracer.trace(root)
        except (*FAILURES, TraceError) as error:
            failure = failure or error
            continue
        return Trace(root, graph, tracer.calls, cuts_of(graph))
    assert failure is not None
    raise UserError(f"the forward pass of {type(backbone).__name__} cannot be followed: {reason(failure)}") from failure


BATCH = 2


def _one_input(root: nn.Module) -> nn.Module:
    """Leaves the forward pass's further arguments, masks and the like, at their defaults."""
    kind = type(root)

    def forward(self: nn.Module, images: Tensor) -> Any:
        return kind.forward(self, images)

    root.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return root


def _run_plainly(root: nn.Module, images: Tensor) -> None:
    """Both modes, so that what a user would meet in training is said now."""
    for training in (True, False):
        root.train(training)
        try:
            with torch.no_grad():
                logits = root(images)
        except FAILURES as error:
            size = "x".join(map(str, images.shape[1:]))
            raise UserError(f"{type(root).__name__} does not take images of {size}: {reason(error)}") from error
        if not isinstance(logits, Tensor):
            mode = "training" if training else "evaluation"
            raise UserError(
                f"{type(root).__name__} gives a {type(logits).__name__} in {mode} mode, not one tensor of logits; "
                f"create it without auxiliary outputs (aux_logits=False)"
            )
        if logits.ndim != 2:
            raise UserError(
                f"{type(root).__name__} gives {tuple(logits.shape)}, not logits [N, K]; give it a classifier"
            )


def value_of(node: Any) -> Any:
    return node.meta.get("value") if isinstance(node, fx.Node) else node


def is_feature(value: Any) -> bool:
    """Feature maps [N, C, H, W] or [N, H, W, C], or a sequence [N, L, C]."""
    return isinstance(value, Tensor) and value.ndim in (3, 4) and value.is_floating_point() and value.shape[0] == BATCH


def was_changed(node: fx.Node) -> bool:
    """Whether a later operation changed the node's value in place."""
    value = value_of(node)
    return isinstance(value, Tensor) and value._version != node.meta["version"]


def is_read_later(node: fx.Node, order: Mapping[fx.Node, int], among: Container[fx.Node]) -> bool:
    """Whether something that the node changes in place is used, by one of these, after the change."""
    return any(user in among and order[user] > order[node] for each in changes(node) for user in each.users)


def note_copy(node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> None:
    """Gives a node's copy what is known of the node."""
    copies[node].meta = node.meta | {"changes": {copies[each] for each in changes(node) if each in copies}}


def changes(node: fx.Node) -> set[fx.Node]:
    """The earlier nodes whose values this one changes in place."""
    return node.meta.get("changes", set())


class _Proxy(fx.Proxy):
    """A proxy that knows its value, so that Python's control flow can go on."""

    tracer: _Tracer

    @property
    def value(self) -> Any:
        return value_of(self.node)

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self.value, name)):
            return Attribute(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        return len(self.value)

    def __index__(self) -> int:
        return operator.index(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], Any]:
    """fx would trace `x += y` as `x = x + y`, and an in-place change of a fork's output would not be seen."""

    def method(proxy: _Proxy, other: Any) -> Any:
        return proxy.tracer.create_proxy("call_function", operation, (proxy, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Traces while it runs: a leaf is executed on the meta device as soon as it is met.

    Args:
        images: the input.
        opens: which modules are looked into, apart from the root.
    """

    def __init__(self, images: Tensor, opens: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.images, self.opens = images, opens
        self.proxy_buffer_attributes = True
        self.calls: dict[str, list[Call]] = {}
        self.views: dict[int, list[fx.Node]] = {}  # nodes by the memory that their values share
        self.is_running = False  # a leaf, outside the graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.opens(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **options)
        node = proxy.node
        given = [each for each in node.all_input_nodes if isinstance(value_of(each), Tensor)]
        versions = {each: value_of(each)._version for each in given}
        value = self._run(node)
        node.meta["value"] = value
        node.meta["version"] = value._version if isinstance(value, Tensor) else None
        moved = [value_of(each) for each, old in versions.items() if value_of(each)._version != old]
        changed = {each.untyped_storage()._cdata for each in moved}
        if changed:
            node.meta["changes"] = {each for storage in changed for each in self.views.get(storage, ())} - {node}
        if isinstance(value, Tensor):
            self.views.setdefault(value.untyped_storage()._cdata, []).append(node)
        return proxy

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.is_running:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        output = super().call_module(m, forward, args, kwargs)
        given = next(iter((*args, *kwargs.values())), None)
        call = Call(*(each.node if isinstance(each, fx.Proxy) else None for each in (given, output)))
        self.calls.setdefault(path, []).append(call)
        return output

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.is_running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(value_of(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([cast(Any, obj)[place] for place in range(len(value_of(obj.node)))])

    def keys(self, obj: fx.Proxy) -> Any:
        return value_of(obj.node).keys()

    def _run(self, node: fx.Node) -> Any:
        """What the node gives."""
        if node.op == "placeholder":
            return node.args[0] if node.args else self.images
        args, kwargs = _plain(map_arg((node.args, node.kwargs), self._argument))
        self.is_running = True
        try:
            if node.op == "get_attr":
                return operator.attrgetter(str(node.target))(self.root)
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue] (a function)
        finally:
            self.is_running = False

    def _argument(self, node: fx.Node) -> Any:
        if "value" not in node.meta:  # a parameter given as an argument
            node.meta["value"] = self._run(node)
            node.meta["version"] = node.meta["value"]._version
        return node.meta["value"]


def _plain(arguments: Any) -> Any:
    """Lists and dicts that may be changed, as they are outside a graph."""
    if isinstance(arguments, dict):
        return {key: _plain(each) for key, each in arguments.items()}
    if isinstance(arguments, list):
        return [_plain(each) for each in arguments]
    return tuple(map(_plain, arguments)) if type(arguments) is tuple else arguments


def _is_sequence(module: nn.Module) -> bool:
    return type(module) is nn.Sequential


def _is_stage(module: nn.Module) -> bool:
    """A plain sequence, or a module that is made of blocks of one kind or holds a sequence of blocks."""
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
    """Whether it has weights of at least two dimensions: more than a norm's."""
    return any(each.ndim > 1 for each in module.parameters())


def is_block(module: nn.Module) -> bool:
    """Whether a module is made of others, among which are weights of at least two dimensions."""
    return any(True for _ in module.children()) and has_weights(module)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_holds_tensor, value))
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor)


def _past(fork: fx.Node, graph: fx.Graph) -> set[fx.Node]:
    """What the images lead to without going through the fork: features, and sizes read from nothing else."""
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
    """A size that was read before the fork: a constant, but for the number of images."""
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
    """One sweep: at a cut, no earlier node is still to be used by a later one."""
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
