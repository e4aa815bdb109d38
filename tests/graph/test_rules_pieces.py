"""Rules for putting together, taking apart and attending, each on a network small enough to follow by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph
from tests.graph.tiny import Between, exact, random_images, sizes


def test_a_residual_joins_its_branches() -> None:
    graph = exact(Between(lambda a, b: a + b, 12, branches=2))
    assert graph["enter.0"].layers == ("enter.0", "enter.1")


def test_concatenated_channels_stay_apart() -> None:
    graph = exact(Between(lambda a, b: torch.cat([a, b], 1), 24, branches=2))
    assert sizes(graph) == {"enter.0": 12, "enter.1": 12}
    assert graph["enter.1"].indices(("leave.weight", 1), [0, 3]).tolist() == [12, 15]


def test_halves_of_a_chunk_lose_equally_many() -> None:
    graph = exact(Between(lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1), 12))
    assert sizes(graph) == {"enter.0": 6, "enter.0#2": 6}
    assert graph["enter.0"].balanced == ("enter.0", "enter.0#2")


def test_halves_that_are_added_are_one_group() -> None:
    graph = exact(Between(lambda x: sum(x.chunk(2, 1)), 6))
    assert sizes(graph) == {"enter.0": 6}
    assert graph["enter.0"].indices(("enter.0.weight", 0), [2]).tolist() == [2, 8]


def test_pieces_of_remembered_sizes_stay() -> None:
    graph = exact(Between(lambda x: torch.cat(x.split([4, 8], 1)[::-1], 1), 12))
    assert graph.groups == ()
    assert "can't be narrowed" in graph.unprunable["enter.0"]


def test_pieces_of_computed_sizes_lose_as_they_like() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
            self.c, self.d = nn.Conv2d(4, 5, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = self.a(x), self.b(x)
            both = torch.cat([a, b], 1).relu()
            return self.c(both[:, : a.shape[1]]), self.d(both[:, a.shape[1] :])

    graph = exact(Parts())
    assert sizes(graph) == {"a": 4, "b": 8}
    assert graph["a"].balanced == ()


def test_a_layer_that_is_used_twice_joins_what_enters_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.shared, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.shared(self.shared(self.enter(x)).relu()))

    graph = exact(Twice())
    assert sizes(graph) == {"enter": 8}
    assert {("shared.weight", 0), ("shared.weight", 1), ("leave.weight", 1)} <= set(graph["enter"].slots)


def test_tied_weights_are_cut_as_one() -> None:
    class Tied(nn.Module):
        """An autoencoder whose decoder is its encoder, transposed."""

        def __init__(self) -> None:
            super().__init__()
            self.encode, self.inner, self.decode = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(6, 8, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.encode(x)).relu() @ self.decode.weight

    graph = exact(Tied(), random_images((2, 5, 6)))
    assert sizes(graph) == {"encode": 8}
    assert graph["encode"].layers == ("encode", "inner")


def test_pieces_that_feed_one_another() -> None:
    class Scales(nn.Module):
        """Res2Net's hierarchy: each piece is convolved together with what came out of the piece before."""

        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
            self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first, *rest = self.enter(x).chunk(4, 1)
            found = [first]
            for conv, piece in zip(self.convs, rest, strict=True):
                found.append(conv(found[-1] + piece).relu())
            return self.leave(torch.cat(found, 1))

    graph = exact(Scales())
    assert sum(group.size for group in graph.groups) >= 4
    assert all(len(group.balanced) > 1 or group.size == 4 for group in graph.groups)


def test_a_channel_shuffle_pairs_its_groups() -> None:
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    graph = exact(Between(shuffle, 12))
    assert sizes(graph) == {"enter.0": 6}
    assert graph["enter.0"].indices(("enter.0.weight", 0), [1]).tolist() == [1, 7]
    assert graph["enter.0"].indices(("leave.weight", 1), [1]).tolist() == [2, 3]


@pytest.mark.parametrize("shuffle", [F.channel_shuffle, torch.native_channel_shuffle])
def test_the_built_in_shuffle(shuffle: Callable[..., Tensor]) -> None:
    exact(Between(lambda x: shuffle(x, 3), 12))


def test_pixel_shuffle() -> None:
    graph = exact(Between(lambda x: F.pixel_shuffle(x, 2), 3))
    assert sizes(graph) == {"enter.0": 3}
    assert graph["enter.0"].indices(("enter.0.weight", 0), [1]).tolist() == [4, 5, 6, 7]


