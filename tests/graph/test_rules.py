"""Rules, each on a network small enough to say by hand what hangs together; and the invariant on every one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph
from lit_prune.graph import register_rule
from lit_prune.graph.rules import RULES
from tests.networks import check_invariant


class Between(nn.Module):
    """A 1x1 convolution to ``width`` channels, a function, and a 1x1 convolution to 4."""

    def __init__(self, function: Callable[..., Tensor], leaving: int, width: int = 12, branches: int = 1) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Conv2d(3, width, 1) for _ in range(branches))
        self.leave = nn.Conv2d(leaving, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.function(*(conv(x) for conv in self.enter)))


IMAGES = torch.zeros(2, 3, 6, 6)


def _random(shape: tuple[int, ...] = (2, 3, 6, 6)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _exact(net: nn.Module, images: Tensor | None = None) -> ChannelGraph:
    check = check_invariant(net, _random() if images is None else images)
    assert check.worst < 1e-4
    assert not check.graph.unsupported
    return check.graph


def _sizes(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


SAME = {
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "in place": lambda x: F.relu_(x).mul_(2).add_(1),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-1.0), torch.tensor(1.0)),
    "scalar": lambda x: (x * 2 - 1) / 3,
    "max pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "upsample nearest": lambda x: F.interpolate(x, scale_factor=2),
    "upsample bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "spatial mean": lambda x: x.mean((2, 3), keepdim=True),
    "spatial mean, squeezed": lambda x: x.mean((2, 3))[..., None, None],
    "global gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "with itself": lambda x: x + x * x,
    "to the last dimension and back": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "tokens and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "unsqueeze and squeeze": lambda x: x.unsqueeze(2).squeeze(2),
    "expand": lambda x: x.unsqueeze(0).expand(1, *x.shape).squeeze(0),
    "one channel broadcast": lambda x: x * torch.ones(2, 1, 6, 6),
    "softmax over space": lambda x: x.flatten(2).softmax(-1).reshape(x.shape),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "stack and unbind": lambda x: torch.stack([x, x * 2], 1).sum(1),
    "split and cat": lambda x: torch.cat(x.split(1, dim=2), 2),
    "half of the height": lambda x: x[:, :, :3],
    "grid sample": lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False),
    "drop": lambda x: F.dropout2d(F.dropout(x, training=False), training=False),
    "new zeros": lambda x: x + x.new_zeros(x.shape[2:]),
    "full like": lambda x: x + torch.full_like(x, 2.0),
}


@pytest.mark.parametrize("name", SAME)
def test_channels_pass_through(name: str) -> None:
    graph = _exact(Between(SAME[name], 12))
    (group,) = graph.groups
    assert group.name == "enter.0"
    assert set(group.slots) == {("enter.0.weight", 0), ("enter.0.bias", 0), ("leave.weight", 1)}
    assert set(graph.frozen) == {"leave"}


FREEZES = {
    "softmax over channels": (lambda x: x.softmax(1), 12, "softmax runs over it"),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), 12, "mean runs over it"),
    "norm over channels": (lambda x: F.normalize(x, dim=1), 12, "linalg_vector_norm runs over it"),
    "flip": (lambda x: x.flip(1), 12, "flip moves it"),
    "sort": (lambda x: x.sort(1).values, 12, "sort picks from it"),
    "by index": (lambda x: x[:, torch.arange(11, -1, -1)], 12, "is picked from by index"),
    "index select": (lambda x: x.index_select(1, torch.arange(12)), 12, "is picked from by index"),
    "an untracked operand": (lambda x: x + torch.ones(12, 1, 1), 12, "meets what is not tracked"),
    "an untracked piece": (lambda x: torch.cat([x, torch.ones(2, 2, 6, 6)], 1), 14, None),
    "LayerNorm without a weight": (lambda x: F.layer_norm(x, [12, 6, 6]), 12, "is normalised together"),
    "padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 14, "is padded"),
    "every other channel": (lambda x: x[:, ::2], 6, "is sliced with a step"),
}


@pytest.mark.parametrize("name", FREEZES)
def test_what_cannot_be_followed_is_frozen_with_its_reason(name: str) -> None:
    function, leaving, reason = FREEZES[name]
    graph = ChannelGraph.trace(Between(function, leaving), IMAGES)
    if reason is None:
        # Only the untracked piece stays.
        assert _sizes(graph) == {"enter.0": 12}
    else:
        assert graph.groups == ()
        assert reason in graph.frozen["enter.0"]
    _exact(Between(function, leaving))


# --- convolutions and products ---------------------------------------------------------------------------------


def test_depthwise_convolutions_go_with_their_input() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 4, 1))
    graph = _exact(net)
    assert _sizes(graph) == {"0": 6}
    assert graph["0"].indices(("1.weight", 0), [1]).tolist() == [2, 3]


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions(bias: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 2, 2, bias=bias), nn.Conv2d(8, 4, 1))
    graph = _exact(net)
    assert _sizes(graph) == {"0": 6, "1": 8}
    assert {("1.weight", 1), ("2.weight", 1)} <= set(graph["1"].slots)


def test_depthwise_transposed_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 6, 2, 2, groups=6), nn.Conv2d(6, 4, 1))
    assert _sizes(_exact(net)) == {"0": 6}


def test_grouped_transposed_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, 2, groups=2), nn.Conv2d(12, 4, 1))
    graph = _exact(net)
    # One row of the weight makes an output of each group.
    assert _sizes(graph) == {"0": 4, "0#2": 4, "1": 6}
    assert graph["0"].balanced == ("0", "0#2")


def test_grouped_convolutions_lose_equally_in_each_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 4, 1))
    graph = _exact(net)
    # One column of the weight reads an input of each group.
    assert _sizes(graph) == {"0": 4, "1": 6, "1#2": 6}
    assert graph["0"].indices(("0.weight", 0), [1]).tolist() == [1, 5]
    assert graph["1"].balanced == ("1", "1#2")


def test_grouped_convolution_with_one_output_a_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 3, groups=2), nn.Conv2d(2, 4, 1))
    graph = _exact(net)
    assert "only output of its group" in graph.frozen["1"]


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv3d, nn.BatchNorm3d)
    net = nn.Sequential(conv(3, 8, 1), norm(8), nn.ReLU(), conv(8, 8, 3, groups=8), conv(8, 4, 1))
    graph = _exact(net, _random((2, 3, *[5] * dims)))
    assert _sizes(graph) == {"0": 8}
    assert len(graph["0"].slots) == 2 + 4 + 2 + 1


def test_flatten_before_a_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4))
    graph = _exact(net)
    assert _sizes(graph) == {"0": 8, "2": 16}
    assert graph["0"].indices(("2.weight", 1), [1]).tolist() == list(range(36, 72))


def test_linear_layers_on_the_last_dimension() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 10, bias=False), nn.Linear(10, 4))
    assert _sizes(_exact(net)) == {"0": 8, "2": 10}


def test_products_of_values() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 10)
            self.out = nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.einsum("bnd,bmd->bnm", self.q(x), self.k(x)) @ self.v(x))

    graph = _exact(Gram(), _random((2, 5, 6)))
    assert _sizes(graph) == {"q": 8, "v": 10}
    assert graph["q"].layers == ("q", "k")


# --- norms -----------------------------------------------------------------------------------------------------


def test_batch_norm_goes_along() -> None:
    graph = _exact(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)))
    assert {("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0)} <= set(graph["0"].slots)


def test_layer_norm_takes_its_statistics_from_what_is_left() -> None:
    class Last(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert _sizes(_exact(nn.Sequential(nn.Conv2d(3, 8, 1), Last(8), nn.Conv2d(8, 4, 1)))) == {"0": 8}


def test_layer_norm_over_a_whole_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm([8, 6, 6]), nn.Conv2d(8, 4, 1))
    assert _sizes(_exact(net)) == {"0": 8}


def test_rms_norm() -> None:
    assert _sizes(_exact(nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 4)))) == {"0": 8}


def test_group_norm_loses_equally_in_each_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 1))
    graph = _exact(net)
    assert _sizes(graph) == {"0": 4, "0#2": 4, "0#3": 4}
    assert graph["0"].balanced == ("0", "0#2", "0#3")


def test_group_norm_of_one_group() -> None:
    assert _sizes(_exact(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1)))) == {"0": 8}


def test_group_norm_of_one_channel_a_group_stays() -> None:
    graph = _exact(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(8, 8), nn.Conv2d(8, 4, 1)))
    assert "only channel of its group" in graph.frozen["0"]


def test_instance_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 1))
    assert _sizes(_exact(net)) == {"0": 8}


class Standardised(nn.Conv2d):
    """Its weight has mean 0 and variance 1 over all inputs: they change with one of them gone."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, groups=self.groups)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_standardised_weight_takes_its_statistics_from_the_inputs_that_are_left(groups: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 6, 3, groups=groups), nn.Conv2d(6, 4, 1))
    assert sum(group.size for group in _exact(net).groups) == (8 if groups == 1 else 4) + 6
    alone = nn.Sequential(Standardised(3, 6, 1), Standardised(6, 4, 1))
    assert _sizes(_exact(alone)) == {"0": 6}


