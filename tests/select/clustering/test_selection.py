import threading

import numpy as np
import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph
from lit_prune.activations import Moments, collect_moments, jeffries_matusita, read_batch
from lit_prune.criteria import Evidence, Magnitude, batch_norm_scales
from lit_prune.errors import SelectionError
from lit_prune.select import ClusterSelection, Target
from lit_prune.select.clustering.selection import output_slot, separability_of, weight_norms


class Coupled(nn.Module):
    """A residual sum, a concatenation, a chunk, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.branch = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.side = nn.Conv2d(16, 24, 1)
        self.split = nn.Conv2d(40, 32, 1)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.only_in_training = nn.Conv2d(16, 8, 1)
        self.aux = nn.Conv2d(8, 3, 1)
        self.head = nn.Conv2d(16, 3, 1)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(-2, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(x.relu())
        x = self.split(torch.cat([x, self.side(x).relu()], 1))
        first, second = x.chunk(2, 1)
        x = self.up(torch.cat([first.relu(), second], 1))
        if self.training:
            return self.head(x), self.aux(self.only_in_training(x).relu())
        return self.head(x)


@pytest.fixture(scope="module")
def seen():
    torch.manual_seed(0)
    network = Coupled()
    graph = ChannelGraph.trace(network, torch.rand(1, 3, 8, 8))
    layers = dict.fromkeys(layer for group in graph.groups for layer in group.layers)
    images, labels = torch.rand(60, 3, 8, 8), torch.arange(60) % 4
    images[:, 0] += labels[:, None, None] * torch.rand(8, 8)
    moments = collect_moments(network, list(layers), [read_batch((images, labels))])
    return network, graph, moments


def evidence(seen, *names):
    network, graph, moments = seen
    groups = [group for group in graph.groups if group.name != "only_in_training"]
    return Evidence(network, graph, tuple(group for group in groups if not names or group.name in names), moments)


def target(found, share, **options):
    widths = {group.name: group.size for group in found.graph.groups}
    return Target(share, widths, found.graph.macs, **{"round_to": 1, **options})


def choose(found, share, selection=None, **options):
    selection = selection or ClusterSelection(embedding="pca")
    return selection(found, Magnitude()(found), target(found, share, **options))


def test_coupled_layers_are_judged_side_by_side(seen):
    found = evidence(seen)
    group = found.graph["stem.0"]
    assert group.layers == ("stem.0", "branch.0")
    rows = separability_of(group, found)
    expected = torch.cat([jeffries_matusita(found.moments[layer]) for layer in group.layers], dim=1)
    order = group.members["stem.0.weight", 0]
    np.testing.assert_allclose(rows[order.channels], expected[order.indices].numpy())


def test_halves_have_the_rows_of_their_part(seen):
    found = evidence(seen)
    halves = [group for group in found.graph.groups if group.layers == ("split",)]
    assert len(halves) == 2
    expected = jeffries_matusita(found.moments["split"]).numpy()
    for number, group in enumerate(halves):
        members = group.members["split.weight", 0]
        rows = separability_of(group, found)
        np.testing.assert_allclose(rows[members.channels], expected[members.indices])
        assert set(members.indices) == set(range(16 * number, 16 * number + 16))


def test_of_many_classes_the_most_frequent_are_compared(seen):
    found = evidence(seen)
    group = found.graph["side"]
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(1, 9, (150,), generator=generator)
    many = Moments(count, torch.rand(150, 24, generator=generator), torch.rand(150, 24, generator=generator))
    rows = separability_of(group, Evidence(found.network, found.graph, (group,), {"side": many}))
    chosen = sorted(sorted(range(150), key=lambda k: -int(count[k]))[:100])
    expected = jeffries_matusita(Moments(count[chosen], many.mean[chosen], many.var[chosen])).numpy()
    members = group.members["side.weight", 0]
    assert rows.shape == (24, 4950)
    np.testing.assert_allclose(rows[members.channels], expected[members.indices])


def test_a_channel_in_several_places_has_their_mean(seen):
    found = evidence(seen)
    group = found.graph["side"]
    members = group.members["side.weight", 0]
    folded = type(members)(members.channels // 2, members.indices)
    half = type(group)(group.name, group.size // 2, group.slots, group.layers, (), {("side.weight", 0): folded})
    rows = separability_of(half, Evidence(found.network, found.graph, (half,), found.moments))
    expected = jeffries_matusita(found.moments["side"]).numpy()
    np.testing.assert_allclose(rows, expected.reshape(12, 2, -1).mean(1))


def test_strengths_are_norms_of_the_weights_that_make_a_channel(seen):
    found = evidence(seen)
    network = found.network
    stem = weight_norms(found.graph["stem.0"], found)
    filters = sum(
        w.detach().double().square().flatten(1).sum(1) for w in (network.stem[0].weight, network.branch[0].weight)
    )
    members = found.graph["stem.0"].members["stem.0.weight", 0]
    np.testing.assert_allclose(stem[members.channels], filters.sqrt().numpy()[members.indices])
    up = weight_norms(found.graph["up"], found)
    np.testing.assert_allclose(up, network.up.weight.detach().double().square().sum((0, 2, 3)).sqrt().numpy())
    assert output_slot(found.graph["up"], "up", found) == ("up.weight", 1)
    scales = batch_norm_scales(found.graph["stem.0"], found)
    expected = (network.stem[1].weight.abs() + network.branch[1].weight.abs()).detach().double() / 2
    np.testing.assert_allclose(scales[members.channels], expected.numpy()[members.indices])


@pytest.mark.parametrize("method", ["max_weight", "medoid"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_the_amount_goes_of_every_group(seen, method, share):
    found = evidence(seen)
    gone = choose(found, share, ClusterSelection(method, "pca"))
    for group in found.groups:
        assert len(gone[group.name]) == group.size - target(found, share).keep(group, share)
        assert gone[group.name].tolist() == sorted(set(gone[group.name].tolist()))
    # The plan is valid: balanced groups lose equally many.
    assert found.graph.plan(gone)


def test_one_of_each_kind_stays(seen):
    """Four copies of each of four channels: of each kind the heaviest stays."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1))
    scale = torch.rand(16) + 0.5
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[:4].repeat(4, 1, 1, 1) * scale[:, None, None, None])
        net[0].bias.copy_(net[0].bias[:4].repeat(4) * scale)
        net[1].weight.copy_(torch.rand(16))
    graph = ChannelGraph.trace(net, torch.rand(1, 3, 8, 8))
    images, labels = torch.rand(50, 3, 8, 8), torch.arange(50) % 3
    images += labels[:, None, None, None] * torch.rand(3, 8, 8)
    found = Evidence(net, graph, graph.groups, collect_moments(net, ["0"], [read_batch((images, labels))]))
    expected = {
        "max_weight": net[0].weight.detach().flatten(1).norm(dim=1),
        "max_gamma": net[1].weight.detach(),
    }
    for method, strength in expected.items():
        gone = choose(found, 0.75, ClusterSelection(method, "tsne"))["0"]
        stays = sorted(int(strength[kind::4].argmax()) * 4 + kind for kind in range(4))
        assert sorted(set(range(16)) - set(gone.tolist())) == stays
    gone = choose(found, 0.75, ClusterSelection("gamma"))["0"]
    assert sorted(gone.tolist()) == sorted(expected["max_gamma"].argsort()[:12].tolist())


