"""Ultralytics' own trainers for networks that are pruned. Importing this module imports Ultralytics."""

from typing import Any

from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import LOGGER, RANK

from lit_prune.common.names import count_parameters
from lit_prune.errors import ArgumentError
from lit_prune.yolo.networks import adopt_widths_, is_pruned
from lit_prune.yolo.package import STATE, quiet_ultralytics
from lit_prune.yolo.tasks import TASKS, Task, task_of_head

# What of a configuration makes the architecture; the rest is the data's, or names.
_ARCHITECTURE = ("backbone", "head", "scale", "depth_multiple", "width_multiple")


class KeepsWidths:
    """Comes before one of Ultralytics' trainers, whose networks then keep the widths of pruned weights.

    Raises:
        ArgumentError: If the network is for another task than the trainer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # `YOLO.train` passes on its network's task, and some trainers put their own in its place.
        given = kwargs.get("overrides") or next(iter(args[1:2]), None) or {}
        task = _trained_by(self)
        if task is not None and given.get("task", task.name) != task.name:
            raise _other_task(self, task, f"for the task {given['task']}")
        super().__init__(*args, **kwargs)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the network as the base class does, give it the widths of pruned weights, then load them.

        Raises:
            ArgumentError: If the network is for another task than the trainer, or the weights are pruned, and their
                normalization is fused into the convolutions.
        """
        task, own = _trained_by(self), task_of_head(cfg["head"][-1][2]) if isinstance(cfg, dict) else None
        if task is not None and own is not None and own is not task:
            raise _other_task(self, task, f"of the class {own.network}")
        build: Any = super().get_model  # type: ignore[misc]
        if weights is None or not is_pruned(weights):
            return build(cfg=cfg, weights=weights, verbose=verbose)
        if weights.is_fused():
            raise ArgumentError(
                "The weights are pruned, and their normalization is fused into the convolutions, so that they can't be "
                "trained. Load the file again, without `fuse()`."
            )
        with quiet_ultralytics():
            # Networks that classify tell of themselves in any case.
            network = build(cfg=cfg, weights=None, verbose=False)
        if any(network.yaml.get(key) != weights.yaml.get(key) for key in _ARCHITECTURE):
            # Another network that is only to begin with what fits.
            return build(cfg=cfg, weights=weights, verbose=verbose)
        dense = count_parameters(network)
        adopt_widths_(network, weights)
        network.load(weights)
        if hasattr(weights, STATE):
            setattr(network, STATE, getattr(weights, STATE))
        if verbose and RANK == -1:
            # In place of the table that the base class prints, which would be the dense network's.
            network.info()
            LOGGER.info(
                f"Pruned widths are kept: {count_parameters(network):,} parameters, where the dense network has "
                f"{dense:,}."
            )
        return network


def keep_widths_(trainer: Any) -> None:
    """Have a trainer that has not built its network yet keep the widths of pruned weights, whatever its class."""
    if not isinstance(trainer, KeepsWidths):
        kind = type(trainer)
        trainer.__class__ = type(kind.__name__, (KeepsWidths, kind), {"__module__": kind.__module__})


def keeping(trainer: Any) -> str:
    """The name of the trainer class to give, in place of a trainer's own, for pruned weights.

    Example:
        >>> keeping(PoseTrainer.__new__(PoseTrainer))
        'PrunedPoseTrainer'
    """
    found = next((pruned for pruned in _TRAINERS if isinstance(trainer, pruned.__bases__[1])), None)
    return found.__name__ if found else "a class of KeepsWidths and your trainer"


def _trained_by(trainer: Any) -> Task | None:
    """The task of one of Ultralytics' trainers, or of a subclass."""
    networks = (network for pruned, network in _TRAINERS.items() if isinstance(trainer, pruned.__bases__[1]))
    network = next(networks, None)
    return next((task for task in TASKS if task.network == network), None)


def _other_task(trainer: Any, task: Task, own: str) -> ArgumentError:
    return ArgumentError(
        f"{type(trainer).__name__} trains networks of the class {task.network}, but got one {own}. Give it a "
        "network of its own class, or take the trainer of this network."
    )


class PrunedDetectionTrainer(KeepsWidths, DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' `DetectionTrainer` that keeps the widths of a pruned network.

    `YOLO("pruned.pt").train(...)` alone builds the dense network from its configuration, and takes only those weights
    that happen to fit. With `trainer=PrunedDetectionTrainer` the network stays as it is. Data with another number of
    classes only replaces the last layers of the class branch. Dense weights train as always. `UltralyticsPruning`
    needs no such class: what it is attached to keeps its widths.

    Example:
        ```
        from ultralytics import YOLO
        from lit_prune.yolo import PrunedDetectionTrainer

        YOLO("pruned.pt").train(trainer=PrunedDetectionTrainer, data="data.yaml", epochs=20)
        ```
    """


class PrunedSegmentationTrainer(KeepsWidths, SegmentationTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for segmentation networks."""


class PrunedPoseTrainer(KeepsWidths, PoseTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for pose networks; other keypoints replace the last layers of their branch."""


class PrunedOBBTrainer(KeepsWidths, OBBTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for networks that find rotated boxes."""


class PrunedClassificationTrainer(KeepsWidths, ClassificationTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for networks that classify."""


class PrunedRTDETRTrainer(KeepsWidths, RTDETRTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for RT-DETR, as in `RTDETR("pruned.pt").train(trainer=PrunedRTDETRTrainer, ...)`."""


# Subclasses before the classes that they are of; each with the class of its networks.
_TRAINERS: dict[type[KeepsWidths], str] = {
    PrunedSegmentationTrainer: "SegmentationModel",
    PrunedPoseTrainer: "PoseModel",
    PrunedOBBTrainer: "OBBModel",
    PrunedClassificationTrainer: "ClassificationModel",
    PrunedRTDETRTrainer: "RTDETRDetectionModel",
    PrunedDetectionTrainer: "DetectionModel",
}