def test_values_that_are_normalised_over_the_batch_keep_what_they_are_normalised_over() -> None:
    class Swapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)

    graph = _exact(nn.Sequential(nn.Conv2d(3, 8, 1), Swapped(), nn.Conv2d(8, 4, 1)))
    assert "is normalised over" in graph.frozen["0"]


def test_prelu() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Conv2d(8, 6, 1), nn.PReLU(), nn.Conv2d(6, 4, 1))
    graph = _exact(net)
    assert _sizes(graph) == {"0": 8, "2": 6}
    assert ("1.weight", 0) in graph["0"].slots


# --- putting together and taking apart -------------------------------------------------------------------------


def test_a_residual_joins_its_branches() -> None:
    graph = _exact(Between(lambda a, b: a + b, 12, branches=2))
    assert graph["enter.0"].layers == ("enter.0", "enter.1")


def test_concatenated_channels_stay_apart() -> None:
    graph = _exact(Between(lambda a, b: torch.cat([a, b], 1), 24, branches=2))
    assert _sizes(graph) == {"enter.0": 12, "enter.1": 12}
    assert graph["enter.1"].indices(("leave.weight", 1), [0, 3]).tolist() == [12, 15]


def test_halves_of_a_chunk_lose_equally_many() -> None:
    graph = _exact(Between(lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1), 12))
    assert _sizes(graph) == {"enter.0": 6, "enter.0#2": 6}
    assert graph["enter.0"].balanced == ("enter.0", "enter.0#2")


