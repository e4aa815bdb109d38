"""From images to detections, and from detections to mean average precision."""

import math
from typing import Any

import torch
from torch import Tensor

from lit_prune.yolo.batches import Detections, check_images


def find_objects(
    network: Any, images: Tensor, *, confidence: float, iou: float, limit: int = 300, multi_label: bool = False
) -> Detections:
    """Run a detection network in eval mode, and Ultralytics' non-maximum suppression where the head needs it.

    Args:
        network: An Ultralytics `DetectionModel`, in eval mode.
        images: (B, 3, H, W), floating point in 0..1; H and W are multiples of the network's stride.
        confidence: The least score.
        iou: Of two boxes of one class that overlap more than this, the better one is kept. End-to-end heads
            (YOLOv10, YOLO26) do without.
        limit: The most detections of an image.
        multi_label: Whether one box may be of several classes.

    Returns:
        For each image a dict of `boxes` (k, 4; x0, y0, x1, y1 in pixels, within the image), `scores` (k,; falling) and
        `labels` (k,; int64).

    Raises:
        ValueError: If the images have another shape or type.
    """
    from ultralytics.utils.nms import non_max_suppression

    check_images(images, int(network.stride.max()))
    predictions = network(images)[0]
    head = network.model[-1]
    # The head keeps its anchors; made in inference mode, they would break a later backward pass.
    head.shape = None
    rows = non_max_suppression(
        predictions.float(),
        conf_thres=confidence,
        iou_thres=iou,
        multi_label=multi_label,
        max_det=limit,
        nc=head.nc,
        max_time_img=math.inf,  # results must not depend on how busy the machine is
        end2end=bool(network.end2end),
    )
    height, width = images.shape[2:]
    edges = torch.tensor([width, height, width, height], dtype=torch.float32, device=images.device)
    return [
        {"boxes": row[:, :4].clamp(min=0).minimum(edges), "scores": row[:, 4], "labels": row[:, 5].long()}
        for row in rows
    ]


def mean_average_precision() -> Any:
    """Build torchmetrics' `MeanAveragePrecision`, on the fast backend that the yolo extra installs."""
    from lit_prune.yolo.gathering import GatheredMeanAveragePrecision

    try:
        metric = GatheredMeanAveragePrecision(backend="faster_coco_eval")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Validation needs faster-coco-eval. Install it with: pip install 'lit-prune[yolo]' ({error})"
        ) from error
    metric.warn_on_many_detections = False
    return metric
