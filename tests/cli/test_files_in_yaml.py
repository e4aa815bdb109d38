"""Selections that read a file are told of it by a path in a YAML, wherever they stand in it."""

import json

import pytest
import yaml

from lit_prune.cli import main
from lit_prune.cost import LatencyTable
from lit_prune.cost.profile import LayerTimes

pytestmark = pytest.mark.usefixtures("own_module")


def selections():
    latency = {"class_path": "lit_prune.select.LatencyBudget", "init_args": {"table": "device.json"}}
    limited = {"class_path": "lit_prune.select.Limited", "init_args": {"spread": "global", "limits": "layers.json"}}
    size = {"class_path": "lit_prune.select.SizeBudget", "init_args": {"spread": limited}}
    both = {"class_path": "lit_prune.select.Budgets", "init_args": {"budgets": [latency, size]}}
    return {"latency": latency, "limited": limited, "limited within": size, "several": both}


@pytest.mark.parametrize("name", selections())
def test_a_file_is_read_by_its_selection(name, quiet, capsys):
    LatencyTable({"net.0": LayerTimes((3,), (8, 16, 24, 32), [[1.0, 2.0, 3.0, 4.0]])}).save("device.json")
    layers = {"metric": "loss", "mode": "min", "dense": 1.0, "groups": {"net.0": {"0.75": {"repaired": 1.0}}}}
    with open("layers.json", "w") as file:
        json.dump(layers, file)
    pruning = {"amount": 0.3, "epochs": [1], "round_to": 4, "selection": selections()[name]}
    config = {"trainer": {"callbacks": [{"class_path": "lit_prune.ChannelPruning", "init_args": pruning}]}}
    with open("run.yaml", "w") as file:
        yaml.safe_dump(config, file)
    own = ["--model=mine.Net", "--model.width=32", "--data=mine.Data", "--trainer.max_epochs=2"]
    assert main(["fit", "--config=run.yaml", *quiet, *own]) == 0
    assert "Pruned at epoch 1" in capsys.readouterr().out