def test_halves_that_are_added_are_one_group() -> None:
    graph = _exact(Between(lambda x: sum(x.chunk(2, 1)), 6))
    assert _sizes(graph) == {"enter.0": 6}
    assert graph["enter.0"].indices(("enter.0.weight", 0), [2]).tolist() == [2, 8]


def test_pieces_of_remembered_sizes_stay() -> None:
    graph = _exact(Between(lambda x: torch.cat(x.split([4, 8], 1)[::-1], 1), 12))
    assert graph.groups == ()
    assert "can't be narrowed" in graph.frozen["enter.0"]


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

    graph = _exact(Parts())
    assert _sizes(graph) == {"a": 4, "b": 8}
    assert graph["a"].balanced == ()


def test_a_channel_shuffle_pairs_its_groups() -> None:
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    graph = _exact(Between(shuffle, 12))
    assert _sizes(graph) == {"enter.0": 6}
    assert graph["enter.0"].indices(("enter.0.weight", 0), [1]).tolist() == [1, 7]
    assert graph["enter.0"].indices(("leave.weight", 1), [1]).tolist() == [2, 3]


@pytest.mark.parametrize("shuffle", [F.channel_shuffle, torch.native_channel_shuffle])
def test_the_built_in_shuffle(shuffle: Callable[..., Tensor]) -> None:
    _exact(Between(lambda x: shuffle(x, 3), 12))


