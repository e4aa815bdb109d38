"""Other ways in which later steps enter a network are found; validations and what is known are none."""

import copy

import pytest
import torch
from torch import nn

from lit_prune.training.entry import Entry
from lit_prune.training.entry_watch import EntryWatch

BATCH = {"x": torch.rand(4, 2), "y": torch.rand(4, 2)}


def watched(*inputs, grad=True):
    net, watch = nn.Linear(2, 1), EntryWatch()
    watch.look(net, [Entry.of("", (BATCH["x"],), {}, BATCH)], BATCH)
    with torch.set_grad_enabled(grad):
        for each in inputs:
            net(each)
    watch.end_look(net)
    assert not net._forward_pre_hooks
    return watch


def test_what_is_known_is_nothing_new():
    assert watched(BATCH["x"], BATCH["x"]).later == []


def test_each_other_way_once():
    ways = watched(BATCH["y"], 2 * BATCH["x"], 3 * BATCH["x"], BATCH["y"]).later
    assert [entry.is_whole for entry in ways] == [True, False]


def test_a_validation_is_no_step():
    assert watched(2 * BATCH["x"], grad=False).later == []


def test_a_compiled_module_gets_no_hook():
    net, watch = nn.Linear(2, 1), EntryWatch()
    net.compile(backend="eager")
    watch.look(net, [Entry.of("", (BATCH["x"],), {}, BATCH)], BATCH)
    assert not net._forward_pre_hooks


def test_what_enters_is_noted_again_where_the_way_is_another():
    net, watch = nn.Linear(2, 1), EntryWatch()
    known = [Entry.of("", (BATCH["x"],), {}, BATCH)]
    watch.note_values(net, [""])
    for scale in (1, 1, 10, 10):
        watch.look(net, known, BATCH)
        net(BATCH["x"] if scale == 1 else scale * BATCH["x"])
        watch.end_look(net)
    assert watch.usual[""][0] == pytest.approx(10 * float(BATCH["x"].mean()))


def test_a_checkpoint_keeps_what_came_since():
    watch = watched(2 * BATCH["x"])
    known = [Entry.of("", (BATCH["x"],), {}, BATCH)]
    again = EntryWatch()
    again.load_state_dict(copy.deepcopy(watch.state_dict(known)))
    assert again.resumed == [*known, *watch.later]
    # As a checkpoint of an earlier release.
    again.load_state_dict({})
    assert again.resumed == []
