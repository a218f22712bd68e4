"""Make a tail shorter: leave out repeated blocks (rule 3 of DHM's supplement A, for the farther branches)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from torch import fx, nn

from sidebranch.branches.trace import cuts_of, has_weights, is_feature
from sidebranch.branches.tracer import Call, is_read_later, value_of


def thin(graph: fx.Graph, calls: Mapping[str, Call], root: nn.Module, keep: float) -> tuple[int, int]:
    """Removes the last repeated blocks of each stage.

    A stage is a run of blocks with one output shape; its repeated blocks are those of its most frequent class whose
    output has the shape of their input. Of n blocks, ceil(keep n) stay: 3 of ResNet-50's 6 and 2 of its 3, as in
    DHM's supplement, Table 4.

    Args:
        graph: a tail, changed in place.
        calls: input and output nodes of its modules.
        root: the module that the graph's names refer to.
        keep: share of the blocks to keep, in (0, 1].

    Returns:
        Number of blocks of the repeated classes that stay, and that there were.
    """
    kept = total = 0
    for stage in _stages(graph, calls, root):
        kind = Counter(type(root.get_submodule(path)) for path in stage).most_common(1)[0][0]
        blocks = [path for path in stage if type(root.get_submodule(path)) is kind]
        repeats = [path for path in blocks if _repeats(calls[path])]
        if not repeats:
            continue
        stay = max(math.ceil(keep * len(blocks)), len(blocks) - len(repeats))
        for path in reversed(repeats[len(repeats) - (len(blocks) - stay) :]):
            _leave_out(calls[path], root)
        kept, total = kept + stay, total + len(blocks)
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in reversed(list(graph.nodes)):
        is_end = node.op in ("placeholder", "output")
        if not is_end and not node.users and not is_read_later(node, order, order):
            graph.erase_node(node)
    return kept, total


def _stages(graph: fx.Graph, calls: Mapping[str, Call], root: nn.Module) -> list[list[str]]:
    """The blocks between two cuts of the graph, grouped into stages of one output shape."""
    cuts = cuts_of(graph) | {next(iter(graph.nodes))}
    flows = {
        path: call
        for path, call in calls.items()
        if call.input in cuts
        and call.output in cuts
        and is_feature(value_of(call.output))
        and has_weights(root.get_submodule(path))
    }
    sequences = {path for path in flows if _is_sequence(path, flows, root)}
    blocks = [path for path in flows if path not in sequences and not _inside(path, flows.keys() - sequences)]
    order = {node: place for place, node in enumerate(graph.nodes)}
    stages: list[list[str]] = []
    shape = None
    for path in sorted(blocks, key=lambda path: order[flows[path].output]):  # pyright: ignore[reportArgumentType]
        if value_of(flows[path].output).shape != shape:
            stages.append([])
            shape = value_of(flows[path].output).shape
        stages[-1].append(path)
    return stages


def _is_sequence(path: str, flows: Mapping[str, Call], root: nn.Module) -> bool:
    """Whether a module is a sequence of blocks, not a block itself."""
    inside = [each for each in flows if each.startswith(f"{path}.")]
    return type(root.get_submodule(path)) is nn.Sequential or any(_repeats(flows[each]) for each in inside)


def _inside(path: str, others: set[str]) -> bool:
    return any(path.startswith(f"{each}.") for each in others)


def _repeats(call: Call) -> bool:
    """Whether output and input have the same shape."""
    return value_of(call.input).shape == value_of(call.output).shape


def _leave_out(call: Call, root: nn.Module) -> None:
    """Removes a block; with a plain convolution, also the norm and the activation after it."""
    assert call.input is not None
    assert call.output is not None
    last = call.output
    if last.op == "call_module" and not any(True for _ in root.get_submodule(str(last.target)).children()):
        last = _last_follower(last, root)
    last.replace_all_uses_with(call.input)


def _last_follower(node: fx.Node, root: nn.Module) -> fx.Node:
    while len(node.users) == 1:
        following = next(iter(node.users))
        if (
            following.op != "call_module"
            or has_weights(root.get_submodule(str(following.target)))
            or value_of(following).shape != value_of(node).shape
        ):
            break
        node = following
    return node
