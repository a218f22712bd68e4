"""A backbone with side branches: one forward pass, the logits of every classifier.

In: images [N, ...]. Out: `Outputs`. The backbone is the very module that came in. Forward hooks tap its features where
the branches fork; they record only while `BranchedModel.forward` runs and hold nothing after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidebranch.errors import UserError, nearest


@dataclass(eq=False)
class Outputs:
    """The logits of a network's classifiers, main first, then ever further from the top.

    Attributes:
        names: of the classifiers that were computed.
        logits: one [N, K] tensor a name; a branch's may be of the first images of the batch only, [n, K].
        network: the names of all the network's classifiers, computed or not; `names` if left out.
        features: one [N, D] tensor a name, what its classifier took; empty unless the model was asked for them.
    """

    names: tuple[str, ...]
    logits: tuple[Tensor, ...]
    network: tuple[str, ...] = ()
    features: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        self.network = self.network or self.names

    @property
    def main(self) -> Tensor:
        """The main classifier's logits, [N, K]."""
        return self.logits[0]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise UserError(f"no classifier '{name}' in these outputs; {nearest(name, self.names)}")
        return self.logits[self.names.index(name)]


@dataclass(frozen=True)
class SideBranch:
    """A branch: what it is called, where it forks, what it computes.

    Args:
        name: "b1" for the branch nearest the top, "b2" for the next, and so on.
        at: the path of the backbone's module whose output it takes, as in `backbone.get_submodule(at)`; or several, of
            outputs of one shape, between which the branch's root may move (Li & Chen 2020, section 3.2). It emerges
            from the last of them where nothing else is said.
        body: from that output to logits [N, K], its own pool and classifier included.
    """

    name: str
    at: str | Sequence[str]
    body: nn.Module

    @property
    def places(self) -> tuple[str, ...]:
        """Where it may emerge from."""
        return (self.at,) if isinstance(self.at, str) else tuple(self.at)


