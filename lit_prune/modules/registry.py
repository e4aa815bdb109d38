"""What modules remember of their widths, and what they demand where no operation says so: tables by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

from torch import nn

from lit_prune.common.names import OURS, modules_of
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.modules.remembered import follow_widths_
from lit_prune.plan import Slot

AttributeUpdate = Callable[[Any], None]

# What a layer in groups carries once it was cut: outputs a group where each had one input before, 0 where not.
MULTIPLIER = f"{OURS}multiplier"

SIZE_ONLY_OUTPUTS: dict[str, frozenset[str]] = {}
"""Outputs, by the class of a module inside the network, of which callers read nothing but the size."""

CACHES: dict[str, frozenset[str]] = {}
"""Attributes, by the class of a module, in which a forward keeps what follows from weights; emptied after every cut."""

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
        follow_widths_(child)
        for update in updates[type(child)]:
            update(child)
        for name in caches_of(type(child)):
            getattr(child, name).clear()


def caches_of(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes of a module class that are emptied after every cut."""
    return frozenset().union(*(CACHES.get(name, ()) for name in qualified_names(cls)))


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


Ties = Callable[[Any], Iterable[tuple[Slot, Slot]]]


Fixed = Callable[[Any], Iterable[tuple[Slot, str]]]


Whole = Callable[[Any], Iterable[Slot]]


Entry = TypeVar("Entry")


TIES: dict[str, Ties] = {}


FIXED: dict[str, Fixed] = {}


WHOLE: dict[str, Whole] = {}


def register_ties(cls: type[nn.Module] | str) -> Callable[[Ties], Ties]:
    """Say which dimensions inside a module must shrink together, though no operation joins them.

    Needed where a forward does what ``B, C, H, W = x.shape`` and later ``.view(B, C, H, W)`` of something else do.
    Without an entry the probe finds such channels unprunable: an entry frees them. Where the first dimension is a
    multiple of the second, as that of the gates of a recurrent layer is, each part of it is tied.

    Args:
        cls: The class, or its qualified name where importing it would cost a dependency. Subclasses are meant too.

    Example:
        >>> @register_ties("mylib.Attention")
        ... def _attention(module):
        ...     yield ("qkv.weight", 1), ("proj.weight", 1)
        >>> TIES.pop("mylib.Attention") is _attention
        True
    """
    return _entering(TIES, cls)


def register_fixed(cls: type[nn.Module] | str) -> Callable[[Fixed], Fixed]:
    """Say which dimensions inside a module can't shrink, each with the reason that users read.

    The probe would find out too, and say how the module failed.

    Args:
        cls: As for :func:`register_ties`.

    Example:
        >>> @register_fixed("mylib.Lookup")
        ... def _lookup(module):
        ...     yield ("table.weight", 1), "is an address"
        >>> FIXED.pop("mylib.Lookup") is _lookup
        True
    """
    return _entering(FIXED, cls)


def register_whole(cls: type[nn.Module] | str) -> Callable[[Whole], Whole]:
    """Say which dimensions inside a module hold heads that go whole.

    Needed for nothing but speed: the probe finds out that a head can't be narrowed, in a dozen trials.

    Args:
        cls: As for :func:`register_ties`.

    Example:
        >>> @register_whole("mylib.Attention")
        ... def _attention(module):
        ...     yield "qkv.weight", 0
        >>> WHOLE.pop("mylib.Attention") is _attention
        True
    """
    return _entering(WHOLE, cls)


def _entering(table: dict[str, Entry], cls: type[nn.Module] | str) -> Callable[[Entry], Entry]:
    name = cls if isinstance(cls, str) else qualified_names(cls)[0]

    def enter(entry: Entry) -> Entry:
        table[name] = entry
        return entry

    return enter
