"""Batches of images with boxes: what LitYOLO takes, checked, and turned into boxes in pixels."""

from typing import Any, TypeAlias

import torch
from torch import Tensor

Detections: TypeAlias = list[dict[str, Tensor]]
"""One dict an image: `boxes` (n, 4; x0, y0, x1, y1 in pixels), `labels` (n,) and, if predicted, `scores` (n,)."""


def check_images(images: Tensor, stride: int) -> None:
    """Raise a ValueError unless `images` are floating point (B, 3, H, W), H and W multiples of `stride`."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point (B, 3, H, W) in 0..1, but got {images.dtype} "
            f"{tuple(images.shape)}; divide bytes by 255, and add the batch dimension to a single image."
        )
    if images.shape[2] % stride or images.shape[3] % stride:
        raise ValueError(
            f"the height and width of images must be multiples of the network's stride, {stride}, but are "
            f"{images.shape[2]} and {images.shape[3]}; resize or pad them."
        )


def check_batch(batch: Any, stride: int, num_classes: int) -> None:
    """Raise a ValueError unless `batch` is one that a network of this stride and number of classes can train on."""
    if not isinstance(batch, dict):
        raise ValueError(
            f"a batch must be a dict of img, batch_idx, cls and bboxes, but is a {type(batch).__name__}; "
            f"see lit_prune.data.collate_detection."
        )
    missing = {"img", "batch_idx", "cls", "bboxes"} - set(batch)
    if missing:
        raise ValueError(
            f"a batch must have img, batch_idx, cls and bboxes, but lacks {', '.join(sorted(missing))}; "
            f"see lit_prune.data.collate_detection."
        )
    check_images(batch["img"], stride)
    labels = batch["cls"]
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"classes must be in 0..{num_classes - 1}, as the network has {num_classes} classes, but the "
            f"batch has {labels.min():.0f}..{labels.max():.0f}; pass num_classes to LitYOLO."
        )


def box_targets(batch: dict[str, Tensor]) -> Detections:
    """Turn a batch's objects into one dict an image: `boxes` (n, 4; x0, y0, x1, y1 in pixels) and `labels` (n,)."""
    images = batch["img"]
    size = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32, device=images.device)
    centre, extent = batch["bboxes"].float().tensor_split(2, dim=1)
    boxes = torch.cat([(centre - extent / 2) * size, (centre + extent / 2) * size], dim=1)
    labels = batch["cls"].flatten().long()
    rows = [batch["batch_idx"] == image for image in range(len(images))]
    return [{"boxes": boxes[row], "labels": labels[row]} for row in rows]