def test_the_knee_decides_and_balanced_groups_agree(seen):
    found = evidence(seen)
    selection = ClusterSelection(embedding="pca")
    gone = choose(found, None, selection)
    assert list(selection.decisions) == [group.name for group in found.groups]
    lost = {group.name: len(gone.get(group.name, ())) for group in found.groups}
    for group in found.groups:
        decision = selection.decisions[group.name]
        assert len(decision.survey.silhouettes) == group.size - 2
        if not group.balanced and decision.survey.knee is not None:
            assert lost[group.name] == group.size - decision.survey.knee
        elif group.balanced:
            assert len({lost[name] for name in group.balanced}) == 1
            knees = [selection.decisions[name].survey.knee or 16 for name in group.balanced]
            assert lost[group.name] == 16 - int(np.mean(knees) + 0.5)
    assert any(lost.values())
    assert found.graph.plan(gone)


def test_the_knee_is_rounded(seen):
    found = evidence(seen)
    gone = choose(found, None, round_to=8)
    assert all((group.size - len(gone.get(group.name, ()))) % 8 == 0 for group in found.groups)


def test_the_same_seed_gives_the_same_channels_on_any_number_of_threads(seen, monkeypatch):
    found = evidence(seen)
    first = choose(found, 0.5, ClusterSelection("medoid", "tsne", seed=3))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    second = choose(found, 0.5, ClusterSelection("medoid", "tsne", seed=3))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    third = choose(found, 0.5, ClusterSelection("medoid", "tsne", seed=3))
    for name in first:
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], third[name])
    assert threading.active_count() < 4


def test_threads_of_torch_and_numpy_are_as_before(seen):
    from threadpoolctl import threadpool_info

    before = torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]
    choose(evidence(seen), 0.5, ClusterSelection("medoid", "tsne"))
    pools = [pool["num_threads"] for pool in threadpool_info()]
    assert (torch.get_num_threads(), pools[: len(before[1])]) == before


def test_groups_that_the_criterion_leaves_out_stay(seen):
    found = evidence(seen)
    scores = Magnitude()(found)
    del scores["side"]
    gone = ClusterSelection(embedding="pca")(found, scores, target(found, 0.5))
    assert "side" not in gone
    assert "up" in gone


def test_nothing_goes_where_nothing_is_to_go(seen):
    found = evidence(seen)
    assert choose(found, 0.01) == {}


def test_layers_for_training_only_stay_and_are_named(seen):
    network, graph, moments = seen
    assert "only_in_training" not in moments
    found = Evidence(network, graph, graph.groups, moments)
    with pytest.warns(UserWarning, match="only_in_training stays as it is: no layer that makes its channels"):
        gone = choose(found, 0.5)
    assert "only_in_training" not in gone
    assert "up" in gone


def test_what_can_not_be_decided_is_refused(seen):
    network, graph, moments = seen
    found = evidence(seen)
    with pytest.raises(SelectionError, match=r"channels of side pass through no BatchNorm\. Use method='max_weight'"):
        choose(found, 0.5, ClusterSelection("max_gamma"))
    with pytest.raises(SelectionError, match="activations, but there are none"):
        choose(Evidence(network, graph, found.groups), 0.5)
    one = {layer: Moments(m.count * torch.tensor([1, 0, 0, 0]), m.mean, m.var) for layer, m in moments.items()}
    with pytest.raises(SelectionError, match="Objects of 1 class were seen"):
        choose(Evidence(network, graph, found.groups, one), 0.5)


@pytest.mark.parametrize("options", [{"method": "best"}, {"embedding": "umap"}])
def test_unknown_names(options):
    with pytest.raises(ValueError, match=r"must be one of 'max_weight'|must be one of 'tsne'"):
        ClusterSelection(**options)
