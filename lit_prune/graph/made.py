"""The values of small tensors that a forward makes of numbers alone: those numbers may follow from a width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_prune.graph.operation import signature, tensors_among

aten = torch.ops.aten
INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
# Operations that make values which are alike along whole dimensions, whatever is in the tensors that they take.
ALIKE = frozenset(
    "zeros ones full empty empty_strided empty_permuted rand randn randint new_zeros new_ones new_full new_empty "
    "new_empty_strided expand repeat".split()
)
# Operations whose result is one number throughout, whatever is in the tensor that they take the type of: the number, or
# where it stands among their arguments.
_ZERO, _ONE = (0, None), (1, None)
FILLED: dict[Any, tuple[int | None, int | None]] = {
    aten.new_zeros.default: _ZERO,
    aten.zeros_like.default: _ZERO,
    aten.new_ones.default: _ONE,
    aten.ones_like.default: _ONE,
    aten.new_full.default: (None, 2),
    aten.full_like.default: (None, 1),
}


def values_made(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
    """What an operation puts into a new tensor, where no values of another tensor count; ``None`` where some do.

    Args:
        func: An overload of aten.
        args: Its arguments.
        kwargs: Its arguments by name.
        output: What it returned, without values.

    Example:
        >>> values_made(aten.ones.default, ([3],), {}, torch.empty(3, device="meta"))
        tensor([1., 1., 1.])
    """
    if func in FILLED:
        number, place = FILLED[func]
        if place is not None:
            number = args[place] if len(args) > place else kwargs["fill_value"]
        return torch.full(output.shape, number, dtype=output.dtype)  # type: ignore[arg-type]
    if (
        tensors_among((*args, *kwargs.values()))
        or torch.Tag.nondeterministic_seeded in func.tags
        or "empty" in signature(func).qualified_name
    ):
        return None
    made: Tensor = func(*args, **{**kwargs, "device": torch.device("cpu")})
    return made
