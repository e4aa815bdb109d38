"""Every file of configs/ runs as it stands, but short; every argument of the callback can be given from outside."""

import inspect
from pathlib import Path

import pytest
import yaml

from lit_prune import ChannelPruning, Repair
from lit_prune.cli import main, run_trainer
from lit_prune.cost import LatencyTable
from lit_prune.cost.profile import LayerTimes
from lit_prune.criteria import Magnitude
from lit_prune.schedule import Every
from lit_prune.select import MacsBudget, Uniform
from lit_prune.training.recovery import Recovery

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def shortened(path, folder):
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {
        "max_epochs": 2,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
        "default_root_dir": str(folder),
    }
    config["data"]["init_args"] |= {"scenes": 16, "val_scenes": 4, "image_size": 64, "batch_size": 8}
    callback = config["trainer"]["callbacks"][0]["init_args"]
    if isinstance(callback["epochs"], dict):
        callback["epochs"]["init_args"] |= {"every": 1, "first": 1, "times": 1}
    else:
        callback["epochs"] = [1]
    if "calibration" in callback["selection"]["init_args"]:
        # A network that has learned nothing detects nothing.
        calibration = {"batches": 1, "batch_size": 8, "match_iou": None}
        callback["selection"]["init_args"] |= {"embedding": "pca", "calibration": calibration}
    (folder / "short.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "short.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run_trainer(["fit", "--config", shortened(path, tmp_path)])
    (pruning,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, ChannelPruning))
    (event,) = pruning.events
    assert event["params"][1] < event["params"][0]
    blocks = {group.split(".")[2] for group in event["channels"]}
    assert blocks == {"1"} if "block1" in path.stem else len(blocks) > 15


def test_one_of_them_has_every_argument():
    config = yaml.safe_load(next(path for path in CONFIGS if path.stem == "all_arguments").read_text())
    given = set(config["trainer"]["callbacks"][0]["init_args"])
    # Old names are for files that have them already.
    assert given == set(inspect.signature(ChannelPruning).parameters) - {"before_wrap"}


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, "--print_config"])
    assert not stopped.value.code
    return capsys.readouterr().out


def test_print_config_gives_a_file_that_says_the_same(capsys, tmp_path):
    path = next(path for path in CONFIGS if path.stem == "all_arguments")
    first = printed(capsys, "--config", str(path))
    (tmp_path / "again.yaml").write_text(first)
    assert printed(capsys, "--config", str(tmp_path / "again.yaml")) == first
    mine = yaml.safe_load(path.read_text())["trainer"]["callbacks"][0]["init_args"]
    theirs = yaml.safe_load(first)["trainer"]["callbacks"][0]["init_args"]
    assert {name: theirs[name] for name in mine if not isinstance(mine[name], dict)} == {
        name: value for name, value in mine.items() if not isinstance(value, dict)
    }


COMMAND_LINE = {
    "amount": ("0.4", 0.4),
    "epochs": ("[2,4]", [2, 4]),
    "blocks": ('[1,"model.*"]', [1, "model.*"]),
    "criterion": ("batchnorm", "batchnorm"),
    "selection": ("macs", "macs"),
    "exclude": ('["*.dfl.*"]', ["*.dfl.*"]),
    "round_to": ("4", 4),
    "min_channels": ("2", 2),
    "layers_per_event": ("1", 1),
    "recovery": ('{"rewarm_steps": 5}', {"rewarm_steps": 5}),
    "repair": ("true", True),
    "before_wrap": ("true", True),
    "on_error": ("continue", "continue"),
    "verbose": ("false", False),
}


def test_every_argument_on_the_command_line(capsys):
    assert set(COMMAND_LINE) == set(inspect.signature(ChannelPruning).parameters)
    arguments = [f"--trainer.callbacks.{name}={text}" for name, (text, _) in COMMAND_LINE.items()]
    config = yaml.safe_load(printed(capsys, "--trainer.callbacks+=lit_prune.ChannelPruning", *arguments))
    (callback,) = config["trainer"]["callbacks"]
    for name, (_, expected) in COMMAND_LINE.items():
        given = callback["init_args"][name]
        if name == "recovery":
            given = {key: value for key, value in given.get("init_args", given).items() if key in expected}
        assert given == expected, name


def test_a_latency_budget_on_the_command_line(capsys, tmp_path):
    LatencyTable({"0": LayerTimes((3,), (8,), [[1.0]])}, 0.0, {"input": [1, 3, 8, 8]}).save(tmp_path / "device.json")
    config = yaml.safe_load(
        printed(
            capsys,
            "--trainer.callbacks+=lit_prune.ChannelPruning",
            "--trainer.callbacks.amount=null",
            "--trainer.callbacks.epochs=[1]",
            "--trainer.callbacks.selection=lit_prune.select.LatencyBudget",
            f"--trainer.callbacks.selection.table={tmp_path / 'device.json'}",
            "--trainer.callbacks.selection.at_most=8 ms",
            "--trainer.callbacks.selection.runtime=onnxruntime",
        )
    )
    given = config["trainer"]["callbacks"][0]["init_args"]["selection"]["init_args"]
    assert (given["at_most"], given["runtime"]) == ("8 ms", "onnxruntime")


def test_parts_by_class_path_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run_trainer(
        [
            "fit",
            "--data.scenes=8",
            "--data.val_scenes=4",
            "--data.image_size=64",
            "--data.batch_size=4",
            "--trainer.max_epochs=2",
            "--trainer.logger=false",
            "--trainer.enable_checkpointing=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu",
            "--trainer.limit_val_batches=0",
            "--trainer.callbacks+=lit_prune.ChannelPruning",
            "--trainer.callbacks.amount=0.3",
            "--trainer.callbacks.epochs=lit_prune.schedule.Every",
            "--trainer.callbacks.epochs.every=1",
            "--trainer.callbacks.epochs.first=1",
            "--trainer.callbacks.epochs.times=1",
            "--trainer.callbacks.criterion=lit_prune.criteria.Magnitude",
            "--trainer.callbacks.criterion.p=1",
            "--trainer.callbacks.selection=lit_prune.select.MacsBudget",
            "--trainer.callbacks.selection.spread=lit_prune.select.Uniform",
            "--trainer.callbacks.recovery.rewarm_steps=5",
            "--trainer.callbacks.repair=lit_prune.Repair",
            "--trainer.callbacks.repair.batch_size=4",
        ]
    )
    (pruning,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, ChannelPruning))
    assert isinstance(pruning.schedule, Every)
    policy = pruning.pruner.policy
    assert isinstance(policy.criterion, Magnitude)
    assert policy.criterion.p == 1
    assert isinstance(policy.selection, MacsBudget)
    assert isinstance(policy.selection.spread, Uniform)
    assert pruning.pruner.recovery == Recovery(rewarm_steps=5)
    assert pruning.pruner.repair == Repair(batch_size=4)
    assert len(pruning.events) == 1
    assert pruning.events[0]["repair"]
