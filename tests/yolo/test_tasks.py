import copy
import shutil
from pathlib import Path

import lightning
import pytest
import torch
from ultralytics import RTDETR, YOLO

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration
from lit_prune.common.names import count_parameters
from lit_prune.data import write_digits
from lit_prune.select import ClusterSelection
from lit_prune.yolo import LitYOLO, UltralyticsPruning, YOLODataModule, build_detector
from lit_prune.yolo.batches import box_targets
from lit_prune.yolo.evaluation import run_network
from lit_prune.yolo.export import export_detector
from lit_prune.yolo.metrics import UltralyticsPrecision
from lit_prune.yolo.tasks import TASKS, task_named, task_of, task_of_head
from lit_prune.yolo.trainers import (
    PrunedClassificationTrainer,
    PrunedDetectionTrainer,
    PrunedOBBTrainer,
    PrunedPoseTrainer,
    PrunedRTDETRTrainer,
    PrunedSegmentationTrainer,
)
from tests.yolo.theirs import settings, shapes

_OF_A_TASK = {
    "segment": "yolov8n-seg.yaml",
    "pose": "yolo11n-pose.yaml",
    "obb": "yolo26n-obb.yaml",
    "classify": "yolov8n-cls.yaml",
}
_FAMILIES = [
    *(("detect", f"{name}.yaml") for name in ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n")),
    ("detect", "yolo26n.yaml"),
    ("detect", "yolov8n-rtdetr.yaml"),
    ("detect", "rtdetr-resnet50.yaml"),
    ("segment", "yolov9c-seg.yaml"),
    *(("segment", f"{name}n-seg.yaml") for name in ("yolo11", "yolo12", "yolo26")),
    *(("pose", f"{name}n-pose.yaml") for name in ("yolov8", "yolo12", "yolo26")),
    *(("obb", f"{name}n-obb.yaml") for name in ("yolov8", "yolo11", "yolo12")),
    *(("classify", f"{name}n-cls.yaml") for name in ("yolo11", "yolo12", "yolo26")),
]
_TRAINERS = {
    "detect": PrunedDetectionTrainer,
    "segment": PrunedSegmentationTrainer,
    "pose": PrunedPoseTrainer,
    "obb": PrunedOBBTrainer,
    "classify": PrunedClassificationTrainer,
}
_NO_AUGMENTATION = {"mosaic": 0.0, "fliplr": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "scale": 0.0}
_NO_AUGMENTATION |= {"translate": 0.0, "erasing": 0.0, "auto_augment": ""}


@pytest.fixture
def written(tmp_path):
    """Writes a data set of a task: 8 and 6 scenes of 64×64, unless it is told another number."""

    def write(task, scenes=8):
        return str(write_digits(tmp_path / task, scenes=scenes, val_scenes=6, image_size=64, task=task))

    return write


def _model(name, **options):
    torch.manual_seed(0)
    keypoints = [5, 3] if "-pose" in name else None
    return LitYOLO(name, num_classes=10, kpt_shape=keypoints, **options)


def _data(path, **options):
    hyperparameters = {"mosaic": 0.0, **options.pop("hyperparameters", {})}
    return YOLODataModule(path, image_size=64, batch_size=4, num_workers=0, hyperparameters=hyperparameters, **options)


def _trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0} | options
    return lightning.Trainer(default_root_dir=tmp_path, **quiet, **options)


def _batch(name, task, path):
    lit = _model(name)
    data = _data(path, task=task, hyperparameters=_NO_AUGMENTATION)
    data.setup("fit")
    return lit, data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)


def _whole_way(name, path, tmp_path):
    """Train, prune, fine-tune, export, and open the file in Ultralytics; both networks."""
    lit, data = _model(name), _data(path)
    dense = count_parameters(lit)
    trainer = _trainer(tmp_path, callbacks=[ChannelPruning(amount=0.3, epochs=1)])
    trainer.fit(lit, data)

    assert count_parameters(lit) < 0.8 * dense
    metrics = trainer.callback_metrics
    assert {"train/loss", "pruning/macs"} <= set(metrics)
    assert all(torch.isfinite(value) for value in metrics.values())
    yolo = YOLO(export_detector(lit.model, tmp_path / "pruned.pt"))
    assert shapes(yolo.model) == shapes(lit.model)
    assert yolo.task == lit.task.name
    scores = yolo.val(**settings(path, tmp_path))
    assert all(0 <= value <= 1 for value in scores.results_dict.values())
    return lit, yolo


