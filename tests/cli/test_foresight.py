"""`lit-prune plan`: what it tells is what a run does, and nothing else happens."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lit_prune import ChannelPruning, PruningPlan
from lit_prune.cli import main, run_trainer
from lit_prune.cli.foresight import AllIsSeen, Foresight
from lit_prune.cost.profile import LatencyTable, LayerTimes
from tests.toys import Classifier, fitted

PRUNING = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.5", "--trainer.callbacks.epochs=[1,3]"]
LONG = ["--trainer.max_epochs=5"]


@pytest.fixture
def mine(own_module, quiet) -> list[str]:
    return [*quiet, "--model=mine.Net", "--model.width=32", "--data=mine.Data", "--seed_everything=1"]


def _planned(*arguments: str) -> dict:
    assert main(["plan", *arguments, "--out=plan.json"]) == 0
    return json.loads(Path("plan.json").read_text())


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("selection", ["uniform", "macs"])
def test_a_run_that_learns_nothing_does_what_was_planned(criterion, selection, mine):
    how = [f"--trainer.callbacks.criterion={criterion}", f"--trainer.callbacks.selection={selection}"]
    arguments = [*mine, *PRUNING, *how, *LONG]

    planned = _planned(*arguments)

    events = (
        run_trainer(["fit", *arguments, "--model.lr=0", "--trainer.default_root_dir=run"]).trainer.callbacks[0].events
    )
    assert [event["at"] for event in planned["events"]] == ["epoch 1", "epoch 3"]
    for foretold, event in zip(planned["events"], events, strict=True):
        assert foretold["widths"] == {name: width for name, (_, width) in event["channels"].items()}
        assert [foretold[cost] for cost in ("params", "macs")] == [event[cost][1] for cost in ("params", "macs")]
    assert planned["dense"]["widths"] == {"net.0": 32}


def test_it_is_printed_and_nothing_is_written(mine, capsys):
    before = {*Path().rglob("*")}

    assert main(["plan", *mine, *PRUNING, *LONG]) == 0
    assert {path for path in Path().rglob("*") if "__pycache__" not in path.parts} == before
    shown = capsys.readouterr().out
    assert "What would be left" in shown
    assert "epoch 3" in shown
    assert "16" in shown


def test_by_a_file_with_all_that_belongs_to_a_training(mine):
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "loss"}},
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "loss"}},
        {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
        {
            "class_path": "lit_prune.ChannelPruning",
            "init_args": {"amount": 0.5, "epochs": 2, "recovery": {"max_drop": 0.1, "monitor": "loss", "mode": "min"}},
        },
    ]
    trainer = {"max_epochs": 4, "devices": 64, "strategy": "ddp", "callbacks": callbacks, "log_every_n_steps": 1}
    model = {"class_path": "mine.Net", "init_args": {"width": 32}}
    config = {"trainer": trainer, "model": model, "data": {"class_path": "mine.Data"}, "ckpt_path": None}
    Path("train.yaml").write_text(yaml.safe_dump(config))
    assert _planned("train.yaml")["events"][0]["channels"] == 16


def test_a_schedule_in_steps_and_gradients_over_short_epochs(mine):
    schedule = ["--trainer.callbacks.epochs=lit_prune.schedule.AtSteps", "--trainer.callbacks.epochs.steps=[1,3,6]"]
    amount = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.75"]
    pruning = [*amount, *schedule, "--trainer.callbacks.criterion=taylor", *LONG]
    planned = _planned(*mine, *pruning)
    assert [event["at"] for event in planned["events"]] == ["step 1", "step 3", "step 6"]
    assert [event["channels"] for event in planned["events"]] == [24, 16, 8]


def test_latency_by_a_table(mine):
    times = {"net.0": LayerTimes((3,), (8, 32), [[1.0, 4.0]]), "net.4": LayerTimes((8, 32), (10,), [[0.5], [0.5]])}
    LatencyTable(times).save("device.json")
    planned = _planned(*mine, *PRUNING, *LONG, "--table=device.json")
    stages = [planned["dense"], *planned["events"]]
    assert [stage["latency_ms"] for stage in stages] == pytest.approx([4.5, 3.5, 2.5])


def test_events_of_a_run_that_goes_on_are_told_too(mine):
    arguments = [*mine, *PRUNING]
    run_trainer(["fit", *arguments, "--trainer.max_epochs=4", "--trainer.default_root_dir=run"])
    (path,) = map(str, Path("run").rglob("*.ckpt"))
    longer = ["--trainer.callbacks.epochs=[1,3,6]", "--trainer.callbacks.amount=0.75", "--trainer.max_epochs=8"]
    planned = _planned(*arguments, *longer, f"--ckpt_path={path}")
    assert [(event["at"], event["channels"]) for event in planned["events"]] == [
        ("epoch 1", 24),
        ("epoch 3", 16),
        ("epoch 6", 8),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing would be pruned: no ChannelPruning"),
        ([*PRUNING, "--trainer.max_epochs=2"], "goes beyond the run, which has 2 epochs"),
        ([*PRUNING, *LONG, "--trainer.callbacks.round_to=64"], "Lower `round_to`"),
        ([*PRUNING, *LONG, "--table=none.json"], "no latency table 'none.json'"),
    ],
)
def test_what_a_run_would_refuse_is_refused(arguments, message, mine, capsys):
    assert main(["plan", *mine, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_over_can_be_planned_from(mine):
    run_trainer(["fit", *mine, "--trainer.max_epochs=4", "--trainer.default_root_dir=run"])
    (path,) = map(str, Path("run").rglob("*.ckpt"))
    planned = _planned(*mine, *PRUNING, "--trainer.max_epochs=4", f"--ckpt_path={path}")
    assert [event["at"] for event in planned["events"]] == ["epoch 1", "epoch 3"]


def test_a_cut_that_looks_ahead_leaves_the_values_of_what_stays(tmp_path):
    torch.manual_seed(0)
    dense = Classifier().state_dict()
    foresight = Foresight(save=tmp_path / "cut.ckpt")
    with pytest.raises(AllIsSeen):
        fitted(foresight, ChannelPruning(0.5, [1, 2], criterion="taylor", round_to=1, verbose=False))
    left = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    plan = PruningPlan.from_state_dict(left["callbacks"]["ChannelPruning"]["plan"])
    assert plan
    for name, value in left["state_dict"].items():
        expected = dense[name]
        for dim, kept in plan.kept.get(name, {}).items():
            expected = expected.index_select(dim, kept)
        assert torch.equal(value, expected), name


class Scheduled(Classifier):
    """One that steps by itself, and its schedule too."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def test_steps_of_the_users_own_change_nothing_either():
    pruning = ChannelPruning(0.5, [1], criterion="taylor", round_to=1, verbose=False)
    foresight = Foresight()
    with pytest.raises(AllIsSeen):
        fitted(foresight, pruning, kind=Scheduled)
    assert len(foresight.foreseen["events"]) == 1
