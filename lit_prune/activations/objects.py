"""The labelled objects of a batch, and the channels' activations where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.errors import ArgumentError, ArgumentTypeError

Detections = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class CalibrationBatch:
    """Inputs of one forward, and the M labelled objects that are seen in them.

    Of batches that :func:`read_batch` does not know, a function or the LightningModule's method
    ``calibration_batch(batch)`` makes one of these.

    Attributes:
        inputs: Positional inputs of the network's forward; the first is the images.
        labels: ``(M,)`` int64, class of each object; by default there is none, which does where classes don't count.
        images: ``(M,)`` int64, index in the batch of the image that each object is in.
        points: ``(M, 2)`` x and y of each object, in normalised coordinates; ``None``: the whole image, by its spatial
            mean.
        boxes: ``(M, 4)`` x0, y0, x1, y1, normalised; ``None``: objects are not matched with predictions.
        keywords: Inputs of the forward by keyword.

    Raises:
        ArgumentError: If the shapes do not belong together.

    Example:
        A segmentation network, observed at the middle of each mask's pixels.

        >>> def at_pixels(batch):
        ...     images, masks = batch
        ...     index, y, x = masks.nonzero(as_tuple=True)
        ...     points = torch.stack([(x + 0.5) / masks.shape[2], (y + 0.5) / masks.shape[1]], dim=1)
        ...     return CalibrationBatch((images,), labels=masks[index, y, x], images=index, points=points)
        >>> batch = at_pixels((torch.rand(2, 3, 4, 4), torch.eye(4, dtype=torch.long).repeat(2, 1, 1)))
        >>> len(batch), batch.points[0].tolist()
        (8, [0.125, 0.125])
    """

    inputs: tuple[Any, ...]
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    images: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    points: Tensor | None = None
    boxes: Tensor | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = len(self.labels)
        for name, value, shape in (
            ("labels", self.labels, (number,)),
            ("images", self.images, (number,)),
            ("points", self.points, (number, 2)),
            ("boxes", self.boxes, (number, 4)),
        ):
            if value is not None and value.shape != shape:
                raise ArgumentError(f"{name} of a CalibrationBatch must be {shape}, but are {tuple(value.shape)}.")

    def __len__(self) -> int:
        """The number of objects."""
        return len(self.labels)


Reader = Callable[[Any], CalibrationBatch]


def read_batch(batch: Any) -> CalibrationBatch:
    """The objects of a batch of a common kind.

    Known are Ultralytics' dicts (``img`` (B, 3, H, W), in 0..1 or bytes; ``batch_idx`` (M,); ``cls`` (M, 1); ``bboxes``
    (M, 4), centre, width and height, normalised), observed at the centre of each box; and pairs of images
    (B, ...) and labels (B,), observed by the mean over each image.

    Raises:
        ArgumentTypeError: If it is none of these; the message says how to have it read.

    Example:
        >>> read_batch((torch.rand(4, 3, 8, 8), torch.tensor([1, 0, 1, 2]))).images
        tensor([0, 1, 2, 3])
    """
    if isinstance(batch, Mapping) and {"img", "batch_idx", "cls", "bboxes"} <= batch.keys():
        images = batch["img"]
        if not images.is_floating_point():
            images = images.float() / 255
        centre, extent = batch["bboxes"].float().split(2, dim=1)
        return CalibrationBatch(
            inputs=(images,),
            labels=batch["cls"].flatten().long(),
            images=batch["batch_idx"].flatten().long(),
            points=centre,
            boxes=torch.cat([centre - extent / 2, centre + extent / 2], dim=1),
        )
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        images, labels = batch
        if labels.dim() == 1 and len(labels) == len(images) and not labels.is_floating_point():
            return CalibrationBatch(
                inputs=(images,), labels=labels.long(), images=torch.arange(len(labels), device=labels.device)
            )
    raise ArgumentTypeError(
        f"A batch of {_described(batch)} is not known: known are Ultralytics' dicts (img, batch_idx, cls, bboxes) and "
        "pairs of images and integer labels (B,). Give the LightningModule a method `calibration_batch(batch)` that "
        "returns a lit_prune.activations.CalibrationBatch."
    )


def observe(module: nn.Module, output: Tensor, batch: CalibrationBatch) -> Tensor:
    """The activation of every channel of one layer, for each object of the batch.

    Args:
        module: The layer; channels are the last dimension of a linear layer's output, else dimension 1.
        output: ``(N, C, ...)``, for whole images with any number of spatial dimensions.
        batch: Its objects. At a point (x, y) the map's row is floor(y / stride), with y in pixels and the stride of
            the map's rows, and the column likewise, both within the map.

    Returns:
        ``(M, C)``, in double precision where a mean was taken.

    Raises:
        ArgumentError: If there are points and the output is not a map.
    """
    if isinstance(module, nn.Linear) and output.dim() > 2:
        output = output.movedim(-1, 1)
    if batch.points is None:
        if output.dim() == 2:
            return output[batch.images]
        mean = output.mean(dim=tuple(range(2, output.dim())), dtype=_accurate(output))
        return mean[batch.images]
    if output.dim() != 4:
        raise ArgumentError(
            f"Objects at points are read from maps (N, C, H, W), but {type(module).__name__} puts out "
            f"{tuple(output.shape)}. Leave this layer out, or give objects without points."
        )
    # y / stride is the normalised y times the rows of the map. In double precision, which holds the product
    # of a float32 and a whole number exactly: a centre on the edge of two cells must not fall back by rounding.
    points = batch.points.to(_accurate(batch.points))
    height, width = output.shape[2:]
    column = (points[:, 0] * width).floor().long().clamp(0, width - 1)
    row = (points[:, 1] * height).floor().long().clamp(0, height - 1)
    return output[batch.images, :, row, column]


def matched(batch: CalibrationBatch, detections: Detections, iou: float) -> Tensor:
    """Which objects a prediction of their class overlaps.

    Args:
        batch: Objects with boxes; the first input is the images ``(B, C, H, W)``.
        detections: For each image ``boxes`` (k, 4; x0, y0, x1, y1 in pixels) and ``labels`` (k,).
        iou: An object counts if its intersection over union with a prediction is greater than this.

    Returns:
        ``(M,)`` bool.

    Raises:
        ArgumentError: If the objects have no boxes, or there is not one entry of detections an image.
    """
    images = batch.inputs[0]
    if batch.boxes is None or len(detections) != len(images):
        raise ArgumentError(
            f"To match objects with predictions takes boxes and one dict of detections for each of {len(images)} "
            f"images, but there are {'no boxes' if batch.boxes is None else f'{len(detections)} dicts'}."
        )
    device = batch.boxes.device
    height, width = images.shape[2:]
    counts = torch.tensor([len(found["labels"]) for found in detections])
    image = torch.arange(len(detections)).repeat_interleave(counts).to(device)
    labels = torch.cat([found["labels"] for found in detections]).to(device)
    boxes = torch.cat([found["boxes"] for found in detections]).to(device, torch.float32)
    boxes = boxes / torch.tensor([width, height, width, height], dtype=boxes.dtype, device=device)
    comparable = (batch.images[:, None] == image) & (batch.labels[:, None] == labels)
    return (comparable & (_pairwise_iou(batch.boxes.float(), boxes) > iou)).any(1)


def _pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union ``(m, n)`` of boxes (m, 4) and (n, 4); scaling an axis does not change it."""
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-12)


def _accurate(tensor: Tensor) -> torch.dtype:
    # Apple's GPUs have no double precision.
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with {', '.join(map(str, list(batch)[:8]))}"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return f"{type(batch).__name__} of {', '.join(type(part).__name__ for part in batch[:8])}"
    return type(batch).__name__
