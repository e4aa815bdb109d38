"""From what a head puts out to objects: boxes, masks, keypoints, rotated boxes, or class probabilities."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_prune.yolo.batches import Detections, upright


@dataclass(frozen=True)
class Thresholds:
    """Which of a head's answers count.

    Attributes:
        confidence: The least score.
        iou: Of two boxes of one class that overlap more than this, the better one is kept. Heads whose answers are
            final (YOLOv10, YOLO26, RT-DETR) do without.
        limit: The most objects of an image.
        multi_label: Whether one box may be of several classes.
        coarse_masks: Whether masks stay at the resolution of the head's prototypes, a quarter of the image's.
    """

    confidence: float = 0.25
    iou: float = 0.7
    limit: int = 300
    multi_label: bool = False
    coarse_masks: bool = False


def decode_boxes(network: Any, answer: Any, images: Tensor, thresholds: Thresholds) -> Detections:
    """The objects of a detection head: `boxes` (k, 4; x0, y0, x1, y1 in pixels), `scores` (k,; falling), `labels`."""
    return [_entry(row) for row in _suppress(network, answer[0], thresholds)]


def decode_masks(network: Any, answer: Any, images: Tensor, thresholds: Thresholds) -> Detections:
    """The same of a segmentation head, and `masks` (k, H, W; bool)."""
    from ultralytics.utils.ops import process_mask

    predictions, prototypes = answer[0]
    size = tuple(images.shape[2:])
    found = []
    for row, prototype in zip(_suppress(network, predictions, thresholds), prototypes, strict=True):
        masks = process_mask(prototype, row[:, 6:], row[:, :4], size, upsample=not thresholds.coarse_masks)
        found.append(_entry(row) | {"masks": masks.bool()})
    return found


def decode_keypoints(network: Any, answer: Any, images: Tensor, thresholds: Thresholds) -> Detections:
    """The same of a pose head, and `keypoints` (k, K, 2 or 3; x and y in pixels, and how likely it is to be seen)."""
    shape = network.model[-1].kpt_shape
    rows = _suppress(network, answer[0], thresholds)
    return [_entry(row) | {"keypoints": row[:, 6:].reshape(-1, *shape)} for row in rows]


def decode_rotated(network: Any, answer: Any, images: Tensor, thresholds: Thresholds) -> Detections:
    """The same of an OBB head, and `rotated` (k, 5; centre x, y, width, height in pixels, angle in radians).

    `boxes` are the upright ones around them.
    """
    found = []
    for row in _suppress(network, answer[0], thresholds, rotated=True):
        rotated = torch.cat([row[:, :4], row[:, 6:]], dim=1)
        found.append(_entry(row) | {"boxes": upright(rotated), "rotated": rotated})
    return found


def decode_queries(network: Any, answer: Any, images: Tensor, thresholds: Thresholds) -> Detections:
    """The objects of RT-DETR's decoder, one a query, as `decode_boxes` gives them."""
    height, width = images.shape[2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=images.device)
    found = []
    for rows in answer[0].float():
        row = rows[rows[:, 4] > thresholds.confidence][: thresholds.limit]
        centre, extent = row[:, :2] * size, row[:, 2:4] * size
        found.append(_entry(torch.cat([centre - extent / 2, centre + extent / 2, row[:, 4:]], dim=1)))
    return found


def decode_classes(network: Any, answer: Any, images: Tensor, thresholds: Thresholds) -> Tensor:
    """The class probabilities (B, C) of a classification head; each row adds up to 1."""
    probabilities: Tensor = answer[0]
    return probabilities.float()


def _suppress(network: Any, predictions: Tensor, thresholds: Thresholds, rotated: bool = False) -> list[Tensor]:
    """Rows (k, 6 + extra) of each image: box, score, label, and what else the task finds."""
    from ultralytics.utils.nms import non_max_suppression

    rows: list[Tensor] = non_max_suppression(
        predictions.float(),
        conf_thres=thresholds.confidence,
        iou_thres=thresholds.iou,
        multi_label=thresholds.multi_label,
        max_det=thresholds.limit,
        nc=network.model[-1].nc,
        max_time_img=math.inf,  # results must not depend on how busy the machine is
        rotated=rotated,
        end2end=bool(network.end2end),
    )
    return rows


def _entry(row: Tensor) -> dict[str, Tensor]:
    return {"boxes": row[:, :4], "scores": row[:, 4], "labels": row[:, 5].long()}
