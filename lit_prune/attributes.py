"""What modules remember of their widths (``out_channels``, ``num_heads``), by class: it follows every cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.lookup import modules_of

AttributeUpdate = Callable[[Any], None]

# What a convolution in groups carries once it was cut: outputs a group where it was depthwise before, 0 where not.
MULTIPLIER = "_lit_prune_multiplier"

_ATTRIBUTES: dict[type[nn.Module] | str, AttributeUpdate] = {}


def register_attributes(cls: type[nn.Module] | str) -> Callable[[AttributeUpdate], AttributeUpdate]:
    """Say how a module class's remembered integers follow from its tensors.

    After every cut the function is called with each module of that class or of a subclass, inner modules first.

    Args:
        cls: The class, or its qualified name where importing it would cost a dependency.

    Raises:
        ArgumentTypeError: If it is given no class of modules and no name, or decorates what can't be called.
        ArgumentError: If a name is not qualified.

    Example:
        >>> class Halves(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv, self.half = nn.Conv2d(3, 8, 1), 4
        >>> @register_attributes(Halves)
        ... def _halves(module):
        ...     module.half = module.conv.out_channels // 2
    """
    if isinstance(cls, str):
        if "." not in cls:
            raise ArgumentError(f"Expected a qualified name such as 'mylib.blocks.{cls}', not {cls!r}.")
    elif not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ArgumentTypeError(f"register_attributes takes a class of modules, or its qualified name. It got {cls!r}.")

    def register(update: AttributeUpdate) -> AttributeUpdate:
        if not callable(update):
            raise ArgumentTypeError(f"Expected a function that is given a module. It got {update!r}.")
        _ATTRIBUTES[cls] = update
        return update

    return register


def update_attributes_(module: nn.Module) -> None:
    """Bring the remembered integers of all submodules in line with their tensors."""
    # Children come after their parents; what a parent remembers is read off its children.
    children = [child for _, child in modules_of(module)]
    updates = {cls: list(_updates(cls)) for cls in {type(child) for child in children}}
    for child in reversed(children):
        for update in updates[type(child)]:
            update(child)


def qualified_names(cls: Any) -> tuple[str, ...]:
    """The dotted names of a class and its bases: how classes of packages that are not imported are recognised."""
    return _qualified_names(cls)


@cache
def _qualified_names(cls: Any) -> tuple[str, ...]:
    return tuple(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)


def _updates(cls: type[nn.Module]) -> Iterator[AttributeUpdate]:
    # Bases first, so that a subclass has the last word.
    for base, name in zip(reversed(cls.__mro__), reversed(qualified_names(cls)), strict=True):
        for key in (base, name):
            if key in _ATTRIBUTES:
                yield _ATTRIBUTES[key]


def _remember(module: Any, **values: int) -> None:
    """Set what differs: most modules of a network are as they were, and setting an attribute of one is slow."""
    for name, value in values.items():
        if getattr(module, name, None) != value:
            setattr(module, name, value)


@register_attributes(_ConvNd)
def _convolution(module: Any) -> None:
    first, second = module.weight.shape[:2]
    transposed = isinstance(module, _ConvTransposeNd)
    if module.groups > 1 and not hasattr(module, MULTIPLIER):
        # Noted once: of one group left, a depthwise one looks like any; of one input a group, a grouped one like it.
        depthwise = module.groups == module.in_channels
        setattr(module, MULTIPLIER, module.out_channels // module.groups if depthwise else 0)
    if multiplier := getattr(module, MULTIPLIER, 0):
        # The groups go with the channels. Otherwise their number stays.
        _remember(module, groups=first if transposed else first // multiplier)
    if transposed:
        _remember(module, in_channels=first, out_channels=second * module.groups)
    else:
        _remember(module, in_channels=second * module.groups, out_channels=first)


@register_attributes(nn.Linear)
def _linear(module: Any) -> None:
    outputs, inputs = module.weight.shape
    _remember(module, out_features=outputs, in_features=inputs)


@register_attributes(_NormBase)
def _batch_norm(module: Any) -> None:
    for tensor in (module.weight, module.running_mean):
        if tensor is not None:
            _remember(module, num_features=tensor.shape[0])


for _name in (nn.LayerNorm, "torch.nn.modules.normalization.RMSNorm", "timm.layers.norm.RmsNorm"):

    @register_attributes(_name)
    def _layer_norm(module: Any) -> None:
        if module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)


@register_attributes(nn.GroupNorm)
def _group_norm(module: Any) -> None:
    if module.weight is not None:
        module.num_channels = len(module.weight)


@register_attributes(nn.PReLU)
def _prelu(module: Any) -> None:
    module.num_parameters = len(module.weight)


@register_attributes(nn.Embedding)
def _embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape
