"""A backbone with side branches: one forward pass computes the logits of every classifier.

In: images [N, ...]. Out: `Outputs`. The backbone is the user's own module, unchanged. Forward hooks ("taps") record its
features where the branches fork; they record only while `BranchedModel.forward` runs and hold nothing afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidebranch.core.heads import Head, batch_norm_necks, find_classifiers, fold_neck
from sidebranch.errors import UserError, nearest


@dataclass(eq=False)
class Outputs:
    """The logits of a network's classifiers: main first, then the branches from the top down.

    Attributes:
        names: of the classifiers that were computed.
        logits: one [N, K] tensor per name; a branch may have the first n images of the batch only, [n, K].
        network: names of all classifiers of the network, computed or not; `names` if left out.
        features: one [N, D] tensor per name, the classifier's input; empty unless `watch_features` was called.
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

    def __getitem__(self, name: str | int) -> Tensor:
        """A classifier's logits, [N, K], by its name or its place; so `main, b1, b2 = net(images)` works too.

        Raises:
            UserError: no classifier is called so.
        """
        if isinstance(name, int):
            return self.logits[name]
        if name not in self.names:
            raise UserError(f"no classifier '{name}' in these outputs; {nearest(name, self.names)}")
        return self.logits[self.names.index(name)]


@dataclass(frozen=True)
class SideBranch:
    """A branch: its name, the place where it forks, and its layers.

    Args:
        name: "b1" for the branch nearest the top, "b2" for the next, and so on.
        at: path of the backbone's module whose output the branch takes, as in `backbone.get_submodule(at)`; or several
            paths, with outputs of one shape, over which the branch's root may move (Li & Chen 2020, section 3.2). The
            last is the default.
        body: from that output to logits [N, K], with its own pool and classifier.
    """

    name: str
    at: str | Sequence[str]
    body: nn.Module

    @property
    def places(self) -> tuple[str, ...]:
        """The paths that it may fork at."""
        return (self.at,) if isinstance(self.at, str) else tuple(self.at)


class _Tap:
    """Records one module's output in one forward pass. A plain object: deepcopy and torch.compile follow it."""

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

    def close(self) -> None:
        self.feature, self.is_open = None, False


