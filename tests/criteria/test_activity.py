"""Criteria that go by what arrives at the layers behind a channel."""

import copy

import pytest
import torch
from torch import nn

from lit_prune import (
    ArgumentError,
    ArgumentTypeError,
    CalibrationError,
    ChannelGraph,
    ChannelPruning,
    RehearsalError,
    SelectionError,
    plan_pruning,
    prune_,
)
from lit_prune.activations import collect_arrivals, read_batch
from lit_prune.criteria import Arriving, Evidence, MeanActivation, NonzeroActivation, OptimalBrainSurgeon
from lit_prune.select import MacsBudget
from tests.toys import Classifier, fitted


class Joined(nn.Module):
    """Channels are read in many ways: grouped, transposed, after a flatten, beside others of a concatenation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, padding=1)
        self.beside = nn.Conv2d(12, 6, 1)
        self.up = nn.ConvTranspose2d(18, 8, 2, stride=2)
        self.head = nn.Linear(8 * 64, 5)

    def forward(self, x):
        x = torch.relu(self.grouped(torch.relu(self.stem(x))))
        x = torch.relu(self.up(torch.cat([x, torch.relu(self.beside(x))], 1)))
        return self.head(x[:, :, ::2, ::2].flatten(1))


def inputs(number=2):
    torch.manual_seed(1)
    return [torch.randn(16, 3, 8, 8) for _ in range(number)]


def evidence(net, batches, covariances=True):
    graph = ChannelGraph.trace(net, batches[0])
    names = [name for name, parameter in net.named_parameters() if parameter.dim() > 1]
    found = collect_arrivals(net, names, [(batch,) for batch in batches], covariances=covariances)
    return Evidence(net, graph, graph.groups, arrivals=found)


def seen(net, batches):
    """What enters each layer: name to ``(rows, channels)``."""
    rows = {}

    def note(name):
        def hook(module, args):
            values = args[0].detach()
            flat = values if values.dim() == 2 else values.movedim(1, -1).reshape(-1, values.shape[1])
            rows.setdefault(name, []).append(flat)

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in net.named_children()]
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(each).double() for name, each in rows.items()}


@pytest.mark.parametrize(
    ("criterion", "of"), [(MeanActivation, torch.Tensor.abs), (NonzeroActivation, lambda x: (x != 0).double())]
)
def test_a_mean_is_over_all_places_where_a_channel_is_read(criterion, of):
    net, batches = Joined().eval(), inputs()
    scores = criterion()(evidence(net, batches))
    rows = {name: of(each).mean(0) for name, each in seen(net, batches).items()}
    # Both halves of the stem's channels are read by the same indices of a grouped layer.
    stem = rows["grouped"].reshape(2, 4).mean(0)
    first, second = ((rows["beside"] + rows["up"][:12]) / 2).reshape(2, 6)
    for name, expected in {
        "stem": stem,
        "grouped": first,
        "grouped#2": second,
        "beside": rows["up"][12:],
        "up": rows["head"].reshape(8, 64).mean(1),
    }.items():
        torch.testing.assert_close(scores[name].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layer", ["beside", "up", "grouped"])
def test_what_a_surgeon_loses_is_what_the_best_answer_of_the_others_lacks(layer):
    net, batches = Joined().eval(), inputs()
    graph = ChannelGraph.trace(net, batches[0])
    groups = tuple(group for group in graph.groups if any(slot[0] == f"{layer}.weight" for slot in group.slots))
    found = collect_arrivals(net, [f"{layer}.weight"], [(batch,) for batch in batches], covariances=True)
    scores = OptimalBrainSurgeon()(Evidence(net, graph, groups, arrivals=found))

    weight = net.get_parameter(f"{layer}.weight").detach().double()
    rows = seen(net, batches)[layer]
    parts = 2 if layer == "grouped" else 1
    lost, whole = [], 0.0
    for part, block in enumerate(rows.chunk(parts, 1)):
        dim = 0 if layer == "up" else 1
        mine = weight if layer == "up" else weight.chunk(parts, 0)[part]
        matrix = mine.movedim(dim, 0).flatten(1)
        centred = block - block.mean(0)
        answers = centred @ matrix
        whole += float(answers.square().mean(0).sum())
        each = []
        for channel in range(block.shape[1]):
            others = [other for other in range(block.shape[1]) if other != channel]
            best = torch.linalg.lstsq(centred[:, others], answers).solution
            each.append(float((answers - centred[:, others] @ best).square().mean(0).sum()))
        lost.append(torch.tensor(each, dtype=torch.float64))
    expected = torch.stack(lost).sum(0) / whole
    slot = (f"{layer}.weight", 0 if layer == "up" else 1)
    reading = [group for group in groups if slot in group.slots and layer not in group.layers]
    assert reading
    for group in reading:
        members = group.members[slot]
        order = torch.from_numpy(members.indices)[torch.from_numpy(members.channels).argsort()]
        # It takes some penalty, for directions that no example has shown.
        torch.testing.assert_close(scores[group.name].double(), expected[order], rtol=0.05, atol=2e-3)


def test_layers_with_very_many_inputs_do_without_covariances(monkeypatch):
    monkeypatch.setattr("lit_prune.activations.arriving._MOST_INPUTS", 100)
    known = evidence(Joined().eval(), inputs())
    assert known.arrivals["head.weight"].covariance is None
    assert known.arrivals["up.weight"].covariance is not None
    scores = OptimalBrainSurgeon()(known)
    assert scores["up"].isfinite().all()
    assert float(scores["up"].sum()) == pytest.approx(1, rel=1e-5)


def test_layers_without_zeros_can_not_be_judged_by_them():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    assert NonzeroActivation()(evidence(net, inputs())).keys() == {"2"}
    with pytest.raises(ArgumentError, match=r"NonzeroActivation can judge none .* an activation that makes zeros"):
        plan_pruning(net[:3], inputs()[0], amount=0.5, criterion="apoz", data=inputs(), round_to=1)


@pytest.mark.parametrize("name", ["activation", "apoz", "obs"])
def test_in_a_loop_of_ones_own_they_take_data_and_change_nothing(name):
    net, batches = Joined(), inputs()
    before = copy.deepcopy(net.state_dict())
    plan = plan_pruning(net, batches[0], amount=0.5, selection="uniform", criterion=name, data=batches, round_to=1)
    assert len(plan.kept["up.bias"][0]) == 4
    assert net.training
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    with pytest.raises(ArgumentError, match=r"goes by what arrives at layers: give some batches"):
        plan_pruning(net, batches[0], amount=0.5, criterion=name)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_values_that_are_not_finite_are_told_with_the_weight():
    net, batches = Joined(), inputs()
    batches[1][0, 0, 0, 0] = float("inf")
    with pytest.raises(CalibrationError, match=r"What arrives at stem.weight has values .* NaN, infinite"):
        collect_arrivals(net, ["stem.weight"], [(batch,) for batch in batches])
    with pytest.raises(CalibrationError, match="no calibration batch"):
        collect_arrivals(net, ["stem.weight"], [])


@pytest.mark.parametrize("criterion", [MeanActivation, NonzeroActivation, OptimalBrainSurgeon])
def test_training_is_the_same_until_the_event(criterion):
    plain, looking = (
        fitted(ChannelPruning(0.5, [2], criterion=each, round_to=4, verbose=False))
        for each in ("magnitude", criterion(batches=2, batch_size=8))
    )
    steps = len(plain.losses) // 4
    assert looking.losses[: 2 * steps] == plain.losses[: 2 * steps]
    assert sum(p.numel() for p in looking.parameters()) < sum(p.numel() for p in type(looking)().parameters())


def test_sizes_of_batches_are_checked():
    with pytest.raises(ArgumentError, match="batches must be at least 1"):
        MeanActivation(batches=0)


@pytest.mark.parametrize("name", ["activation", "obs"])
@pytest.mark.parametrize(
    "batch", [torch.rand(4, 5, 8, 8), torch.rand(4, 3, 8, 8).double(), (torch.rand(4, 3, 8, 8), torch.zeros(4)), ()]
)
def test_batches_that_can_not_be_run_are_told_by_number(name, batch):
    net = Joined()
    data = [inputs()[0], batch]
    for call in (
        lambda: plan_pruning(net, data[0], amount=0.5, criterion=name, data=data, round_to=1),
        lambda: prune_(net, plan_pruning(net, data[0], amount=0.5, round_to=1), data=data),
    ):
        with pytest.raises(CalibrationError, match=r"can't be run on calibration batch 2: \w+Error: .* without labels"):
            call()


def test_no_more_data_is_taken_than_is_looked_at():
    def endless():
        while True:
            yield torch.rand(4, 3, 8, 8)

    net = Joined()
    plan = plan_pruning(net, inputs()[0], amount=0.5, criterion=MeanActivation(3), data=endless(), round_to=1)
    assert plan
    assert plan_pruning(net, inputs()[0], amount=0.5, data=endless(), round_to=1)


class Counts(Joined):
    """Writes into buffers, whatever its mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        self.calls += 1
        self.norm.train()
        return super().forward(self.norm(x))