@pytest.mark.parametrize("task", _OF_A_TASK)
def test_the_whole_way(task, written, tmp_path):
    lit, yolo = _whole_way(_OF_A_TASK[task], written(task), tmp_path)
    images = torch.rand(2, 3, 64, 64)

    # By default Ultralytics leaves the end-to-end head aside.
    theirs = yolo.predict(images, imgsz=64, conf=0.0, iou=0.7, nms=False, verbose=False)

    # Theirs are of the fused network.
    close = {"atol": 1e-3, "rtol": 1e-4}
    if task == "classify":
        torch.testing.assert_close(torch.stack([each.probs.data for each in theirs]), lit.classify(images), **close)
        return
    ours = lit.detect(images, confidence=0.0)
    if task == "segment":  # they leave out empty masks
        ours = [{name: value[entry["masks"].any((1, 2))] for name, value in entry.items()} for entry in ours]
    for one, other in zip(ours, theirs, strict=True):
        assert len(one["boxes"])
        if task == "obb":
            torch.testing.assert_close(one["scores"], other.obb.conf, **close)
            # Of two with nearly one score either may come first.
            same = torch.isclose(one["rotated"], other.obb.xywhr, **close).all(1)
            assert same.float().mean() > 0.9
            continue
        torch.testing.assert_close(one["scores"], other.boxes.conf, **close)
        torch.testing.assert_close(one["boxes"], other.boxes.xyxy, **close)
        if task == "segment":
            assert one["masks"].shape == (len(one["boxes"]), 64, 64)
            assert (one["masks"] == other.masks.data.bool()).float().mean() > 0.999
        if task == "pose":
            torch.testing.assert_close(one["keypoints"][..., :2].clamp(0, 64), other.keypoints.xy, **close)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), _FAMILIES)
def test_the_whole_way_of_every_family(task, name, written, tmp_path):
    _whole_way(name, written(task), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "name", "trainer"),
    [
        *((task, name, _TRAINERS[task]) for task, name in _OF_A_TASK.items()),
        ("detect", "yolov8n-rtdetr.yaml", PrunedRTDETRTrainer),
    ],
)
def test_ultralytics_own_trainer_prunes_every_task_and_trains_on(task, name, trainer, written, tmp_path):
    path = written(task)
    opener = RTDETR if "rtdetr" in name else YOLO
    dense = count_parameters(opener(name).model)
    pruning = UltralyticsPruning(amount=0.3, epochs=1)
    yolo = pruning.attach(opener(name))

    yolo.train(epochs=2, **settings(path, tmp_path))

    (event,) = pruning.record.events
    before, after = event["params"]
    assert after < 0.8 * before
    again = opener(str(yolo.trainer.last))
    assert count_parameters(again.model) < 0.8 * dense
    widths = shapes(again.model)
    again.train(trainer=trainer, epochs=1, **settings(path, tmp_path))
    assert shapes(again.model) == widths


@pytest.mark.parametrize("task", _OF_A_TASK)
def test_losses_equal_ultralytics_own_to_the_bit(task, written, monkeypatch):
    lit, batch = _batch(_OF_A_TASK[task], task, written(task))
    theirs = copy.deepcopy(lit.model)
    for name in ("log", "log_dict"):
        monkeypatch.setattr(lit, name, lambda *_, **__: None)

    loss = lit.train().training_step(batch, 0)

    assert torch.equal(loss, theirs.train()(batch)[0].sum())


