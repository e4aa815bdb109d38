"""Recurrent layers: what enters, what they hold, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lit_prune import ChannelGraph, shrink_
from lit_prune.graph.rules.recurrent import _fused
from lit_prune.graph.trace import Operation
from tests.graph.tiny import exact, sizes

SEQUENCES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(4))


class Recurrent(nn.Module):
    """A linear layer to 6 channels, a recurrent one of 8, and a linear one."""

    def __init__(
        self, kind: str, read: Callable[[nn.Module, Tensor], Tensor], leaving: int = 8, **options: Any
    ) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(leaving, 3)
        self.layer = getattr(nn, kind)(6, 8, batch_first=True, **options)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.read(self.layer, self.enter(x)))


def _all(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


def _state(layer: nn.Module, x: Tensor) -> Tensor:
    state = layer(x)[1]
    return state[0] if isinstance(state, tuple) else state


def _last_state(layer: nn.Module, x: Tensor) -> Tensor:
    return _state(layer, x)[-1]


def _both_states(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([*_state(layer, x)[-2:]], -1)


def _packed(layer: nn.Module, x: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(layer(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    ("read", "leaving", "options"),
    [
        (_all, 8, {}),
        (_all, 8, {"bias": False, "num_layers": 2}),
        (_all, 16, {"bidirectional": True, "num_layers": 2}),
        (_last_state, 8, {"num_layers": 2}),
        (_both_states, 16, {"bidirectional": True}),
        (_packed, 8, {}),
    ],
    ids=["plain", "two layers", "both ways", "state", "states", "packed"],
)
def test_what_enters_and_what_is_held_is_free(kind: str, read: Any, leaving: int, options: dict[str, Any]) -> None:
    graph = exact(Recurrent(kind, read, leaving, **options), SEQUENCES)
    found = sizes(graph)
    assert found.pop("enter") == 6
    number = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    assert list(found.values()) == [8] * number
    # One number is the width of all.
    assert all(len(graph[name].balanced) == (number if number > 1 else 0) for name in found)


def test_projections() -> None:
    graph = exact(Recurrent("LSTM", _all, 5, proj_size=5), SEQUENCES)
    assert sorted(sizes(graph).values()) == [5, 6, 8]


def test_remembered_widths_follow() -> None:
    net = Recurrent("LSTM", _all, 5, proj_size=5)
    graph = ChannelGraph.trace(net, SEQUENCES)
    by_size = {group.size: group.name for group in graph.groups}
    shrink_(net, graph.plan({by_size[6]: [0], by_size[8]: [1, 2], by_size[5]: [3]}))
    assert (net.layer.input_size, net.layer.hidden_size, net.layer.proj_size) == (5, 6, 4)
    assert net(SEQUENCES).shape == (3, 5, 3)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind: str) -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.cell, self.leave = nn.Linear(4, 6), getattr(nn, kind)(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in range(x.shape[1]):
                state = self.cell(self.enter(x[:, step]), state)
            return self.leave(state[0] if isinstance(state, tuple) else state)

    net = Cells()
    graph = exact(net, SEQUENCES)
    assert sizes(graph) == {"enter": 6, "cell": 8}
    shrink_(net, graph.plan({"cell": [0], "enter": [1, 2]}))
    assert (net.cell.input_size, net.cell.hidden_size) == (4, 7)


def test_one_reads_what_another_leaves() -> None:
    class Translates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = (nn.GRU(4, 8, 2, batch_first=True) for _ in range(2))
            self.leave = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.write(x, self.read(x)[1])[0])

    graph = exact(Translates(), SEQUENCES)
    assert all({"read", "write"} == set(group.layers) for group in graph.groups)


def test_what_they_begin_with_may_be_learned() -> None:
    class Begins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(2, 1, 8))
            self.layer, self.leave = nn.GRU(4, 8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.layer(x, self.first.expand(-1, len(x), -1).contiguous())[0])

    exact(Begins(), SEQUENCES)


def test_a_width_of_ones_own_is_named() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.layer, self.leave = 8, nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.layer(x, x.new_zeros(1, len(x), self.width))[0])

    graph = exact(Remembers(), SEQUENCES)
    assert "Expected hidden size" in graph.unprunable["layer"]


def test_the_fused_operation_says_the_same() -> None:
    """What cuDNN runs has the same arguments under other names; here without a GPU."""
    from lit_prune.graph.recording import Recording
    from lit_prune.graph.rules import RULES
    from lit_prune.graph.tracer import Tracer

    layer = nn.GRU(6, 8, 2, bidirectional=True)
    tracer = Tracer(layer, Recording(), RULES)
    source, state = torch.zeros(5, 3, 6), torch.zeros(4, 3, 8)
    tracer.assign(state, [None, None, tracer.labels.even(8)])
    arguments = {
        "input": source,
        "weight": [*layer.parameters()],
        "hx": state,
        "cx": None,
        "mode": 3,
        "bidirectional": 1,
    }
    output = [torch.zeros(5, 3, 16), torch.zeros(4, 3, 8), torch.zeros(0), torch.zeros(0, dtype=torch.uint8)]
    _fused(tracer, Operation("cudnn_rnn", arguments, output))
    row = tracer.row(output[0], 2)
    slots = tracer.recording.slots
    of = tracer.labels.components().of
    # The first direction of the last layer makes the first half; its gates read it back.
    assert (of[row[:8]] == of[slots["weight_hh_l1", 1]]).all()
    assert (of[slots["weight_ih_l1", 0]].reshape(3, 8) == of[row[:8]]).all()
    assert (of[slots["weight_ih_l1", 1]][8:] == of[slots["weight_hh_l0_reverse", 1]]).all()


def _lstm_cell(entering: Tensor, again: Tensor, cell: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    gates = sum((bias for bias in biases if bias is not None), entering + again)
    into, forget, value, out = gates.chunk(4, 1)
    after = forget.sigmoid() * cell + into.sigmoid() * value.tanh()
    return out.sigmoid() * after.tanh(), after, gates


def _gru_cell(entering: Tensor, again: Tensor, hidden: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor]:
    first, second = (
        (gates if bias is None else gates + bias).chunk(3, 1)
        for gates, bias in zip((entering, again), biases or (None, None), strict=True)
    )
    reset, keep = (first[0] + second[0]).sigmoid(), (first[1] + second[1]).sigmoid()
    value = (first[2] + reset * second[2]).tanh()
    return value + keep * (hidden - value), torch.cat([*first, second[2]], 1)


@pytest.fixture
def of_cuda() -> Iterator[None]:
    """Operations that torch has for CUDA alone, here without a GPU."""
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("_thnn_fused_lstm_cell", _lstm_cell, "CPU")
    kernels.impl("_thnn_fused_gru_cell", _gru_cell, "CPU")
    kernels.impl("_cudnn_rnn_flatten_weight", lambda weights, *_: torch.cat([w.flatten() for w in weights]), "CPU")
    yield
    kernels._destroy()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_are_cut_that_begin_with_zeros(kind: str, steps: int) -> None:
    """After one step no operation has shown that what comes out goes in again."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave, self.cell = nn.Linear(4, 6), nn.Linear(8, 3), getattr(nn, kind)(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in range(steps):
                state = self.cell(self.enter(x[:, step]), state)
            return self.leave(state[0] if isinstance(state, tuple) else state)

    net = Steps()
    assert sizes(ChannelGraph.trace(net, SEQUENCES)) == {"enter": 6, "cell": 8}
    exact(net, SEQUENCES)


