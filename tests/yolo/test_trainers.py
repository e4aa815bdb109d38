from types import SimpleNamespace

import pytest
import torch
from ultralytics import RTDETR, YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.pose import PoseTrainer

from lit_prune import ArgumentError, ChannelGraph, shrink_
from lit_prune.common.names import count_parameters
from lit_prune.data import write_digits
from lit_prune.errors import PruningError
from lit_prune.yolo import PrunedDetectionTrainer, UltralyticsPruning, build_detector, trainers
from lit_prune.yolo.export import export_detector
from lit_prune.yolo.pruning import STATE
from tests.yolo.theirs import settings, shapes

_NETWORKS = [
    ("detect", "yolov8n.yaml", "PrunedDetectionTrainer"),
    ("segment", "yolov8n-seg.yaml", "PrunedSegmentationTrainer"),
    ("pose", "yolo11n-pose.yaml", "PrunedPoseTrainer"),
    ("obb", "yolo26n-obb.yaml", "PrunedOBBTrainer"),
    ("classify", "yolov8n-cls.yaml", "PrunedClassificationTrainer"),
    ("detect", "yolov8n-rtdetr.yaml", "PrunedRTDETRTrainer"),
]


class _Stop(Exception):
    """Ends a run before its first epoch."""


def _stop(trainer):
    raise _Stop


@pytest.fixture
def written(tmp_path):
    return lambda task: str(write_digits(tmp_path / task, scenes=8, val_scenes=6, image_size=64, task=task))