def test_rtdetr_learns_to_denoise(batch, monkeypatch):
    lit = _model("yolov8n-rtdetr.yaml").train()
    for name in ("log", "log_dict"):
        monkeypatch.setattr(lit, name, lambda *_, **__: None)
    theirs = copy.deepcopy(lit.model)

    torch.manual_seed(1)
    loss = lit.training_step(batch, 0)
    torch.manual_seed(1)
    expected = theirs(batch)[0]

    assert torch.equal(loss, expected)
    loss.backward()
    assert lit.model.model[-1].denoising_class_embed.weight.grad.abs().sum() > 0


def test_rtdetr_finds_what_ultralytics_finds(tmp_path):
    lit, images = _model("yolov8n-rtdetr.yaml"), torch.rand(1, 3, 64, 64)
    yolo = YOLO(export_detector(lit.model, tmp_path / "net.pt"))

    (ours,) = lit.detect(images, confidence=0.0)
    (theirs,) = yolo.predict(images, imgsz=64, conf=0.0, verbose=False)

    # Theirs are of the fused network, where queries of nearly one score may change places.
    torch.testing.assert_close(ours["scores"], theirs.boxes.conf, atol=1e-3, rtol=1e-3)
    for box in ours["boxes"][:20]:
        assert (theirs.boxes.xyxy.clamp(0, 64) - box).abs().amax(1).min() < 0.1


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_perfect_answers_are_worth_one(task, written):
    lit, batch = _batch(_OF_A_TASK[task], task, written(task))
    metric = lit.task.metric(lit.model)
    side = batch["img"].shape[-1]

    def found(shift=0):
        for image, entry in enumerate(box_targets(batch)):
            row = batch["batch_idx"] == image
            entry |= {"labels": (entry["labels"] + shift) % 10, "scores": torch.ones(len(entry["labels"]))}
            if task == "segment":
                entry["masks"] = batch["masks"][image] == torch.arange(1, int(row.sum()) + 1)[:, None, None]
            if task == "pose":
                entry["keypoints"] = batch["keypoints"][row] * torch.tensor([side, side, 1])
            if task == "obb":
                entry["rotated"] = batch["bboxes"][row] * torch.tensor([side, side, side, side, 1])
            yield entry

    metric.update(list(found()), batch)
    assert {name: round(float(value), 2) for name, value in metric.compute().items()} == dict.fromkeys(
        ["map", "map_50", *{"segment": ["mask_map", "mask_map_50"], "pose": ["pose_map", "pose_map_50"]}.get(task, [])],
        1.0,
    )
    metric.reset()
    metric.update(list(found(shift=1)), batch)
    assert max(metric.compute().values()) < 0.5


def _classifier(classes):
    return build_detector("yolov8n-cls.yaml", num_classes=classes)


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 12])
def test_accuracy_is_a_plain_count_and_merges(classes):
    one, other = (task_named("classify").metric(_classifier(classes)) for _ in range(2))
    generator = torch.Generator().manual_seed(classes)
    probabilities = torch.rand(40, classes, generator=generator).softmax(1)
    labels = torch.randint(classes, (40, 1), generator=generator).float()
    # In the first batch both counts are the same: the later ones must not be so for that.
    probabilities[:5] = torch.nn.functional.one_hot(labels[:5, 0].long(), classes).float()
    for metric, places in ((one, (range(5), range(5, 23))), (other, (range(23, 39), range(39, 40)))):
        for place in places:
            metric.update(probabilities[place], {"cls": labels[place]})
    for name, metric in one.items():
        metric.merge_state(other[name])

    order = [sorted(range(classes), key=row.__getitem__, reverse=True) for row in probabilities.tolist()]
    ranks = [chosen.index(int(label)) for chosen, label in zip(order, labels, strict=True)]
    expected = {"accuracy": sum(rank < 1 for rank in ranks) / 40, "accuracy_top5": sum(rank < 5 for rank in ranks) / 40}
    assert {name: float(value) for name, value in one.compute().items()} == pytest.approx(expected)


def test_accuracy_counts_the_first_and_the_first_five():
    metric = task_named("classify").metric(_classifier(6))
    shares = torch.tensor([[0.4, 0.3, 0.1, 0.08, 0.07, 0.05]]).repeat(4, 1)
    metric.update(shares, {"cls": torch.tensor([0, 1, 4, 5])})

    assert {name: float(value) for name, value in metric.compute().items()} == {"accuracy": 0.25, "accuracy_top5": 0.75}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", *_OF_A_TASK])
