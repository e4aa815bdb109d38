import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph
from lit_prune.criteria import (
    BatchNormScale,
    Evidence,
    GeometricMedian,
    LayerAdaptiveMagnitude,
    Magnitude,
    Random,
)
from lit_prune.select import Global, Target
from tests.toys import network


def evidence_of(net, *inputs):
    graph = ChannelGraph.trace(net, *inputs)
    return Evidence(net, graph, graph.groups)


@pytest.fixture
def evidence():
    net = network(8)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return evidence_of(net, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_magnitude_is_a_norm_over_all_that_goes_with_a_channel(evidence, p):
    net = evidence.network
    residual = Magnitude(p)(evidence)["0.0"]
    for k in range(8):
        own = torch.cat(
            [
                part.flatten()
                for part in (
                    net[0][0].weight[k],
                    net[0][0].bias[k],
                    net[0][1].weight[k],
                    net[0][1].bias[k],
                    net[1].conv.weight[k],
                    net[1].conv.weight[:, k],
                    net[1].norm.weight[k],
                    net[1].norm.bias[k],
                    net[2][0].weight[:, k],
                )
            ]
        )
        # The residual convolution's own diagonal lies in two slots, and counts in both.
        assert residual[k] == pytest.approx(float(own.detach().double().norm(p)), rel=1e-6)


def test_flattened_channels_gather_all_their_columns():
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4 * 9, 2, bias=False))
    evidence = evidence_of(net, torch.zeros(1, 1, 3, 3))
    expected = (net[0].weight.flatten(1).pow(2).sum(1) + net[2].weight.view(2, 4, 9).pow(2).sum((0, 2))).sqrt()
    assert torch.allclose(Magnitude()(evidence)["0"], expected.detach(), rtol=1e-5)


def test_batchnorm_scale_is_a_mean_of_gammas_and_leaves_out_groups_without(evidence):
    net = evidence.network
    scores = BatchNormScale()(evidence)
    assert torch.allclose(scores["0.0"], (net[0][1].weight.abs() + net[1].norm.weight.abs()).detach() / 2)
    bare = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    assert BatchNormScale()(evidence_of(bare, torch.zeros(1, 3, 4, 4))) == {}


def test_random_depends_on_its_seed_alone(evidence):
    torch.manual_seed(1)
    first = Random(3)(evidence)
    state = torch.get_rng_state()
    second = Random(3)(evidence)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.0"], Random(4)(evidence)["0.0"])


def test_scores_change_nothing(evidence):
    before = {name: tensor.clone() for name, tensor in evidence.network.state_dict().items()}
    for criterion in (Magnitude(), BatchNormScale(), Random()):
        assert all(len(scores) == evidence.graph[name].size for name, scores in criterion(evidence).items())
    assert all(torch.equal(before[name], tensor) for name, tensor in evidence.network.state_dict().items())


def test_a_bad_order_is_refused():
    with pytest.raises(ValueError, match="p must be positive"):
        Magnitude(0)


def test_a_filter_that_others_can_stand_in_for_goes_first():
    """He et al., CVPR 2019, figure 1: not the smallest filter goes, but the one in the middle of the others."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.1, 5.0, 6.0, 11.0]).reshape(4, 1, 1, 1))
    graph = ChannelGraph.trace(net, torch.zeros(1, 1, 4, 4))
    scores = GeometricMedian()(Evidence(net, graph, graph.groups))["0"]
    torch.testing.assert_close(scores, torch.tensor([21.7, 11.9, 11.9, 21.9]))


def test_lamp_is_what_it_is_defined_as_and_is_compared_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 4, 1))
    net[2].weight.data *= 10
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 12, 12))
    evidence = Evidence(net, graph, graph.groups)
    magnitudes, scores = Magnitude()(evidence), LayerAdaptiveMagnitude()(evidence)
    for name, magnitude in magnitudes.items():
        squares = magnitude.double().square()
        # Equation 3, channel by channel.
        expected = torch.stack([each / squares[squares >= each].sum() for each in squares])
        torch.testing.assert_close(scores[name].double(), expected)
        assert scores[name].max() == 1

    pool = torch.cat([*scores.values()]).sort().values
    widths = {group.name: group.size for group in graph.groups}
    target = Target(0.5, widths, graph.macs, 1, comparable=True, is_layer_adaptive=True)
    gone = Global()(evidence, scores, target)
    for name, score in scores.items():
        assert {*gone.get(name, torch.empty(0)).tolist()} == {*(score < pool[16]).nonzero().flatten().tolist()}


def test_lamp_of_a_layer_of_zeros_is_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    for parameter in net.parameters():
        parameter.data.zero_()
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    assert LayerAdaptiveMagnitude()(Evidence(net, graph, graph.groups))["0"].tolist() == [0, 0, 0, 0]


def test_lamp_of_what_is_no_number_is_none_either():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    net[0].weight.data[1] = torch.nan
    assert LayerAdaptiveMagnitude()(evidence_of(net, torch.zeros(1, 3, 4, 4)))["0"].isnan().any()
