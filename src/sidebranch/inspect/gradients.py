"""Whether classifiers pull their shared stem the same way, and what matching predictions has to do with it.

Li & Chen 2020, Eq. 11: with noise on the shared features, the mimicry term of two branches holds the product of their
gradients, so that mimicry aligns them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Alignment:
    """Cosines of the gradients that pairs of classifiers send into the parameters they share.

    Attributes:
        overall: pair ("main-b1") to cosine over all shared parameters.
        modules: pair to the backbone's top-level module to cosine, in order; only modules that both reach.
    """

    overall: dict[str, float]
    modules: dict[str, dict[str, float]]


def gradient_alignment(net: BranchedModel, images: Tensor, labels: Int[Tensor, " n"]) -> Alignment:
    """The cosine between the gradients of every pair's label losses with regard to the stem that they share.

    Args:
        net: in the mode in which it is to be looked at; left without gradients.
        images: [N, ...].
        labels: class indices.
    """
    parameters = {name: each for name, each in net.backbone.named_parameters() if each.requires_grad}
    outputs = net(images)
    gradients = {}
    for name, logits in zip(outputs.names, outputs.logits, strict=True):
        loss = functional.cross_entropy(logits.float(), labels)
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        gradients[name] = {path: each for path, each in zip(parameters, found, strict=True) if each is not None}
    overall, modules = {}, {}
    for one, other in combinations(outputs.names, 2):
        shared = [path for path in gradients[one] if path in gradients[other]]
        groups: dict[str, list[str]] = {}
        for path in shared:
            groups.setdefault(path.split(".")[0], []).append(path)
        pair = f"{one}-{other}"
        overall[pair] = _cosine(gradients[one], gradients[other], shared)
        modules[pair] = {name: _cosine(gradients[one], gradients[other], paths) for name, paths in groups.items()}
    return Alignment(overall, modules)


def _cosine(one: dict[str, Tensor], other: dict[str, Tensor], paths: Sequence[str]) -> float:
    flat = [torch.cat([each[path].double().flatten() for path in paths]) for each in (one, other)]
    return float(functional.cosine_similarity(*flat, dim=0))


@dataclass(frozen=True)
class Expansion:
    """Eq. 11 at one noise level. All values are means over the images, divided by sigma^2.

    Attributes:
        sigma: standard deviation of the noise on the shared features.
        measured: what the noise changes: E[phi2(theta + xi) log phi1(theta + xi)] - phi2(theta) log phi1(theta), summed
            over the classes.
        error: standard error of `measured`.
        gradients: the paper's term, the sum over classes of <grad phi2, grad phi1> / phi1.
        full: with the two terms of second derivatives that the paper leaves out,
            (log phi1 lap phi2 + phi2 lap log phi1) / 2; not a number where there are too many features for them. Kinks,
            such as ReLU's, have no second derivative and count in `measured` only.
    """

    sigma: float
    measured: float
    error: float
    gradients: float
    full: float


FEATURES_WITH_HESSIAN = 2048
Branch = Callable[[Tensor], Tensor]


def heads_at_fork(net: BranchedModel, images: Tensor, one: str, other: str) -> tuple[Branch, Branch, Tensor]:
    """Two classifiers as functions of the features where the lower of them forks, and those features.

    Args:
        net: in evaluation mode.
        images: [N, ...].
        one: name of a classifier.
        other: name of another.

    Raises:
        UserError: there is no such classifier.
    """
    for name in (one, other):
        if name not in net.names:
            raise UserError(f"no classifier '{name}'; {nearest(name, net.names)}")
    if one == other:
        raise UserError(f"'{one}' and itself are no pair; give two classifiers")
    lower = max((one, other), key=net.names.index)
    module = net.backbone.get_submodule(net.forks[lower])
    given: list[Tensor] = []

    def exchange(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output)
        return given[0] if given else output

    def branch(name: str) -> Branch:
        def call(features: Tensor) -> Tensor:
            given[:] = [features]
            hook = module.register_forward_hook(exchange, prepend=True)  # before the tap that the branch reads
            try:
                return net(images[: len(features)], live=("main", name))[name]
            finally:
                hook.remove()
                given.clear()

        return call

    seen: list[Tensor] = []
    hook = module.register_forward_hook(exchange, prepend=True)
    with torch.no_grad():
        net(images, live=("main",))
    hook.remove()
    return branch(one), branch(other), seen[0].detach()


def expansion(
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
    features: Float[Tensor, "n ..."],
    sigmas: Sequence[float],
    samples: int = 1000,
) -> list[Expansion]:
    """Checks Eq. 11 numerically: the mean over noise against its expansion, for every sigma.

    Noise is drawn in pairs of opposite sign, the same for every sigma, from torch's generator.

    Args:
        first: features to logits [N, K] of branch 1, phi1 after the softmax; in evaluation mode.
        second: of branch 2.
        features: theta(x), where the two branches fork.
        sigmas: standard deviations of the noise.
        samples: pairs of noise.
    """
    features = features.detach().double()
    log_one, two = _log_probabilities(first, features), _log_probabilities(second, features).exp()
    plain = (two * log_one).sum(-1)
    gradients, full = _terms(first, second, features)
    sums = torch.zeros(len(sigmas), 2, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(samples):
            noise = torch.randn_like(features)
            for place, sigma in enumerate(sigmas):
                pair = [
                    (_log_probabilities(second, at).exp() * _log_probabilities(first, at)).sum(-1)
                    for at in (features + sigma * noise, features - sigma * noise)
                ]
                change = ((pair[0] + pair[1]) / 2 - plain).mean() / sigma**2
                sums[place] += torch.stack([change, change**2])
    mean = sums[:, 0] / samples
    error = ((sums[:, 1] / samples - mean**2).clamp_min(0) / max(1, samples - 1)).sqrt()
    return [
        Expansion(sigma, float(mean[place]), float(error[place]), gradients, full) for place, sigma in enumerate(sigmas)
    ]


def _log_probabilities(branch: Callable[[Tensor], Tensor], features: Tensor) -> Float[Tensor, "n k"]:
    return branch(features).log_softmax(-1)


def _terms(first: Branch, second: Branch, features: Tensor) -> tuple[float, float]:
    """The paper's term, and the full term of second order, means over the images."""
    products, rest = [], []
    for feature in features:
        at = feature[None].requires_grad_()
        log_one, two = _log_probabilities(first, at)[0], _log_probabilities(second, at)[0].exp()
        has_rest = feature.numel() <= FEATURES_WITH_HESSIAN
        for here, there in zip(log_one, two, strict=True):
            gradients = [
                torch.autograd.grad(each, at, create_graph=has_rest, retain_graph=True)[0] for each in (here, there)
            ]
            products.append(float((gradients[0] * gradients[1]).sum().detach()))
            if has_rest:
                laplacians = [_divergence(each, at) for each in gradients]
                rest.append(float(there.detach()) * laplacians[0] + float(here.detach()) * laplacians[1])
    paper = sum(products) / len(features)
    return paper, paper + sum(rest) / 2 / len(features) if rest else math.nan


def _divergence(gradient: Tensor, at: Tensor) -> float:
    """The sum of the derivatives of a gradient's elements, each with regard to its own coordinate."""
    if not gradient.requires_grad:  # of a linear function
        return 0.0
    total, directions = 0.0, torch.eye(at.numel(), dtype=at.dtype, device=at.device).view(-1, *at.shape)
    for some in directions.split(64):
        (rows,) = torch.autograd.grad(gradient, at, some, retain_graph=True, is_grads_batched=True)
        total += float((rows * some).sum())
    return total
