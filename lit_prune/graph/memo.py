"""What operations make of tensors without values, asked of torch once for the same arguments.

Torch's own answer takes longer than all the rest of a trace, and a probe puts the same questions again. It depends on
shapes, strides, types and numbers alone. What is kept of it is numbers too: each time its tensors are new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common._compat import schema_of
from lit_prune.graph.operation import tensors_among

Key = tuple[Any, ...]
# Shape, strides and type.
Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]

# An entry takes a kilobyte or two, a network some hundreds of them.
_MOST = 2**14
_ATOMS = frozenset(
    (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
)
_TENSORS = frozenset((Tensor, nn.Parameter))
_UNSURE = frozenset(
    (torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
)
# The type of a result with the layouts of its tensors; None where it is the first argument.
_known: dict[Key, tuple[type, list[Layout]] | None] = {}


def output_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What ``func`` returns: worked out from what it returned before, where that is sure to be the same."""
    if not _is_sure(func):
        return func(*args, **kwargs)
    try:
        # Integers may become floats, of the type that is the default.
        key = func, torch.get_default_dtype(), *_parts(args), *_parts(kwargs.items() if kwargs else ())
    except _UnknownError:
        return func(*args, **kwargs)
    try:
        known = _known[key]
    except KeyError:
        output = func(*args, **kwargs)
        _keep(key, args, kwargs, output)
        return output
    if known is None:
        return args[0]
    kind, layouts = known
    made = [torch.empty_strided(shape, steps, dtype=dtype, device="meta") for shape, steps, dtype in layouts]
    return made[0] if kind is Tensor else kind(made)


class _UnknownError(Exception):
    """An argument of which a result may depend on more than a key would hold."""


@cache
def _is_sure(func: Any) -> bool:
    """Whether an operation makes new tensors, or returns its first argument with the layout that it had."""
    if getattr(func, "namespace", None) != "aten" or not _UNSURE.isdisjoint(func.tags):
        return False
    arguments, returns = schema_of(func).arguments, schema_of(func).returns
    shared = [argument.alias_info is not None for argument in arguments]
    if not any(shared):
        return all(value.alias_info is None for value in returns)
    # What changes a layout in place has a tag.
    in_place = shared[0] and not any(shared[1:]) and arguments[0].alias_info.is_write
    return in_place and torch.Tag.inplace_view not in func.tags


def _parts(values: Iterable[Any]) -> Key:
    parts: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            if not value.is_meta or value.layout is not torch.strided:
                raise _UnknownError
            parts += value.shape, value.stride(), value.dtype
        elif kind in _ATOMS:
            # Of the same hash are 1, 1.0 and True, of which different types come.
            parts += kind, value
        elif isinstance(value, (list, tuple)):
            kinds = tuple(map(type, value))
            parts += (kinds, tuple(value)) if _ATOMS.issuperset(kinds) else ("[", *_parts(value), "]")
        else:
            raise _UnknownError
    return tuple(parts)


def _keep(key: Key, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """Remember a result that is the first argument, or made of tensors with memory of their own."""
    if len(_known) >= _MOST:
        _known.clear()
    if args and output is args[0]:
        _known[key] = None
        return
    tensors = [output] if type(output) is Tensor else output
    if type(tensors) not in (list, tuple):
        return
    memories = [tensor.untyped_storage() for tensor in tensors_among((*args, *kwargs.values()))]
    for tensor in tensors:
        if type(tensor) is not Tensor or not tensor.is_meta or tensor.storage_offset():
            return
        # A view says so in its schema; this is for what does not, but returns what it was given.
        memory = tensor.untyped_storage()
        if any(memory is other for other in memories):
            return
        memories.append(memory)
    _known[key] = type(output), [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
