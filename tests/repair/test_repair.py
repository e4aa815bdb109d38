"""What is left of a network answers as the whole did, as far as it can be predicted."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, PruningPlan, mask_, plan_pruning, shrink_
from lit_prune.repair.fit import Evidence
from lit_prune.repair.repair import Repair, repaired

IMAGES = torch.randn(96, 3, 12, 12, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def conv(a, b, norm=nn.BatchNorm2d, **options):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=norm is nn.Identity, **options), norm(b), nn.ReLU())


class Branches(nn.Module):
    """A residual sum and a concatenation."""

    def __init__(self, norm):
        super().__init__()
        self.enter, self.inner, self.side = conv(3, 16, norm), conv(16, 16, norm), conv(16, 8, norm)
        self.leave = conv(24, 16, norm)

    def forward(self, x):
        x = self.enter(x)
        x = x + self.inner(x)
        return self.leave(torch.cat([x, self.side(x)], 1))


class Twice(nn.Module):
    """A layer that runs twice in a forward."""

    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.leave = conv(3, 16), conv(16, 16), conv(16, 16)

    def forward(self, x):
        return self.leave(self.inner(self.inner(self.enter(x))))


class Mixing(nn.Module):
    """A layer that runs along channels, from position to position."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = conv(3, 16), conv(16, 16)
        self.mix = nn.Sequential(nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 144))

    def forward(self, x):
        x = self.enter(x)
        return self.leave(x + self.mix(x.flatten(2)).view_as(x))


NETWORKS = {
    "BatchNorm": lambda: nn.Sequential(conv(3, 16), conv(16, 32), conv(32, 16)),
    "no norm": lambda: nn.Sequential(conv(3, 16, nn.Identity), conv(16, 32, nn.Identity), conv(32, 16, nn.Identity)),
    "branches": lambda: Branches(nn.BatchNorm2d),
    "branches without norms": lambda: Branches(nn.Identity),
    "GroupNorm": lambda: nn.Sequential(conv(3, 16), conv(16, 32, lambda c: nn.GroupNorm(1, c)), conv(32, 16)),
    "depthwise": lambda: nn.Sequential(conv(3, 16), conv(16, 16, groups=16), conv(16, 16)),
    "grouped": lambda: nn.Sequential(conv(3, 16), conv(16, 32, groups=4), conv(32, 16)),
    "transposed": lambda: nn.Sequential(conv(3, 16), nn.ConvTranspose2d(16, 16, 2, stride=2), nn.ReLU(), conv(16, 16)),
    "transposed, grouped": lambda: nn.Sequential(
        conv(3, 16), nn.ConvTranspose2d(16, 16, 2, stride=2, groups=2), nn.ReLU(), conv(16, 16)
    ),
    "transposed, depthwise": lambda: nn.Sequential(
        conv(3, 16), nn.ConvTranspose2d(16, 16, 2, stride=2, groups=16), nn.ReLU(), conv(16, 16)
    ),
    "flatten": lambda: nn.Sequential(conv(3, 16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 16)),
    "twice": lambda: Twice(),
    "mixing": lambda: Mixing(),
    "pooled": lambda: nn.Sequential(
        conv(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)
    ),
}


def build(name):
    """A network whose statistics are those of the images."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    for _ in range(20):
        net(IMAGES)
    return net.eval()


def batches(size=96):
    return lambda: [(IMAGES[start : start + size],) for start in range(0, len(IMAGES), size)]


def error(net, other, images=OTHERS):
    """The part of the variance of a network's answers that another one misses."""
    with torch.no_grad():
        expected, got = net(images), other(images)
    return float((got - expected).square().sum() / (expected - expected.mean(0)).square().sum())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_repaired_network_answers_more_as_the_whole_does(name):
    net = build(name)
    plan = plan_pruning(net, IMAGES[:1], amount=0.3, round_to=2)
    found = repaired(net, plan, batches(), 1, Repair())
    cut = shrink_(copy.deepcopy(net), plan)
    before = error(net, cut)
    found.apply_(cut)
    assert error(net, cut) < 0.7 * before
    assert found.fits
    for fit in found.fits.values():
        assert fit.before <= fit.after <= 1