class OfCuda(nn.Module):
    """A recurrent layer, and a cell, as they run on a GPU."""

    def __init__(self, kind: str, biased: bool, reads_the_whole: bool = False) -> None:
        super().__init__()
        self.enter, self.leave, self.kind = nn.Linear(4, 6), nn.Linear(8, 3), kind
        self.layer, self.biased, self.reads_the_whole = nn.GRU(6, 6, batch_first=True), biased, reads_the_whole
        self.cell = getattr(nn, f"{kind}Cell")(6, 8)
        self.begin = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        weights = [*self.layer.parameters()]
        sizes = self.layer.input_size, 3, self.layer.hidden_size
        whole = torch._cudnn_rnn_flatten_weight(weights, 4, *sizes, 0, 1, True, False)
        x = self.layer(self.enter(x))[0][:, -1]
        hidden, cell = self.begin(x), self.cell
        entering, again = F.linear(x, cell.weight_ih), F.linear(hidden, cell.weight_hh)
        biases = (cell.bias_ih, cell.bias_hh) if self.biased else (None, None)
        step = getattr(torch.ops.aten, f"_thnn_fused_{self.kind.lower()}_cell")
        x = self.leave(step(entering, again, hidden, *biases)[0])
        # Their values have to be at hand: these operations know no tensors without.
        return x + (whole.mean() if self.reads_the_whole else float(x.detach().sum()) * 0)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_only_cuda_has_says_the_same(kind: str, biased: bool, of_cuda: None) -> None:
    net = OfCuda(kind, biased)
    if not biased:
        nn.init.zeros_(net.cell.bias_ih)
        nn.init.zeros_(net.cell.bias_hh)
    graph = ChannelGraph.trace(net, SEQUENCES)
    assert {"layer", "cell"} <= {layer for group in graph.groups for layer in group.layers}
    exact(net, SEQUENCES)


def test_weights_that_are_read_together_stay(of_cuda: None) -> None:
    graph = ChannelGraph.trace(OfCuda("GRU", True, reads_the_whole=True), SEQUENCES)
    assert "is read together with other weights" in graph.unprunable["layer"]


def test_what_an_operation_does_not_return_does_not_come_out() -> None:
    # In eval mode there is no workspace for a backward pass.
    kept = torch.zeros(2)
    assert Operation("lstm", {}, (kept, None)).outputs() == [kept]


class Cell(nn.Module):
    """A step of a convolutional LSTM, which remembers its width."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.gates = 6, nn.Conv2d(3 + 6, 24, 3, padding=1)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.gates(torch.cat([x, hidden], 1))
        into, forget, out, value = gates.chunk(4, 1)
        cell = forget.sigmoid() * cell + into.sigmoid() * value.tanh()
        return out.sigmoid() * cell.tanh(), cell


class Clip(nn.Module):
    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.cell, self.leave, self.follows = Cell(), nn.Conv2d(6, 2, 1), follows

    def forward(self, x: Tensor) -> Tensor:
        width = self.cell.gates.out_channels // 4 if self.follows else self.cell.width
        hidden = cell = x.new_zeros(len(x), width, *x.shape[-2:])
        for step in range(x.shape[1]):
            hidden, cell = self.cell(x[:, step], hidden, cell)
        return self.leave(hidden)


@pytest.mark.parametrize("follows", [True, False])
def test_convolutional_ones_are_free_where_their_zeros_follow(follows: bool) -> None:
    graph = exact(Clip(follows), torch.randn(2, 3, 3, 5, 5))
    assert sizes(graph) == ({"cell.gates": 6} if follows else {})
    if not follows:
        assert "can't be narrowed" in graph.unprunable["cell.gates"]