def _pruned(name, folder):
    """A file of a network without a quarter of its channels, and that network."""
    network = build_detector(name, num_classes=10, kpt_shape=(5, 3) if "-pose" in name else None).eval()
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    shrink_(network, graph.plan({group.name: list(range(group.size // 4)) for group in graph.groups}))
    return str(export_detector(network, folder / "pruned.pt")), network


def _open(name, path):
    return (RTDETR if "rtdetr" in name else YOLO)(path)


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize(("task", "name", "trainer"), _NETWORKS)
def test_a_pruned_file_keeps_its_widths_and_weights(task, name, trainer, attached, written, tmp_path, ultralytics_log):
    path, network = _pruned(name, tmp_path)
    yolo = _open(name, path)
    options = {} if attached else {"trainer": getattr(trainers, trainer)}
    if attached:
        UltralyticsPruning(0.3, 1).attach(yolo)
    yolo.add_callback("on_pretrain_routine_end", _stop)
    ultralytics_log.clear()

    with pytest.raises(_Stop):
        yolo.train(epochs=2, **{**settings(written(task), tmp_path, **options), "verbose": True})

    trained, expected = yolo.trainer.model.state_dict(), network.state_dict()
    assert shapes(yolo.trainer.ema.ema) == shapes(yolo.trainer.model)
    assert all(torch.equal(trained[key], value) for key, value in expected.items())
    # What is shown is what is trained.
    told = [record.getMessage() for record in ultralytics_log.records]
    count = f"{count_parameters(network):,} parameters"
    assert any(f"Pruned widths are kept: {count}, where the dense network has" in line for line in told)
    summaries = [line for line in told if "summary" in line]
    assert len(summaries) == 1
    assert count in summaries[0]
    assert trainers.keeping(yolo.trainer) == trainer


@pytest.mark.parametrize("trainer", [None, PrunedDetectionTrainer])
def test_dense_weights_train_as_always(trainer, digits, tmp_path):
    path = str(export_detector(build_detector("yolov8n.yaml", num_classes=80), tmp_path / "dense.pt"))
    begun = []
    for prunes in (False, True):
        yolo = YOLO(path)
        if prunes and trainer is None:
            UltralyticsPruning(0.3, 1).attach(yolo)
        yolo.add_callback("on_pretrain_routine_end", _stop)
        with pytest.raises(_Stop):
            yolo.train(trainer=trainer if prunes else None, epochs=2, **settings(digits, tmp_path))
        begun.append((yolo.trainer.model.state_dict(), torch.rand(1)))
    plain, ours = begun
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_a_trainer_made_before_the_callbacks_is_refused(digits, tmp_path):
    path, _ = _pruned("yolov8n.yaml", tmp_path)
    options = {"model": path, "epochs": 2, **settings(digits, tmp_path)}
    for kind in (DetectionTrainer, PrunedDetectionTrainer):
        trainer = kind(overrides=options)
        for event, callback in UltralyticsPruning(0.3, 1).callbacks.items():
            trainer.add_callback(event, callback)
        trainer.add_callback("on_pretrain_routine_end", _stop)
        with pytest.raises(PruningError if kind is DetectionTrainer else _Stop) as caught:
            trainer.train()
        if kind is DetectionTrainer:
            message = str(caught.value)
            assert f"{path} is pruned, but this DetectionTrainer has built the dense network" in message
            assert "attach(YOLO(" in message
            assert "make a PrunedDetectionTrainer instead" in message


def test_fused_weights_are_refused(digits, tmp_path):
    path, _ = _pruned("yolov8n.yaml", tmp_path)
    yolo = YOLO(path)
    yolo.fuse()
    with pytest.raises(ValueError, match=r"are pruned, and their normalization is fused .* Load the file again"):
        yolo.train(trainer=PrunedDetectionTrainer, epochs=1, **settings(digits, tmp_path))


def test_weights_of_another_architecture_give_what_fits(digits, tmp_path):
    path, _ = _pruned("yolov8n.yaml", tmp_path)
    yolo = UltralyticsPruning(0.3, 1).attach(YOLO("yolo11n.yaml"))
    yolo.add_callback("on_pretrain_routine_end", _stop)
    with pytest.raises(_Stop):
        yolo.train(pretrained=path, epochs=2, **settings(digits, tmp_path))
    assert shapes(yolo.trainer.model) == shapes(build_detector("yolo11n.yaml", num_classes=10))


def test_a_run_counts_against_the_network_that_it_began_with(digits, tmp_path):
    path, network = _pruned("yolov8n.yaml", tmp_path)
    loaded = YOLO(path)
    # As if an earlier run had pruned it.
    setattr(loaded.model, STATE, {**UltralyticsPruning(0.3, 1).record.state_dict(), "done": [1]})
    pruning = UltralyticsPruning(0.5, 1)
    pruning.attach(loaded).train(epochs=2, **settings(digits, tmp_path))

    (event,) = pruning.record.events
    assert event["params"][0] == count_parameters(network)
    assert pruning.record.dense.widths["model.1.conv"] == 24
    stored = getattr(YOLO(str(loaded.trainer.last)).model, STATE)
    assert stored["done"] == [1]
    assert stored["dense"]["widths"]["model.1.conv"] == 24


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name", "trainer"), _NETWORKS)
def test_an_interrupted_run_of_a_pruned_file_goes_on_without_a_trainer_class(task, name, trainer, written, tmp_path):
    def interrupt(running):
        if running.epoch == 2:
            raise KeyboardInterrupt

    path, network = _pruned(name, tmp_path)
    data = written(task)
    yolo = UltralyticsPruning(0.4, [1, 2]).attach(_open(name, path))
    yolo.callbacks["on_train_epoch_start"].insert(0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(epochs=4, **settings(data, tmp_path))
    before = shapes(yolo.trainer.model)
    begun = []

    pruning = UltralyticsPruning(0.4, [1, 2])
    again = pruning.attach(_open(name, str(yolo.trainer.last)))
    again.add_callback("on_pretrain_routine_end", lambda running: begun.append(shapes(running.model)))
    again.train(resume=True, **settings(data, tmp_path))

    assert begun == [before]
    assert pruning.record.done == [1, 2]
    first, second = (event["params"] for event in pruning.record.events)
    assert first[0] == count_parameters(network)
    assert first[1] == second[0] > second[1]


@pytest.mark.parametrize(("task", "name", "trainer"), _NETWORKS)
@pytest.mark.parametrize("other", ["yolov8n.yaml", "yolov8n-pose.yaml", "yolov8n-rtdetr.yaml"])
def test_a_network_for_another_trainer_is_refused(task, name, trainer, other, tmp_path):
    network = build_detector(other)
    given, kind = type(network).__name__, getattr(trainers, trainer)
    with pytest.raises(ArgumentError, match=rf"{trainer} trains networks of the class \w+, but got one for the task"):
        kind(overrides={"task": "no"})
    built = object.__new__(kind)
    built.args, built.data = SimpleNamespace(task=task), {"nc": 80, "channels": 3, "kpt_shape": [17, 3]}
    if given == type(build_detector(name)).__name__:
        assert type(built.get_model(network.yaml, network, verbose=False)).__name__ == given
    else:
        with pytest.raises(ArgumentError, match=f"{trainer} trains networks of the class .*, but got .* {given}"):
            built.get_model(network.yaml, network)


def test_a_detector_given_to_the_trainer_of_another_task(written, tmp_path):
    path, _ = _pruned("yolov8n.yaml", tmp_path)
    yolo = UltralyticsPruning(0.3, 1).attach(YOLO(path))
    with pytest.raises(ArgumentError, match="PoseTrainer trains networks of the class PoseModel, but got one"):
        yolo.train(epochs=2, **settings(written("pose"), tmp_path, trainer=PoseTrainer))
