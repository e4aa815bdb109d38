"""A criterion that holds others is written in a YAML, and on a command line, by their names or their classes."""

import pytest
import yaml

from lit_prune.cli import main

pytestmark = pytest.mark.usefixtures("own_module")
OWN = ["--model=mine.Net", "--model.width=32", "--data=mine.Data", "--trainer.max_epochs=2"]


def class_of(name, **arguments):
    return {"class_path": f"lit_prune.criteria.{name}", "init_args": arguments}


@pytest.mark.parametrize(
    "parts",
    [
        {"layers": "lamp", "channels": "obs"},
        {"layers": class_of("Magnitude", p=1.0), "channels": class_of("OptimalBrainSurgeon", batches=2)},
        {"layers": class_of("Combined", layers="lamp", channels="random"), "channels": "taylor"},
    ],
)
def test_in_a_yaml(parts, quiet, capsys):
    pruning = {"amount": 0.3, "epochs": [1], "round_to": 4, "criterion": class_of("Combined", **parts)}
    config = {"trainer": {"callbacks": [{"class_path": "lit_prune.ChannelPruning", "init_args": pruning}]}}
    with open("run.yaml", "w") as file:
        yaml.safe_dump(config, file)
    assert main(["fit", "--config=run.yaml", *quiet, *OWN]) == 0
    assert "Pruned at epoch 1" in capsys.readouterr().out


def test_on_a_command_line(quiet, capsys):
    given = ["--trainer.callbacks+=lit_prune.ChannelPruning", "--trainer.callbacks.amount=0.3"]
    given += ["--trainer.callbacks.epochs=[1]", "--trainer.callbacks.criterion=lit_prune.criteria.Combined"]
    given += ["--trainer.callbacks.criterion.layers=lamp", "--trainer.callbacks.criterion.channels=obs"]
    assert main(["fit", *quiet, *OWN, *given]) == 0
    assert "Pruned at epoch 1" in capsys.readouterr().out
    assert main(["fit", *quiet, *OWN, *given[:-1], "--trainer.callbacks.criterion.channels=oobs"]) == 2
    assert "channels='oobs' is not known" in capsys.readouterr().err
