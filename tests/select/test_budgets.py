"""Budgets of multiply-adds, parameters and bytes are met, and not by more than rounding takes."""

import copy
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from lit_prune import ArgumentError, ChannelGraph, ChannelPruning, plan_pruning, shrink_
from lit_prune.common.names import count_parameters
from lit_prune.cost import Cost
from lit_prune.errors import SelectionError
from lit_prune.report.tables import event_table
from lit_prune.select import Budget, Budgets, Global, MacsBudget, ParamsBudget, SizeBudget
from tests.select.test_spread import NETS
from tests.toys import Classifier, fitted, network, widths

IMAGES = torch.zeros(1, 3, 16, 16)


def left(net, selection, **options):
    plan = plan_pruning(net, IMAGES, selection=selection, round_to=1, **options)
    return shrink_(copy.deepcopy(net), plan)


def macs(net):
    return Cost.of(net, IMAGES).macs


def stored(net):
    file = io.BytesIO()
    torch.save({name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()}, file)
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


MEASURES = {MacsBudget: macs, ParamsBudget: count_parameters, SizeBudget: stored}


@pytest.mark.parametrize("net", [*NETS.values(), network], ids=[*NETS, "residual"])
@pytest.mark.parametrize("spread", ["uniform", "global"])
@pytest.mark.parametrize("kind", MEASURES)
def test_a_limit_is_met_and_almost_used_up(net, spread, kind):
    torch.manual_seed(0)
    net, measure = net().eval(), MEASURES[kind]
    whole = measure(net)
    cut = left(net, kind(spread, at_most=0.6 * whole))
    assert 0.5 * whole < measure(cut) <= 0.6 * whole


@pytest.mark.parametrize("kind", MEASURES)
def test_a_ratio_is_that_of_what_is_counted(kind):
    torch.manual_seed(0)
    net, measure = network().eval(), MEASURES[kind]
    assert 0.5 * measure(net) < measure(left(net, kind(), amount=0.4)) <= 0.6 * measure(net)


@pytest.mark.parametrize("net", [*NETS.values(), network], ids=[*NETS, "residual"])
@pytest.mark.parametrize("spread", ["uniform", "global"])
@pytest.mark.parametrize("kind", MEASURES)
def test_what_is_left_over_is_not_enough_for_a_step_in_any_layer(net, spread, kind):
    torch.manual_seed(0)
    net, measure, step = net().eval(), MEASURES[kind], 4
    whole, graph = measure(net), ChannelGraph.trace(net, IMAGES)
    for part in (0.8, 0.7, 0.6):
        plan = plan_pruning(net, IMAGES, selection=kind(spread, at_most=part * whole), round_to=step)
        gone = {group.name: group.size - group.width_under(plan) for group in graph.groups}
        assert measure(shrink_(copy.deepcopy(net), plan)) <= part * whole
        if measure(shrink_(copy.deepcopy(net), plan)) < 0.99 * part * whole:
            for group in graph.groups:
                wider = gone | {name: max(0, gone[name] - step) for name in group.bundle}
                if wider != gone:
                    trial = graph.plan({name: range(number) for name, number in wider.items()})
                    assert measure(shrink_(copy.deepcopy(net), trial)) > part * whole


def test_a_width_more_would_be_too_much():
    torch.manual_seed(0)
    net = NETS["chain"]().eval()
    limit = int(0.6 * count_parameters(net))
    cut = left(net, ParamsBudget("global", at_most=limit))
    # The dearest channel of the chain costs a convolution's input and output.
    assert limit - count_parameters(cut) < 9 * (64 + 32) + 9 * (16 + 32)


def test_shared_parameters_count_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 16, 1)
            self.middle = nn.Conv2d(16, 16, 1)
            self.again = self.middle
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            return self.last(self.again(self.middle(self.first(x))))

    net = Shared().eval()
    whole = count_parameters(net)
    cut = left(net, ParamsBudget(at_most=0.7 * whole))
    assert 0.5 * whole < count_parameters(cut) <= 0.7 * whole


def test_precision_counts_bytes():
    torch.manual_seed(0)
    net = network().eval()
    weights = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    vectors = sum(t.numel() for t in tensors.values() if t.dim() <= 1)
    from lit_prune import ChannelGraph
    from lit_prune.criteria import Evidence

    graph = ChannelGraph.trace(net, IMAGES)
    evidence = Evidence(net, graph, graph.groups)
    for precision, expected in (
        ("float32", 4 * (weights + vectors)),
        ("float16", 2 * (weights + vectors)),
        ("int8", weights + 4 * vectors),
    ):
        assert SizeBudget(precision=precision).cost(evidence)({}) == expected


def test_several_are_all_met():
    torch.manual_seed(0)
    net = network().eval()
    for parts in ((0.5, 0.9), (0.9, 0.5), (0.5, 0.5)):
        limits = [part * whole for part, whole in zip(parts, (macs(net), count_parameters(net)), strict=True)]
        both = Budgets([MacsBudget(at_most=limits[0]), ParamsBudget(at_most=limits[1])], spread="global")
        cut = left(net, both)
        assert macs(cut) <= limits[0]
        assert count_parameters(cut) <= limits[1]
        assert macs(cut) > 0.85 * limits[0] or count_parameters(cut) > 0.85 * limits[1]


