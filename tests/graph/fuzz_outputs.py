"""Objects in which a forward may return what it has computed, each with a reader that knows where it put things."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Wrap = Callable[[nn.Module, list[Tensor]], Any]
Read = Callable[[nn.Module, Any], list[Tensor]]


class Named(NamedTuple):
    first: Tensor
    rest: list[Tensor]


@dataclass
class Scores:
    maps: dict[str, Tensor]
    name: str = "scores"


@dataclass(frozen=True)
class Nested:
    inner: Any


class Slotted:
    __slots__ = ("_maps", "unset")

    def __init__(self, maps: list[Tensor]) -> None:
        self._maps = maps


class Bag(dict):  # type: ignore[type-arg]
    """A dict with an attribute."""


def _bag(maps: list[Tensor]) -> Bag:
    bag = Bag(maps={"rest": maps[1:]})
    bag.first = maps[0]  # type: ignore[attr-defined]
    return bag


def _left_in(network: nn.Module, maps: list[Tensor]) -> Tensor:
    network.auxiliary = maps[1:]  # type: ignore[assignment]
    return maps[0]


def _left_in_all(network: nn.Module, maps: list[Tensor]) -> Tensor:
    network.stem.seen = {"maps": tuple(maps)}  # type: ignore[union-attr, assignment]
    return maps[0].mean()


def _left_in_deque(network: nn.Module, maps: list[Tensor]) -> Tensor:
    network.memory = collections.deque(maps)  # type: ignore[assignment]
    return maps[0].mean()


def _left_in_object(network: nn.Module, maps: list[Tensor]) -> Tensor:
    network.kept = Nested(Scores(dict(enumerate(maps))))  # type: ignore[assignment, arg-type]
    return maps[0].mean()


def _normal(maps: list[Tensor]) -> Any:
    return [torch.distributions.Normal(each, 1.0, validate_args=False) for each in maps]


def _independent(maps: list[Tensor]) -> Any:
    return [
        torch.distributions.Independent(torch.distributions.Laplace(each, 2.0, validate_args=False), 1) for each in maps
    ]


OUTPUTS: dict[str, tuple[Wrap, Read]] = {
    "list": (lambda _, maps: maps, lambda _, out: out),
    "tuple": (lambda _, maps: tuple(maps), lambda _, out: list(out)),
    "dict": (lambda _, maps: dict(enumerate(maps)), lambda _, out: list(out.values())),
    "nested": (
        lambda _, maps: {"a": [maps[0], {"b": tuple(maps[1:])}]},
        lambda _, out: [out["a"][0], *out["a"][1]["b"]],
    ),
    "named tuple": (lambda _, maps: Named(maps[0], maps[1:]), lambda _, out: [out.first, *out.rest]),
    "dataclass": (
        lambda _, maps: Nested(Scores({str(i): each for i, each in enumerate(maps)})),
        lambda _, out: list(out.inner.maps.values()),
    ),
    "namespace": (lambda _, maps: SimpleNamespace(maps=maps), lambda _, out: out.maps),
    "slots": (lambda _, maps: Slotted(maps), lambda _, out: out._maps),
    "deque": (lambda _, maps: collections.deque(maps), lambda _, out: list(out)),
    "bag": (lambda _, maps: _bag(maps), lambda _, out: [out.first, *out["maps"]["rest"]]),
    "default dict": (
        lambda _, maps: collections.defaultdict(list, maps=maps),
        lambda _, out: out["maps"],
    ),
    "normal": (lambda _, maps: _normal(maps), lambda _, out: [each.mean for each in out]),
    "independent": (lambda _, maps: _independent(maps), lambda _, out: [each.base_dist.loc for each in out]),
    "generator": (lambda _, maps: (each for each in maps), lambda _, out: list(out)),
    "iterator": (lambda _, maps: iter(maps), lambda _, out: list(out)),
    "function": (lambda _, maps: lambda: maps, lambda _, out: out()),
    "attribute": (_left_in, lambda network, out: [out, *network.auxiliary]),  # type: ignore[misc]
    "attribute of a part": (_left_in_all, lambda network, out: [out, *network.stem.seen["maps"]]),  # type: ignore[union-attr, index]
    "sparse": (lambda _, maps: [each.to_sparse() for each in maps], lambda _, out: [each.to_dense() for each in out]),
    "view": (lambda _, maps: [each.flatten(1) for each in maps], lambda _, out: out),
    "written": (lambda _, maps: [_written(each) for each in maps], lambda _, out: out),
    "mixed": (
        lambda _, maps: {"a": maps[0], "rest": (each for each in maps[1:])},
        lambda _, out: [out["a"], *out["rest"]],
    ),
    "partial": (lambda _, maps: (maps[0], functools.partial(list, maps)), lambda _, out: [out[0], *out[1]()]),
    "queue beside": (lambda _, maps: (maps[0], collections.deque(maps)), lambda _, out: [out[0], *out[1]]),
    "items": (
        lambda _, maps: (maps[0], dict(enumerate(maps)).items()),
        lambda _, out: [out[0], *dict(out[1]).values()],
    ),
    "deque in an attribute": (_left_in_deque, lambda network, out: [out, *network.memory]),  # type: ignore[misc]
    "object in an attribute": (_left_in_object, lambda network, out: [out, *network.kept.inner.maps.values()]),  # type: ignore[union-attr]
    "numbers": (lambda _, maps: [each.sum() for each in maps], lambda _, out: out),
}


def _written(each: Tensor) -> Tensor:
    out = torch.zeros_like(each)
    out.copy_(each)
    return out