# Of a convolution in groups the doubles lie in other groups, where its weights can't reach.
# A layer that runs along channels stays as it was sliced.
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"grouped", "transposed, grouped", "mixing"}))
def test_what_can_be_predicted_is_not_lost(name):
    """Each channel of a layer has a double, so half of them tell all."""
    net = build(name)
    with torch.no_grad():
        for _ in range(3):
            _double_(net)
    graph = ChannelGraph.trace(net, IMAGES[:1])
    plan = graph.plan({group.name: range(group.size // 2, group.size) for group in graph.groups if not group.balanced})
    cut = shrink_(copy.deepcopy(net), plan)
    assert error(net, cut) > 0.01
    repaired(net, plan, batches(), 1, Repair()).apply_(cut)
    assert error(net, cut) < 2e-3


def _double_(net):
    graph = ChannelGraph.trace(net, IMAGES[:1])
    tensors = dict(net.state_dict(keep_vars=True))
    for group in graph.groups:
        for slot, members in group.members.items():
            name, dim = slot
            made = name.rpartition(".")[0] in group.layers and dim == _made(net, name)
            norm = tensors[name].dim() == 1
            if not (made or norm):
                continue
            order = torch.empty(group.size, dtype=torch.long)
            order[torch.from_numpy(members.channels)] = torch.from_numpy(members.indices)
            half = group.size // 2
            tensors[name].data.index_copy_(dim, order[half:], tensors[name].data.index_select(dim, order[:half]))


def _made(net, name):
    layer = net.get_submodule(name.rpartition(".")[0])
    # In a depthwise one what enters is what leaves.
    return 1 if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1 else 0


@pytest.mark.parametrize("name", NETWORKS)
def test_in_mixed_precision_almost_the_same_is_found(name):
    net = build(name)
    plan = plan_pruning(net, IMAGES, amount=0.3, round_to=4)
    mixed = partial(torch.autocast, "cpu", torch.bfloat16)
    exact, rounded = (
        repaired(net, plan, batches(48), 2, Repair(rows=1 << 20), precision=precision)
        for precision in (nullcontext, mixed)
    )
    assert rounded.values.keys() == exact.values.keys()
    for weight, fit in exact.fits.items():
        assert rounded.fits[weight].after == pytest.approx(fit.after, abs=0.02), weight
        assert rounded.values[weight].dtype == torch.float32
    left = [shrink_(copy.deepcopy(net), plan) for _ in range(3)]
    exact.apply_(left[1])
    rounded.apply_(left[2])
    missed = [error(net, each) for each in left]
    # As good as the one that was found in full precision, beside what slicing alone has lost.
    assert missed[2] - missed[1] < 0.1 * (missed[0] - missed[1])


# Of convolutions alone: the network's own products may be rounded.
@pytest.mark.parametrize("name", ["BatchNorm", "no norm"])
def test_products_are_exact_whatever_the_network_may_round(name):
    """Lightning advises to set it on a GPU; processors with bfloat16 go by it, too."""
    net = build(name)
    plan = plan_pruning(net, IMAGES, amount=0.3, round_to=4)
    found = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            repair = Repair(recalibration=False)
            found.append(repaired(net, plan, batches(48), 2, repair))
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(dict(found[1].values), dict(found[0].values), rtol=1e-5, atol=1e-6)


def test_the_live_network_stays_as_it_is():
    net = build("branches").train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensors = dict(net.state_dict(keep_vars=True))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    plan = plan_pruning(net, IMAGES[:1], amount=0.3, round_to=2)
    repaired(net, plan, batches(), 1, Repair())
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    for name, tensor in net.state_dict(keep_vars=True).items():
        assert tensor is tensors[name] or not isinstance(tensor, nn.Parameter)
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("size", [1, 24, 32])
def test_images_may_come_in_small_batches(size):
    net = build("BatchNorm")
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    errors = []
    for each in (96, size):
        cut = shrink_(copy.deepcopy(net), plan)
        repaired(net, plan, batches(each), 96 // each, Repair()).apply_(cut)
        errors.append(error(net, cut))
    assert errors[1] < 1.3 * errors[0]


def test_masked_with_the_same_weights_equals_shrunk():
    net = build("branches")
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    found = repaired(net, plan, batches(), 1, Repair())
    shrunk, masked = shrink_(copy.deepcopy(net), plan), mask_(copy.deepcopy(net), plan)
    found.apply_(shrunk)
    tensors = dict(masked.state_dict(keep_vars=True))
    for name, value in found.values.items():
        place = tensors[name].data
        grid = [torch.arange(size) for size in place.shape]
        for dim, kept in plan.kept.get(name, {}).items():
            grid[dim] = kept
        place[torch.meshgrid(*grid, indexing="ij")] = value
    torch.testing.assert_close(shrunk(OTHERS), masked(OTHERS), rtol=1e-4, atol=1e-4)


def test_averages_move_as_the_network_does():
    net = build("BatchNorm")
    average = copy.deepcopy(net)
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    found = repaired(net, plan, batches(), 1, Repair())
    cut, follower = shrink_(copy.deepcopy(net), plan), shrink_(average, plan)
    found.apply_(cut, [follower])
    for (name, expected), value in zip(cut.state_dict().items(), follower.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


def test_a_plan_that_cuts_nothing_changes_nothing():
    net = build("branches")
    found = repaired(net, PruningPlan({}), batches(), 1, Repair())
    cut = copy.deepcopy(net)
    found.apply_(cut)
    assert error(net, cut) < 1e-9


def _lagging():
    """A network whose statistics lie far from what its weights now lead to, as after a few steps at a high rate."""
    net = build("BatchNorm")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += 0.5
                module.running_var *= 25
    return net


def _entering(net):
    """The variance of what enters each norm in a training step."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: found.__setitem__(name, args[0].var((0, 2, 3))))
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    copy.deepcopy(net).train()(IMAGES)
    for hook in hooks:
        hook.remove()
    return found


def test_in_training_statistics_are_those_of_what_enters():
    net = _lagging().train()
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    found = repaired(net, plan, batches(), 1, Repair())
    left = shrink_(copy.deepcopy(net), plan)
    found.apply_(left)
    for name, expected in _entering(left).items():
        torch.testing.assert_close(left.get_submodule(name).running_var, expected, rtol=0.02, atol=0)
    whole = copy.deepcopy(net)
    # As a step computes it, what is left answers most of what the whole network does.
    with torch.no_grad():
        expected, got = whole(OTHERS), left.train()(OTHERS)
    assert (got - expected).square().mean() < 0.5 * (expected - expected.mean()).square().mean()


def test_kept_statistics_move_by_the_difference_alone():
    net = _lagging()
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    found = repaired(net, plan, batches(), 1, Repair())
    left = shrink_(copy.deepcopy(net), plan)
    found.apply_(left)
    entering = _entering(left)
    assert all(left.get_submodule(name).running_var.mean() > 3 * var.mean() for name, var in entering.items())


def test_averages_keep_up_although_the_network_lags():
    net = _lagging().train()
    average = build("BatchNorm")
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    found = repaired(net, plan, batches(), 1, Repair())
    left, followed = (shrink_(copy.deepcopy(each), plan) for each in (net, average))
    found.apply_(left, [followed])
    # The statistics of the average did not lag, and what the network had to catch up on is none of theirs.
    for name, expected in _entering(left).items():
        ratio = followed.get_submodule(name).running_var / expected
        assert 0.4 < ratio.min() <= ratio.max() < 2.5


def test_inputs_that_are_silent_get_no_large_weights():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    with torch.no_grad():
        # What stays tells all of what goes, but in a voice that any other image would drown.
        net[0].weight[8:] = 1e-9 * net[0].weight[:8]
        net[0].bias[8:] = 1e-9 * net[0].bias[:8]
    kept = torch.arange(8, 16)
    plan = PruningPlan({"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}})
    found = repaired(net, plan, batches(), 1, Repair())
    assert found.values["2.weight"].abs().max() < 2 * net[2].weight.abs().max()


def test_an_evidence_of_next_to_nothing_adds_next_to_nothing():
    entering = 1e-9 * torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(0))
    missing = 1e9 * entering @ torch.ones(1, 4, 2)
    moments = Evidence.of(entering, missing).moments(centred=True)
    assert moments.solve(1e-3).abs().max() > 1e6
    assert moments.solve(1e-3, usual=1.0).abs().max() < 1e-3
