"""Outputs are seen in whatever object they come, and where a forward leaves them."""

from __future__ import annotations

import collections
import functools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph
from lit_prune.errors import TraceError
from lit_prune.graph.outputs import tensors_in

IMAGES = torch.rand(2, 3, 8, 8)


@dataclass
class Scores:
    logits: Tensor
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Nested:
    inner: Any


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self._logits = logits


class Slotted:
    __slots__ = ("logits", "unset")

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Detections(list):  # type: ignore[type-arg]
    """A list with an attribute, as some packages return."""


class Scored(dict):  # type: ignore[type-arg]
    """A dict with an attribute."""


def _with_attribute(logits: Tensor) -> Any:
    found = Detections()
    found.logits = logits
    return found


def _dict_with_attribute(logits: Tensor) -> Any:
    found = Scored()
    found.logits = logits
    return found


def _in_a_circle(logits: Tensor) -> Any:
    value = SimpleNamespace(logits=logits)
    value.me = value
    return value


Named = collections.namedtuple("Named", "logits other")

WAYS: dict[str, Any] = {
    "a dataclass": Scores,
    "a dataclass in a dataclass": lambda y: Nested(Scores(y)),
    "an object": Plain,
    "slots": Slotted,
    "a namespace": lambda y: SimpleNamespace(logits=y),
    "a named tuple": lambda y: Named(y, None),
    "a dict in a list": lambda y: [{"logits": y}],
    "an ordered dict": lambda y: collections.OrderedDict(logits=y),
    "a deque in an object": lambda y: Plain(Nested((y,))),  # type: ignore[arg-type]
    "a list with an attribute": _with_attribute,
    "a circle": _in_a_circle,
    "a generator": lambda y: (each for each in [y]),
    "an iterator": lambda y: iter([y]),
    "a mapped list": lambda y: map(torch.relu, [y]),
    "a function": lambda y: lambda: y,
    "a function and its arguments": lambda y: functools.partial(torch.relu, y),
    "a deque": lambda y: collections.deque([y]),
    "the items of a dict": lambda y: {"logits": y}.items(),
    "a dict with an attribute": _dict_with_attribute,
    "a generator beside a tensor": lambda y: {"mean": y.mean(), "rest": (each for each in [y])},
    "a distribution": lambda y: torch.distributions.Normal(y, 1.0, validate_args=False),
    "a categorical": lambda y: torch.distributions.Categorical(logits=y.movedim(1, -1), validate_args=False),
}


class Net(nn.Module):
    def __init__(self, way: Any) -> None:
        super().__init__()
        self.way = way
        self.a, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Any:
        return self.way(self.head(self.a(x)))


@pytest.mark.parametrize("way", WAYS)
def test_channels_of_outputs_stay(way: str) -> None:
    graph = ChannelGraph.trace(Net(WAYS[way]), IMAGES)
    assert [group.name for group in graph.groups] == ["a"]
    assert "head" in graph.unprunable


class LeavesBehind(nn.Module):
    """Leaves features in an attribute of a part of it, for an auxiliary head outside."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.keep = keep
        self.part = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x)
        self.part.features = self.keep(x)
        return self.head(x)


KEEPS: dict[str, Any] = {
    "tensor": lambda x: x,
    "list": lambda x: [x],
    "dict": lambda x: {"p3": (x,)},
    "deque": lambda x: collections.deque([x]),
    "object": lambda x: Nested(Scores(x)),
    "closure": lambda x: lambda: x,
}


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_what_is_left_in_an_attribute_stays(keep: Any) -> None:
    graph = ChannelGraph.trace(LeavesBehind(keep), IMAGES)
    assert graph.unprunable["part.0"] == "is kept in the attribute part.features"


def test_what_a_hook_notes_down_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1))
    features: list[Tensor] = []
    net[0].register_forward_hook(lambda module, args, output: features.append(output))
    graph = ChannelGraph.trace(net, IMAGES)
    assert graph.unprunable["0"] == "is kept in the attribute 0.forward_hooks"
    assert features == []


class Carries(nn.Module):
    """What the call before has left comes in again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.next(x) if self.before is None else self.next(x) + self.before
        self.before = x.detach()
        return self.head(y)


def test_what_meets_the_state_of_the_call_before_stays() -> None:
    graph = ChannelGraph.trace(Carries(), IMAGES)
    assert graph.groups == ()
    assert graph.unprunable["next"] == "is kept in the attribute before"


def test_an_attribute_of_other_things_holds_nothing_back() -> None:
    graph = ChannelGraph.trace(LeavesBehind(lambda x: list(x.shape)), IMAGES)
    assert [group.name for group in graph.groups] == ["part.0"]


@pytest.mark.parametrize("way", [lambda y: None, lambda y: "done", lambda y: {"n": 3}])
def test_a_forward_that_returns_no_tensor_is_refused(way: Any) -> None:
    with pytest.raises(TraceError, match=r"Net returns a \w+ that holds no tensor"):
        ChannelGraph.trace(Net(way), IMAGES)


def test_a_tensor_that_comes_twice_is_found_and_modules_are_not_entered() -> None:
    tensor = torch.ones(1)
    assert len([*tensors_in([tensor, {"again": tensor}])]) == 2
    assert [*tensors_in([nn.Linear(2, 2), print, int, "text"])] == []
