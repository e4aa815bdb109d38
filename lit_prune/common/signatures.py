"""Inputs of a forward, however they were given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import nn


def by_position(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]] | None:
    """The inputs of a module by position, defaults among them, with the names that its forward gives them.

    Returns:
        Pairs of name and value, the name empty where there is none; ``None`` where an input goes by keyword alone.

    Example:
        >>> class Scaled(nn.Module):
        ...     def forward(self, x, scale=2.0):
        ...         return x * scale
        >>> by_position(Scaled(), (), {"x": 1.0})
        [('x', 1.0), ('scale', 2.0)]
    """
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        # Scripts and the like do not tell.
        return None
    if bound.kwargs:
        return None
    bound.apply_defaults()
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]
    return [*zip_longest(names, bound.args, fillvalue="")]
