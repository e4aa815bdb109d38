"""Ultralytics' trainer as a host: events are transactions, are taken back, and rehearsed, as under Lightning."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from lit_prune.errors import HalfPrunedError, PruningError, RehearsalError
from lit_prune.policy.steps import AFTER, BEFORE
from lit_prune.training.recovery import Recovery
from lit_prune.yolo import UltralyticsPruning
from tests.training.test_transaction import Injection
from tests.yolo.theirs import settings, shapes

WITHOUT_DATA = [step for step in BEFORE if step != "measure"]


def state_of(trainer):
    state = trainer.optimizer.state
    return copy.deepcopy(
        {
            "weights": dict(trainer.model.named_parameters()),
            "buffers": dict(trainer.model.named_buffers()),
            "average": trainer.ema.ema.state_dict(),
            "updates": trainer.ema.updates,
            "optimizer": {name: state[p] for name, p in trainer.model.named_parameters() if p in state},
            "random": torch.get_rng_state(),
            "best": trainer.best_fitness,
        }
    )


@pytest.fixture(scope="module")
def interrupted(_digits_folder, tmp_path_factory):
    """A run that stands before its event, and the pruning that is attached to it."""
    digits = Path(shutil.copytree(_digits_folder, tmp_path_factory.mktemp("data") / "digits")) / "data.yaml"
    pruning = UltralyticsPruning(0.3, 1, recovery=Recovery(max_drop=9.0, monitor="fitness", rewarm_steps=2))
    yolo = pruning.attach(YOLO("yolov8n.yaml"))

    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    yolo.callbacks["on_train_epoch_start"].insert(0, stop)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(epochs=3, **settings(digits, tmp_path_factory.mktemp("run")))
    return pruning, yolo.trainer


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", WITHOUT_DATA)
def test_before_the_cut_all_is_as_it_was(interrupted, monkeypatch, step, when):
    pruning, trainer = interrupted
    before = state_of(trainer)
    Injection(monkeypatch, step, when)
    with pytest.raises(PruningError, match=rf"Pruning at epoch 1 failed, and the network is as it was\. no .*{step}"):
        pruning.prune_if_due(trainer)
    torch.testing.assert_close(state_of(trainer), before, rtol=0, atol=0, equal_nan=True)
    assert pruning.record.events == []


@pytest.mark.parametrize("step", [pytest.param(s, marks=[] if s == "unwrap" else pytest.mark.slow) for s in AFTER])
def test_after_it_the_run_ends_and_names_the_checkpoint(digits, tmp_path, monkeypatch, step):
    injection = Injection(monkeypatch, step, "after")
    yolo = UltralyticsPruning(0.3, 1, on_error="continue").attach(YOLO("yolov8n.yaml"))
    with pytest.raises(HalfPrunedError, match=f"being pruned at epoch 1.*Resume from .*last.pt. no more after {step}"):
        yolo.train(epochs=2, **settings(digits, tmp_path))
    assert injection.seen == [*WITHOUT_DATA, *AFTER][: len(injection.seen)]


def test_an_event_that_costs_too_much_is_taken_back_in_the_files_too(digits, tmp_path, monkeypatch):
    scores = iter([0.9, 0.5, 0.4])
    pruning = UltralyticsPruning(0.3, 1, recovery=Recovery(max_drop=0.1, monitor="fitness"))
    yolo = pruning.attach(YOLO("yolov8n.yaml"))

    def score(trainer):
        trainer.fitness = next(scores, 0.4)

    yolo.callbacks["on_fit_epoch_end"].insert(0, score)
    with pytest.warns(UserWarning, match="epoch 1 was taken back: fitness went from 0.9 to 0.5"):
        yolo.train(epochs=2, **settings(digits, tmp_path))
    assert pruning.record.events[0]["taken_back"]
    dense = shapes(YOLO("yolov8n.yaml").model)
    for file in (yolo.trainer.last, yolo.trainer.best):
        saved = shapes(YOLO(str(file)).model)
        assert saved["model.1.conv.weight"] == dense["model.1.conv.weight"]


def test_what_can_be_known_is_known_before_the_first_epoch(digits, tmp_path):
    yolo = UltralyticsPruning(0.995, [1, 2], selection="macs").attach(YOLO("yolov8n.yaml"))
    with pytest.raises(RehearsalError, match=r"Event 2 of 2 \(epoch 2\) can't be carried out.*out of reach"):
        yolo.train(epochs=3, **settings(digits, tmp_path))
