"""Which tensors a caller can read: what a network returns, in whatever object, and what it leaves in attributes."""

from __future__ import annotations

import gc
import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FrameType, FunctionType, GeneratorType, ModuleType
from typing import Any

from torch import Tensor, nn

from lit_prune.common._compat import forward_hooks, weight_hooks
from lit_prune.common.names import OF_EVERY_MODULE, OURS, modules_of
from lit_prune.common.running import variables_around
from lit_prune.modules.registry import SIZE_ONLY_OUTPUTS, caches_of, qualified_names

# What holds no tensor that a caller would read, and may hold half of the process.
_OPAQUE = (nn.Module, type, ModuleType, CodeType, FrameType, str, bytes, int, float, complex, bool, type(None))
_CONTAINERS = (list, tuple, dict, set, deque)
_ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))
_TRAINERS = ("Trainer", "Fabric")
# An output of more objects than that is no output.
_MOST_OBJECTS = 100_000
# What an attribute refers to may be half of the process: the nearest are looked at.
_MOST_NEAR = 500


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


def tensors_in(
    value: Any, ignored: frozenset[str] = frozenset(), most: int = _MOST_OBJECTS, in_modules: bool = False
) -> Iterator[Tensor]:
    """All tensors in a value: in containers, attributes of any object, iterators, and variables around a function.

    Args:
        value: Anything.
        ignored: Keys of mappings to leave out.
        most: How many objects are looked at, the nearest first.
        in_modules: Whether to look into modules, too.

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
    waiting = deque([value])
    while waiting and len(seen) < most:
        value = waiting.popleft()
        if isinstance(value, Tensor):
            yield value
            continue
        entered = in_modules and isinstance(value, nn.Module)
        if (isinstance(value, _OPAQUE) and not entered) or id(value) in seen or _is_trainer(type(value)):
            continue
        seen.add(id(value))
        held.append(value)
        waiting.extend(_parts(value, ignored))


def _is_trainer(kind: type) -> bool:
    """Whether objects of a class hold all of a run, the batches too that the network was seen by."""
    return any(base.__name__ in _TRAINERS and "lightning" in base.__module__ for base in kind.__mro__)


def left_in_attributes(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in attributes of modules, and in buffers, that a forward may have left there; and where."""
    modules = modules_of(network)
    caches = {cls: caches_of(cls) for cls in {type(module) for _, module in modules}}
    for path, module in modules:
        prefix = f"{path}." if path else ""
        own = vars(module)
        found = [
            (name, own[name])
            for name in sorted(own.keys() - OF_EVERY_MODULE)
            if type(own[name]) not in _ATOMS and not _holds_nothing(own[name])
        ]
        computed = _computed(module)
        for name, value in (*found, *module._buffers.items()):
            if name in caches[type(module)] or name.startswith(OURS) or name in computed:
                continue
            if isinstance(value, Tensor):
                yield prefix + name, value
                continue
            for tensor in tensors_in(value, most=_MOST_OBJECTS if isinstance(value, _CONTAINERS) else _MOST_NEAR):
                yield prefix + name, tensor
        for value in _noted(module):
            for tensor in tensors_in(value):
                yield f"{prefix}forward_hooks", tensor


def _holds_nothing(value: Any) -> bool:
    """Whether it is some numbers, words or the like."""
    kind = type(value)
    return (kind is tuple or kind is list) and _ATOMS.issuperset(map(type, value))


def _noted(module: nn.Module) -> Iterator[Any]:
    """Containers around the hooks of a module: what they see may be noted down there."""
    return (
        value for hook in forward_hooks(module) for value in variables_around(hook) if isinstance(value, _CONTAINERS)
    )


def _computed(module: nn.Module) -> set[str]:
    """The weights that each forward computes, from `weight_g` and `weight_v` or the like."""
    # Of each parameter what stands before one of its underscores.
    parameters = [name.split("_") for name in module._parameters] if weight_hooks(module) else []
    return {"_".join(words[:count]) for words in parameters for count in range(1, len(words))}


def _parts(value: Any, ignored: frozenset[str]) -> Iterable[Any]:
    if isinstance(value, Mapping):
        # One of a class of its own may have attributes, too.
        own = getattr(value, "__dict__", {})
        return [*(item for key, item in value.items() if key not in ignored), *own.values()]
    if isinstance(value, FunctionType):
        return [*variables_around(value), value.__defaults__, value.__kwdefaults__, value.__dict__]
    if isinstance(value, GeneratorType):
        return inspect.getgeneratorlocals(value).values()
    # Attributes, slots, items, what an iterator goes over: whatever it is written in.
    return gc.get_referents(value)
