"""What a label file of Ultralytics says of a digit, by task: from its box and the ink that can be seen."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_prune.common.packages import require

Mask = NDArray[np.bool_]

_VISIBLE = 2.0
_ROOM = 1.2  # of an image of one digit, as a multiple of its box's longer side


def box_label(box: Sequence[float], ink: Mask) -> list[float]:
    """Centre x, centre y, width and height, normalised.

    Example:
        >>> box_label([0.5, 0.5, 0.25, 0.25], np.zeros((8, 8), dtype=bool))
        [0.5, 0.5, 0.25, 0.25]
    """
    return list(box)


def outline_label(box: Sequence[float], ink: Mask) -> list[float]:
    """X and y of each point of the ink's outline, through the middles of its outermost pixels; parts are joined.

    Example:
        >>> ink = np.zeros((8, 8), dtype=bool)
        >>> ink[2:4, 2:6] = True
        >>> sorted(set(outline_label([], ink)))
        [0.3125, 0.4375, 0.6875]
    """
    import cv2

    contours, _ = cv2.findContours(ink.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = [contour.reshape(-1, 2) for contour in contours]
    outline = _joined(parts)
    # Fewer than three points are no outline: a line of ink goes there and back.
    points = np.resize(outline, (max(3, len(outline)), 2))
    return _normalised(points + 0.5, ink)


def _joined(parts: Sequence[Any]) -> Any:
    """One outline around several: from the nearest point of what there is to each part, around it, and back."""
    outline, *others = parts
    for part in others:
        distances = np.square(outline[:, None] - part).sum(-1)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        around = np.roll(part, -there, axis=0)
        outline = np.concatenate([outline[: here + 1], around, around[:1], outline[here:]])
    return outline


def keypoint_label(box: Sequence[float], ink: Mask) -> list[float]:
    """The box, then x, y and visibility of the ink's top, bottom, left and right end and of its centre.

    Example:
        >>> ink = np.zeros((8, 8), dtype=bool)
        >>> ink[2:4, 2:6] = True
        >>> keypoint_label([], ink)[-3:]
        [0.5, 0.375, 2.0]
    """
    y, x = np.nonzero(ink)
    ends = [(x[rows].mean(), y[rows].mean()) for rows in (y == y.min(), y == y.max(), x == x.min(), x == x.max())]
    points = np.array([*ends, (x.mean(), y.mean())]) + 0.5
    places = np.array(_normalised(points, ink)).reshape(-1, 2)
    visible = np.full((len(places), 1), _VISIBLE)
    flat: list[float] = np.hstack([places, visible]).flatten().tolist()
    return [*box, *flat]


def corner_label(box: Sequence[float], ink: Mask) -> list[float]:
    """X and y of the corners of the smallest rectangle, turned as need be, around the ink's pixels.

    Example:
        >>> ink = np.eye(8, dtype=bool)
        >>> len(corner_label([], ink))
        8
    """
    import cv2

    y, x = np.nonzero(ink)
    # Of each pixel its corners, so that the rectangle has an extent even where the ink is a line.
    corners = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    return _normalised(cv2.boxPoints(cv2.minAreaRect(corners.astype(np.float32))), ink)


LABELS: dict[str, Callable[[Sequence[float], Mask], list[float]]] = {
    "detect": box_label,
    "segment": outline_label,
    "pose": keypoint_label,
    "obb": corner_label,
}
"""Task to what follows an object's class in its line."""

OUTLINES = frozenset({"segment", "obb"})
"""Tasks whose labels are drawn by OpenCV."""

HEADERS = {"pose": "kpt_shape: [5, 3]\nflip_idx: [0, 1, 3, 2, 4]\n"}
"""Task to further lines of its `data.yaml`."""


def require_opencv() -> None:
    """Raise a MissingPackageError unless outlines can be drawn."""
    require("Drawing outlines", "opencv-python:cv2", extra="yolo")


def image_around(box: Sequence[float], pixels: Tensor) -> Tensor:
    """Cut the square (3, s, s) around a box, with some room, out of an image (3, H, W)."""
    height, width = pixels.shape[1:]
    centre_x, centre_y = box[0] * width, box[1] * height
    side = min(height, width, round(_ROOM * max(box[2] * width, box[3] * height)))
    left = min(max(0, round(centre_x - side / 2)), width - side)
    top = min(max(0, round(centre_y - side / 2)), height - side)
    return pixels[:, top : top + side, left : left + side]


def _normalised(points: NDArray[Any], ink: Mask) -> list[float]:
    height, width = ink.shape
    places: list[float] = (points / np.array([width, height])).clip(0, 1).flatten().tolist()
    return places
