"""Rules for picking and writing by index, and for values that are alike however many there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph
from tests.graph.tiny import IMAGES, Between, exact, random_images, sizes

ROWS = torch.tensor([0, 0, 1, 2, 3, 5])


def _added(x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape)
    y += x
    return y.relu_()


def _row_by_row(x: Tensor) -> Tensor:
    y = torch.zeros(2, x.shape[1], 3, 12)
    for row in range(3):
        y[:, :, row, ::2], y[:, :, row, 1::2] = x[:, :, row], x[:, :, row + 3]
    return y


def _state(x: Tensor) -> Tensor:
    state, states = torch.zeros(len(x), x.shape[1], x.shape[3]), []
    for row in x.unbind(2):
        state = 0.5 * state + row
        states.append(state)
    return torch.stack(states, 2)


def _placed(x: Tensor) -> Tensor:
    y = torch.zeros(2, x.shape[1], 36)
    y[:, :, torch.arange(35, -1, -1)] = x.flatten(2)
    return y.view(2, -1, 6, 6)


def _tokens(x: Tensor) -> Tensor:
    tokens = x.permute(0, 2, 3, 1).clone()
    inside = torch.zeros(2, 6, 6, dtype=torch.bool)
    inside[:, :3] = True
    tokens[inside] = tokens[inside] * 2
    return tokens.permute(0, 3, 1, 2)


def _mask_scattered(x: Tensor) -> Tensor:
    tokens = x.permute(0, 2, 3, 1)
    inside = torch.ones(2, 6, 6, 1, dtype=torch.bool)
    return torch.zeros_like(tokens).masked_scatter(inside.expand_as(tokens), tokens.relu()).permute(0, 3, 1, 2)


PASS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: x + 0 * torch.rand(1, x.shape[1], 1, 1),
    "constants": lambda x: x * torch.full((x.shape[1],), 0.5)[:, None, None],
    "bounds": lambda x: torch.minimum(x, torch.full((1, x.shape[1], 1, 1), 0.5)),
    "a mask that was expanded": lambda x: x.masked_fill((torch.arange(6) > 3).expand(2, x.shape[1], 6, 6), 0),
    "where": lambda x: torch.where(x > 0, x, torch.zeros(x.shape[1], 1, 1)),
    "added to zeros": _added,
    "copied": lambda x: torch.empty(x.shape).copy_(x),
    "by the keyword out": lambda x: torch.mul(x, 2, out=torch.empty(x.shape)),
    "row by row": _row_by_row,
    "a state from zeros": _state,
    "placed by index": _placed,
    "masked tokens": _tokens,
    "scattered by a mask": _mask_scattered,
    "gathered": lambda x: x.gather(2, ROWS[None, None, :, None].expand(2, x.shape[1], -1, 6)),
    "gathered by a repeated index": lambda x: x.gather(2, ROWS[None, None, :, None].repeat(2, x.shape[1], 1, 6)),
    "along a dimension": lambda x: torch.take_along_dim(x, ROWS[None, None, :, None], 2),
    "index_add": lambda x: x.new_zeros(x.shape).index_add(2, ROWS, x),
    "index_copy": lambda x: torch.zeros(x.shape).index_copy(2, torch.arange(6), x),
    "index_fill": lambda x: x.index_fill(2, ROWS, 0.0),
    "scatter_add": lambda x: torch.zeros(x.shape).scatter_add(
        2, ROWS[None, None, :, None].expand(2, x.shape[1], 6, 6), x
    ),
    "largest": lambda x: x.flatten(2).topk(4, -1).values[..., None],
    "sorted": lambda x: x.sort(3).values,
}


@pytest.mark.parametrize("name", PASS)
def test_channels_pass_beside_what_is_indexed(name: str) -> None:
    assert sizes(exact(Between(PASS[name], 12))) == {"enter.0": 12}


def _filled(start: int | None, end: int | None, step: int | None = None) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        gate = x.new_zeros(1, x.shape[1], 1, 1)
        gate[:, start:end:step] = 1
        return x * gate

    return function


def _silenced(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, x.shape[1] // 3 :] *= 2
    return x


def _shifted(x: Tensor) -> Tensor:
    fold = x.shape[1] // 3
    return torch.cat([x[:, :fold].relu(), x[:, fold:]], 1)


def _chosen(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, torch.arange(x.shape[1]) % 2 == 0] = 0
    return x


def _masked(x: Tensor) -> Tensor:
    gone = torch.zeros(x.shape[1], dtype=torch.bool)
    gone[::2] = True
    return x.masked_fill(gone[:, None, None], 0)


STAY: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a half filled": (lambda x: _filled(None, x.shape[1] // 2)(x), "is filled in part"),
    "every other one filled": (_filled(None, None, 2), "is filled in part"),
    "one filled": (_filled(2, 3), "is a piece of one channel"),
    "a part written over": (_silenced, "is filled in part"),
    "a part of a computed size": (_shifted, "in other places"),
    "some written over": (_chosen, "is written to by index"),
    "a mask that differs": (_masked, "is filled in part"),
    "ramp": (lambda x: x * x.new_zeros(x.shape[1]).copy_(torch.arange(x.shape[1]))[:, None, None], "not tracked"),
    "gathered along": (
        lambda x: x.gather(1, torch.arange(11, -1, -1)[None, :, None, None].expand(2, -1, 6, 6)),
        "gather",
    ),
    "an index that differs": (
        lambda x: x.gather(2, (torch.arange(x.shape[1]) % 6)[None, :, None, None].expand(2, -1, 6, 6)),
        "gather",
    ),
    "largest along": (lambda x: x.topk(12, 1).values, "topk picks from it"),
    "scattered one by one": (
        lambda x: torch.zeros_like(x).masked_scatter(torch.ones(2, 1, 6, 6, dtype=torch.bool), x),
        "masked_scatter",
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_what_differs_along_channels_holds_them(name: str) -> None:
    function, reason = STAY[name]
    graph = exact(Between(function, 12))
    assert max((group.size for group in graph.groups), default=0) < 12
    assert reason in graph.unprunable["enter.0"]


@pytest.mark.parametrize("pile", [False, True])
def test_pieces_written_into_a_new_tensor_stay_apart(pile: bool) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        both = a.new_empty(len(a), a.shape[1] + b.shape[1], *a.shape[2:])
        both[:, : a.shape[1]], both[:, a.shape[1] :] = a, b
        return both.relu() if pile else both

    assert sizes(exact(Between(function, 24, branches=2))) == {"enter.0": 12, "enter.1": 12}


def test_channels_written_in_turns_go_together() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        both = a.new_zeros(len(a), 2 * a.shape[1], *a.shape[2:])
        both[:, 0::2], both[:, 1::2] = a, b
        return both

    graph = exact(Between(function, 24, branches=2))
    assert sizes(graph) == {"enter.0": 12}
    assert graph["enter.0"].indices(("leave.weight", 1), [2]).tolist() == [4, 5]


def test_points_scattered_into_an_image() -> None:
    class Pillars(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points, self.leave = nn.Linear(4, 12), nn.Conv2d(12, 4, 1)

        def forward(self, points: Tensor) -> Tensor:
            features = self.points(points)
            canvas = torch.zeros(features.shape[1], 16, dtype=features.dtype)
            canvas[:, torch.arange(0, 16, 2)] = features.t()
            return self.leave(canvas.view(1, -1, 4, 4))

    assert sizes(exact(Pillars(), random_images((8, 4)))) == {"points": 12}


class _DropBlock(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = F.max_pool2d(torch.empty(x.shape).bernoulli_(0.1), 3, 1, 1)
        return x * (1 - noise) * noise.numel() / (1 + (1 - noise).sum())


@pytest.mark.parametrize(
    "mask",
    [
        nn.Dropout2d(0.3),
        nn.FeatureAlphaDropout(0.3),
        _DropBlock(),
    ],
)
def test_random_masks_of_a_forward_in_train_mode(mask: nn.Module) -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.mask, self.leave, self.aside = (
                nn.Conv2d(3, 8, 1),
                mask,
                *(nn.Conv2d(8, 4, 1) for _ in "ab"),
            )

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = self.mask(self.enter(x))
            return (self.leave(x), self.aside(x)) if self.training else (self.leave(x),)

    graph = ChannelGraph.trace(Auxiliary(), IMAGES)
    assert sizes(graph) == {"enter": 8}
    assert ("aside.weight", 1) in graph["enter"].slots
