"""No layer loses more than its limit, whatever shares the removal out."""

import json

import pytest
import torch

from lit_prune import ArgumentError, ArgumentTypeError, ChannelGraph, MissingFileError, plan_pruning
from lit_prune.errors import SelectionError
from lit_prune.select import Limited, MacsBudget
from tests.toys import network

IMAGES = torch.zeros(1, 3, 16, 16)


def gone(selection, amount=0.4, round_to=1):
    torch.manual_seed(0)
    net = network(32).eval()
    graph = ChannelGraph.trace(net, IMAGES)
    plan = plan_pruning(net, IMAGES, amount=amount, selection=selection, round_to=round_to)
    return {group.name: 1 - group.width_under(plan) / group.size for group in graph.groups}


@pytest.mark.parametrize("spread", ["uniform", "global"])
@pytest.mark.parametrize("within", [lambda s: s, MacsBudget])
def test_no_layer_loses_more(spread, within):
    free = gone(within(spread), 0.3)
    name = max(free, key=free.get)
    limited = gone(within(Limited(spread, {name: 0.125, "nothing*": 0.9})), 0.3)
    assert limited[name] <= 0.125 < free[name]


def test_others_make_up_for_it_within_a_budget():
    free = gone(MacsBudget("uniform"), 0.1)
    limited = gone(MacsBudget(Limited("uniform", {"0.0": 0.0})), 0.1)
    assert limited["0.0"] == 0 < free["0.0"]
    assert max(limited.values()) > max(free.values())


def test_rounding_keeps_more_and_never_less():
    assert gone(Limited("uniform", {"0.0": 0.3}), 0.6, round_to=8)["0.0"] == 0.25


def test_what_limits_put_out_of_reach_is_told():
    with pytest.raises(SelectionError, match=r"out of reach.* Ask for less, raise the limits of `Limited`, lower"):
        gone(MacsBudget(Limited("global", {"*": 0.1})), 0.5)


@pytest.fixture
def file(tmp_path):
    ratios = {"0.25": {"cut": 0.7, "repaired": 0.799}, "0.5": {"cut": 0.75, "repaired": 0.78}}
    path = tmp_path / "sensitivity.json"
    free = {"0.5": {"cut": 0.8, "repaired": 0.81}}
    content = {"metric": "map", "mode": "max", "dense": 0.8, "groups": {"a[0]": ratios, "b": free}}
    path.write_text(json.dumps(content))
    return path


def test_limits_of_a_file(file):
    assert Limited("global", file).limits == {"a[[]0]": 0.25, "b": 0.5}
    assert Limited("global", file, max_drop=0.02).limits == {"a[[]0]": 0.5, "b": 0.5}
    # The greater ratio is no better because a smaller one is worse.
    assert Limited("global", file, max_drop=0.05, repaired=False).limits == {"a[[]0]": 0.0, "b": 0.5}


def test_what_is_not_a_number_is_not_good_enough(file):
    content = json.loads(file.read_text())
    content["groups"]["b"]["0.5"]["repaired"] = float("nan")
    file.write_text(json.dumps(content))
    assert Limited("global", file).limits["b"] == 0.0


def test_limits_of_another_network_are_refused():
    with pytest.raises(SelectionError, match=r"None of the limits .* names a layer"):
        gone(MacsBudget(Limited("uniform", {"zzz": 0.1})))


def test_arguments(tmp_path, file):
    with pytest.raises(ArgumentError, match="the limit of 'a' must be in"):
        Limited("global", {"a": -0.1})
    with pytest.raises(ArgumentTypeError, match="or a file"):
        Limited("global", [0.1])
    with pytest.raises(MissingFileError, match="lit-prune sensitivity"):
        Limited("global", tmp_path)
    with pytest.raises(MissingFileError, match="lit-prune sensitivity"):
        Limited("global", tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ArgumentError, match="no file of `lit-prune sensitivity`"):
        Limited("global", tmp_path / "other.json")
    content = json.loads(file.read_text())
    del content["groups"]["b"]["0.5"]["repaired"]
    file.write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match="repaired=False"):
        Limited("global", file)