class _Tap:
    """Records one module's output during one forward pass. A plain object: deepcopy and torch.compile follow it."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.is_open = False
        self.feature: Tensor | None = None
        self.version: int | None = None

    def record(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self.is_open:
            return
        if self.feature is not None:
            raise UserError(f"the backbone runs '{self.at}' more than once in a pass; fork at a module that runs once")
        if not isinstance(output, Tensor):
            raise UserError(f"'{self.at}' gives a {type(output).__name__}, not a tensor; fork at another module")
        self.feature = output
        uncounted = torch.compiler.is_compiling() or output.is_inference()
        self.version = None if uncounted else output._version

    def open(self) -> None:
        self.is_open = True
        self.feature = None

    def close(self) -> Tensor | None:
        feature, self.feature, self.is_open = self.feature, None, False
        return feature


class _Head:
    """Before one classifier: records what comes to it during one forward pass, and sends it through a neck."""

    def __init__(self, name: str, neck: nn.Module | None) -> None:
        self.name, self.neck = name, neck
        self.is_open = False
        self.features: Tensor | None = None

    def record(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        features = inputs[0]
        if self.is_open:
            self.features = features
        return None if self.neck is None else (self.neck(features),)

    def open(self) -> None:
        self.is_open = True
        self.features = None

    def close(self) -> Tensor:
        features, self.features, self.is_open = self.features, None, False
        if features is None or features.ndim != 2:
            what = "does not run" if features is None else f"takes {features.ndim} dimensions, not [N, D]"
            raise UserError(f"no features of {self.name}: its classifier {what}")
        return features


class BranchedModel(nn.Module):
    """A backbone and its branches.

    Args:
        backbone: images to logits [N, K]. Kept as it is; its state-dict keys do not change.
        branches: from the one nearest the top to the one furthest from it.

    Attributes:
        backbone: the very module that came in.
        branches: an `nn.ModuleDict`, name to body.
        forks: name to the path of the module it forks at, the last of its places.
        places: name to the paths that its root may move over.
        names: ("main", "b1", ...).
        classifiers: name to the layer whose inputs are its features; empty until `watch_features`.
        necks: name to what stands before that layer in training, and does not ship.
    """

    def __init__(self, backbone: nn.Module, branches: Sequence[SideBranch] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = nn.ModuleDict()
        self.forks: dict[str, str] = {}
        self.places: dict[str, tuple[str, ...]] = {}
        self._taps: dict[str, _Tap] = {}
        self.classifiers: dict[str, str] = {}
        self.necks = nn.ModuleDict()
        self._heads: dict[str, _Head] = {}
        modules = dict(backbone.named_modules())
        for branch in branches:
            if not branch.name.isidentifier() or branch.name == "main" or branch.name in self.forks:
                raise UserError(f"a branch cannot be called '{branch.name}'; name them b1, b2, ..., each once")
            if not branch.places:
                raise UserError(f"branch '{branch.name}' forks nowhere: give the path of a module of the backbone")
            for at in branch.places:
                if at not in modules or not at:
                    raise UserError(f"branch '{branch.name}' forks at '{at}', which {_unknown(at, modules)}")
                if at not in self._taps:
                    self._taps[at] = _Tap(at)
                    modules[at].register_forward_hook(self._taps[at].record)
            self.branches[branch.name] = branch.body
            self.forks[branch.name] = branch.places[-1]
            self.places[branch.name] = branch.places

    @property
    def names(self) -> tuple[str, ...]:
        return ("main", *self.forks)

    def watch_features(self, classifiers: Mapping[str, str], necks: Mapping[str, nn.Module] | None = None) -> None:
        """From now on, `forward` also gives what the classifiers take.

        Args:
            classifiers: name to the path of its last layer within this model: "backbone.fc", "branches.b1.fc".
            necks: name to a module between the features [N, D] and that layer, such as a batch norm (Luo et al. 2019).
        """
        self.necks.update(necks or {})
        for name, path in classifiers.items():
            head = _Head(name, dict(self.necks).get(name))
            self.get_submodule(path).register_forward_pre_hook(head.record)
            self.classifiers[name], self._heads[name] = path, head

    def forward(
        self,
        images: Tensor,
        live: Sequence[str] | None = None,
        roots: Mapping[str, str] | None = None,
        rows: int | None = None,
    ) -> Outputs:
        """The logits of the live classifiers.

        Args:
            images: what the backbone takes.
            live: the classifiers to compute, all if None. Main is always computed; a branch left out costs nothing.
            roots: name to the one of the branch's places that it emerges from this time; the last if left out.
            rows: the branches see only the first so many images of the batch, all if None; in a shuffled batch a random
                part of it.
        """
        if isinstance(live, str):
            raise UserError(f"live is a sequence of names, such as ('main', '{live}'), not one")
        for name in live or ():
            if name not in self.names:
                raise UserError(f"no classifier '{name}'; {nearest(name, self.names)}")
        for name, at in (roots or {}).items():
            if at not in self.places.get(name, ()):
                raise UserError(f"'{at}' is no place of branch '{name}'; {nearest(at, self.places.get(name, ()))}")
        forks = {name: (roots or {}).get(name, at) for name, at in self.forks.items() if live is None or name in live}
        taps = {at: self._taps[at] for at in forks.values()}
        heads = [head for name, head in self._heads.items() if name == "main" or name in forks]
        for each in (*taps.values(), *heads):
            each.open()
        try:
            main = self.backbone(images)
            features = {at: self._feature(tap) for at, tap in taps.items()}
        finally:
            for tap in taps.values():
                tap.close()
        if not isinstance(main, Tensor):
            raise UserError(f"the backbone gives a {type(main).__name__}, not one tensor of logits")
        if rows is not None:
            features = {at: feature[:rows] for at, feature in features.items()}
        logits = (main, *(self.branches[name](features[at]) for name, at in forks.items()))
        return Outputs(("main", *forks), logits, self.names, tuple(head.close() for head in heads))

    def release(self) -> nn.Module:
        """Takes the taps off and gives the backbone back, as it came; this model's branches work no more."""
        for path, tap in self._taps.items():
            _unhook(self.backbone.get_submodule(path)._forward_hooks, tap)
        for name, head in self._heads.items():
            _unhook(self.get_submodule(self.classifiers[name])._forward_pre_hooks, head)
        return self.backbone

    @staticmethod
    def _feature(tap: _Tap) -> Tensor:
        if tap.feature is None:
            raise UserError(f"the backbone's forward pass does not run '{tap.at}' as a module; fork at another module")
        if tap.version is not None and tap.feature._version != tap.version:
            raise UserError(
                f"an in-place operation after '{tap.at}' changed its output before the branch could read it; "
                f"fork after that operation (an in-place activation, most likely)"
            )
        return tap.feature


def _unhook(hooks: dict[int, Any], of: object) -> None:
    for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is of]:
        del hooks[key]


def _unknown(at: str, modules: dict[str, nn.Module]) -> str:
    return f"is no module of the backbone; {nearest(at, [path for path in modules if path])}"