def test_validation_equals_ultralytics_own_and_training_on_there_loses_nothing(task, written, tmp_path):
    # YOLO26's end-to-end head takes longer to learn anything.
    name = {**_OF_A_TASK, "detect": "yolov8n.yaml", "obb": "yolov8n-obb.yaml"}[task]
    path = written(task, scenes=16)
    # What was learnt by heart is found again.
    if task == "classify":
        shutil.rmtree(Path(path) / "val")
        shutil.copytree(Path(path) / "train", Path(path) / "val")
    else:
        file = Path(path)
        file.write_text(file.read_text().replace("val: images/val", "val: images/train"))
    lit, data = _model(name, lr=2e-3), _data(path, hyperparameters=_NO_AUGMENTATION)
    pruning = ChannelPruning(amount=0.3, epochs=20)
    trainer = _trainer(tmp_path, max_epochs=60, limit_val_batches=0, callbacks=[pruning])
    trainer.fit(lit, data)

    if task == "detect":
        # Of boxes torchmetrics is the judge, and counts a little otherwise: one tool for both.
        lit._metric = UltralyticsPrecision(lit.model, "detect.DetectionValidator")
    (ours,) = _trainer(tmp_path).validate(lit, data, verbose=False)

    yolo = YOLO(export_detector(lit.model, tmp_path / "net.pt"))
    options = settings(path, tmp_path, nms=False)
    theirs = yolo.val(**options).results_dict
    keys = {"map": "metrics/mAP50-95(B)", "map_50": "metrics/mAP50(B)"}
    keys |= {"mask_map": "metrics/mAP50-95(M)", "pose_map": "metrics/mAP50-95(P)"}
    keys |= {"accuracy": "metrics/accuracy_top1", "accuracy_top5": "metrics/accuracy_top5"}
    compared = {key: (ours[f"val/{key}"], theirs[name]) for key, name in keys.items() if f"val/{key}" in ours}
    assert compared
    assert max(value for value, _ in compared.values()) > 0.2, compared
    assert all(abs(one - other) <= 0.002 for one, other in compared.values()), compared

    before = shapes(yolo.model)
    gentle = {"epochs": 1, "optimizer": "AdamW", "lr0": 1e-5, "warmup_epochs": 0, "seed": 0}
    yolo.train(trainer=_TRAINERS[task], **options, **gentle, **_NO_AUGMENTATION)
    assert shapes(yolo.model) == before
    later = yolo.val(**options).results_dict
    for key in compared:
        assert later[keys[key]] >= theirs[keys[key]] - 0.05, (key, later, theirs)


@pytest.mark.parametrize("task", _OF_A_TASK)
def test_a_fused_network_finds_the_same(task):
    network = _model(_OF_A_TASK[task]).model
    with torch.no_grad():
        for _ in range(10):
            network(torch.rand(2, 3, 64, 64))  # normalizations that do something
    images = torch.rand(2, 3, 64, 64)
    fused = copy.deepcopy(network.eval()).fuse(verbose=False)

    with torch.no_grad():
        ours, theirs = (run_network(each, images, task_of(each).validation) for each in (network, fused))

    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    for one, other in zip(ours, theirs, strict=True):
        pairs = [(one, other)] if task == "classify" else [(one[name], other[name]) for name in one if name != "masks"]
        for mine, yours in pairs:
            torch.testing.assert_close(mine, yours, atol=1e-3, rtol=1e-4)


