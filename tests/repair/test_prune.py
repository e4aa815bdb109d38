"""A network in a loop of one's own is cut and repaired in one call."""

import copy

import pytest
import torch

from lit_prune import ArgumentTypeError, plan_pruning, prune_
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
        ([{"images": IMAGES}], "a tuple of the network's arguments, but got a dict"),
    ],
)
def test_data_of_another_kind_changes_nothing(data, message):
    net = build("BatchNorm")
    plan = plan_pruning(net, IMAGES[:1], amount=0.4, round_to=2)
    with pytest.raises(ArgumentTypeError, match=message):
        prune_(net, plan, data=data)
    assert net[0][0].weight.shape[0] == 16
