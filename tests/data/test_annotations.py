import cv2
import numpy as np
import pytest
import torch

from lit_prune.data import DigitScenes
from lit_prune.data.annotations import corner_label, image_around, keypoint_label, outline_label


@pytest.fixture(scope="module")
def inks():
    """The ink of every digit of some scenes, with its box."""
    scenes = DigitScenes("val", scenes=20, image_size=96)
    return [
        (scenes[number]["bboxes"][k].tolist(), (mask == k + 1).numpy())
        for number, mask in enumerate(scenes.masks)
        for k in range(len(scenes[number]["cls"]))
    ]


def _points(values) -> np.ndarray:
    return np.array(values).reshape(-1, 2) * 96


def test_an_outline_filled_is_the_ink_and_its_holes(inks):
    for _, ink in inks:
        filled = np.zeros(ink.shape, dtype=np.uint8)
        cv2.fillPoly(filled, [_points(outline_label([], ink)).astype(np.int32)], 1)
        contours, _ = cv2.findContours(ink.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        without_holes = np.zeros(ink.shape, dtype=np.uint8)
        cv2.drawContours(without_holes, contours, -1, 1, cv2.FILLED)

        assert filled[ink].all()
        # Parts are joined by a line.
        assert (filled != without_holes).sum() <= (0 if len(contours) == 1 else 40)


def test_a_dot_and_a_line_have_an_outline():
    for pixels in ([(3, 3)], [(3, 3), (3, 4)]):
        ink = np.zeros((8, 8), dtype=bool)
        ink[tuple(zip(*pixels, strict=True))] = True
        assert len(outline_label([], ink)) >= 6


def test_keypoints_are_the_ends_of_the_ink_and_its_centre(inks):
    for box, ink in inks:
        values = keypoint_label(box, ink)
        assert values[:4] == box
        top, bottom, left, right, centre = np.array(values[4:]).reshape(5, 3)
        edges = np.array([box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2])
        ends = np.array([left[0], top[1], right[0], bottom[1]])
        assert np.allclose(np.abs(ends - edges) * 96, 0.5, atol=1e-4)  # the middles of the outermost pixels
        assert (edges[:2] < centre[:2]).all()
        assert (centre[:2] < edges[2:]).all()


def test_mirrored_ink_has_mirrored_keypoints(inks):
    _, ink = inks[0]
    points = np.array(keypoint_label([], ink)).reshape(5, 3)
    mirrored = np.array(keypoint_label([], ink[:, ::-1])).reshape(5, 3)

    assert np.allclose(mirrored[[0, 1, 3, 2, 4], 0], 1 - points[:, 0])
    assert np.allclose(mirrored[[0, 1, 3, 2, 4], 1], points[:, 1])


def test_corners_hold_all_ink_in_the_smallest_rectangle(inks):
    for box, ink in inks:
        corners = _points(corner_label([], ink)).astype(np.float32)
        area = cv2.contourArea(corners)
        y, x = np.nonzero(ink)
        middles = np.stack([x, y], axis=1).astype(float) + 0.5
        assert min(cv2.pointPolygonTest(corners, tuple(middle), False) for middle in middles) >= 0
        assert area <= box[2] * box[3] * 96**2 + 1e-2


def test_some_corners_are_turned(inks):
    turned = 0
    for _, ink in inks:
        x = np.unique(_points(corner_label([], ink))[:, 0].round(3))
        turned += len(x) > 2
    assert turned > len(inks) / 4


def test_a_picture_of_one_digit_is_a_square_with_room_around_it():
    pixels = torch.arange(3 * 96 * 96).view(3, 96, 96)
    assert torch.equal(image_around([0.5, 0.5, 0.25, 0.125], pixels), pixels[:, 34:63, 34:63])
    assert torch.equal(image_around([0.1, 0.9, 0.2, 0.2], pixels), pixels[:, 73:, :23])