class BranchedModel(nn.Module):
    """A backbone and its branches.

    Args:
        backbone: images to logits [N, K]. Not changed; neither are its state-dict keys.
        branches: from the nearest to the top to the furthest from it.

    Attributes:
        backbone: the module that was passed in.
        branches: an `nn.ModuleDict`, name to body.
        forks: name to the path of the module that the branch forks at, the last of its places.
        places: name to the paths that the branch's root may move over.
        names: ("main", "b1", ...).
        classifiers: name to the path of its last layer, whose inputs are the features; empty until `watch_features`.
        necks: name to the module in front of that layer in training; necks do not ship.
    """

    def __init__(self, backbone: nn.Module, branches: Sequence[SideBranch] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches: nn.ModuleDict = nn.ModuleDict()
        self.forks: dict[str, str] = {}
        self.places: dict[str, tuple[str, ...]] = {}
        self._taps: dict[str, _Tap] = {}
        self.classifiers: dict[str, str] = {}
        self.necks: nn.ModuleDict = nn.ModuleDict()
        self._heads: dict[str, Head] = {}
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
        self._is_released: bool = False
        for each in (self.branches, self.necks):  # not the backbone, parts of which may be frozen
            each.train(backbone.training)
        self.training: bool = backbone.training

    @property
    def names(self) -> tuple[str, ...]:
        return ("main", *self.forks)

    def watch_features(
        self,
        classifiers: Mapping[str, str] | None = None,
        necks: Mapping[str, nn.Module] | Literal["batch_norm"] | None = None,
    ) -> None:
        """From now on, `forward` also returns the features: the inputs of the classifiers.

        Args:
            classifiers: name to the path of its last layer in this model ("backbone.fc", "branches.b1.fc"); if left
                out, each part's last linear layer with one output per class.
            necks: name to a module between the features [N, D] and that layer; or "batch_norm", one for every
                classifier (BNNeck, Luo et al. 2019).

        Raises:
            UserError: a classifier is not found.
        """
        classifiers = find_classifiers(self.backbone, self.branches) if classifiers is None else classifiers
        necks = batch_norm_necks(self, classifiers) if necks == "batch_norm" else necks
        self.necks.update(necks or {})
        for name, path in classifiers.items():
            head = Head(name, dict(self.necks).get(name))
            self.get_submodule(path).register_forward_pre_hook(head.record)
            self.classifiers[name], self._heads[name] = path, head

    def shipped_state_dict(self) -> dict[str, Tensor]:
        """The plain backbone's state dict; a batch-norm neck is folded into the classifier."""
        state = self.backbone.state_dict()
        if "main" not in self.necks:
            return dict(state)
        return fold_neck(state, self.necks["main"], self.classifiers["main"].removeprefix("backbone."))

    def forward(
        self,
        images: Tensor,
        live: Sequence[str] | None = None,
        roots: Mapping[str, str] | None = None,
        rows: int | None = None,
    ) -> Outputs:
        """The logits of the live classifiers.

        Args:
            images: the backbone's input.
            live: names of the classifiers to compute; all if None. Main is always computed; a branch left out costs
                nothing.
            roots: name to the path, among the branch's places, that it forks at this time; the last if left out.
            rows: the branches see only the first `rows` images of the batch, at least 1; all if None.

        Raises:
            UserError: a name, a path or `rows` is wrong, or a feature that a branch needs was not recorded.
        """
        if self._is_released:
            raise UserError("this network was released: its backbone works alone; attach to it again for branches")
        if isinstance(live, str):
            both = f"('{live}',)" if live == "main" else f"('main', '{live}')"
            raise UserError(f"live is a sequence of names, such as {both}, not one")
        for name in live or ():
            if name not in self.names:
                raise UserError(f"no classifier '{name}'; {nearest(name, self.names)}")
        for name, at in (roots or {}).items():
            if at not in self.places.get(name, ()):
                raise UserError(f"'{at}' is no place of branch '{name}'; {nearest(at, self.places.get(name, ()))}")
        if rows is not None and rows < 1:
            raise UserError(f"rows is {rows}; the branches need at least 1 image")
        forks = {name: (roots or {}).get(name, at) for name, at in self.forks.items() if live is None or name in live}
        taps = {at: self._taps[at] for at in forks.values()}
        heads = [head for name, head in self._heads.items() if name == "main" or name in forks]
        for each in (*taps.values(), *heads):
            each.open()
        try:
            main = self.backbone(images)
            taken = {at: self._feature(tap) for at, tap in taps.items()}
            for tap in taps.values():
                tap.close()
            if not isinstance(main, Tensor):
                raise UserError(f"the backbone gives a {type(main).__name__}, not one tensor of logits")
            if rows is not None:
                taken = {at: feature[:rows] for at, feature in taken.items()}
            logits = (main, *(self.branches[name](taken[at]) for name, at in forks.items()))
            features = tuple(head.read() for head in heads)
        finally:
            for each in (*taps.values(), *heads):
                each.close()
        return Outputs(("main", *forks), logits, self.names, features)

    def release(self) -> nn.Module:
        """Removes the hooks and returns the backbone; this model's branches no longer work."""
        for path, tap in self._taps.items():
            _unhook(self.backbone.get_submodule(path)._forward_hooks, tap)
        for name, head in self._heads.items():
            _unhook(self.get_submodule(self.classifiers[name])._forward_pre_hooks, head)
        self._is_released = True
        return self.backbone

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers leave without weight decay: the backbone's own."""
        own = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in own()}

    @staticmethod
    def _feature(tap: _Tap) -> Tensor:
        if tap.feature is None:
            raise UserError(
                f"the backbone's forward pass does not run the module '{tap.at}' that branches were attached to: fork "
                f"at another; if it was replaced or is checkpointed (set_grad_checkpointing), attach after that"
            )
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