def test_buffers_hold_what_they_held():
    net = Counts()
    before = copy.deepcopy(net.state_dict())
    plan_pruning(net, inputs()[0], amount=0.5, criterion="obs", data=inputs(), round_to=1)
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


class Prepares(Classifier):
    """Its step brings the images of the data set to what the network is made for."""

    def training_step(self, batch, batch_idx):
        return super().training_step([40 * batch[0] + 128, batch[1]], batch_idx)

    def calibration_batch(self, batch):
        return read_batch(batch)


def test_inputs_that_are_not_those_of_training_are_warned_of():
    with pytest.warns(UserWarning, match=r"activations that may tell little. .* is nothing like what enters it in"):
        fitted(ChannelPruning(0.5, [2], criterion=MeanActivation(2, 8), round_to=4, verbose=False), kind=Prepares)


class Mine(Arriving):
    """Does not call the base class, and answers as it is told."""

    def __init__(self, answer):
        self.answer = answer

    def values(self, weight, arrivals):
        return self.answer(weight, arrivals)


def test_a_criterion_of_ones_own():
    net, data = Joined(), inputs()
    mine = Mine(lambda weight, arrivals: arrivals.size)
    own, ours = (
        plan_pruning(net, data[0], amount=0.5, criterion=each, data=data, round_to=1) for each in (mine, "activation")
    )
    assert own == ours
    for answer in (lambda weight, arrivals: weight, lambda weight, arrivals: None, lambda weight, arrivals: [1.0]):
        with pytest.raises(ArgumentTypeError, match=r"Mine.values must return a tensor of \[\d+\] for "):
            plan_pruning(net, data[0], amount=0.5, criterion=Mine(answer), data=data, round_to=1)


