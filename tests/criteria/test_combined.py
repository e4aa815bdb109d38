"""One criterion says how much of a layer goes, another which of its channels."""

import pytest
import torch
from torch import nn

from lit_prune import ArgumentError, ArgumentTypeError, ChannelGraph, ChannelPruning, plan_pruning
from lit_prune.activations import Calibration, collect_arrivals
from lit_prune.criteria import CRITERIA, Combined, Criterion, Evidence
from lit_prune.select import MacsBudget
from tests.toys import Classifier, fitted


class ByClass(Criterion):
    calibration = Calibration()

    def __call__(self, evidence):
        raise AssertionError


class Wrong(Criterion):
    def __call__(self, evidence):
        return {group.name: torch.ones(group.size + 1) for group in evidence.groups}


class FirstAlone(Criterion):
    needs = "to be the first"

    def __call__(self, evidence):
        return {evidence.groups[0].name: torch.arange(float(evidence.groups[0].size))}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU(), nn.Conv2d(16, 20, 1), nn.Conv2d(20, 4, 1)
    )


IMAGES = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def evidence_of(net):
    graph = ChannelGraph.trace(net, IMAGES)
    names = [name for name, parameter in net.named_parameters() if parameter.dim() > 1]
    arrivals = collect_arrivals(net, names, [(IMAGES,)], covariances=True)
    return Evidence(net, graph, graph.groups, arrivals=arrivals)


@pytest.mark.parametrize("layers", ["magnitude", "lamp", "obs"])
@pytest.mark.parametrize("channels", ["obs", "random", "geometric_median"])
def test_amounts_are_of_the_one_and_channels_of_the_other(layers, channels):
    evidence = evidence_of(network())
    values, order = CRITERIA[layers]()(evidence), CRITERIA[channels]()(evidence)
    scores = Combined(layers, channels)(evidence)
    assert scores.keys() == values.keys()
    for name, score in scores.items():
        assert torch.equal(score.sort().values, values[name].sort().values)
        for fewer in range(1, len(score)):
            assert {*score.argsort()[:fewer].tolist()} == {*order[name].argsort()[:fewer].tolist()}


@pytest.mark.parametrize("spread", ["global", "isomorphic", "uniform"])
def test_widths_are_those_of_the_first_and_kept_channels_those_of_the_second(spread):
    net = network()
    options = {"amount": 0.5, "selection": MacsBudget(spread), "round_to": 1, "data": [IMAGES]}
    alone = plan_pruning(net, IMAGES, criterion="lamp", **options)
    both = plan_pruning(net, IMAGES, criterion=Combined("lamp", "obs"), **options)
    order = CRITERIA["obs"]()(evidence_of(net))
    assert alone.digest != both.digest
    for name, dims in both.kept.items():
        assert {dim: len(kept) for dim, kept in dims.items()} == {
            dim: len(kept) for dim, kept in alone.kept[name].items()
        }
    for layer, score in order.items():
        kept = both.kept[f"{layer}.weight"].get(0, torch.arange(len(score)))
        assert sorted(kept.tolist()) == sorted(score.topk(len(kept)).indices.tolist())


def test_it_is_compared_as_the_first_is_and_asks_for_what_both_do():
    both = Combined("lamp", "obs")
    assert both.comparable
    assert both.is_layer_adaptive
    assert both.needs_arrivals
    assert both.needs_covariances
    assert not both.needs_gradients
    assert both.calibration == CRITERIA["obs"]().calibration
    assert Combined(CRITERIA["activation"](batches=2), CRITERIA["obs"](batches=3)).calibration.batches == 3
    assert Combined("magnitude", "taylor").needs_gradients
    assert not Combined("magnitude", "taylor").comparable
    assert Combined("magnitude", "random").calibration is None


def test_what_one_can_not_judge_stays():
    evidence = evidence_of(network())
    for both in (Combined("magnitude", FirstAlone()), Combined(FirstAlone(), "magnitude")):
        assert [*both(evidence)] == [evidence.groups[0].name]
        assert both.needs == "to be the first"


@pytest.mark.parametrize(
    ("layers", "channels", "error", "message"),
    [
        ("lam", "obs", ArgumentError, "layers='lam' is not known. Did you mean 'lamp'"),
        ("lamp", "os", ArgumentError, "channels='os' is not known"),
        ("lamp", 3, ArgumentTypeError, "channels must be one of"),
        (ByClass(), "obs", ArgumentError, "ByClass and OptimalBrainSurgeon can't be combined"),
    ],
)
def test_what_can_not_be_combined_is_refused(layers, channels, error, message):
    with pytest.raises(error, match=message):
        Combined(layers, channels)


def test_an_answer_of_another_form_is_told_by_the_one_that_gave_it():
    with pytest.raises(ArgumentError, match="Wrong must return one score for each"):
        Combined("lamp", Wrong())(evidence_of(network()))


def test_gradients_and_activations_together_in_a_trainer_and_in_a_loop():
    network = fitted(ChannelPruning(0.5, epochs=1, criterion=Combined("taylor", "obs"), verbose=False))
    assert network.net[0][0].out_channels < Classifier().net[0][0].out_channels

    net = Classifier().net
    images = torch.rand(8, 3, 16, 16)
    loss = net(images).square().mean()
    plan = plan_pruning(net, images, amount=0.5, criterion=Combined("taylor", "obs"), losses=[loss], data=[images])
    assert plan
