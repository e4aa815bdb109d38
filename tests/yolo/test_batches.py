import pytest
import torch

from lit_prune.yolo.batches import box_targets, check_batch


def test_targets_are_corners_in_pixels_of_each_image():
    batch = {
        "img": torch.zeros(3, 3, 64, 128),
        "batch_idx": torch.tensor([0.0, 2.0, 2.0]),
        "cls": torch.tensor([[4.0], [1.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.5, 0.5], [1.0, 1.0, 0.0, 0.0]]),
    }
    first, second, third = box_targets(batch)

    assert first["boxes"].tolist() == [[32, 24, 96, 40]]
    assert first["labels"].tolist() == [4]
    assert second["boxes"].shape == (0, 4)
    assert third["boxes"].tolist() == [[0, 0, 64, 32], [128, 64, 128, 64]]
    assert third["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls": None}, "lacks cls"),
        ({"bboxes": None, "batch_idx": None}, "lacks batch_idx, bboxes"),
        ({"img": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "floating point .* divide bytes by 255"),
        ({"img": torch.zeros(3, 64, 64)}, "add the batch dimension"),
        ({"img": torch.zeros(1, 1, 64, 64)}, r"must be floating point \(B, 3, H, W\)"),
        ({"img": torch.zeros(1, 3, 64, 70)}, "stride, 32, but are 64 and 70"),
        ({"cls": torch.tensor([[10.0]])}, r"classes must be in 0..9.* has 10..10; pass num_classes"),
        ({"cls": torch.tensor([[-1.0]])}, "classes must be in 0..9"),
    ],
)
def test_wrong_batches(change, message):
    batch = {
        "img": torch.zeros(1, 3, 64, 64),
        "batch_idx": torch.zeros(1),
        "cls": torch.zeros(1, 1),
        "bboxes": torch.full((1, 4), 0.5),
    }
    check_batch(batch, stride=32, num_classes=10)
    batch = {name: value for name, value in (batch | change).items() if value is not None}

    with pytest.raises(ValueError, match=message):
        check_batch(batch, stride=32, num_classes=10)


def test_a_batch_that_is_no_dict():
    with pytest.raises(ValueError, match=r"must be a dict .* but is a list"):
        check_batch([torch.zeros(1, 3, 64, 64)], stride=32, num_classes=10)


def test_a_batch_without_objects():
    batch = {
        "img": torch.zeros(1, 3, 64, 64),
        "batch_idx": torch.zeros(0),
        "cls": torch.zeros(0, 1),
        "bboxes": torch.zeros(0, 4),
    }
    check_batch(batch, stride=32, num_classes=10)
    assert len(box_targets(batch)[0]["labels"]) == 0
