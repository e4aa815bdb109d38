import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, shrink_
from lit_prune.criteria import Evidence, Magnitude, Random
from lit_prune.errors import SelectionError
from lit_prune.select import Global, Isomorphic, MacsBudget, Target, Uniform, lowest


class Halves(nn.Module):
    """The halves of ``stem`` must stay equally wide."""

    def __init__(self):
        super().__init__()
        self.stem, self.end = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(24, 2, 1)
        self.one, self.two = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        first, second = self.stem(x).chunk(2, 1)
        return self.end(torch.cat([self.one(first), self.two(second)], 1))


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 4, 1),
    )


NETS = {"chain": chain, "halves": Halves}


def case(net, criterion=None, **options):
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8))
    evidence = Evidence(net, graph, graph.groups)
    target = Target(
        **{
            "ratio": 0.5,
            "widths": {group.name: group.size for group in graph.groups},
            "macs": graph.macs,
            "round_to": 1,
            **options,
        }
    )
    return evidence, (criterion or Magnitude())(evidence), target


def kept(evidence, gone):
    return {group.name: group.size - len(gone.get(group.name, ())) for group in evidence.groups}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize(
    "selection", [Uniform(), Global(), Isomorphic(), MacsBudget(), MacsBudget("global"), MacsBudget("isomorphic")]
)
@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_every_selection_makes_a_plan_that_runs_and_keeps_its_limits(net, selection, round_to):
    evidence, scores, target = case(net(), Random(0), ratio=0.4, round_to=round_to, min_channels=3)
    gone = selection(evidence, scores, target)
    plan = evidence.graph.plan(gone)
    evidence.graph.rehearse(plan)
    for name, width in kept(evidence, gone).items():
        size = evidence.graph[name].size
        assert 3 <= width <= size
        assert width == size or width % round_to == 0
    again = selection(evidence, scores, target)
    assert gone.keys() == again.keys()
    assert all(torch.equal(gone[name], again[name]) for name in gone)


def test_uniform_takes_the_share_of_each_layer_and_the_lowest_scores():
    evidence, scores, target = case(chain(), ratio=0.25)
    gone = Uniform()(evidence, scores, target)
    assert kept(evidence, gone) == {"0": 12, "2": 48, "4": 24}
    for name, channels in gone.items():
        assert set(channels.tolist()) == set(scores[name].argsort()[: len(channels)].tolist())


def test_shares_count_against_the_dense_network():
    net = chain()
    evidence, scores, target = case(net, ratio=0.25)
    shrink_(net, evidence.graph.plan(Uniform()(evidence, scores, target)))
    evidence, scores, second = case(net, ratio=0.5, widths=target.widths, macs=target.macs)
    assert kept(evidence, Uniform()(evidence, scores, second)) == {"0": 8, "2": 32, "4": 16}


def test_global_takes_the_share_of_all_and_spares_layers_that_matter():
    net = chain()
    evidence, scores, target = case(net, ratio=0.5)
    scores = {
        "0": torch.ones(16),
        "2": torch.cat([torch.full((50,), 0.01), torch.full((14,), 10.0)]),
        "4": torch.linspace(0.5, 1.5, 32),
    }
    left = kept(evidence, Global()(evidence, scores, target))
    assert left["0"] == 16
    assert 14 <= left["2"] < 32
    assert sum(left.values()) == pytest.approx(56, abs=1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("spread", ["uniform", "global"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_macs_meet_the_budget_as_a_fresh_trace_counts_them(share, spread, round_to):
    net = chain()
    evidence, scores, target = case(net, ratio=share, round_to=round_to)
    shrink_(net, evidence.graph.plan(MacsBudget(spread)(evidence, scores, target)))
    macs = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8)).macs
    budget = (1 - share) * target.macs
    assert macs <= budget
    # What is left of the budget is less than one step of the widest layer costs.
    step = round_to * max(64 * 9 * 64 + 32 * 9 * 64, 16 * 9 * 64 + 32 * 9 * 64)
    assert macs > budget - step


def test_a_budget_out_of_reach_is_refused():
    evidence, scores, target = case(chain(), ratio=0.9, round_to=8, min_channels=16)
    with pytest.raises(SelectionError, match="out of reach"):
        MacsBudget()(evidence, scores, target)


def test_narrow_layers_stay_whole_by_default():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 32, 1), nn.Conv2d(32, 2, 1))
    evidence, scores, target = case(net, round_to=8)
    assert kept(evidence, Uniform()(evidence, scores, target)) == {"0": 6, "1": 16}


def test_groups_without_scores_stay_and_so_do_their_partners():
    evidence, scores, target = case(Halves())
    pair = next(group for group in evidence.groups if group.balanced)
    scores.pop(pair.name)
    gone = Uniform()(evidence, scores, target)
    assert not set(pair.balanced) & set(gone)
    assert gone


def test_equal_scores_lose_the_last_channels():
    evidence, _, _ = case(chain())
    group = evidence.graph["0"]
    assert lowest([group], {"0": torch.ones(16)}, {"0": 12})["0"].tolist() == [12, 13, 14, 15]
