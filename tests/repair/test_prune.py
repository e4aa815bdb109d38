"""A network in a loop of one's own is cut and repaired in one call."""

import copy

import pytest
import torch
from torch import nn

from lit_prune import ArgumentError, ArgumentTypeError, Repair, plan_pruning, prune_
from lit_prune.errors import CalibrationError
from lit_prune.repair import repaired
from tests.repair.test_repair import IMAGES, OTHERS, build, error


def test_with_data_more_of_the_answers_is_left():
    net = build("BatchNorm")
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    errors = []
    for data in (None, [IMAGES], [(IMAGES[:48],), (IMAGES[48:],)]):
        cut, average = copy.deepcopy(net), copy.deepcopy(net)
        optimizer = torch.optim.Adam(cut.parameters())
        cut(IMAGES).sum().backward()
        optimizer.step()
        cut.load_state_dict(net.state_dict())
        before = list(cut.parameters())
        found = prune_(cut, plan, [optimizer], [average], data=data)
        errors.append(error(net, cut))
        assert bool(found.fits) == (data is not None)
        assert all(mine is theirs for mine, theirs in zip(cut.parameters(), before, strict=True))
        for name, value in average.state_dict().items():
            torch.testing.assert_close(value, cut.state_dict()[name])
        cut(OTHERS).sum().backward()
        optimizer.step()
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES, "data is a list of batches, but got a Tensor"),
        ([], "data has no batch"),
        ([[IMAGES]], "a tuple or dict of the network's arguments, but got a list"),
        ([{"images": IMAGES}], "can't be run on calibration batch 1: TypeError: .* keyword argument 'images'"),
    ],
)
def test_data_of_another_kind_changes_nothing(data, message):
    net = build("BatchNorm")
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    with pytest.raises((ArgumentTypeError, CalibrationError), match=message):
        prune_(net, plan, data=data)
    assert net[0][0].weight.shape[0] == 16


def test_layers_whose_weights_each_forward_makes_anew_are_told():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    for layer in net[::2]:
        nn.utils.parametrizations.weight_norm(layer)
    images = torch.randn(8, 3, 8, 8)
    plan = plan_pruning(net, images, amount=0.5, selection="uniform", round_to=4)
    with pytest.warns(UserWarning, match=r"No layer of Sequential was fitted .*\(weight norm"):
        prune_(net, plan, data=[images])


def test_empty_batches_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    before = copy.deepcopy(net.state_dict())
    plan = plan_pruning(net, torch.randn(2, 3, 8, 8), amount=0.5, selection="uniform", round_to=4)
    with pytest.raises(CalibrationError, match="has no examples"):
        prune_(net, plan, data=[torch.zeros(0, 3, 8, 8)])
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e10])
def test_inputs_of_any_size_are_fitted(scale):
    net, images = small_net(), scale * torch.rand(16, 3, 12, 12)
    plan = plan_pruning(net, images, amount=0.5, selection="uniform", round_to=4)
    fits = prune_(net, plan, data=[images]).fits.values()
    # Small beside the biases: what varies is told apart from what is the same everywhere.
    assert all(0.5 < fit.after <= 1 for fit in fits)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_inputs_whose_squares_are_infinite_are_refused():
    net, images = small_net(), 1e25 * torch.rand(16, 3, 12, 12)
    before = copy.deepcopy(net.state_dict())
    plan = plan_pruning(net, images, amount=0.5, selection="uniform", round_to=4)
    with pytest.raises(CalibrationError, match="too large to be multiplied"):
        prune_(net, plan, data=[images])
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


def test_a_forward_that_fails_on_calibration_batches_leaves_no_hook():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    plan = plan_pruning(net, torch.randn(2, 3, 8, 8), amount=0.5, selection="uniform", round_to=4)
    # Of two channels in place of three; the module within is not reached.
    batches = [(torch.zeros(4, 2, 8, 8),)]
    with pytest.raises(RuntimeError):
        repaired(net, plan, lambda: batches, 1, Repair(), usual={"2": (0.0, 1.0)})
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_what_is_there_twice_is_cut_once():
    net, images = small_net(), torch.rand(4, 3, 12, 12)
    ema = copy.deepcopy(net)
    plan = plan_pruning(net, images, amount=0.5, selection="uniform", round_to=4)
    prune_(net, plan, copies=[ema, net, ema])
    assert net[0].out_channels == ema[0].out_channels == 8


def test_what_has_nothing_to_do_with_the_network_is_refused():
    net, images = small_net(), torch.rand(4, 3, 12, 12)
    plan = plan_pruning(net, images, amount=0.5, selection="uniform", round_to=4)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    for arguments, kind, message in (
        (([torch.optim.SGD(small_net().parameters(), 0.1)],), ArgumentError, "A SGD holds no parameter of this Seq"),
        (([], [nn.Sequential(nn.Sequential(small_net()))]), ArgumentError, "has no tensor of the names"),
        (([], [averaged]), ArgumentError, "of torch's AveragedModel, its `module`"),
        ((None,), ArgumentTypeError, "optimizers is a list, but got a NoneType"),
        (([], None), ArgumentTypeError, "copies is a list, but got a NoneType"),
        (([None],), ArgumentTypeError, "each optimizer must be a Optimizer, but got None"),
        (([], [net.state_dict()]), ArgumentTypeError, "each copy must be a Module, but got a OrderedDict"),
    ):
        with pytest.raises(kind, match=message):
            prune_(net, plan, *arguments)
    assert net[0].out_channels == 16
    prune_(net, plan, copies=[averaged.module])
    assert averaged.module[0].out_channels == 8
