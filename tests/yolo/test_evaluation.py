import pytest
import torch

from lit_prune.yolo import build_detector
from lit_prune.yolo.batches import box_targets
from lit_prune.yolo.evaluation import find_objects
from lit_prune.yolo.metrics import mean_average_precision


class _Answers(torch.nn.Module):
    """Stands in for a network: says the same whatever it sees."""

    def __init__(self, rows: torch.Tensor, nc: int, end2end: bool) -> None:
        super().__init__()
        self.rows, self.end2end = rows, end2end
        self.stride = torch.tensor([32.0])
        head = type("Detect", (torch.nn.Identity,), {})()
        head.nc, head.shape = nc, (1, 2)
        self.model = torch.nn.ModuleList([head])

    def forward(self, images):
        return self.rows, None


def test_mean_average_precision_of_perfect_answers_is_one(batch):
    truth = box_targets(batch)
    metric = mean_average_precision()
    metric.update([entry | {"scores": torch.ones(len(entry["labels"]))} for entry in truth], truth)

    values = metric.compute()
    assert values["map"] == pytest.approx(1)
    assert values["map_50"] == pytest.approx(1)


def test_mean_average_precision_of_wrong_classes_is_zero(batch):
    truth = box_targets(batch)
    wrong = [
        {"boxes": t["boxes"], "labels": (t["labels"] + 1) % 10, "scores": torch.ones(len(t["labels"]))} for t in truth
    ]
    metric = mean_average_precision()
    metric.update(wrong, truth)

    assert metric.compute()["map"] < 0.3


def test_suppression_keeps_the_better_of_two_boxes_and_clips():
    # Anchors as (x, y, w, h, scores of two classes).
    anchors = torch.tensor(
        [[10, 10, 16, 16, 0.9, 0.0], [11, 10, 16, 16, 0.8, 0.0], [60, 60, 20, 20, 0.0, 0.7], [30, 30, 4, 4, 0.1, 0.1]]
    ).float()
    network = _Answers(anchors.T[None], nc=2, end2end=False)

    (found,) = find_objects(network, torch.zeros(1, 3, 64, 64), confidence=0.25, iou=0.5)

    assert found["boxes"].tolist() == [[2, 2, 18, 18], [50, 50, 64, 64]]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert found["labels"].tolist() == [0, 1]
    assert network.model[-1].shape is None


def test_end_to_end_answers_are_not_suppressed():
    rows = torch.tensor([[[2, 2, 18, 18, 0.9, 0], [3, 2, 19, 18, 0.8, 0], [1, 1, 5, 5, 0.1, 1]]]).float()
    network = _Answers(rows, nc=2, end2end=True)

    (found,) = find_objects(network, torch.zeros(1, 3, 64, 64), confidence=0.25, iou=0.5)

    assert found["boxes"].tolist() == [[2, 2, 18, 18], [3, 2, 19, 18]]


def test_one_box_of_several_classes_only_where_asked():
    anchors = torch.tensor([[10, 10, 16, 16, 0.9, 0.6]])
    network = _Answers(anchors.T[None], nc=2, end2end=False)
    images = torch.zeros(1, 3, 64, 64)

    once = find_objects(network, images, confidence=0.25, iou=0.5)
    both = find_objects(network, images, confidence=0.25, iou=0.5, multi_label=True)

    assert once[0]["labels"].tolist() == [0]
    assert both[0]["labels"].tolist() == [0, 1]
    assert len(find_objects(network, images, confidence=0.25, iou=0.5, multi_label=True, limit=1)[0]["labels"]) == 1


def test_detections_equal_ultralytics_own_predictor(tmp_path):
    from ultralytics import YOLO

    network = build_detector("yolov8n.yaml", num_classes=2)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(100):
            network(images)  # normalizations learn the statistics of the images
    network.eval()
    for branch in (*network.model[-1].cv2, *network.model[-1].cv3):
        # An untrained network says nearly the same everywhere, and ties have no order.
        torch.nn.init.normal_(branch[-1].weight, std=1)
        torch.nn.init.zeros_(branch[-1].bias)
    path = tmp_path / "net.pt"
    torch.save({"model": network, "train_args": {}}, path)
    with torch.no_grad():
        found = find_objects(network, images, confidence=0.25, iou=0.7)

    expected = YOLO(path)(images, imgsz=64, conf=0.25, iou=0.7, verbose=False, device="cpu")

    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine["scores"]) == len(theirs.boxes) > 0
        torch.testing.assert_close(mine["boxes"], theirs.boxes.xyxy, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(mine["scores"], theirs.boxes.conf, atol=1e-4, rtol=1e-3)
        assert mine["labels"].tolist() == theirs.boxes.cls.long().tolist()