def test_what_is_met_already_removes_nothing():
    net = network().eval()
    assert not plan_pruning(net, IMAGES, selection=MacsBudget(at_most="1 GMACs"), round_to=1)


def test_out_of_reach_says_what_can_be_reached():
    net = network().eval()
    with pytest.raises(SelectionError, match=r"wanted 10 B are out of reach: .* least width, [\d,]+ are left"):
        plan_pruning(net, IMAGES, selection=SizeBudget(at_most=10), round_to=1)
    with pytest.raises(SelectionError, match=r"wanted 5 params are out of reach"):
        plan_pruning(
            net, IMAGES, selection=Budgets([MacsBudget(at_most="1 GMACs"), ParamsBudget(at_most=5)]), round_to=1
        )


@pytest.mark.parametrize("given", ["8 ms", "2 XB", "B", "-1 B", 0, "0 MB", "1 2 MB"])
def test_a_limit_in_another_unit_is_refused(given):
    with pytest.raises((ArgumentError, TypeError), match="at_most must be"):
        SizeBudget(at_most=given)


@pytest.mark.parametrize(
    ("given", "expected"), [("2 MB", 2e6), ("2MB", 2e6), ("2 M", 2e6), ("1.5 KiB", 1536), ("1e6 B", 1e6), (12, 12.0)]
)
def test_limits_are_read(given, expected):
    assert SizeBudget(at_most=given).at_most == expected


def test_events_of_a_schedule_go_a_part_of_the_way_each():
    pruning = ChannelPruning(None, [1, 2], selection=ParamsBudget("global", at_most=2500), round_to=1, verbose=False)
    module = fitted(pruning)
    (whole, half), (again, end) = (event["params"] for event in pruning.events)
    assert again == half
    assert end == count_parameters(module) <= 2500
    assert 2500 < half <= (whole + 2500) / 2


def test_an_amount_beside_a_limit_is_refused_and_none_without_a_limit():
    with pytest.raises(ArgumentError, match=r"leave one of the two"):
        ChannelPruning(0.5, [1], selection=SizeBudget(at_most="2 MB"))
    with pytest.raises(ArgumentError, match="Give a ratio"):
        ChannelPruning(None, [1], selection=SizeBudget())
    with pytest.raises(ArgumentError, match="at least one budget"):
        Budgets([MacsBudget(at_most=5), SizeBudget()])
    with pytest.raises(ArgumentError, match="layers_per_event"):
        ChannelPruning(None, [1], selection=SizeBudget(at_most="2 MB"), layers_per_event=2)


def test_a_budget_of_ones_own():
    """The number of channels that is left, in whatever layers."""

    class Channels(Budget):
        unit = "channels"

        def cost(self, evidence):
            sizes = {group.name: group.size for group in evidence.groups}
            return lambda widths: float(sum((sizes | widths).values()))

        def dense(self, evidence, target):
            return float(sum(target.widths.values()))

    torch.manual_seed(0)
    net = NETS["chain"]().eval()
    cut = left(net, Channels(Global(), at_most=60))
    assert sum(layer.out_channels for layer in (cut[0], cut[2], cut[4])) in (59, 60)


def test_averages_inside_of_the_network_are_no_part_of_it():
    class WithAverage(Classifier):
        def __init__(self):
            super().__init__()
            self.ema = torch.optim.swa_utils.AveragedModel(self.net)

        def on_train_batch_end(self, *_):
            self.ema.update_parameters(self.net)

    found = []
    for kind in (Classifier, WithAverage):
        pruning = ChannelPruning(0.5, [1, 2], selection=ParamsBudget("global"), round_to=1, verbose=False)
        found.append((widths(fitted(pruning, kind=kind).net), len(pruning.events)))
    assert found[0] == found[1]
    limited = ChannelPruning(None, [1], selection=SizeBudget(at_most="12 kB"), round_to=1, verbose=False)
    module = fitted(limited, kind=WithAverage)
    assert 10_000 < stored(module.net) <= 12_000


def test_mistakes_in_a_list_of_budgets():
    for wrong in (SizeBudget(at_most=5), ["macs"]):
        with pytest.raises(TypeError, match="takes a list of budgets"):
            Budgets(wrong)
    with pytest.raises((ArgumentError, TypeError), match="at_most must be"):
        SizeBudget(at_most=True)
    with pytest.raises(ArgumentError, match="at_most must be"):
        SizeBudget(at_most="1..5 kB")


@pytest.mark.parametrize(
    ("selection", "amount", "told"),
    [
        (MacsBudget(), 0.5, "target so far 50% of MACs"),
        (ParamsBudget(), 0.5, "target so far 50% of params"),
        (ParamsBudget(at_most=2500), None, "to the limit"),
    ],
)
def test_the_table_of_an_event_says_what_was_aimed_at(selection, amount, told):
    pruning = ChannelPruning(amount, [1], selection=selection, round_to=1, verbose=False)
    fitted(pruning)
    console = Console(width=120, file=io.StringIO())
    console.print(event_table(pruning.events[0]))
    assert told in console.file.getvalue()
    assert "not the target" not in console.file.getvalue()


def test_an_event_half_way_says_so():
    pruning = ChannelPruning(None, [1, 2], selection=ParamsBudget(at_most=2500), round_to=1, verbose=False)
    fitted(pruning)
    console = Console(width=120, file=io.StringIO())
    console.print(event_table(pruning.events[0]))
    assert "50% of the way to the limit" in console.file.getvalue()
