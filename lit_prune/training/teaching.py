"""What a teacher is, what it answers, and the gradient towards that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune.common._compat import ConvNd, ConvTransposeNd, NormBase, tree_flatten, tree_map_only
from lit_prune.common.choices import nearest
from lit_prune.errors import ArgumentError

Kind = Literal["mse", "kl"]
# How many times the variance of what is wanted a mean square error may be and still pull with all its force.
_FARTHEST = 4.0


def towards(own: Tensor, target: Tensor, kind: Kind, temperature: float, strength: float) -> Tensor:
    """The same values, whose gradient is more by that of their distance to what is wanted.

    Args:
        own: A floating-point tensor that learns.
        target: What is wanted, of the same shape.
        kind: As for :class:`Distillation`.
        temperature: As for :class:`Distillation`.
        strength: What the distance is multiplied by.

    Example:
        >>> own = torch.zeros(2, requires_grad=True)
        >>> towards(own, torch.tensor([1.0, -1.0]), "mse", 1.0, strength=0.5).sum().backward()
        >>> own.grad  # 1 of the sum, and half of the distance's -1 and 1
        tensor([0.5000, 1.5000])
    """
    taught: Tensor = _Towards.apply(own, target, kind, temperature, strength)
    return taught


class _Towards(torch.autograd.Function):
    """The identity, whose backward adds the gradient of a distance to what the teacher answers."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, target: Tensor, kind: Kind, temperature: float, strength: float) -> Tensor:
        ctx.save_for_backward(own, target)
        ctx.kind, ctx.temperature, ctx.strength = kind, temperature, strength
        # No view: what follows may work in place.
        return own.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        own, target = (tensor.float() for tensor in ctx.saved_tensors)
        if ctx.kind == "kl":
            parts = [F.softmax(logits / ctx.temperature, 1) for logits in (own, target)]
            added = ctx.temperature * (parts[0] - parts[1]) * (own.shape[1] / own.numel())
        else:
            distance = own - target
            # Far from answers that hardly differ, the distance itself is the measure.
            variance = torch.maximum(target.var(correction=0), distance.square().mean() / _FARTHEST)
            added = 2 * distance / (own.numel() * variance.clamp(min=torch.finfo(torch.float32).tiny ** 0.5))
        return gradient + (ctx.strength * added).to(gradient), None, None, None, None


def channels_of(network: nn.Module, feature: str) -> tuple[int, int]:
    """The dimension of its weight that a layer's outputs lie in, and that of its output.

    Raises:
        ArgumentError: If it is no layer whose outputs are known.
    """
    layer = dict(network.named_modules()).get(feature)
    if isinstance(layer, (ConvNd, NormBase, nn.GroupNorm, nn.Linear)) and layer.weight is not None:
        transposed = isinstance(layer, ConvTransposeNd) and layer.groups == 1
        return int(transposed), -1 if isinstance(layer, nn.Linear) else 1
    known = [name for name, each in network.named_modules() if isinstance(each, (ConvNd, nn.Linear))]
    raise ArgumentError(
        f"features names convolutions, linear layers and norms with a weight, but {feature!r} is "
        f"{'none of the network' if layer is None else f'a {type(layer).__name__}'}; {nearest(feature, known)}"
    )


def answers_of(
    teacher: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], inner: Mapping[str, str]
) -> tuple[Any, dict[str, list[Tensor]]]:
    """What a teacher answers, and its features, by their names in the whole network."""
    found: dict[str, list[Tensor]] = {name: [] for name in inner}
    hooks = [
        teacher.get_submodule(own).register_forward_hook(
            lambda layer, args, output, name=name: found[name].append(output.clone())
        )
        for name, own in inner.items()
    ]
    try:
        # A forward may change what it is given.
        args, kwargs = tree_map_only(Tensor, torch.clone, (args, dict(kwargs)))
        with torch.no_grad():
            return teacher(*args, **kwargs), found
    finally:
        for hook in hooks:
            hook.remove()


def has_values(inputs: Any) -> bool:
    """Whether inputs are those of a step that learns, and no stand-ins."""
    tensors = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]
    return torch.is_grad_enabled() and not any(tensor.is_meta for tensor in tensors)


def learns(output: Any) -> bool:
    """Whether a gradient will come to a part of an output."""
    return torch.is_grad_enabled() and any(map(can_learn, tree_flatten(output)[0]))


def can_learn(value: Any) -> bool:
    """Whether a gradient will come to a value, and it has numbers to compare."""
    return isinstance(value, Tensor) and value.requires_grad and not value.is_meta


def as_teacher(network: nn.Module) -> nn.Module:
    """In train mode, for outputs to be those of training, but for norms and what draws masks; not trained itself."""
    network.train().requires_grad_(False)
    for module in network.modules():
        # A name tells: packages have their own classes (DropPath, StochasticDepth, DropBlock2d).
        if isinstance(module, NormBase) or "Drop" in type(module).__name__ or "Stochastic" in type(module).__name__:
            module.eval()
    return network
