"""Which tensors a caller can read: what a network returns, in whatever object, and what it leaves in attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from lit_prune.common._compat import weight_hooks
from lit_prune.common.names import OF_EVERY_MODULE, modules_of
from lit_prune.modules.registry import SIZE_ONLY_OUTPUTS, caches_of, qualified_names

# What holds no tensor that a caller would read, and may hold half of the process.
_OPAQUE = (nn.Module, type, FunctionType, ModuleType, str, bytes, int, float, complex, bool, type(None))
_PLAIN = (Tensor, list, tuple, dict)
_ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None), FunctionType))
# An output of more objects than that is no output.
_MOST_OBJECTS = 100_000


def used_outputs(module: nn.Module, output: Any) -> list[Tensor]:
    """The tensors of an output whose values a caller reads."""
    ignored: frozenset[str] = frozenset().union(
        *(
            SIZE_ONLY_OUTPUTS.get(name, frozenset())
            for cls in {type(child) for _, child in modules_of(module)}
            for name in qualified_names(cls)
        )
    )
    return list(tensors_in(output, ignored))


def tensors_in(value: Any, ignored: frozenset[str] = frozenset()) -> Iterator[Tensor]:
    """All tensors in a value: in containers, dataclasses, distributions, and attributes of any other object.

    Args:
        value: Anything.
        ignored: Keys of mappings to leave out.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> value = {"a": [torch.ones(1)], "b": SimpleNamespace(x=torch.ones(2)), "c": torch.ones(3)}
        >>> [tensor.numel() for tensor in tensors_in(value, ignored=frozenset("c"))]
        [1, 2]
    """
    seen: set[int] = set()
    # Objects that are made on the way are held, so that their ids stay theirs.
    held: list[Any] = []
    waiting = [value]
    while waiting and len(seen) < _MOST_OBJECTS:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
            continue
        if isinstance(value, _OPAQUE) or id(value) in seen:
            continue
        seen.add(id(value))
        held.append(value)
        waiting.extend(reversed([*_parts(value, ignored)]))


def left_in_attributes(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in attributes of modules, and in buffers, that a forward may have left there; and where."""
    modules = modules_of(network)
    caches = {cls: caches_of(cls) for cls in {type(module) for _, module in modules}}
    for path, module in modules:
        prefix = f"{path}." if path else ""
        for name, value in (*vars(module).items(), *module._buffers.items()):
            if name in OF_EVERY_MODULE or _holds_nothing(value):
                continue
            if name in caches[type(module)] or _is_computed(module, name):
                continue
            for tensor in tensors_in(value) if isinstance(value, _PLAIN) else _held_by(value):
                yield prefix + name, tensor


def _holds_nothing(value: Any) -> bool:
    """Whether it is a number, a word or the like, as most attributes are, or some of them."""
    kind = type(value)
    return kind in _ATOMS or ((kind is tuple or kind is list) and _ATOMS.issuperset(map(type, value)))


def _held_by(value: Any) -> Iterator[Tensor]:
    """Tensors in attributes of an object; what else it holds may be half of the process."""
    if not isinstance(value, _OPAQUE):
        yield from (item for item in getattr(value, "__dict__", {}).values() if isinstance(item, Tensor))


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether it is a weight that each forward computes, from `weight_g` and `weight_v` or the like."""
    return bool(weight_hooks(module)) and any(own.startswith(f"{name}_") for own in module._parameters)


def _parts(value: Any, ignored: frozenset[str]) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from (item for key, item in value.items() if key not in ignored)
        return
    if isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif is_dataclass(value):
        yield from (getattr(value, field.name, None) for field in fields(value))
    # A container of a class of its own may have attributes, too.
    yield from getattr(value, "__dict__", {}).values()
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        yield from (getattr(value, name, None) for name in ([slots] if isinstance(slots, str) else slots))
