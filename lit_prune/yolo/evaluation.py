"""From images to what a network finds in them."""

from typing import Any

import torch
from torch import Tensor

from lit_prune.common.running import evaluating
from lit_prune.yolo.batches import Detections, check_images
from lit_prune.yolo.decode import Thresholds
from lit_prune.yolo.tasks import task_of


def run_network(network: Any, images: Tensor, thresholds: Thresholds) -> Any:
    """Run a network of any task in eval mode, and decode what its head puts out.

    Args:
        network: As `build_detector` builds it, in eval mode.
        images: (B, 3, H, W), floating point in 0..1; H and W are multiples of the network's stride.
        thresholds: Which answers count.

    Returns:
        For each image a dict of what was found, as `LitYOLO.detect` returns it, though boxes may reach out of the
        image; of classification, the probabilities (B, C) of the classes.

    Raises:
        ValueError: If the images have another shape or type.
    """
    check_images(images, int(network.stride.max()))
    answer = network(images)
    forget_anchors_(network)
    return task_of(network).decode(network, answer, images, thresholds)


def run_untouched(network: Any, images: Tensor, thresholds: Thresholds) -> Any:
    """Run a network as `run_network` does, without gradients; the mode of every part of it is as it was before."""
    with evaluating(network), torch.no_grad():
        return run_network(network, images, thresholds)


def find_objects(
    network: Any, images: Tensor, *, confidence: float, iou: float, limit: int = 300, multi_label: bool = False
) -> Detections:
    """Find the objects of images: the network in eval mode, and Ultralytics' non-maximum suppression where it needs it.

    Args:
        network: As `build_detector` builds it, in eval mode; of any task but classification.
        images: (B, 3, H, W), floating point in 0..1; H and W are multiples of the network's stride.
        confidence: The least score.
        iou: Of two boxes of one class that overlap more than this, the better one is kept. Heads whose answers are
            final (YOLOv10, YOLO26, RT-DETR) do without.
        limit: The most detections of an image.
        multi_label: Whether one box may be of several classes.

    Returns:
        For each image a dict of `boxes` (k, 4; x0, y0, x1, y1 in pixels, within the image), `scores` (k,; falling) and
        `labels` (k,; int64), and `masks`, `keypoints` or `rotated` where the task has them.

    Raises:
        ValueError: If the images have another shape or type.
    """
    found: Detections = run_network(network, images, Thresholds(confidence, iou, limit, multi_label))
    return within(found, images)


def within(found: Detections, images: Tensor) -> Detections:
    """What was found, its boxes cut at the edges of the images."""
    height, width = images.shape[2:]
    edges = torch.tensor([width, height, width, height], dtype=torch.float32, device=images.device)
    return [{**entry, "boxes": entry["boxes"].clamp(min=0).minimum(edges)} for entry in found]


def forget_anchors_(network: Any) -> None:
    """Have the head build its anchors again: made in inference mode, they would break a later backward pass."""
    head = network.model[-1]
    # Detection heads remember one shape of features, RT-DETR's decoder a list of them.
    for name, nothing in (("shape", None), ("shapes", [])):
        if hasattr(head, name):
            setattr(head, name, nothing)