def test_pixel_unshuffle() -> None:
    graph = exact(Between(lambda x: F.pixel_unshuffle(x, 2), 48))
    assert graph["enter.0"].indices(("leave.weight", 1), [1]).tolist() == [4, 5, 6, 7]


def test_repeated_channels() -> None:
    graph = exact(Between(lambda x: x.repeat(1, 2, 1, 1), 24))
    assert graph["enter.0"].indices(("leave.weight", 1), [1]).tolist() == [1, 13]


def test_split_concat_split() -> None:
    def chain(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        c, d = torch.cat([b, a], 1).relu().chunk(2, 1)
        return torch.cat([a * c, d], 1)

    assert sum(group.size for group in exact(Between(chain, 12)).groups) >= 6


def test_shared_pooling_as_in_sppf() -> None:
    def pyramid(x: Tensor) -> Tensor:
        maps = [x]
        maps.extend(F.max_pool2d(maps[-1], 3, 1, 1) for _ in range(3))
        return torch.cat(maps, 1)

    graph = exact(Between(pyramid, 48))
    assert graph["enter.0"].indices(("leave.weight", 1), [1]).tolist() == [1, 13, 25, 37]


def test_squeeze_and_excitation() -> None:
    class Excited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)
            self.out = nn.Conv2d(12, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.out(x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid())

    graph = exact(Excited())
    assert graph["conv"].layers == ("conv", "up")
    assert sizes(graph) == {"conv": 12, "down": 6}


def test_a_split_attention_ties_its_paths() -> None:
    class Splits(nn.Module):
        """ResNeSt's: a softmax over the paths of each channel, and a sum over them."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attend, self.leave = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = (x := self.conv(x)).shape
            x = x.reshape(n, 2, c // 2, h, w)
            weight = self.attend(x.sum(1).mean((2, 3), keepdim=True)).view(n, 2, c // 2, 1, 1).softmax(1)
            return self.leave((x * weight).sum(1))

    graph = exact(Splits())
    assert sizes(graph) == {"conv": 8}
    assert graph["conv"].indices(("conv.weight", 0), [1]).tolist() == [1, 9]
    assert graph["conv"].indices(("attend.weight", 0), [1]).tolist() == [1, 9]


def test_a_selective_kernel_ties_its_paths() -> None:
    class Selects(nn.Module):
        """Paths are stacked, so that the dimension of the paths is no parameter's."""

        def __init__(self) -> None:
            super().__init__()
            self.paths = nn.ModuleList([nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)])
            self.attend, self.leave = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.stack([path(x) for path in self.paths], 1)
            weight = self.attend(x.sum(1).mean((2, 3), keepdim=True))
            weight = weight.view(len(x), 2, -1, 1, 1).softmax(1)
            return self.leave((x * weight).sum(1))

    graph = exact(Selects())
    assert sizes(graph) == {"paths.0": 8}
    assert graph["paths.0"].layers == ("paths.0", "paths.1", "attend")
    assert graph["paths.0"].indices(("attend.weight", 0), [1]).tolist() == [1, 9]


def test_an_embedding_loses_width_but_no_word() -> None:
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    graph = ChannelGraph.trace(net, torch.zeros(2, 3, dtype=torch.long))
    assert ("0.weight", 1) not in {slot for group in graph.groups for slot in group.slots if slot[1] == 0}
    assert "1" in sizes(graph)


class Attention(nn.Module):
    """Heads whose number is fixed; every width is read off the values."""

    def __init__(self, fused: bool, scale: float | None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 3 * 2 * 8), nn.Linear(16, 4)
        self.heads, self.fused, self.scale = 2, fused, scale

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            x = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.out(x.transpose(1, 2).reshape(n, t, -1))


@pytest.mark.parametrize("fused", [True, False])
def test_heads_of_an_attention_lose_equally_many(fused: bool) -> None:
    graph = exact(Attention(fused, scale=0.3), random_images((2, 5, 6)))
    # Queries, keys and values of both heads: their width is one.
    assert {group.size for group in graph.groups} == {8}
    queries = graph.groups[0]
    assert queries.indices(("qkv.weight", 0), [1]).tolist() == [1, 17]
    assert len(queries.balanced) == 4


def test_a_head_whose_width_sets_the_scale_goes_whole_or_stays() -> None:
    graph = exact(Attention(fused=True, scale=None), random_images((2, 5, 6)))
    # The number of heads is remembered here, and no table says how it follows.
    assert graph.groups == ()
    assert "qkv" in graph.unprunable