def test_another_number_of_classes_and_keypoints_keeps_the_rest(tmp_path):
    network = build_detector("yolo26n-pose.yaml", num_classes=3, kpt_shape=(17, 3))
    path = export_detector(network, tmp_path / "net.pt")

    loaded = build_detector(str(path), num_classes=2, kpt_shape=[5, 2])

    before, after = network.state_dict(), loaded.state_dict()
    changed = {key.split(".", 2)[2] for key in after if not torch.equal(before[key], after[key])}
    assert {name.partition(".")[0] for name in changed} == {
        f"{side}{branch}" for side in ("", "one2one_") for branch in ("cv3", "cv4_kpts", "cv4_sigma")
    }
    assert after["model.23.cv4_kpts.0.weight"].shape[0] == 10
    assert after["model.23.cv3.0.2.weight"].shape[0] == 2
    loaded(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["yolov8n-cls.yaml", "yolov8n-rtdetr.yaml", "yolo26n-seg.yaml"])
def test_another_number_of_classes_of_other_heads(name, tmp_path):
    network = build_detector(name, num_classes=3)
    loaded = build_detector(str(export_detector(network, tmp_path / "net.pt")), num_classes=7)

    before, after = network.state_dict(), loaded.state_dict()
    changed = [key for key in after if before[key].shape != after[key].shape]
    assert changed
    assert all(after[key].shape[0] == 7 and after[key].isfinite().all() for key in changed)
    assert all(torch.equal(before[key], after[key]) for key in after if key not in changed)
    answer = loaded.train()(torch.rand(2, 3, 64, 64))
    assert answer is not None


def test_activations_are_seen_at_rotated_boxes_and_whole_pictures(written):
    lit, batch = _batch("yolov8n-obb.yaml", "obb", written("obb"))
    seen = lit.calibration_batch(batch)
    assert torch.allclose(seen.points, batch["bboxes"][:, :2], atol=1e-5)
    assert (seen.boxes[:, 2:] > seen.boxes[:, :2]).all()

    lit, batch = _batch("yolov8n-cls.yaml", "classify", written("classify"))
    seen = lit.calibration_batch(batch)
    assert seen.points is None
    assert torch.equal(seen.labels, batch["cls"])


def test_pruning_by_clusters_of_activations_of_masks(written, tmp_path):
    lit, data = _model("yolov8n-seg.yaml"), _data(written("segment"))
    pruning = ChannelPruning(
        amount=0.5, epochs=1, blocks=[1], selection=ClusterSelection(calibration=Calibration(batches=2, match_iou=None))
    )
    _trainer(tmp_path, callbacks=[pruning], limit_val_batches=0).fit(lit, data)

    assert lit.model.model[1].conv.out_channels < 32


def test_every_head_has_one_row():
    heads = [head for task in TASKS for head in task.heads]
    assert len(set(heads)) == len(heads)
    assert task_of_head("Depth") is None
    with pytest.raises(ValueError, match=r"task must be one of 'detect', 'segment', .* but got 'boxes'"):
        task_named("boxes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "yolov8n.yaml", "kpt_shape": [5, 3]}, "kpt_shape is for pose networks, but 'yolov8n.yaml' has"),
        ({"model": "yolov8n-pose.yaml", "kpt_shape": [5, 4]}, "kpt_shape must be the number of keypoints"),
        ({"model": "yolo26n-depth.yaml"}, "the head of 'yolo26n-depth.yaml' is Depth"),
    ],
)
def test_wrong_models(arguments, message):
    with pytest.raises(ValueError, match=message):
        LitYOLO(**arguments)


def test_what_does_not_belong_together(written, tmp_path):
    path = written("pose")
    with pytest.raises(ValueError, match=r"has kpt_shape \[5, 3\], but the network has \[17, 3\]: give the model"):
        _trainer(tmp_path).fit(LitYOLO("yolov8n-pose.yaml", num_classes=10), _data(path))
    with pytest.raises(ValueError, match="The network's task is pose, but the data is for detect"):
        _trainer(tmp_path).fit(_model("yolov8n-pose.yaml"), _data(path, task="detect"))
    lit, batch = _batch("yolov8n-pose.yaml", "pose", path)
    del batch["keypoints"]
    with pytest.raises(ValueError, match="lacks keypoints"):
        lit.training_step(batch, 0)
    with pytest.raises(ValueError, match="classifies whole images"):
        _model("yolov8n-cls.yaml").detect(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="task is pose, which finds objects: use `detect`"):
        lit.classify(torch.rand(1, 3, 64, 64))
