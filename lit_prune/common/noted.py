"""What objects beside a network note down while it runs, put back."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch

_CONTAINERS = frozenset((list, dict, OrderedDict, set, deque, defaultdict, Counter))
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.ndarray, np.generic, torch.Tensor)
# Larger arrays are data.
_MOST = 1_000_000


def putting_back(value: Any) -> Callable[[], Any] | None:
    """What makes an object again what it is now, of those that note down what they see; ``None`` for others.

    These are containers (what they hold stays what it is), small arrays, generators of random numbers, and meters.

    Example:
        >>> seen = [1]
        >>> put_back = putting_back(seen)
        >>> seen.append(2)
        >>> put_back()
        >>> seen
        [1]
    """
    if type(value) in _CONTAINERS:
        return partial(_refill, value, copy(value))
    if isinstance(value, np.ndarray) and value.size <= _MOST and value.flags.writeable:
        return partial(np.copyto, value, value.copy())
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if is_meter(value):
        return partial(_refill, vars(value), dict(vars(value)))
    return None


def is_meter(value: Any) -> bool:
    """Whether it is an object that holds nothing but numbers, words, arrays and containers.

    Example:
        >>> from types import SimpleNamespace
        >>> is_meter(SimpleNamespace(count=1, values=[0.5])), is_meter(SimpleNamespace(network=torch.nn.ReLU()))
        (True, False)
    """
    held = getattr(value, "__dict__", None)
    return (
        type(held) is dict
        and bool(held)
        and not isinstance(value, (type, torch.Tensor, torch.nn.Module))
        and all(isinstance(each, _PLAIN) or type(each) in _CONTAINERS for each in held.values())
    )


def _refill(value: Any, contents: Any) -> None:
    if len(value) != len(contents) or any(
        ours is not theirs for ours, theirs in zip(_items(value), _items(contents), strict=True)
    ):
        value.clear()
        (value.extend if isinstance(value, (list, deque)) else value.update)(contents)


def _items(container: Any) -> Iterator[Any]:
    for item in container:
        yield item
        if isinstance(container, dict):
            yield container[item]
