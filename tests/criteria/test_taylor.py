"""The loss without a channel, to first order."""

import copy
import json

import pytest
import torch
from torch import nn

from lit_prune import ArgumentError, ArgumentTypeError, ChannelGraph, plan_pruning
from lit_prune.criteria import Changes, Evidence, Fisher, Taylor
from tests.toys import network

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def chain(norm=nn.Identity):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )


def noted(net, images=IMAGES, loss=lambda out: out.square().mean()):
    graph = ChannelGraph.trace(net, images[:1])
    changes = Changes(net, graph)
    loss(net(images)).backward()
    changes.note({parameter: parameter.grad for parameter in net.parameters()})
    return graph, changes


@pytest.mark.parametrize("layer", [0, 3])
def test_it_is_the_slope_of_the_loss_as_what_reads_a_channel_gets_less_of_it(layer):
    torch.manual_seed(0)
    net = chain().double().eval()
    images = IMAGES.double()
    _, changes = noted(net, images)
    found = changes.values()[str(layer)]
    for channel in range(len(found)):
        losses = []
        for part in (1 - 1e-5, 1 + 1e-5):
            other = copy.deepcopy(net)
            with torch.no_grad():
                other[layer + 3].weight[:, channel] *= part
                losses.append(float(other(images).square().mean()))
        slope = (losses[1] - losses[0]) / 2e-5
        torch.testing.assert_close(float(found[channel]), abs(slope), rtol=1e-3, atol=1e-6)


def test_all_that_read_a_channel_count_together():
    """In a residual sum they are several; opposite changes cancel out."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.first, self.second = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)

        def forward(self, x):
            x = self.stem(x)
            return self.first(x) - self.second(x)

    net = Twice()
    net.second.load_state_dict(net.first.state_dict())
    _, changes = noted(net, loss=lambda out: out.sum())
    torch.testing.assert_close(changes.values()["stem"], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-5)


NETWORKS = {
    "norms": lambda: chain(nn.BatchNorm2d),
    "residual": network,
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ),
    "attention": lambda: nn.Sequential(
        nn.Flatten(2),
        nn.Linear(256, 32),
        nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True),
        nn.Linear(32, 2),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_has_scores(name):
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    graph, changes = noted(net)
    scores = Taylor()(Evidence(net, graph, graph.groups, changes=changes.values()))
    assert {name: len(score) for name, score in scores.items()} == {group.name: group.size for group in graph.groups}
    assert all(bool(score.isfinite().all()) and bool((score >= 0).all()) for score in scores.values())


def test_steps_are_summed_up_and_stored_and_an_overflow_counts_for_nothing():
    net = chain()
    graph, changes = noted(net)
    before = changes.values()
    gradients = {parameter: parameter.grad for parameter in net.parameters()}
    changes.note({parameter: 8 * gradient for parameter, gradient in gradients.items()}, scale=8.0)
    for name, value in changes.values().items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-9)
    state = json.loads(json.dumps(changes.state_dict()))
    again = Changes(net, graph)
    again.load_state_dict(state)
    assert {name: value.tolist() for name, value in again.values().items()} == {
        name: value.tolist() for name, value in changes.values().items()
    }
    changes.note({parameter: torch.full_like(gradient, torch.inf) for parameter, gradient in gradients.items()})
    assert all(bool(value.isfinite().all()) for value in changes.values().values())


def test_a_step_of_another_optimizer_says_nothing_of_a_group():
    net = chain()
    graph = ChannelGraph.trace(net, IMAGES[:1])
    changes = Changes(net, graph)
    net(IMAGES).sum().backward()
    changes.note({parameter: parameter.grad for parameter in net[3].parameters()})
    # What reads the first layer's channels is the second.
    assert set(changes.values()) == {"0"}


def test_steps_are_thinned_out():
    changes = noted(chain())[1]
    due = [changes.is_due() for _ in range(160)]
    assert all(due[:16])
    assert sum(due[16:]) == 18


def losses(net, number=4):
    return (net(IMAGES + i).square().mean() for i in range(number))


def test_in_a_loop_of_ones_own_losses_are_given():
    net = chain()
    with torch.no_grad():
        net[3].weight[:, :4] = 0
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    plan = plan_pruning(
        net, IMAGES[:1], amount=0.3, selection="uniform", criterion="taylor", losses=losses(net), round_to=1
    )
    # Nobody reads the first four.
    assert plan.kept["0.weight"][0].tolist()[-4:] == [4, 5, 6, 7]
    assert all(bool((parameter.grad == 1).all()) for parameter in net.parameters())


def test_without_gradients_it_says_where_to_get_them():
    net = chain()
    with pytest.raises(ArgumentError, match=r"there are none here.*losses="):
        plan_pruning(net, IMAGES[:1], amount=0.3, criterion="taylor", round_to=1)
    with pytest.raises(ArgumentTypeError, match="one number and a gradient"):
        plan_pruning(net, IMAGES[:1], amount=0.3, criterion="taylor", losses=[net(IMAGES)], round_to=1)


def test_fisher_is_the_square_for_each_multiply_add_that_goes():
    torch.manual_seed(0)
    net = chain()
    graph, changes = noted(net)
    evidence = Evidence(net, graph, graph.groups, changes=changes.values())
    first, second = Taylor()(evidence), Fisher()(evidence)
    whole = graph.macs_without({})
    for name in ("0", "3"):
        saved = whole - graph.macs_without({name: [2]})
        torch.testing.assert_close(second[name], first[name].square() / saved)
    # Both convolutions have kernels of 3, and the first works on larger maps.
    assert whole - graph.macs_without({"0": [0]}) != whole - graph.macs_without({"3": [0]})


def test_each_optimizer_is_counted_by_itself():
    changes = noted(chain())[1]
    due = {"a": [], "b": []}
    for _ in range(160):
        for name, seen in due.items():
            seen.append(changes.is_due(name))
    assert sum(due["a"]) == sum(due["b"]) == 16 + 18
    again = noted(chain())[1]
    again.load_state_dict(json.loads(json.dumps(changes.state_dict())))
    assert not again.is_due("a")
