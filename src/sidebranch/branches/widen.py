"""Widen a tail: the same blocks with more channels (rule 3 of DHM's supplement A, for the branch nearest the top).

The tail runs once on the meta device. Every layer is rebuilt just before it runs, for the channels of its input, so
that later layers follow the earlier ones, whatever the blocks look like.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from sidebranch.branches.trace import FAILURES, cuts_of, has_weights
from sidebranch.errors import reason

Shapes = dict[nn.Module, tuple[torch.Size, torch.Size]]


class CannotWiden(Exception):
    """The module that cannot be widened, and why."""


def widen(tail: fx.GraphModule, width: float, is_map: Callable[[Tensor], bool]) -> None:
    """Multiplies the channels of every layer before the pool; the head keeps its width.

    Args:
        tail: on the meta device, with node values; changed in place, unusable if it fails.
        width: factor of the channels; depth-wise convolutions follow their input.
        is_map: whether a value is a feature map before pooling.

    Raises:
        CannotWiden: a module has its sizes elsewhere than in its layers.
    """
    features = next(node for node in tail.graph.nodes if node.op == "placeholder").meta["value"]
    before, taken_before = _shapes(tail, features)
    paths = {module: path for path, module in tail.named_modules()}
    head = _head(tail, is_map) | _classifiers(tail, before)
    seen: set[nn.Module] = set()
    current = ""

    def adapt(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal current
        current = paths[module]
        if module in seen or not inputs or not isinstance(inputs[0], Tensor) or module not in before:
            return
        seen.add(module)
        _adapt(module, before[module], inputs[0].shape, 1.0 if module in head else width)

    handles = [module.register_forward_pre_hook(adapt) for module in tail.modules() if module is not tail]
    try:
        with torch.no_grad():
            tail.forward(features)
        after, taken_after = _shapes(tail, features)
    except CannotWiden as error:
        raise CannotWiden(f"'{current}', {error}") from error
    except FAILURES as error:
        raise CannotWiden(f"'{current}', {reason(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    for one, other in zip_longest(taken_before, taken_after):
        if one is None or other is None or other[1] < one[1]:
            where = (other or one or ("",))[0]
            raise CannotWiden(f"'{where}', whose forward pass takes a fixed number of channels out of what it gets")
    _check(tail, before, after, head)


class _Selections(TorchFunctionMode):
    """Records, for every slice and split, its module and its share of the input."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.paths = {module: path for path, module in tail.named_modules()}
        self.current = ""
        self.found: list[tuple[str, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func in _SELECTIONS and isinstance(args[0], Tensor) and args[0].numel():
            first = given[0] if isinstance(given, (tuple, list)) else given
            self.found.append((self.current, first.numel() / args[0].numel()))
        return given


_SELECTIONS = {Tensor.__getitem__, Tensor.narrow, torch.narrow, Tensor.split, torch.split, torch.split_with_sizes}


def _shapes(tail: fx.GraphModule, features: Tensor) -> tuple[Shapes, list[tuple[str, float]]]:
    """Shapes of every module's first input and output, in order of execution; and the slices and splits."""
    found: Shapes = {}
    selections = _Selections(tail)

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            found.setdefault(module, (inputs[0].shape, output.shape))

    def enter(module: nn.Module, inputs: Any) -> None:
        selections.current = selections.paths[module]

    handles = []
    for module in tail.modules():
        if module is not tail:
            handles += [module.register_forward_hook(note), module.register_forward_pre_hook(enter)]
    try:
        with torch.no_grad(), selections:
            tail.forward(features)
    finally:
        for handle in handles:
            handle.remove()
    return found, selections.found


def _head(tail: fx.GraphModule, is_map: Callable[[Tensor], bool]) -> set[nn.Module]:
    """The nodes after the last feature map before pooling."""
    nodes, cuts = list(tail.graph.nodes), cuts_of(tail.graph)
    last = max((place for place, node in enumerate(nodes) if node in cuts and is_map(node.meta["value"])), default=0)
    later = [tail.get_submodule(str(node.target)) for node in nodes[last + 1 :] if node.op == "call_module"]
    return {each for module in later for each in module.modules()}


def _classifiers(tail: fx.GraphModule, shapes: Shapes) -> set[nn.Module]:
    """The layers that give the logits, possibly before pooling: the last ones of the modules nearest the output."""
    found: set[nn.Module] = set()
    stack, visited = [tail.graph.output_node()], set()
    while stack:
        node = stack.pop()
        module = tail.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None and has_weights(module):
            inside = set(module.modules())
            found.update([each for each in shapes if each in inside and isinstance(each, (nn.Linear, _ConvNd))][-1:])
        elif node not in visited:
            stack.extend(node.all_input_nodes)
        visited.add(node)
    return found


def _adapt(module: nn.Module, before: tuple[torch.Size, torch.Size], now: torch.Size, width: float) -> None:
    """Rebuilds a module's own parameters for its input."""
    was = before[0]
    own = dict(module.named_parameters(recurse=False))
    if not own and not list(module.buffers(recurse=False)):
        return
    rebuild = next((rebuild for kind, rebuild in _REBUILDS.items() if isinstance(module, kind)), None)
    if rebuild is None:
        _stretch(module, own, was, now)
        return
    if not own.keys() <= {"weight", "bias"}:
        raise CannotWiden(f"{type(module).__name__}, which has unknown parameters")
    rebuild(module, was, now, width)


def _convolution(module: Any, was: torch.Size, now: torch.Size, width: float) -> None:
    axis = len(now) - len(module.kernel_size) - 1
    inputs, outputs, groups = now[axis], _times(module.out_channels, width), module.groups
    if groups > 1 and groups == module.in_channels:  # depth-wise
        outputs = inputs * (module.out_channels // groups)
        groups = inputs
    if inputs % groups or outputs % groups:
        raise CannotWiden(f"{type(module).__name__}, whose {groups} groups do not divide {inputs} and {outputs}")
    module.in_channels, module.out_channels, module.groups = inputs, outputs, groups
    _resize(module, "weight", (outputs, inputs // groups, *module.kernel_size))
    _resize(module, "bias", (outputs,))


def _linear(module: Any, was: torch.Size, now: torch.Size, width: float) -> None:
    module.in_features, module.out_features = now[-1], _times(module.out_features, width)
    _resize(module, "weight", (module.out_features, module.in_features))
    _resize(module, "bias", (module.out_features,))


def _batch_norm(module: Any, was: torch.Size, now: torch.Size, width: float) -> None:
    module.num_features = now[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        _resize(module, name, (now[1],))


def _group_norm(module: Any, was: torch.Size, now: torch.Size, width: float) -> None:
    module.num_channels = now[1]
    for name in ("weight", "bias"):
        _resize(module, name, (now[1],))


def _layer_norm(module: Any, was: torch.Size, now: torch.Size, width: float) -> None:
    if len(module.normalized_shape) != 1:
        raise CannotWiden(f"{type(module).__name__} over several dimensions")
    axis = -1 if was[-1] == module.normalized_shape[0] else 1
    module.normalized_shape = (now[axis],)
    for name in ("weight", "bias"):
        _resize(module, name, (now[axis],))


_REBUILDS: dict[type[nn.Module], Callable[..., None]] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    _BatchNorm: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
}


def _stretch(module: nn.Module, own: dict[str, nn.Parameter], was: torch.Size, now: torch.Size) -> None:
    """Other parameters, such as layer scales: dimensions that had the input's size get its new size."""
    changed = {old: new for old, new in zip(was, now, strict=False) if old != new}
    for name, parameter in own.items():
        _resize(module, name, tuple(changed.get(size, size) for size in parameter.shape))


def _resize(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, name, None)
    if old is None or old.shape == shape:
        return
    new = torch.empty(shape, device="meta", dtype=old.dtype)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _times(channels: int, width: float) -> int:
    """One channel stays one: a weight for all channels, such as attention, is no feature map."""
    return channels if channels == 1 else max(1, round(width * channels))


def _check(tail: fx.GraphModule, before: Shapes, after: Shapes, head: set[nn.Module]) -> None:
    """Checks that outputs have new channels: a module with its sizes elsewhere may still give the old number."""
    for node in tail.graph.nodes:
        module = tail.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is None or module in head or module not in before or not has_weights(module):
            continue
        (was_in, was_out), (now_in, now_out) = before[module], after[module]
        if was_in != now_in and was_out == now_out:
            raise CannotWiden(f"'{node.target}', a {type(module).__name__} whose output stays {tuple(now_out[1:])}")
