"""Choose forks: the ends of a backbone's stages, found in its forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from sidebranch.branches.trace import Trace, has_weights, is_block, is_feature
from sidebranch.branches.tracer import value_of
from sidebranch.errors import UserError


def find_forks(traced: Trace, count: int) -> dict[str, fx.Node]:
    """The ends of the last stages before the final one; or places spread evenly over the blocks.

    A stage is the part of the network at one resolution. A backbone whose blocks are all in the final stage, as in most
    vision transformers, forks after three quarters and half of them.

    Args:
        traced: the backbone's forward pass.
        count: number of forks.

    Returns:
        Path to node, the farthest from the top first.

    Raises:
        UserError: there are fewer.
    """
    root, size = traced.root, traced.images.shape[1:]
    weighty = {
        resolution(value_of(node), size)
        for node in traced.graph.nodes
        if node.op == "call_module" and is_feature(value_of(node)) and has_weights(root.get_submodule(str(node.target)))
    }
    places = {path: node for path, node in traced.places().items() if resolution(value_of(node), size) > 1}
    stages = [stage for cells, stage in _by_resolution(places, size) if cells in weighty]
    kinds = Counter(type(root.get_submodule(path)) for path in places if is_block(root.get_submodule(path)))
    kind = kinds.most_common(1)[0][0] if kinds else nn.Module
    blocks = [
        path
        for path, calls in traced.calls.items()
        if type(root.get_submodule(path)) is kind and calls[0].output in places.values()
    ]
    if len(stages) > count:
        ends = [
            _end(stages[place], stages[place + 1], traced) for place in range(len(stages) - count - 1, len(stages) - 1)
        ]
        before = list(places)[: list(places).index(ends[-1]) + 1]
        has_blocks_before = any(
            isinstance(each, kind) for path in before for each in root.get_submodule(path).modules()
        )
        if has_blocks_before or len(blocks) < count + 2:
            return {path: places[path] for path in ends}
    if len(blocks) < count + 2:
        raise UserError(
            f"{type(root).__name__} has no {count} forks: a branch forks at a block that every path to the logits goes "
            f"through, with more such blocks before and after, and there are {len(blocks)}; give branches of your own"
        )
    chosen = [blocks[len(blocks) * (count + 2 - place) // (count + 2) - 1] for place in range(1, count + 1)]
    return {path: traced.fork(path) for path in chosen}


def _by_resolution(places: Mapping[str, fx.Node], size: Sequence[int]) -> list[tuple[int, list[str]]]:
    """Groups of consecutive places of one resolution; one token more or less, such as a class token, is ignored."""
    stages: list[tuple[int, list[str]]] = []
    for path, node in places.items():
        cells = resolution(value_of(node), size)
        if not stages or cells < 0.9 * stages[-1][0]:
            stages.append((cells, []))
        stages[-1][1].append(path)
    return stages


def _end(stage: Sequence[str], following: Sequence[str], traced: Trace) -> str:
    """The last place of a stage that is not inside a module that reaches into the next stage."""
    here, there = ({traced.calls[path][0].output for path in paths} for paths in (stage, following))

    def begins_next(path: str) -> bool:
        ancestors = [path[:end] for end, letter in enumerate(path) if letter == "."]
        calls = [call for each in ancestors for call in traced.calls.get(each, [])]
        return any(call.input in here and call.output in there for call in calls)

    return next((path for path in reversed(stage) if not begins_next(path)), stage[-1])


def resolution(value: Tensor, size: Sequence[int]) -> int:
    """Cells of feature maps [N, C, H, W] or [N, H, W, C], or of a sequence [N, L, C]; `size` is the image's."""
    if value.ndim == 3:
        return value.shape[1]
    return value.shape[2] * (value.shape[3] if _channels_first(value, size) else value.shape[1])


def channels(value: Tensor, size: Sequence[int]) -> int:
    """C of feature maps or of a sequence."""
    return value.shape[1] if value.ndim == 4 and _channels_first(value, size) else value.shape[-1]


def _channels_first(value: Tensor, size: Sequence[int]) -> bool:
    """Whether the last two dimensions have the image's aspect ratio, up to rounding."""
    _, height, width = size
    return abs(value.shape[2] * width - value.shape[3] * height) <= max(height, width)


def alike(traced: Trace, at: str) -> list[str]:
    """The places of the fork's stage with the same output shape, the fork last: roots of a movable branch."""
    fork = traced.fork(at)
    shape = value_of(fork).shape
    found: list[str] = []
    for path, node in traced.places().items():
        if node is fork:
            return [*found, at]
        if value_of(node).shape == shape and is_block(traced.root.get_submodule(path)):
            found.append(path)
    return [at]