def test_out_of_reach_because_a_criterion_can_not_judge_a_layer_says_so():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.GELU(), nn.Conv2d(64, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(SelectionError, match=r"the 1 groups .* 1 more stay whole \(0\): NonzeroActivation can't judge"):
        plan_pruning(net, images, amount=0.5, criterion="apoz", selection="macs", data=[images])
    with pytest.raises(SelectionError) as alone:
        plan_pruning(net, images, amount=0.99, selection="macs")
    assert "stay whole" not in str(alone.value)


def test_layers_that_make_their_weights_anew_are_told_at_the_start():
    class Normed(Classifier):
        def __init__(self):
            super().__init__()
            for module in list(self.modules()):
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    nn.utils.parametrizations.weight_norm(module)

    with pytest.raises(RehearsalError, match=r"OptimalBrainSurgeon can judge none .*weight norm makes it anew"):
        fitted(ChannelPruning(0.5, epochs=50, criterion="obs"), kind=Normed, max_epochs=60)


def test_a_budget_that_is_out_of_reach_without_what_can_not_be_judged_is_warned_of_at_the_start():
    class Recurrent(Classifier):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
            self.cell, self.head = nn.GRU(32, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.cell(self.body(x).flatten(2).transpose(1, 2))[0].mean(1))

    options = {"exclude": ["cell"], "selection": MacsBudget("global"), "on_error": "continue"}
    pruning = ChannelPruning(0.6, epochs=1, criterion="obs", **options)
    with (
        pytest.warns(UserWarning, match="By what the first batch shows: Event 1 .* can't judge"),
        pytest.warns(UserWarning, match="Pruning at epoch 1 failed"),
    ):
        fitted(pruning, kind=Recurrent)
    assert not pruning.events
