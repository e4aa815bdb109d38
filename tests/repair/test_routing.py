"""What is left of a network is repaired on the rows that the whole one chose: experts, queries, boxes."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lit_prune import plan_pruning, prune_, shrink_
from lit_prune.repair.routing import Choices


class Routed(nn.Module):
    """Rows reach experts by what a gate says."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.gate = nn.Linear(12, 48), nn.Linear(48, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 24)) for _ in range(2))
        self.head, self.way = nn.Linear(24, 4), way

    def forward(self, x):
        h = self.stem(x).relu()
        logits = self.gate(h)
        return self.head(getattr(self, self.way)(h, logits))

    def by_mask(self, h, logits):
        y, chosen = h.new_zeros(len(h), 24), logits.argmax(-1)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            y[mask] = expert(h[mask])
        return y

    def by_threshold(self, h, logits):
        y, sure = h.new_zeros(len(h), 24), logits[:, 0] > logits[:, 1]
        y[sure] += self.experts[0](h[sure])
        y[~sure] += self.experts[1](h[~sure])
        return y

    def by_topk(self, h, logits):
        y = h.new_zeros(len(h), 24)
        for number, expert in enumerate(self.experts):
            weights, rows = logits.softmax(-1)[:, number].topk(len(h) // 2)
            y = y.index_add(0, rows, weights[:, None] * expert(h[rows]))
        return y

    def by_nonzero(self, h, logits):
        y = h.new_zeros(len(h), 24)
        for number, expert in enumerate(self.experts):
            rows = (logits.max(-1).indices == number).nonzero()[:, 0]
            y = y.index_add(0, rows, expert(h.index_select(0, rows)))
        return y

    def by_order(self, h, logits):
        order = logits[:, 0].argsort()
        first, second = h[order].tensor_split(2)
        return torch.cat([self.experts[0](first), self.experts[1](second)])[order.argsort()]

    def by_kept_tokens(self, h, logits):
        scores = logits[:, 0].reshape(-1, 4)
        keep, y = scores > scores.mean(), h.new_zeros(len(h) // 4, 4, 24)
        chosen = self.experts[0](h.reshape(-1, 4, 48)[keep]) * scores[keep].sigmoid()[:, None]
        parts = chosen.split(keep.sum(1).tolist())
        y[keep] = torch.cat(parts)
        y[~keep] = self.experts[1](h.reshape(-1, 4, 48)[~keep])
        return y.flatten(0, 1)


WAYS = ["by_kept_tokens", "by_mask", "by_threshold", "by_topk", "by_nonzero", "by_order"]


@pytest.mark.parametrize("way", WAYS)
def test_experts_are_repaired(way):
    net = Routed(way)
    torch.manual_seed(1)
    data, fresh = torch.randn(512, 12), torch.randn(512, 12)
    plan = plan_pruning(net, data[:8], amount=0.5, exclude=["stem", "gate"])
    with torch.no_grad():
        whole = net(fresh)
        sliced = shrink_(copy.deepcopy(net), plan)(fresh)
        left = copy.deepcopy(net)
        prune_(left, plan, data=[data[:256], data[256:]])
        repaired = left(fresh)
    assert left.experts[0][0].out_features < 64
    assert (repaired - whole).square().mean() < 0.5 * (sliced - whole).square().mean()


@pytest.mark.parametrize("way", WAYS)
def test_what_decides_may_be_cut_too(way):
    net = Routed(way)
    torch.manual_seed(1)
    data = torch.randn(512, 12)
    plan = plan_pruning(net, data[:8], amount=0.3)
    left = copy.deepcopy(net)
    fits = prune_(left, plan, data=[data[:256], data[256:]])
    shares = {name: fit.after for name, fit in fits.fits.items()}
    assert len(shares) == 7
    # Rows of other examples would explain nothing.
    assert min(shares.values()) > 0.3, shares


def test_layers_that_are_run_on_another_number_of_rows_stay_as_they_are():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.inner, self.head = nn.Linear(12, 64), nn.Linear(64, 64), nn.Linear(64, 2)

        def forward(self, x):
            h = self.stem(x).relu()
            first = 0 if h.is_meta else int(1000 * h.abs().mean()) % 5
            return self.head(self.inner(h[first:]).relu()).sum(0, keepdim=True)

    net, data = Counted(), torch.randn(64, 12)
    plan = plan_pruning(net, data[:8], amount=0.5, round_to=4)
    inner = shrink_(copy.deepcopy(net), plan).inner.weight
    repaired = prune_(net, plan, data=[data[:32]])
    assert "inner.weight" not in repaired.fits
    assert torch.equal(net.inner.weight, inner)


def test_functions_choose_again_what_was_chosen():
    torch.manual_seed(0)
    whole, left = torch.rand(6, 5), torch.rand(6, 5)
    calls = [
        (torch.argmax, (1,), {}),
        (torch.Tensor.argsort, (), {"dim": 0}),
        (torch.nonzero, (), {}),
        (torch.topk, (2,), {"dim": 0}),
        (torch.sort, (0,), {}),
        (torch.sort, (), {"stable": True, "dim": 1}),
        (torch.max, (1,), {}),
        (torch.where, (), {}),
    ]
    first = Choices()
    chosen = [first.run(func, (whole, *more), options) for func, more, options in calls]
    again = Choices(first.made)
    for (func, more, options), before in zip(calls, chosen, strict=True):
        now = again.run(func, (left, *more), options)
        if isinstance(before, torch.Tensor):
            assert torch.equal(now, before)
        elif hasattr(before, "indices"):
            assert type(now) is type(before)
            assert torch.equal(now.indices, before.indices)
            if func is torch.max:
                assert torch.equal(now.values, left.max(1).values)
            else:
                assert torch.equal(now.values, left.gather(options.get("dim", 0), now.indices))
        else:
            assert all(map(torch.equal, now, before))
    # It is noted by batch.
    again.next_batch()
    assert torch.equal(again.run(torch.argmax, (left, 1), {}), left.argmax(1))


def test_along_another_size_there_is_chosen_anew():
    first = Choices()
    first.run(torch.argmax, (torch.tensor([0.0, 1.0, 0.0]),), {})
    assert Choices(first.made).run(torch.argmax, (torch.tensor([1.0, 0.0]),), {}) == 0


def test_masks_of_rows_are_chosen_again_and_those_of_features_are_not():
    whole, left = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.9, 0.1]])
    first = Choices()
    mask = first.run(torch.Tensor.__gt__, (whole, 0.5), {})
    first.run(torch.gt, (whole[None, None], 0.5), {})
    again = Choices(first.made)
    assert torch.equal(again.run(torch.Tensor.__gt__, (left, 0.5), {}), mask)
    assert torch.equal(again.run(torch.gt, (left[None, None], 0.5), {}), ~mask[None, None])


def test_what_is_written_into_a_choice_is_not_noted():
    first, values = Choices(), torch.tensor([0.2, 0.7])
    first.run(torch.argmax, (values,), {}).add_(5)
    assert Choices(first.made).run(torch.argmax, (values,), {}) == 1


@pytest.mark.parametrize("sizes", [[1, 32, 32], [32, 1], [1, 1, 1]])
def test_batches_of_one_example_are_no_obstacle(sizes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))
    plan = plan_pruning(net, torch.randn(2, 12), amount=0.5)
    several = max(sizes) > 1
    with nullcontext() if several else pytest.warns(UserWarning, match="on more than one row at a time"):
        repaired = prune_(net, plan, data=[torch.randn(size, 12) for size in sizes])
    assert bool(repaired.fits) == several
    assert all(parameter.isfinite().all() for parameter in net.parameters())
