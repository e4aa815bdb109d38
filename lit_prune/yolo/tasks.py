"""Ultralytics' tasks, one row each: all that LitYOLO and its data do differently for one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lit_prune.common.arguments import check_choice
from lit_prune.errors import ArgumentError
from lit_prune.yolo.decode import (
    Thresholds,
    decode_boxes,
    decode_classes,
    decode_keypoints,
    decode_masks,
    decode_queries,
    decode_rotated,
)
from lit_prune.yolo.metrics import Accuracy, BoxPrecision, UltralyticsPrecision

_OBJECTS = ("img", "batch_idx", "cls", "bboxes")
_VALIDATION = Thresholds(confidence=0.001, multi_label=True, coarse_masks=True)


def _enter(network: Any, batch: dict[str, Any]) -> Any:
    return network(batch["img"])


def _enter_with_targets(network: Any, batch: dict[str, Any]) -> Any:
    """RT-DETR learns to denoise the true boxes besides finding them, so they enter its decoder."""
    index = batch["batch_idx"].long().view(-1)
    targets = {
        "cls": batch["cls"].long().view(-1),
        "bboxes": batch["bboxes"],
        "batch_idx": index,
        "gt_groups": index.bincount(minlength=len(batch["img"])).tolist(),
    }
    return network(batch["img"], batch=targets)


@dataclass(frozen=True)
class Task:
    """A kind of network, and what is done differently for it.

    Attributes:
        name: Ultralytics' name of the task: `"detect"`, `"segment"`, `"pose"`, `"obb"` or `"classify"`.
        network: The network's class in `ultralytics.nn.tasks`.
        heads: The classes of head that a configuration may end with.
        decode: What the head puts out in eval mode, to what was found in the images.
        metric: Builds what measures that, of a network.
        fields: What a batch must have.
        enter: Runs the network for its loss.
        validation: Which of the head's answers are measured.
        loss_is_sum: Whether Ultralytics' loss is the sum over a batch, or its mean.
        stretched: Whether images are stretched to a square, where others are letterboxed.
    """

    name: str
    network: str
    heads: tuple[str, ...]
    decode: Callable[[Any, Any, Tensor, Thresholds], Any]
    metric: Callable[[Any], Any]
    fields: tuple[str, ...] = _OBJECTS
    enter: Callable[[Any, dict[str, Any]], Any] = _enter
    validation: Thresholds = _VALIDATION
    loss_is_sum: bool = True
    stretched: bool = False

    @property
    def finds_objects(self) -> bool:
        """Whether objects are found, where others name the whole image."""
        return "bboxes" in self.fields


TASKS: tuple[Task, ...] = (
    Task(
        name="detect",
        network="DetectionModel",
        heads=("Detect", "v10Detect"),
        decode=decode_boxes,
        metric=BoxPrecision,
        # COCO's evaluation counts no more of an image.
        validation=Thresholds(confidence=0.001, limit=100, multi_label=True),
    ),
    Task(
        name="detect",
        network="RTDETRDetectionModel",
        heads=("RTDETRDecoder",),
        decode=decode_queries,
        metric=BoxPrecision,
        enter=_enter_with_targets,
        validation=Thresholds(confidence=0.001, limit=100),
        loss_is_sum=False,
        stretched=True,
    ),
    Task(
        name="segment",
        network="SegmentationModel",
        heads=("Segment", "Segment26"),
        decode=decode_masks,
        metric=partial(UltralyticsPrecision, validator="segment.SegmentationValidator", extra=("tp_m", "mask_")),
        fields=(*_OBJECTS, "masks"),
    ),
    Task(
        name="pose",
        network="PoseModel",
        heads=("Pose", "Pose26"),
        decode=decode_keypoints,
        metric=partial(UltralyticsPrecision, validator="pose.PoseValidator", extra=("tp_p", "pose_")),
        fields=(*_OBJECTS, "keypoints"),
    ),
    Task(
        name="obb",
        network="OBBModel",
        heads=("OBB", "OBB26"),
        decode=decode_rotated,
        metric=partial(UltralyticsPrecision, validator="obb.OBBValidator"),
        # Ultralytics' own: rotated boxes are compared all with all, and those of less score would fill the memory.
        validation=Thresholds(confidence=0.01, multi_label=True),
    ),
    Task(
        name="classify",
        network="ClassificationModel",
        heads=("Classify",),
        decode=decode_classes,
        metric=Accuracy,
        fields=("img", "cls"),
        loss_is_sum=False,
    ),
)

TASK_NAMES = tuple(dict.fromkeys(task.name for task in TASKS))
HEADS = tuple(head for task in TASKS for head in task.heads)


def task_of_head(head: str) -> Task | None:
    """The row of a class of head, by its name; `None` where there is none.

    Example:
        >>> task_of_head("Pose26").network
        'PoseModel'
    """
    return next((task for task in TASKS if head in task.heads), None)


def task_of(network: Any) -> Task:
    """The row of a network that `build_detector` built.

    Raises:
        ArgumentError: If its head is one that LitYOLO does not know.
    """
    head = type(network.model[-1]).__name__
    task = task_of_head(head)
    if task is None:
        raise ArgumentError(f"LitYOLO knows the heads {', '.join(HEADS)}, but the network ends with {head}.")
    return task


def task_named(name: str) -> Task:
    """The first row of a name of Ultralytics'.

    Raises:
        ArgumentError: If there is no such task.
    """
    check_choice("task", name, TASK_NAMES)
    return next(task for task in TASKS if task.name == name)
