"""What an optimizer holds of its parameters: in its state, in that of optimizers inside of it, and beside both."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Path = tuple[Any, ...]

_SEQUENCES = (list, tuple, deque)
_OF_EVERY_OPTIMIZER = frozenset({"param_groups", "state", "defaults"})


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that an optimizer holds.

    Attributes:
        optimizer: Which one.
        path: Where: keys, indices.
        parameter: What it belongs to; ``None`` where nothing tells.
        value: The tensor; or an object that holds tensors.
        series: How many of them are in one sequence that belongs to the parameter; 0 where it is in none.
    """

    optimizer: Optimizer
    path: Path
    parameter: nn.Parameter | None
    value: Any
    series: int = 0

    @property
    def name(self) -> str:
        """The path, for messages."""
        first, *others = self.path
        return f"{first}{''.join(f'[{part!r}]' for part in others)}"


def optimizers_in(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """These, and those that they hold in an attribute, each once."""
    found: list[Optimizer] = []
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if not any(optimizer is other for other in found):
            found.append(optimizer)
            for value in vars(optimizer).values():
                values = value.values() if isinstance(value, dict) else value
                inner = values if isinstance(value, (dict, *_SEQUENCES)) else [value]
                waiting.extend(each for each in inner if isinstance(each, Optimizer))
    return found


def held_by(optimizers: Iterable[Optimizer]) -> list[Held]:
    """All that optimizers hold, each tensor once."""
    seen: set[int] = set()
    found = []
    for optimizer in optimizers_in(optimizers):
        parameters = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for held in (*_in_state(optimizer), *beside(optimizer)):
            if id(held.value) not in seen and id(held.value) not in parameters:
                seen.add(id(held.value))
                found.append(held)
    return found


def beside(optimizer: Optimizer) -> Iterator[Held]:
    """What lies in attributes, in groups and on parameters, each by the parameter beside which it lies."""
    groups = [list(group["params"]) for group in optimizer.param_groups]
    everything = [parameter for group in groups for parameter in group]
    for name, value in vars(optimizer).items():
        if name not in _OF_EVERY_OPTIMIZER:
            by_group = isinstance(value, _SEQUENCES) and [_length(each) for each in value] == [*map(len, groups)]
            for number, (inner, mine) in enumerate(zip(value, groups, strict=True) if by_group else ()):
                yield from _aligned(optimizer, inner, (name, number), mine)
            if not by_group:
                yield from _aligned(optimizer, value, (name,), everything)
    for group, mine in zip(optimizer.param_groups, groups, strict=True):
        for name, value in group.items():
            if name != "params":
                yield from _aligned(optimizer, value, (name,), mine)
    for parameter in everything:
        for name, value in vars(parameter).items():
            yield from _belonging(optimizer, value, (name,), parameter)


def _in_state(optimizer: Optimizer) -> Iterator[Held]:
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, nn.Parameter):
            yield from _belonging(optimizer, state, (), parameter)


def _aligned(optimizer: Optimizer, value: Any, path: Path, parameters: Sequence[nn.Parameter]) -> Iterator[Held]:
    """What is in a container, each with the parameter whose key or place it has."""
    if isinstance(value, _SEQUENCES) and len(value) == len(parameters) and all(map(_fits, value, parameters)):
        for number, (inner, parameter) in enumerate(zip(value, parameters, strict=True)):
            yield from _belonging(optimizer, inner, (*path, number), parameter)
    elif isinstance(value, Mapping):
        by_key = {id(parameter): parameter for parameter in parameters}
        for key, inner in value.items():
            place = path if isinstance(key, Tensor) else (*path, key)
            yield from _belonging(optimizer, inner, place, by_key.get(key if isinstance(key, int) else id(key)))
    else:
        yield from _belonging(optimizer, value, path, None)


def _belonging(
    optimizer: Optimizer, value: Any, path: Path, parameter: nn.Parameter | None, series: int = 0
) -> Iterator[Held]:
    """Every tensor in nested dicts and sequences, and every object that holds some."""
    if isinstance(value, Tensor) or (parameter is not None and _holds_tensors(value)):
        yield Held(optimizer, path, parameter, value, series)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _belonging(optimizer, inner, (*path, key), parameter)
    elif isinstance(value, _SEQUENCES):
        for number, inner in enumerate(value):
            yield from _belonging(optimizer, inner, (*path, number), parameter, len(value))


def _holds_tensors(value: Any) -> bool:
    inside = getattr(value, "__dict__", None)
    return isinstance(inside, dict) and any(isinstance(each, Tensor) for each in inside.values())


def _fits(value: Any, parameter: nn.Parameter) -> bool:
    return not isinstance(value, Tensor) or value.shape == parameter.shape


def _length(value: Any) -> int:
    return len(value) if isinstance(value, _SEQUENCES) else -1
