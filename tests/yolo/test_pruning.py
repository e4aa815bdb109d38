import subprocess
import sys

import pytest
import torch
from ultralytics import YOLO

from lit_prune import ChannelGraph, shrink_
from lit_prune.criteria import MeanActivation
from lit_prune.errors import PruningError
from lit_prune.schedule import AtSteps
from lit_prune.select import MacsBudget
from lit_prune.yolo import PrunedDetectionTrainer, UltralyticsPruning, build_detector
from lit_prune.yolo.export import export_detector
from tests.yolo.theirs import settings, shapes


def _widths(network) -> list[int]:
    return [network.model[k].conv.out_channels for k in (0, 1, 3)]


def test_a_run_of_ultralytics_prunes_everything_that_it_holds(digits, tmp_path):
    pruning = UltralyticsPruning(amount=0.3, epochs=1)
    yolo = pruning.attach(YOLO("yolov8n.yaml"))
    seen, moved = [], []

    def look(trainer):
        seen.append(_widths(trainer.model))
        assert shapes(trainer.ema.ema) == shapes(trainer.model)
        for parameter, state in trainer.optimizer.state.items():
            assert all(value.shape == parameter.shape for value in state.values() if value.numel() > 1)

    def note_average(trainer):
        if trainer.epoch == 1:
            moved.append(trainer.ema.ema.model[0].conv.weight.clone())

    yolo.add_callback("on_train_epoch_start", note_average)
    yolo.add_callback("on_train_epoch_end", note_average)
    yolo.add_callback("on_train_epoch_end", look)

    yolo.train(epochs=2, nbs=4, **settings(digits, tmp_path))

    assert seen == [[16, 32, 64], [8, 24, 48]]
    assert not torch.equal(*moved)  # the average follows the weights that are left
    assert [event["channels"]["model.1.conv"] for event in pruning.record.events] == [[32, 24]]
    assert yolo.trainer.ema.updates == 4
    code = f"""
import sys
sys.modules["lit_prune"] = None  # importing it would fail
from ultralytics import YOLO
for path in {[str(yolo.trainer.last), str(yolo.trainer.best)]!r}:
    yolo = YOLO(path)
    assert yolo.model.model[1].conv.out_channels == 24, yolo.model.model[1]
yolo({str(digits.parent / "images" / "val")!r}, imgsz=64, verbose=False)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_channels_may_go_by_gradients_and_what_is_left_is_repaired(digits, tmp_path):
    pruning = UltralyticsPruning(amount=0.3, epochs=1, criterion="taylor", selection=MacsBudget("global"), repair=True)
    yolo = pruning.attach(YOLO("yolov8n.yaml"))
    yolo.train(epochs=2, nbs=4, **settings(digits, tmp_path))
    (event,) = pruning.record.events
    assert event["gone"]["macs"] >= 0.3
    shares = event["repair"]
    assert len(shares) > 50
    assert sum(after for _, after in shares.values()) > sum(before for before, _ in shares.values())
    assert shapes(yolo.trainer.ema.ema) == shapes(yolo.trainer.model)
    assert not yolo.trainer.optimizer._optimizer_step_pre_hooks


# Mosaics of few dark scenes on grey are nothing like these.
@pytest.mark.filterwarnings("ignore:Channels are chosen by activations that may tell little")
def test_channels_may_go_by_what_arrives_at_layers(digits, tmp_path):
    pruning = UltralyticsPruning(amount=0.3, epochs=1, criterion=MeanActivation(1, 4), selection="macs")
    yolo = pruning.attach(YOLO("yolov8n.yaml"))
    yolo.train(epochs=2, nbs=4, **settings(digits, tmp_path))
    (event,) = pruning.record.events
    assert event["gone"]["macs"] >= 0.29
    assert shapes(yolo.trainer.ema.ema) == shapes(yolo.trainer.model)


def test_training_on_keeps_a_pruned_network(digits, tmp_path):
    network = build_detector("yolov8n.yaml", num_classes=3).eval()
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    shrink_(network, graph.plan({group.name: list(range(group.size // 4)) for group in graph.groups}))
    path = export_detector(network, tmp_path / "pruned.pt")
    yolo = YOLO(str(path))
    begun = []
    yolo.add_callback("on_train_start", lambda trainer: begun.append(trainer.model.model[5].conv.weight.clone()))

    yolo.train(trainer=PrunedDetectionTrainer, epochs=1, **settings(digits, tmp_path))

    assert torch.equal(begun[0], network.model[5].conv.weight)
    kept, before = shapes(YOLO(str(yolo.trainer.last)).model), shapes(network)
    changed = {name for name in before if kept[name] != before[name]}
    assert changed == {f"model.22.cv3.{level}.2.{end}" for level in range(3) for end in ("weight", "bias")}
    assert yolo.model.names[7] == "7"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [None, PrunedDetectionTrainer])
def test_a_run_that_was_interrupted_goes_on(trainer, digits, tmp_path):
    def interrupt(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    yolo = UltralyticsPruning(0.4, [1, 2]).attach(YOLO("yolov8n.yaml"))
    yolo.callbacks["on_train_epoch_start"].insert(0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(epochs=4, **settings(digits, tmp_path))
    last = yolo.trainer.last
    assert _widths(YOLO(str(last)).model)[1] == 24

    pruning = UltralyticsPruning(0.4, [1, 2])
    again = pruning.attach(YOLO(str(last)))
    again.train(trainer=trainer, resume=True, **settings(digits, tmp_path))

    assert pruning.record.done == [1, 2]
    assert pruning.record.dense.widths["model.1.conv"] == 32
    assert _widths(again.model)[1] == 16
    assert again.trainer.epoch == 3


def test_what_can_not_be_pruned_is_refused(digits, tmp_path):
    yolo = UltralyticsPruning(0.3, 1).attach(YOLO("yolov8n.yaml"))
    with pytest.raises(ValueError, match="goes beyond the run"):
        yolo.train(epochs=1, **settings(digits, tmp_path))

    trainer = yolo.trainer
    trainer.world_size = 2
    with pytest.raises(PruningError, match="can't prune a run with several devices"):
        UltralyticsPruning(0.3, 0).check(trainer)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amount": 1.5}, "amount must be a ratio in"),
        ({"epochs": AtSteps(4)}, "give a schedule of epochs"),
        ({"selection": "clusters"}, "looks at classes"),
        ({"criterion": "magnitud"}, "Did you mean 'magnitude'"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        UltralyticsPruning(**{"amount": 0.3, "epochs": 1, **wrong})


def test_a_file_name_is_nothing_to_attach_to():
    with pytest.raises(TypeError, match=r"write attach\(YOLO\(\.\.\.\)\), not attach\('yolov8n.pt'\)"):
        UltralyticsPruning(amount=0.3, epochs=1).attach("yolov8n.pt")
