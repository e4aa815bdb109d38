"""What functions remember from one forward to the next (``functools.lru_cache``): a trace leaves nothing there.

It would be a tensor without values, which the next forward of the live network gets; and a second trace would see
less of a network than the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

from lit_prune.common.names import modules_of
from lit_prune.common.running import variables_around

_CACHED = type(cache(len))


@contextmanager
def forgetting(network: nn.Module) -> Iterator[None]:
    """Empty, in the end, the caches of functions of the network's classes that something was put into meanwhile."""
    kinds: set[Any] = {type(module) for _, module in modules_of(network)}
    before = {id(cached): (cached, cached.cache_info().misses) for kind in kinds for cached in _cached_functions(kind)}
    try:
        yield
    finally:
        for cached, misses in before.values():
            if cached.cache_info().misses != misses:
                cached.cache_clear()


@cache
def _cached_functions(kind: Any) -> tuple[Any, ...]:
    """Functions with a cache that a class has, or that functions of its file name."""
    found: dict[int, Any] = {}
    waiting = [value for base in kind.__mro__ if not _is_torch(base) for value in vars(base).values()]
    seen = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        if isinstance(value, _CACHED):
            found[id(value)] = value
        elif isinstance(value, FunctionType) and value not in seen and not _is_torch(value):
            seen.add(value)
            waiting.extend(variables_around(value))
            named = [value.__globals__.get(name) for name in value.__code__.co_names]
            waiting.extend(
                each
                for each in named
                if not isinstance(each, FunctionType) or each.__module__ == value.__module__ or each.__closure__
            )
    return tuple(found.values())


def _is_torch(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] in ("torch", "builtins")
