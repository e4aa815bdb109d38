"""Criteria, selections and schedules of users that break what they promise."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lit_prune import ChannelPruning
from lit_prune.errors import PruningError
from lit_prune.policy.contract import checked_events, checked_removal
from lit_prune.schedule import AtEpochs, Schedule
from lit_prune.select import Selection
from tests.toys import Answers, Classifier, loader, trainer, two_groups, widths


class Removes(Selection):
    def __init__(self, removal):
        self.removal = removal

    def __call__(self, evidence, scores, target):
        return self.removal


class Comes(Schedule):
    def __init__(self, given):
        self.given = given

    def events(self, length):
        return self.given


def fresh():
    return torch.arange(8.0)


@pytest.fixture(scope="module")
def evidence():
    return two_groups()


@pytest.mark.parametrize(
    ("removal", "error", "message"),
    [
        ([1, 2], TypeError, "Removes must return a dict .* but returned a list"),
        ({"3": [1]}, ValueError, "Removes removes channels of '3', which is not a group that takes part"),
        ({"0": torch.ones(8).bool()}, TypeError, r"bool values. Of a mask of what goes, return"),
        ({"0": np.ones(8, dtype=bool)}, TypeError, "bool values"),
        ({"0": torch.tensor([1.0])}, TypeError, "float32 values"),
        ({"0": 3}, TypeError, "by a list of indices, but returned 3"),
        ({"0": [[1, 2]]}, TypeError, "by a list of indices"),
        ({"0": [1, 1]}, ValueError, "a channel of group '0' twice"),
        ({"0": [8]}, ValueError, "which has channels 0 to 7"),
        ({"0": [-1]}, ValueError, "channels 0 to 7"),
        ({"0": range(8)}, ValueError, "all 8 channels of group '0'"),
    ],
)
def test_removals(evidence, removal, error, message):
    with pytest.raises(error, match=message):
        checked_removal(Removes(removal), removal, evidence.groups)


def test_removals_that_keep_the_promise(evidence):
    removal = {"0": torch.tensor([5, 1]), "2": []}
    assert [channels.tolist() for channels in checked_removal(Removes(removal), removal, evidence.groups).values()] == [
        [5, 1],
        [],
    ]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([3], TypeError, "Comes.events must return a dict"),
        ({}, ValueError, "Comes has no event"),
        ({-1: 1.0}, ValueError, "whole epochs from 0 on, but one is at -1"),
        ({1.5: 1.0}, ValueError, "one is at 1.5"),
        ({3: 0.0}, ValueError, "rises within"),
        ({3: 1.2}, ValueError, "at 3 it is 1.2"),
        ({3: 0.5, 6: 0.4}, ValueError, "at 6 it is 0.4, after 0.5"),
        ({3: "all"}, ValueError, "at 3 it is 'all'"),
        ({12: 1.0}, ValueError, "goes beyond the run, which has 10 epochs"),
    ],
)
def test_schedules(given, error, message):
    with pytest.raises(error, match=message):
        checked_events(Comes(given), 10)


def test_a_schedule_that_keeps_the_promise_comes_in_order():
    assert list(checked_events(Comes({6: 1, 3: 0.5}), 10).items()) == [(3, 0.5), (6, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": Answers({"net.2.0": torch.rand(3)})}, r"Answers must return one score .* 'net.2.0'"),
        ({"criterion": Answers({"net.2.0": torch.full((32,), math.nan)})}, "Answers scores 32 of the 32 channels"),
        ({"selection": Removes({"net.3.2": [0]})}, "Removes removes channels of 'net.3.2'"),
        ({"selection": Removes({"net.2.0": [0]}), "exclude": ["net.2.*"]}, "which is not a group that takes part"),
    ],
)
def test_in_a_trainer_nothing_is_pruned(options, message):
    module = Classifier()
    with pytest.raises(PruningError, match=message):
        trainer(ChannelPruning(0.5, 1, verbose=False, **options)).fit(module, loader())
    assert widths(module) == widths(Classifier())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": "0.5"}, TypeError, "amount must be a number, but got '0.5', a str"),
        ({"amount": [0.5]}, TypeError, "amount must be a number"),
        ({"epochs": 1.5}, ValueError, "epochs must be whole numbers from 0 on, but has 1.5"),
        ({"epochs": "3"}, ValueError, "but has '3'"),
        ({"epochs": "before-wrap"}, ValueError, "or 'before_wrap', but has 'before-wrap'"),
        ({"epochs": None}, ValueError, "but has None"),
        ({"round_to": 8.0}, TypeError, "round_to must be a whole number, but got 8.0"),
        ({"min_channels": "4"}, TypeError, "min_channels must be a whole number"),
        ({"layers_per_event": True}, TypeError, "layers_per_event must be a whole number"),
    ],
)
def test_arguments_of_the_wrong_kind(options, error, message):
    with pytest.raises(error, match=message):
        ChannelPruning(**{"amount": 0.5, "epochs": 1, **options})


def test_numbers_of_numpy_are_numbers():
    assert ChannelPruning(np.float32(0.5), [np.int64(3)], round_to=np.int64(4)).schedule.events(9) == {3: 1.0}
    assert AtEpochs(np.int64(2)).events(9) == {2: 1.0}


def test_two_in_one_trainer_are_refused_with_what_to_do():
    run = trainer(ChannelPruning(0.5, 1))
    run.callbacks.append(ChannelPruning(0.5, 2))
    with pytest.raises(RuntimeError, match=r"two ChannelPruning in this Trainer.*Give all `epochs` to one"):
        run.fit(Classifier(), loader())


def test_a_criterion_says_what_it_needs():
    with pytest.raises(
        PruningError, match=r"can judge none of the 1 groups \(net\.0\): it needs a BatchNorm with a scale"
    ):
        trainer(ChannelPruning(0.5, 1, criterion="batchnorm", verbose=False)).fit(Plain(), loader())


class Plain(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 6), nn.Flatten())
