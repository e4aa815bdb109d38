import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from lit_prune.activations import CalibrationBatch, read_batch
from lit_prune.activations.objects import matched, observe


def yolo_batch(objects=200, images=6, height=96, width=160, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(objects, 2, generator=generator)
    extent = torch.rand(objects, 2, generator=generator) * 0.4 + 0.02
    return {
        "img": torch.rand(images, 3, height, width, generator=generator),
        "batch_idx": torch.randint(images, (objects,), generator=generator).float(),
        "cls": torch.randint(classes, (objects, 1), generator=generator).float(),
        "bboxes": torch.cat([centre, extent], dim=1),
    }


@pytest.mark.parametrize("stride", [1, 2, 8, 16, 32])
def test_activation_at_the_centre(stride):
    batch = yolo_batch()
    # Centres on the edge of two cells, on the edge of the image, and beyond it.
    batch["bboxes"][:5, :2] = torch.tensor([[0.2, 1 / 3], [0.4, 2 / 3], [0.0, 0.0], [1.0, 1.0], [1.01, -0.01]])
    height, width = batch["img"].shape[2:]
    output = torch.rand(6, 5, height // stride, width // stride)
    found = observe(nn.Conv2d(3, 5, 1), output, read_batch(batch))
    for index in range(len(found)):
        x, y = (float(np.float64(share)) for share in batch["bboxes"][index, :2].numpy())
        row = min(max(math.floor(y * height / stride), 0), height // stride - 1)
        column = min(max(math.floor(x * width / stride), 0), width // stride - 1)
        expected = output[int(batch["batch_idx"][index]), :, row, column]
        assert torch.equal(found[index], expected)


def test_yolo_batches_are_read():
    raw = yolo_batch()
    batch = read_batch(raw)
    assert batch.inputs[0] is raw["img"]
    assert batch.labels.dtype == batch.images.dtype == torch.int64
    assert torch.equal(batch.labels, raw["cls"][:, 0].long())
    torch.testing.assert_close(batch.boxes[:, 2:] - batch.boxes[:, :2], raw["bboxes"][:, 2:])
    torch.testing.assert_close(batch.boxes.reshape(-1, 2, 2).mean(1), raw["bboxes"][:, :2])
    as_bytes = {**raw, "img": (raw["img"] * 255).byte()}
    assert read_batch(as_bytes).inputs[0].max() <= 1


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 0.9])
def test_matching_equals_torchvision(iou):
    raw = yolo_batch(seed=1)
    batch = read_batch(raw)
    height, width = raw["img"].shape[2:]
    scale = torch.tensor([width, height, width, height])
    generator = torch.Generator().manual_seed(2)
    detections = []
    for image in range(6):
        mine = batch.images == image
        boxes = batch.boxes[mine] * scale + torch.randn(int(mine.sum()), 4, generator=generator) * 3
        labels = batch.labels[mine].clone()
        labels[::4] = (labels[::4] + 1) % 4
        number = 0 if image == 3 else len(boxes)
        detections.append({"boxes": boxes[:number], "labels": labels[:number], "scores": torch.rand(number)})
    found = matched(batch, detections, iou)
    for index in range(len(batch)):
        there = detections[int(batch.images[index])]
        overlaps = box_iou(batch.boxes[index : index + 1] * scale, there["boxes"])[0]
        assert bool(found[index]) == bool(((overlaps > iou) & (there["labels"] == batch.labels[index])).any())
    assert 0 < found.sum() < len(batch)


def test_an_overlap_of_exactly_the_limit_does_not_count():
    batch = CalibrationBatch(
        (torch.zeros(1, 3, 64, 64),),
        labels=torch.tensor([0]),
        images=torch.tensor([0]),
        boxes=torch.tensor([[0.0, 0.0, 0.5, 0.5]]),
    )
    half = [{"boxes": torch.tensor([[0.0, 0.0, 32.0, 16.0]]), "labels": torch.tensor([0])}]
    assert matched(batch, half, 0.5).tolist() == [False]
    assert matched(batch, half, 0.49).tolist() == [True]


def test_matching_needs_boxes_and_all_images():
    batch = read_batch(yolo_batch())
    with pytest.raises(ValueError, match="each of 6 images, but there are 1 dicts"):
        matched(batch, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}], 0.5)
    with pytest.raises(ValueError, match="no boxes"):
        matched(read_batch((torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))), [{}, {}], 0.5)


@pytest.mark.parametrize(
    ("module", "shape", "axes", "channels"),
    [
        (nn.Conv2d(3, 5, 1), (4, 5, 6, 7), (2, 3), 5),
        (nn.Conv1d(3, 5, 1), (4, 5, 6), (2,), 5),
        (nn.Conv3d(3, 5, 1), (4, 5, 6, 2, 3), (2, 3, 4), 5),
        (nn.Linear(3, 5), (4, 5), (), 5),
        (nn.Linear(3, 5), (4, 9, 5), (1,), 5),
    ],
)
def test_images_are_observed_by_the_spatial_mean(module, shape, axes, channels):
    output = torch.rand(shape)
    batch = read_batch((torch.rand(4, 3, 8, 8), torch.tensor([3, 1, 0, 2])))
    found = observe(module, output, batch)
    expected = output.double().mean(axes) if axes else output.double()
    assert found.shape == (4, channels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-12, atol=0)


def test_points_need_maps():
    with pytest.raises(ValueError, match=r"Linear puts out \(6, 5\)"):
        observe(nn.Linear(3, 5), torch.rand(6, 5), read_batch(yolo_batch()))


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(4, 3, 8, 8),
        {"image": torch.rand(4, 3, 8, 8), "label": torch.zeros(4)},
        (torch.rand(4, 3, 8, 8), torch.rand(4, 10)),
        (torch.rand(4, 3, 8, 8), torch.rand(4)),
        (torch.rand(4, 3, 8, 8), torch.zeros(3).long()),
        [torch.rand(4, 3, 8, 8), torch.zeros(4).long(), torch.zeros(4)],
    ],
)
def test_other_batches_are_refused_with_the_way_out(batch):
    with pytest.raises(TypeError, match=r"method `calibration_batch\(batch\)`"):
        read_batch(batch)


def test_shapes_of_a_batch_are_checked():
    with pytest.raises(ValueError, match=r"points of a CalibrationBatch must be \(2, 2\), but are \(2, 4\)"):
        CalibrationBatch((torch.zeros(1),), torch.zeros(2).long(), torch.zeros(2).long(), points=torch.zeros(2, 4))
