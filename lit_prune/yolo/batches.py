"""Batches of images with objects: what LitYOLO takes, checked, and turned into boxes in pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lit_prune.errors import ArgumentError

Detections: TypeAlias = list[dict[str, Tensor]]
"""One dict per image: `boxes` (n, 4; x0, y0, x1, y1 in pixels), `labels` (n,) and, if predicted, `scores` (n,).

What a task finds besides boxes comes with it: `masks` (n, H, W), `keypoints` (n, K, 2 or 3), `rotated` (n, 5).
"""


def check_images(images: Tensor, stride: int) -> None:
    """Raise an ArgumentError unless `images` are floating point (B, 3, H, W), H and W multiples of `stride`."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ArgumentError(
            f"images must be floating point (B, 3, H, W) in 0..1, but got {images.dtype} "
            f"{tuple(images.shape)}; divide bytes by 255, and add the batch dimension to a single image."
        )
    if images.shape[2] % stride or images.shape[3] % stride:
        raise ArgumentError(
            f"the height and width of images must be multiples of the network's stride, {stride}, but are "
            f"{images.shape[2]} and {images.shape[3]}; resize or pad them."
        )


def check_batch(
    batch: Any, stride: int, num_classes: int, fields: Sequence[str] = ("img", "batch_idx", "cls", "bboxes")
) -> None:
    """Raise an ArgumentError unless `batch` is one that a network of this stride and number of classes can train on."""
    if not isinstance(batch, dict):
        raise ArgumentError(
            f"a batch must be a dict of {_listed(fields)}, but is a {type(batch).__name__}; see "
            f"lit_prune.data.collate_detection, or use YOLODataModule."
        )
    missing = set(fields) - set(batch)
    if missing:
        raise ArgumentError(
            f"a batch must have {_listed(fields)}, but lacks {', '.join(sorted(missing))}; see "
            f"lit_prune.data.collate_detection, or use YOLODataModule."
        )
    check_images(batch["img"], stride)
    labels = batch["cls"]
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ArgumentError(
            f"classes must be in 0..{num_classes - 1}, as the network has {num_classes} classes, but the "
            f"batch has {float(labels.min()):.0f}..{float(labels.max()):.0f}; pass num_classes to LitYOLO."
        )


def box_targets(batch: dict[str, Tensor]) -> Detections:
    """Turn a batch's objects into one dict per image: `boxes` (n, 4; x0, y0, x1, y1 in pixels) and `labels` (n,)."""
    images = batch["img"]
    size = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32, device=images.device)
    normalised = batch["bboxes"].float() if batch["bboxes"].shape[1] == 4 else upright_targets(batch)
    centre, extent = normalised.tensor_split(2, dim=1)
    boxes = torch.cat([(centre - extent / 2) * size, (centre + extent / 2) * size], dim=1)
    labels = batch["cls"].flatten().long()
    rows = [batch["batch_idx"] == image for image in range(len(images))]
    return [{"boxes": boxes[row], "labels": labels[row]} for row in rows]


def upright_targets(batch: Mapping[str, Any]) -> Tensor:
    """The upright boxes (M, 4; centre, width and height, normalised) around a batch's rotated ones (M, 5)."""
    images, rotated = batch["img"], batch["bboxes"].float()
    size = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32, device=rotated.device)
    # The angle is measured in pixels, not in normalised coordinates.
    pixels = torch.cat([rotated[:, :2] * size, rotated[:, 2:4] * size, rotated[:, 4:]], dim=1)
    low, high = upright(pixels).div(size.repeat(2)).tensor_split(2, dim=1)
    return torch.cat([(low + high) / 2, high - low], dim=1)


def upright(rotated: Tensor) -> Tensor:
    """The upright boxes (k, 4; x0, y0, x1, y1) around rotated ones (k, 5; centre x, y, width, height, angle).

    Example:
        >>> upright(torch.tensor([[4.0, 4.0, 4.0, 2.0, torch.pi / 2]])).round().tolist()
        [[3.0, 2.0, 5.0, 6.0]]
    """
    centre, extent, angle = rotated[:, :2], rotated[:, 2:4], rotated[:, 4:]
    cosine, sine = angle.cos().abs(), angle.sin().abs()
    half = (extent * cosine + extent.flip(1) * sine) / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
