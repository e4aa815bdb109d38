"""A table tells what a network takes at any widths, and refuses what it is not of."""

import copy
import json

import numpy as np
import pytest
from torch import nn

from lit_prune.cost import LatencyTable
from lit_prune.cost.profile import LayerTimes, widths_of
from lit_prune.errors import ArgumentError, MissingFileError


def two_layers(constant=0.0, **conditions):
    layers = {
        "0": LayerTimes((3,), (8, 16, 32), [[1.0, 2.0, 3.0]]),
        "2": LayerTimes((8, 16, 32), (4,), [[0.5], [1.0], [1.5]]),
    }
    return LatencyTable(layers, constant, conditions)


def test_between_widths_it_is_in_proportion_and_outside_it_stays():
    layer = LayerTimes((8, 16, 32), (4, 8), [[1.0, 2.0], [2.0, 4.0], [8.0, 8.0]])
    assert layer.at([8, 12, 24, 32], [4, 8, 6, 4]) == pytest.approx([1.0, 3.0, 5.5, 8.0])
    assert layer.at([2, 40], [1, 99]) == pytest.approx([1.0, 8.0])


def test_times_at_measured_widths_are_those():
    rng = np.random.default_rng(0)
    layer = LayerTimes((1, 5, 8, 64), (2, 3, 48), rng.random((4, 3)))
    for row, inputs in enumerate(layer.inputs):
        assert layer.at([inputs] * 3, layer.outputs) == pytest.approx(layer.ms[row])


def test_a_network_takes_what_its_layers_take_and_the_rest():
    table = two_layers(0.25)
    assert table.dense_ms == pytest.approx(3.0 + 1.5 + 0.25)
    assert table.ms({"0": (3, 24), "2": (24, 4)}) == pytest.approx(2.5 + 1.25 + 0.25)


def test_it_is_read_as_it_was_written(tmp_path):
    table = two_layers(0.25, device="a board", threads=2)
    table.save(tmp_path / "deep" / "table.json")
    again = LatencyTable.load(tmp_path / "deep" / "table.json")
    assert (again.constant, again.conditions) == (table.constant, table.conditions)
    assert {name: (each.inputs, each.outputs, each.ms.tolist()) for name, each in again.layers.items()} == {
        name: (each.inputs, each.outputs, each.ms.tolist()) for name, each in table.layers.items()
    }


def test_one_that_was_made_elsewhere_needs_layers_alone(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"layers": {"0": {"in": [3], "out": [8, 16], "ms": [[1, 2]]}}}))
    assert LatencyTable.load(tmp_path / "mine.json").dense_ms == 2.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no latency table"),
        ("[]", "is no latency table"),
        ('{"layers": {}}', "at least one layer"),
        ('{"layers": {"0": {"in": [3], "out": [8]}}}', "is no latency table"),
        ('{"layers": {"0": {"in": [3], "out": [8], "ms": [[1, 2]]}}}', "a column for each of 1 output widths"),
        ('{"layers": {"0": {"in": [3], "out": [8, 4], "ms": [[1, 2]]}}}', "must rise"),
        ('{"layers": {"0": {"in": [3], "out": [8], "ms": [[-1]]}}}', "at least 0"),
        ('{"format": 9, "layers": {"0": {"in": [3], "out": [8], "ms": [[1]]}}}', "format 9"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(ArgumentError, match=message):
        LatencyTable.load(tmp_path / "table.json")


def test_a_missing_file_says_what_makes_one(tmp_path):
    with pytest.raises(MissingFileError, match="lit-prune profile"):
        LatencyTable.load(tmp_path / "none.json")


def test_the_network_is_found_wherever_it_lies():
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    table = two_layers()
    assert table.prefix_in(net) == ""
    holder = nn.Module()
    holder.teacher, holder.inner = nn.Linear(2, 2), nn.ModuleDict({"model": net})
    assert table.prefix_in(holder) == "inner.model."
    holder.old = copy.deepcopy(net)
    assert table.prefix_in(holder) == "old."
    assert table.prefix_in(holder, {"inner.model.0.weight"}) == "inner.model."


def test_another_network_is_refused_by_name():
    with pytest.raises(ArgumentError, match=r"of Net on a board .* does not fit Sequential, which has no layer '2'"):
        two_layers(network="Net", device="a board", runtime="onnxruntime").prefix_in(nn.Sequential(nn.Conv2d(3, 8, 1)))
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3))
    with pytest.raises(ArgumentError, match="layer '0' with up to 3 inputs and 32 outputs, but it has 3 and 64"):
        two_layers().prefix_in(wide)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_widths_are_told_the_same_of_all_layers(kind):
    assert widths_of(kind(8, 16, 3)) == (8, 16)
