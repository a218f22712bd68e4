"""A `torch.fx` tracer that runs the forward pass while it records it, with the value of every node.

In: a module on the meta device and images for it. Out: a graph, and the calls of every module. A node's `meta["value"]`
is its output, `meta["version"]` the output's version counter at that time, and `meta["changes"]` the earlier nodes
whose outputs it changed in place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute


class Call(NamedTuple):
    """One call of a module: the nodes of its first input and of its output; None for more than one value."""

    input: fx.Node | None
    output: fx.Node | None


def value_of(node: Any) -> Any:
    return node.meta.get("value") if isinstance(node, fx.Node) else node


def was_changed(node: fx.Node) -> bool:
    """Whether a later operation changed the node's output in place."""
    value = value_of(node)
    return isinstance(value, Tensor) and value._version != node.meta["version"]


def is_read_later(node: fx.Node, order: Mapping[fx.Node, int], among: Container[fx.Node]) -> bool:
    """Whether one of these nodes uses, after the change, something that the node changes in place."""
    return any(user in among and order[user] > order[node] for each in changes(node) for user in each.users)


def note_copy(node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> None:
    """Copies a node's meta data to its copy."""
    copies[node].meta = node.meta | {"changes": {copies[each] for each in changes(node) if each in copies}}


def changes(node: fx.Node) -> set[fx.Node]:
    """The earlier nodes whose outputs this one changes in place."""
    return node.meta.get("changes", set())


class _Proxy(fx.Proxy):
    """A proxy with a value, for Python's control flow."""

    tracer: Tracer

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
    """fx traces `x += y` as `x = x + y`, which hides an in-place change of a fork's output."""

    def method(proxy: _Proxy, other: Any) -> Any:
        return proxy.tracer.create_proxy("call_function", operation, (proxy, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(fx.Tracer):
    """Traces and runs: each leaf is executed on the meta device when it is reached.

    Args:
        images: the input.
        opens: whether to trace into a module; the root always is.
    """

    def __init__(self, images: Tensor, opens: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.images: Tensor = images
        self.opens: Callable[[nn.Module], bool] = opens
        self.proxy_buffer_attributes = True
        self.calls: dict[str, list[Call]] = {}
        self.views: dict[int, list[fx.Node]] = {}  # storage to the nodes whose outputs share it
        self.is_running: bool = False  # a leaf is being executed

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
        """The node's output."""
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
    """Plain lists and dicts instead of fx's immutable ones."""
    if isinstance(arguments, dict):
        return {key: _plain(each) for key, each in arguments.items()}
    if isinstance(arguments, list):
        return [_plain(each) for each in arguments]
    return tuple(map(_plain, arguments)) if type(arguments) is tuple else arguments
