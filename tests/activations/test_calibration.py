import pytest
import torch
from torch import nn

from lit_prune.activations import Calibration, ClassMoments, collect_moments, read_batch
from lit_prune.errors import CalibrationError


class Detector(nn.Module):
    """Finds, in every image, what it is told; counts its forwards."""

    def __init__(self, found):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.last = nn.Conv2d(4, 2, 1)
        self.found = found
        self.forwards = []

    def forward(self, images):
        self.forwards.append(len(images))
        return self.last(self.second(self.first(images).relu()).relu())

    def detect(self, images):
        self(images)
        return self.found(images)


def yolo_batch(seed, objects=9, images=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "img": torch.rand(images, 3, 32, 32, generator=generator),
        "batch_idx": torch.randint(images, (objects,), generator=generator).float(),
        "cls": torch.randint(3, (objects, 1), generator=generator).float(),
        "bboxes": torch.rand(objects, 4, generator=generator) * 0.5 + 0.2,
    }


BATCHES = [yolo_batch(seed) for seed in range(5)]


def expected(network, layer, counted):
    """One object at a time."""
    module = network.get_submodule(layer)
    metric = ClassMoments(module.out_channels, 3)
    for batch in BATCHES:
        with torch.no_grad():
            maps = {"first": network.first(batch["img"])}
            maps["second"] = network.second(maps["first"].relu())
        for index in range(len(batch["cls"])):
            if counted(batch, index):
                size = maps[layer].shape[-1]
                x, y = (batch["bboxes"][index, :2].double() * size).long().tolist()
                value = maps[layer][int(batch["batch_idx"][index]), :, y, x]
                metric.update(value[None], batch["cls"][index].long())
    return metric.compute()


def assert_same(found, wanted):
    assert torch.equal(found.count, wanted.count)
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.var, wanted.var, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_every_object_in_one_stopped_forward_a_batch(num_classes):
    network = Detector(None)
    ran = []
    network.last.register_forward_hook(lambda *_: ran.append(1))
    calls = network.forwards
    found = collect_moments(network, ["second", "first"], map(read_batch, BATCHES), num_classes, match_iou=None)
    assert calls == [4] * 5
    assert not ran
    assert list(found) == ["second", "first"]
    for layer in found:
        assert_same(found[layer], expected(network, layer, lambda *_: True))


def test_matched_objects_and_predictions_come_from_one_forward():
    def sees_only_odd_classes(images):
        batch = next(batch for batch in BATCHES if batch["img"] is images)
        centre, extent = batch["bboxes"].split(2, 1)
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], 1) * 32
        seen = batch["cls"][:, 0] % 2 == 1
        return [
            {"boxes": boxes[mine], "labels": batch["cls"][mine, 0].long()}
            for mine in (seen & (batch["batch_idx"] == image) for image in range(4))
        ]

    network = Detector(sees_only_odd_classes)
    found = collect_moments(network, ["first", "second"], map(read_batch, BATCHES), match_iou=0.5, num_classes=3)
    assert network.forwards == [4] * 5
    for layer in found:
        assert_same(found[layer], expected(network, layer, lambda batch, index: batch["cls"][index] == 1))
    assert found["first"].count[0] == found["first"].count[2] == 0


def test_more_classes_turn_up_later():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    images = torch.rand(6, 3, 4, 4)
    batches = [
        (images[:2], torch.tensor([0, 0])),
        (images[2:4], torch.tensor([1, 0])),
        (images[4:], torch.tensor([6, 6])),
    ]
    found = collect_moments(network, ["0"], map(read_batch, batches))["0"]
    assert found.count.tolist() == [3, 1, 0, 0, 0, 0, 2]
    values = network[0](images).double().mean((2, 3))
    torch.testing.assert_close(found.mean[0], values[[0, 1, 3]].mean(0).detach(), rtol=1e-6, atol=1e-8)


def test_the_networks_own_number_of_classes():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    network.num_classes = 9
    batch = read_batch((torch.rand(2, 3, 4, 4), torch.tensor([0, 1])))
    assert len(collect_moments(network, ["0"], [batch])["0"].count) == 9
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.8"):
        collect_moments(network, ["0"], [read_batch((torch.rand(1, 3, 4, 4), torch.tensor([9])))])


def test_nan_is_refused_with_the_layers_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    network[1].weight.data[2] = float("nan")
    batch = read_batch((torch.rand(2, 3, 4, 4), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"of layer 1 are NaN or infinite \(first in channel 2\)"):
        collect_moments(network, ["0", "1"], [batch])


def test_no_prediction_fits():
    network = Detector(lambda images: [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}] * len(images))
    with pytest.raises(CalibrationError, match=r"None of 45 objects .* match_iou=0\.5\. Prune later"):
        collect_moments(network, ["first"], map(read_batch, BATCHES))


def test_no_object_at_all():
    empty = yolo_batch(0, objects=0)
    with pytest.raises(CalibrationError, match="no labelled object"):
        collect_moments(Detector(None), ["first"], [read_batch(empty)], match_iou=None)
    found = collect_moments(Detector(None), ["first"], map(read_batch, [empty, BATCHES[0]]), match_iou=None)
    assert found["first"].count.sum() == 9


def test_matching_without_a_detector():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=r"Sequential has no method `detect\(images\)`.*match_iou=None"):
        collect_moments(network, ["0"], map(read_batch, BATCHES))


@pytest.mark.parametrize("match_iou", [-0.1, 1.0, 50])
def test_match_iou_out_of_range(match_iou):
    with pytest.raises(ValueError, match=r"match_iou must be in \[0, 1\)"):
        collect_moments(nn.Sequential(nn.Conv2d(3, 4, 1)), ["0"], [], match_iou=match_iou)
    with pytest.raises(ValueError, match=r"match_iou must be in \[0, 1\)"):
        Calibration(match_iou=match_iou)


@pytest.mark.parametrize("name", ["batches", "batch_size", "num_classes"])
def test_numbers_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but got 0"):
        Calibration(**{name: 0})
