import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lit_prune.data import DigitScenes, collate_detection


@pytest.fixture(scope="module")
def train() -> DigitScenes:
    return DigitScenes("train", scenes=300, seed=3)


@pytest.fixture(scope="module")
def val() -> DigitScenes:
    return DigitScenes("val", scenes=300, seed=3)


def _same(one: DigitScenes, other: DigitScenes, count: int) -> bool:
    return all(torch.equal(one[k][name], other[k][name]) for k in range(count) for name in ("img", "cls", "bboxes"))


def test_same_arguments_same_bits_and_the_random_state_is_left_alone(train):
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again = DigitScenes("train", scenes=300, seed=3)
    numpy_draw, torch_draw = np.random.rand(), torch.rand(1)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)

    assert _same(train, again, 300)
    assert numpy_draw == np.random.rand()  # noqa: NPY002
    assert torch.equal(torch_draw, torch.rand(1))


def test_another_seed_gives_other_scenes(train):
    assert not torch.equal(DigitScenes("train", scenes=20, seed=4).images, train.images[:20])


def test_a_shorter_set_is_the_beginning_of_a_longer_one(train):
    assert _same(DigitScenes("train", scenes=40, seed=3), train, 40)


def test_no_digit_of_validation_is_ever_trained_on(train, val):
    trained = set(torch.cat(train.digit_ids).tolist())
    held_out = set(torch.cat(val.digit_ids).tolist())
    other_seed = set(torch.cat(DigitScenes("val", scenes=300, seed=9).digit_ids).tolist())

    assert trained
    assert held_out
    assert not trained & held_out
    assert not trained & other_seed
    assert all(number % 5 == 4 for number in held_out)


def test_labels_are_those_of_the_drawn_digits(val):
    labels = load_digits().target
    for k, ids in enumerate(val.digit_ids):
        assert val[k]["cls"].flatten().tolist() == labels[ids.numpy()].tolist()


def test_items_are_images_with_one_to_four_boxes_inside(train):
    counts = torch.zeros(5)
    for k in range(len(train)):
        item = train[k]
        assert item["img"].shape == (3, 96, 96)
        assert item["img"].dtype == torch.float32
        assert item["img"].min() >= 0
        assert item["img"].max() <= 1
        boxes = item["bboxes"]
        assert boxes.dtype == item["cls"].dtype == torch.float32
        low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        assert low.min() > -1e-6
        assert high.max() < 1 + 1e-6
        assert boxes[:, 2:].min() > 0
        counts[len(boxes)] += 1
    assert counts[0] == 0
    assert (counts[1:] > 0).all()


def test_every_class_appears(train, val):
    for scenes in (train, val):
        assert torch.cat([scenes[k]["cls"] for k in range(len(scenes))]).unique().tolist() == list(range(10))


def test_boxes_are_tight(monkeypatch):
    """Without its digits the scene is the same outside the boxes, and differs on every edge of a box inside."""
    from lit_prune.data import scenes

    painted = DigitScenes("val", scenes=60, seed=5)
    monkeypatch.setattr(scenes, "_paint", lambda *_: None)
    bare = DigitScenes("val", scenes=60, seed=5)
    touched = (painted.images != bare.images).any(1)

    alone = 0
    for k in range(60):
        centre, extent = (painted[k]["bboxes"] * 96).tensor_split(2, dim=1)
        corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=1).round().long().tolist()
        covered = torch.zeros(96, 96, dtype=torch.bool)
        for x0, y0, x1, y1 in corners:
            covered[y0:y1, x0:x1] = True
        assert not (touched[k] & ~covered).any()
        if len(corners) == 1:
            alone += 1
            x0, y0, x1, y1 = corners[0]
            ys, xs = touched[k].nonzero(as_tuple=True)
            assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == pytest.approx([x0, y0, x1, y1], abs=1)
    assert alone > 5


def test_boxes_hardly_overlap(train):
    for k in range(100):
        boxes = train[k]["bboxes"]
        low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        sides = (torch.minimum(high[:, None], high[None]) - torch.maximum(low[:, None], low[None])).clamp(min=0)
        area = boxes[:, 2:].prod(1)
        share = sides.prod(-1) / torch.minimum(area[:, None], area[None])
        share.fill_diagonal_(0)
        # Boxes of partly hidden digits are tightened after placing, which makes their shares larger.
        assert share.max() < 0.2


@pytest.mark.parametrize("size", [64, 128])
def test_other_image_sizes(size):
    assert DigitScenes("val", scenes=2, image_size=size)[0]["img"].shape == (3, size, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split must be one of 'train', 'val', but got 'test'"),
        ({"scenes": 0}, "scenes must be at least 1, but got 0"),
        ({"image_size": 100}, "multiple of 32 .* but got 100; the nearest is 96"),
        ({"image_size": 32}, "at least 64, but got 32; the nearest is 64"),
        ({"seed": -1}, "seed must not be negative, but got -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**arguments)


def test_collate_detection_says_whose_objects_they_are(train):
    items = [train[k] for k in range(8)]
    batch = collate_detection(items)

    assert batch["img"].shape == (8, 3, 96, 96)
    assert batch["batch_idx"].dtype == torch.float32
    for k, item in enumerate(items):
        mine = batch["batch_idx"] == k
        assert torch.equal(batch["cls"][mine], item["cls"])
        assert torch.equal(batch["bboxes"][mine], item["bboxes"])
        assert torch.equal(batch["img"][k], item["img"])


def test_collate_detection_of_nothing():
    with pytest.raises(ValueError, match="at least one item"):
        collate_detection([])


def test_masks_show_the_ink_of_every_object_within_its_box():
    scenes = DigitScenes("train", scenes=50, image_size=64)
    for number, mask in enumerate(scenes.masks):
        boxes = scenes[number]["bboxes"] * 64
        assert sorted(set(mask.flatten().tolist()) - {0}) == list(range(1, len(boxes) + 1))
        for k, (x, y, width, height) in enumerate(boxes.tolist()):
            rows, columns = (mask == k + 1).nonzero(as_tuple=True)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert [int(edge) for edge in edges] == pytest.approx(expected, abs=1e-3)
