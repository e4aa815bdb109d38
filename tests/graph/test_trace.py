"""Tracing: what it sees, what it leaves alone, and how it fails."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph
from lit_prune.errors import TraceError
from lit_prune.graph import Call


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)
        self.cache: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x.sum(dim=(2, 3))
        return self.head(self.stem(x))


def _snapshot(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_the_model_is_left_as_found() -> None:
    net = Plain().train()
    net.stem[1].eval()
    net.head.weight.requires_grad_(False)
    seen: list[int] = []
    handle = net.stem.register_forward_hook(lambda *_: seen.append(1))
    before, state, modes = _snapshot(net), torch.get_rng_state(), [module.training for module in net.modules()]
    identities = [id(tensor) for tensor in net.parameters()]

    ChannelGraph.trace(net, torch.zeros(2, 3, 8, 8))

    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in net.modules()]
    assert identities == [id(tensor) for tensor in net.parameters()]
    assert (net.cache, net.calls, seen) == (None, 0, [])
    assert not net.head.weight.requires_grad
    assert net.stem[0].weight.requires_grad
    assert len(net.stem._forward_hooks) == 1
    assert not net.stem._forward_pre_hooks
    handle.remove()


def test_the_fallback_leaves_the_model_and_the_random_state_as_found() -> None:
    class Reads(Plain):
        def forward(self, x: Tensor) -> Tensor:
            # Needs a value: a trace without values can't go on.
            return super().forward(x) * (1 if float(torch.rand(()) + x.mean()) > -1 else 2)

    net = Reads()
    before, state = _snapshot(net), torch.get_rng_state()
    graph = ChannelGraph.trace(net, torch.zeros(2, 3, 8, 8))
    assert [(group.name, group.size) for group in graph.groups] == [("stem.0", 8)]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert (net.cache, net.calls) == (None, 0)


def test_a_failing_forward_names_the_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(7, 4, 1)))
    with pytest.raises(TraceError, match=r"^1\.0: RuntimeError: .*expected input.* to have 7 channels") as caught:
        ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    assert caught.value.layer == "1.0"


def test_missing_inputs_name_the_network() -> None:
    with pytest.raises(TraceError, match=r"Plain: TypeError: .*missing 1 required positional argument"):
        ChannelGraph.trace(Plain())


def test_a_failing_trace_leaves_no_hook_behind() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(TraceError):
        ChannelGraph.trace(net, torch.zeros(1, 4, 4, 4))
    assert not net._forward_hooks
    assert not net[0]._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    # No dispatch mode stays on.
    assert torch.zeros(2).device.type == "cpu"


def test_keyword_inputs() -> None:
    class Scaled(Plain):
        def forward(self, x: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
            out = super().forward(x) * scale
            return out if bias is None else out + bias

    graph = ChannelGraph.trace(Scaled(), torch.zeros(1, 3, 4, 4), scale=2.0, bias=torch.ones(1))
    assert [group.name for group in graph.groups] == ["stem.0"]


def test_a_network_entered_at_several_doors() -> None:
    class TwoDoors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1))
            self.decoder = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 3, 1))

    calls = [Call("encoder", (torch.zeros(1, 3, 4, 4),)), Call("decoder", (torch.zeros(1, 6, 4, 4),))]
    graph = ChannelGraph.trace_calls(TwoDoors(), calls)
    assert [group.name for group in graph.groups] == ["encoder.0", "decoder.0"]
    # What leaves one door and enters the other is not seen to be the same: it stays.
    assert set(graph.unprunable) == {"encoder.1", "decoder.1"}


def test_without_layers_there_are_no_groups() -> None:
    graph = ChannelGraph.trace(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), torch.zeros(2, 3, 4, 4))
    assert graph.groups == ()
    assert graph.macs == 0


def test_an_operation_without_a_rule_freezes_what_enters_it_and_is_reported() -> None:
    class Odd(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).cummax(dim=1).values)

    graph = ChannelGraph.trace(Odd(), torch.zeros(1, 3, 4, 4))
    assert graph.groups == ()
    assert graph.unsupported == {"aten::cummax": 1}
    assert graph.unprunable["stem.0"] == "aten::cummax is not understood"


def test_what_only_training_runs_is_traced_too() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
            self.main = nn.Conv2d(8, 4, 1)
            self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.stem(x)
            return (self.main(x), self.aux(x)) if self.training else self.main(x)

    # One image of one value a channel: train-mode normalisation would refuse it.
    graph = ChannelGraph.trace(Auxiliary(), torch.zeros(1, 3, 3, 3))
    assert ("aux.0.weight", 1) in graph["stem.0"].slots
    assert graph["aux.0"].size == 6
    # Only what a prediction takes is counted.
    assert graph.macs == 27 * 8 + 8 * 4


def test_shared_modules_are_one_layer() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    graph = ChannelGraph.trace(
        nn.Sequential(nn.Conv2d(3, 8, 1), shared, shared, nn.Conv2d(8, 4, 1)), torch.zeros(1, 3, 4, 4)
    )
    (group,) = graph.groups
    assert group.layers == ("0", "1")
    assert graph.macs == 16 * (24 + 2 * 576 + 32)


def test_tied_weights_are_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.c.weight = self.b.weight
            self.d = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.b(self.a(x))))

    graph = ChannelGraph.trace(Tied(), torch.zeros(1, 3, 4, 4))
    (group,) = graph.groups
    assert {("b.weight", 0), ("b.weight", 1), ("c.bias", 0)} <= set(group.slots)


@pytest.mark.parametrize("batch", [1, 3])
def test_costs_are_of_one_example(batch: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 9, 5))
    assert ChannelGraph.trace(net, torch.zeros(batch, 3, 7, 7)).macs == 27 * 8 * 9 + 72 * 5


def test_the_same_groups_on_meta_and_on_real_tensors() -> None:
    class Real(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x.mean().item()
            return super().forward(x)

    images = torch.zeros(1, 3, 4, 4)
    meta, real = ChannelGraph.trace(Plain(), images), ChannelGraph.trace(Real(), images)
    assert [(g.name, g.slots) for g in meta.groups] == [(g.name, g.slots) for g in real.groups]
    assert meta.macs == real.macs


def test_weights_are_not_copied() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    assert not graph._subject.has_values


def test_weight_norm_and_half_precision() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1)), nn.Conv2d(8, 4, 1))
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    # Its weight is computed, so it is traced through, or else stays; it must never be wrong.
    assert all(name in dict(net.named_parameters()) for group in graph.groups for name, _ in group.slots)
    half = copy.deepcopy(net[1:]).half()
    assert ChannelGraph.trace(nn.Sequential(nn.Conv2d(3, 8, 1).half(), half), torch.zeros(1, 3, 4, 4).half()).groups


def test_a_weight_that_is_computed_is_not_looked_at() -> None:
    # Each look at a spectral norm in train mode moves its vectors.
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 1)), nn.Conv2d(8, 4, 1)).train()
    before = _snapshot(net)
    ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_computed_weight_of_one_output_is_understood() -> None:
    norm = nn.utils.parametrizations.weight_norm
    net = nn.Sequential(norm(nn.Conv2d(3, 6, 1)), norm(nn.Conv2d(6, 1, 1)))
    assert ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4)).unprunable == {}


@lru_cache
def _ramp(size: int) -> Tensor:
    return torch.arange(size) / size


class _Ramps(nn.Sequential):
    @staticmethod
    @lru_cache
    def own(size: int) -> Tensor:
        return torch.arange(size) + 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + _ramp(x.shape[-1])) * self.own(x.shape[-1])


def test_a_trace_leaves_nothing_in_the_caches_of_functions() -> None:
    net = _Ramps(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1))
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    assert [group.size for group in graph.groups] == [6]
    assert not net(torch.zeros(1, 3, 4, 4)).is_meta
    assert _ramp.cache_info().currsize == _Ramps.own.cache_info().currsize == 1
    again = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    assert again.unprunable == graph.unprunable


def test_channels_that_no_region_reaches_stay() -> None:
    class Regions(nn.Module):
        """Looks closer at the bright places, one by one; a dark image has none."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.closer = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.stem(x)
            places = (x.abs().amax((1, 2, 3)) > 1e3).nonzero()[:, 0]
            return [place.mean() for place in self.closer(x[places])]

    graph = ChannelGraph.trace(Regions(), torch.zeros(2, 3, 4, 4))
    assert graph.unprunable["closer"] == "is run on nothing for these inputs, in closer"


class _Helped(nn.Module):
    """A classifier with a second head in train mode, which can fail there."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.enter, self.inner, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.helper = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.inner(self.enter(x))
        if not self.training:
            return self.leave(x)
        helped = self.helper[0](x)
        if self.fails:
            raise RuntimeError("too small an image")
        return self.leave(x), self.helper[1](helped)


def test_a_train_mode_that_fails_is_no_reason_to_refuse_the_network() -> None:
    images = torch.zeros(1, 3, 4, 4)
    works, fails = (ChannelGraph.trace(_Helped(fails), images) for fails in (False, True))
    assert {group.name for group in works.groups} == {"enter", "inner", "helper.0"}
    assert {group.name for group in fails.groups} == {"enter", "inner"}
    assert ("helper.0.weight", 1) in fails["inner"].slots
    assert "train mode alone, which fails" in fails.unprunable["helper.0"]