def test_pixel_shuffle() -> None:
    graph = _exact(Between(lambda x: F.pixel_shuffle(x, 2), 3))
    assert _sizes(graph) == {"enter.0": 3}
    assert graph["enter.0"].indices(("enter.0.weight", 0), [1]).tolist() == [4, 5, 6, 7]


def test_pixel_unshuffle() -> None:
    graph = _exact(Between(lambda x: F.pixel_unshuffle(x, 2), 48))
    assert graph["enter.0"].indices(("leave.weight", 1), [1]).tolist() == [4, 5, 6, 7]


def test_repeated_channels() -> None:
    graph = _exact(Between(lambda x: x.repeat(1, 2, 1, 1), 24))
    assert graph["enter.0"].indices(("leave.weight", 1), [1]).tolist() == [1, 13]


def test_split_concat_split() -> None:
    def chain(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        c, d = torch.cat([b, a], 1).relu().chunk(2, 1)
        return torch.cat([a * c, d], 1)

    assert sum(group.size for group in _exact(Between(chain, 12)).groups) >= 6


def test_shared_pooling_as_in_sppf() -> None:
    def pyramid(x: Tensor) -> Tensor:
        maps = [x]
        maps.extend(F.max_pool2d(maps[-1], 3, 1, 1) for _ in range(3))
        return torch.cat(maps, 1)

    graph = _exact(Between(pyramid, 48))
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

    graph = _exact(Excited())
    assert graph["conv"].layers == ("conv", "up")
    assert _sizes(graph) == {"conv": 12, "down": 6}


def test_an_embedding_loses_width_but_no_word() -> None:
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    graph = ChannelGraph.trace(net, torch.zeros(2, 3, dtype=torch.long))
    assert ("0.weight", 1) not in {slot for group in graph.groups for slot in group.slots if slot[1] == 0}
    assert "1" in _sizes(graph)


# --- attention -------------------------------------------------------------------------------------------------


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
    graph = _exact(Attention(fused, scale=0.3), _random((2, 5, 6)))
    # Queries, keys and values of both heads: their width is one.
    assert {group.size for group in graph.groups} == {8}
    queries = graph.groups[0]
    assert queries.indices(("qkv.weight", 0), [1]).tolist() == [1, 17]
    assert len(queries.balanced) == 4


def test_a_head_whose_width_sets_the_scale_goes_whole_or_stays() -> None:
    graph = _exact(Attention(fused=True, scale=None), _random((2, 5, 6)))
    # The number of heads is remembered here, and no table says how it follows.
    assert graph.groups == ()
    assert "qkv" in graph.frozen


# --- the table -------------------------------------------------------------------------------------------------


def test_a_rule_of_ones_own() -> None:
    def odd(x: Tensor) -> Tensor:
        return x.cummax(dim=2).values

    assert ChannelGraph.trace(Between(odd, 12), IMAGES).groups == ()
    try:

        @register_rule("cummax")
        def _cummax(trace, operation) -> None:  # type: ignore[no-untyped-def]
            rows = trace.rows(operation["self"])
            trace.freeze([rows[operation["dim"]]], "cummax runs over it")
            for output in operation.outputs():
                trace.assign(output, rows)

        assert _sizes(_exact(Between(odd, 12))) == {"enter.0": 12}
    finally:
        del RULES["cummax"]
