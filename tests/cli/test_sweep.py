"""`lit-prune sweep`: each point is what its own run would give, and work is neither lost nor done twice."""

import json
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from lit_prune.cli import main, run_trainer

PRUNING = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.5", "--trainer.callbacks.epochs=[1,3]"]
BUDGET = ["--trainer.callbacks.selection=lit_prune.select.MacsBudget"]


@pytest.fixture
def mine(own_module, quiet) -> list[str]:
    return [*quiet, "--model=mine.Net", "--model.width=32", "--data=mine.Data", "--seed_everything=1"]


@pytest.fixture
def trained(mine) -> list[str]:
    """Arguments that begin with a trained network."""
    run_trainer(["fit", *mine, "--trainer.max_epochs=1", "--trainer.default_root_dir=run"])
    (path,) = map(str, Path("run").rglob("*.ckpt"))
    return [*mine, *PRUNING, f"--ckpt_path={path}"]


def swept(*arguments: str) -> dict:
    assert main(["sweep", *arguments]) == 0
    return json.loads(Path("sweep", "sweep.json").read_text())


def test_a_curve_with_its_networks(trained, capsys):
    result = swept(*trained, "--amounts", "0.25", "0.5")

    points = {point["amount"]: point for point in result["points"]}
    assert [point["amount"] for point in result["points"]] == ["dense", "0.25", "0.5"]
    assert [points[name]["channels"] for name in points] == [32, 24, 16]
    assert result["metric"] == "loss"
    for name, point in points.items():
        checkpoint = [f"--ckpt_path={Path('sweep', point['checkpoint'])}"] if name != "dense" else []
        cli = run_trainer(["validate", *trained, *checkpoint])
        assert float(cli.trainer.callback_metrics["loss"]) == pytest.approx(point["metrics"]["loss"], abs=1e-6)
        assert cli.model.net[0].out_channels == point["channels"]
    assert Path("sweep", "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert "3 of 3 points are there" in capsys.readouterr().out


def test_it_begins_with_the_trained_weights(trained):
    weights = torch.load(trained[-1].partition("=")[2], weights_only=True)["state_dict"]
    swept(*trained, "--amounts", "0.5")
    left = torch.load("sweep/0.5/cut.ckpt", weights_only=True)
    kept = left["callbacks"]["ChannelPruning"]["plan"]["kept"]["net.0.weight"][0]
    assert torch.equal(left["state_dict"]["net.0.weight"], weights["net.0.weight"][torch.as_tensor(kept)])


def test_what_is_there_is_not_made_again(trained):
    swept(*trained, "--amounts", "0.25", "0.5")
    whole, lost = Path("sweep/0.25/point.json"), Path("sweep/0.5/point.json")
    before = whole.stat().st_mtime_ns
    lost.unlink()
    result = swept(*trained, "--amounts", "0.25", "0.5", "0.75")
    assert whole.stat().st_mtime_ns == before
    assert [point["amount"] for point in result["points"]] == ["dense", "0.25", "0.5", "0.75"]


def test_what_another_process_is_at_is_left_to_it(trained, capsys):
    Path("sweep/0.5").mkdir(parents=True)
    with FileLock("sweep/0.5/in_work.lock"):
        result = swept(*trained, "--amounts", "0.5", "0.25")
    assert [point["amount"] for point in result["points"]] == ["dense", "0.25"]
    shown = capsys.readouterr().out
    assert "0.5: another process is at it." in shown
    assert "2 of 3 points are there" in shown


def test_networks_are_trained_on_if_asked_for(trained):
    swept(*trained, "--amounts", "0.5", "--epochs", "2")
    for name, width in (("dense", 32), ("0.5", 16)):
        left = torch.load(f"sweep/{name}/trained.ckpt", weights_only=True)
        # Two batches an epoch, whether or not it was cut before.
        assert left["global_step"] == 4
        assert len(left["state_dict"]["net.0.weight"]) == width
    cli = run_trainer(["validate", *trained, "--ckpt_path=sweep/0.5/trained.ckpt"])
    assert cli.model.net[0].out_channels == 16


def test_limits_of_a_budget_and_what_is_out_of_reach(trained, capsys):
    result = swept(*trained, *BUDGET, "--amounts", "90 kMACs", "1 MACs")
    assert [point["amount"] for point in result["points"]] == ["dense", "90 kMACs"]
    assert result["points"][1]["macs"] <= 90_000 < result["points"][0]["macs"]
    assert "out of reach" in result["failed"][0]["failed"]
    assert "1 MACs: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amounts", "0.5", "0.5"], "Each amount is to be given once"),
        (["--amounts", "8 ms"], "needs a budget with a class path"),
        (["--amounts", "1.5"], "An amount is a ratio in (0, 1)"),
        (["--amounts", "0.5", "train.yaml"], "but is 'train.yaml'"),
        (["--amounts", "0.5", "--out", "mine.py"], "can't be a folder"),
        (["--amounts", "0.5", "--metric", "los"], "'los' is not logged. Did you mean 'loss'?"),
        (["--amounts", "0.5", "--epochs", "-1"], "epochs"),
        (["--amounts", "0.5", "--model.lrr", "1"], "lrr"),
        (["--amounts", "0.5", "--ckpt_path", "none.ckpt"], "no checkpoint 'none.ckpt'"),
    ],
)
def test_what_is_wrong_is_told(arguments, message, mine, capsys):
    assert main(["sweep", *mine, *PRUNING, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("selection", "amounts", "message"),
    [
        (["MacsBudget"], ["0.5", "90 kMACs", "8 ms"], "at_most must be in MACs"),
        (["MacsBudget", "--trainer.callbacks.selection.at_most=1"], ["90 kMACs", "0.5"], "says by itself how far"),
        (["NamedWidths", "--trainer.callbacks.selection.widths={net.0: 8}"], ["0.5"], "says by itself how far"),
        (["Weighted", "--trainer.callbacks.selection.factors={net.0: 2}"], ["90 kMACs"], "needs a budget with a class"),
    ],
)
def test_what_a_selection_does_not_take_is_told_before_anything_is_measured(
    selection, amounts, message, trained, capsys
):
    name, *rest = selection
    chosen = [f"--trainer.callbacks.selection=lit_prune.select.{name}", *rest]
    assert main(["sweep", *trained, *chosen, "--amounts", *amounts]) == 2
    assert message in capsys.readouterr().err
    assert not any(Path("sweep").rglob("*.*"))


def test_amounts_that_are_all_out_of_reach_are_an_error(trained, capsys):
    assert main(["sweep", *trained, *BUDGET, "--amounts", "1 MACs"]) == 2
    assert "No amount could be cut" in capsys.readouterr().err


def test_a_folder_is_free_until_a_point_is_made(trained):
    assert main(["sweep", "none.yaml", "--amounts", "0.5"]) == 2
    swept(*trained, "--amounts", "0.5")


@pytest.mark.parametrize("callback", ["lightning.pytorch.callbacks.StochasticWeightAveraging", "LearningRateMonitor"])
def test_training_on_beside_other_callbacks(callback, trained):
    more = [f"--trainer.callbacks+={callback}"]
    more += ["--trainer.callbacks.swa_lrs=0.01"] if "Averaging" in callback else []
    # Arguments of a callback go to the last one.
    swept(*trained, *more, "--amounts", "0.5", "--epochs", "2", "--trainer.max_steps=1")
    # Older releases' averaging leaves a function in its checkpoints.
    assert torch.load("sweep/0.5/trained.ckpt", weights_only=False)["global_step"] == 4


def test_a_folder_of_another_sweep_and_a_network_that_was_cut_are_refused(trained, capsys):
    swept(*trained, "--amounts", "0.5")
    assert main(["sweep", *trained, "--amounts", "0.5", "--epochs", "1"]) == 2
    assert "give another folder by --out" in capsys.readouterr().err
    assert main(["sweep", *trained, "--amounts", "0.25", "--ckpt_path=sweep/0.5/cut.ckpt", "--out=again"]) == 2
    assert "has been pruned already" in capsys.readouterr().err
