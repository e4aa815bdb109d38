"""LitYOLO: trains Ultralytics' networks, by their own losses, in a Lightning Trainer."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from lit_prune.activations import CalibrationBatch, read_batch
from lit_prune.common.arguments import check_choice
from lit_prune.common.packages import require
from lit_prune.errors import ArgumentError
from lit_prune.surgery.adoption import adopt_shapes_
from lit_prune.yolo.batches import Detections, check_batch, upright_targets
from lit_prune.yolo.classes import match_classes
from lit_prune.yolo.dataset import read_hyperparameters
from lit_prune.yolo.decode import Thresholds
from lit_prune.yolo.evaluation import run_network, run_untouched, within
from lit_prune.yolo.networks import build_detector, count_classes
from lit_prune.yolo.optim import (
    DEFAULT_LR,
    OptimizerName,
    ScheduleName,
    build_optimizer,
    build_scheduler,
    parameter_groups,
    scale_of_gradients,
)
from lit_prune.yolo.recipe import Recipe, check_trainer
from lit_prune.yolo.tasks import Task, task_of

_CLIP_NORM = 10.0  # what Ultralytics trains with


class LitYOLO(LightningModule):
    """An Ultralytics network of any task, which any Lightning Trainer trains, validates and runs.

    Batches are dicts as `lit_prune.data.collate_detection` makes them: `img` (B, 3, H, W) in 0..1 with H and W
    multiples of the network's stride, `batch_idx` (M,), `cls` (M, 1), `bboxes` (M, 4; centre, width and height,
    normalised). To these come `masks` for segmentation and `keypoints` for pose; of OBB, `bboxes` are (M, 5)
    with the angle last; of classification there are `img` and `cls` (B,) alone. `YOLODataModule` makes them all.

    The loss is Ultralytics' own. Logged are `train/loss` and its parts (means per image and epoch), and in validation
    `val/map` and `val/map_50` of boxes, `val/mask_map` or `val/pose_map` with their `_50` beside them, or for
    classification `val/accuracy` and `val/accuracy_top5`; the same under `test/`. Gradients are clipped to norm 10
    unless the Trainer has a `gradient_clip_val`.

    Args:
        model: A configuration that Ultralytics knows (`"yolov8n.yaml"`, `"yolo11n-seg.yaml"`, `"rtdetr-l.yaml"`), or
            weights: a `.pt` file, pruned or not, or the name of one that Ultralytics offers for download
            (`"yolov8n.pt"`). A dict is a configuration, too.
        num_classes: Number of classes; by default that of the configuration or of the weights.
        optimizer: `"adamw"` or `"sgd"` (with Nesterov momentum).
        lr: The highest learning rate; by default 0.002 for AdamW and 0.01 for SGD.
        momentum: SGD's momentum or AdamW's beta1.
        weight_decay: Decay of weights; norms and biases are not decayed.
        warmup_epochs: Epochs of linear warm-up; a fraction will do.
        schedule: How the learning rate falls after warm-up, step by step: `"cosine"`, `"linear"` or `"constant"`.
        final_lr: Where it ends, relative to `lr`.
        hyperparameters: Train as Ultralytics' trainer does, by its names, such as `{"optimizer": "auto", "lr0": 0.01}`,
            or by an `args.yaml` that it wrote: its optimizer and parameter groups, warm-up, accumulation to `nbs`
            images, loss gains, frozen layers, and a moving average of the weights that is validated and saved. The
            arguments from `optimizer` on are not used then. Epochs, precision and devices are the Trainer's; give
            `YOLODataModule` the same hyperparameters for what concerns data.
        kpt_shape: Of pose networks, the number of keypoints, and 2 (x, y) or 3 (x, y, visible) numbers for each, as
            `data.yaml` has it; by default that of the configuration or of the weights.

    Attributes:
        model: The Ultralytics network: a `DetectionModel`, `SegmentationModel`, ...

    Raises:
        MissingPackageError: If Ultralytics is missing.
        FileNotFoundError: If there is no such configuration or file; near names are listed.
        ArgumentError: If an argument is out of range, or `model` is not a network of a known task.

    Example:
        >>> import torch
        >>> lit = LitYOLO("yolov8n.yaml", num_classes=10)
        >>> [sorted(found) for found in lit.detect(torch.rand(1, 3, 64, 64))]
        [['boxes', 'labels', 'scores']]
    """

    def __init__(
        self,
        model: str | dict[str, Any] = "yolov8n.yaml",
        num_classes: int | None = None,
        optimizer: OptimizerName = "adamw",
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup_epochs: float = 1.0,
        schedule: ScheduleName = "cosine",
        final_lr: float = 0.01,
        hyperparameters: Mapping[str, Any] | str | Path | None = None,
        kpt_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("optimizer", optimizer, get_args(OptimizerName))
        check_choice("schedule", schedule, get_args(ScheduleName))
        lr = DEFAULT_LR[optimizer] if lr is None else lr
        _check_range("lr", lr, lr > 0, "positive")
        _check_range("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        _check_range("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        _check_range("warmup_epochs", warmup_epochs, warmup_epochs >= 0, "0 or more")
        _check_range("final_lr", final_lr, 0 <= final_lr <= 1, "in [0, 1]")
        self.save_hyperparameters()
        self.model: Any = build_detector(model, num_classes, kpt_shape)
        # A checkpoint must load where the file with the first weights does not exist.
        self.hparams["model"] = deepcopy(self.model.yaml)
        self.optimizer_name = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.schedule = schedule
        self.final_lr = final_lr
        self._metric: Any = None
        self._recipe: Recipe | None = None
        if hyperparameters is not None:
            self._recipe = Recipe(read_hyperparameters(hyperparameters, task=self.task.name))
            # Not the file's name, for the same reason as above.
            self.hparams["hyperparameters"] = dict(vars(self._recipe.settings))
            self.model.args = deepcopy(self._recipe.settings)
            self._recipe.freeze_(self.model)

    @property
    def task(self) -> Task:
        """What the network does, and what is done differently for it."""
        return task_of(self.model)

    @property
    def num_classes(self) -> int:
        """Number of classes that the head tells apart."""
        return count_classes(self.model)

    @property
    def end_to_end(self) -> bool:
        """Whether the head's answers are final (YOLOv10, YOLO26), so that no NMS follows."""
        return bool(getattr(self.model, "end2end", False))

    def match_classes(self, names: Mapping[int, str], data: str) -> None:
        """Compare the network's classes with those of data; data modules that have names call this in `setup`.

        Args:
            names: Class to name.
            data: What the data is called in messages.

        Raises:
            ArgumentError: If the network has fewer classes than the data.
        """
        match_classes(self.model, names, data, training=self.trainer.state.fn == "fit")

    def forward(self, images: Tensor) -> Any:
        """Run the network on images (B, 3, H, W) in 0..1; the result is Ultralytics' own, by mode and head."""
        return self.model(images)

    def detect(self, images: Tensor, confidence: float = 0.25, iou: float = 0.7) -> Detections:
        """Find the objects of images, in eval mode and without gradients.

        Args:
            images: (B, 3, H, W), floating point in 0..1; H and W are multiples of the network's stride.
            confidence: The least score, in [0, 1].
            iou: Of two boxes of one class that overlap more than this, NMS keeps the better one, in [0, 1].

        Returns:
            For each image a dict of `boxes` (k, 4; x0, y0, x1, y1 in pixels, within the image), `scores` (k,; falling)
            and `labels` (k,; int64). Of segmentation networks there are `masks` (k, H, W; bool), too; of pose networks
            `keypoints` (k, K, 2 or 3; x, y in pixels, and how likely it is to be seen); of OBB networks `rotated` (k,
            5; centre x, y, width, height in pixels, angle in radians), with `boxes` upright around them.

        Raises:
            ArgumentError: If the images have another shape or type, an argument is out of range, or the network
                classifies.
        """
        _check_range("confidence", confidence, 0 <= confidence <= 1, "in [0, 1]")
        _check_range("iou", iou, 0 <= iou <= 1, "in [0, 1]")
        if not self.task.finds_objects:
            raise ArgumentError("This network classifies whole images, and finds no objects in them: use `classify`.")
        return within(run_untouched(self.model, images, Thresholds(confidence, iou)), images)

    def classify(self, images: Tensor) -> Tensor:
        """Return the class probabilities (B, C) of a classification network, in eval mode and without gradients.

        Raises:
            ArgumentError: If the images have another shape or type, or the network finds objects.
        """
        if self.task.finds_objects:
            raise ArgumentError(f"This network's task is {self.task.name}, which finds objects: use `detect`.")
        probabilities: Tensor = run_untouched(self.model, images, Thresholds())
        return probabilities

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return Ultralytics' loss of one batch: for most tasks the sum over its images."""
        task = self.task
        if batch_idx == 0:  # once per epoch: it waits for the device
            check_batch(batch, int(self.model.stride.max()), self.num_classes, task.fields)
        # Not `loss(batch)` alone: that would run the network past its `__call__`, and no hook would see the images.
        parts, means = self.model.loss(batch, task.enter(self.model, batch))
        loss: Tensor = parts.sum()
        size = len(batch["img"])
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": size, "sync_dist": True}
        self.log("train/loss", loss.detach() / (size if task.loss_is_sum else 1), prog_bar=True, **options)
        # A loss of one part has that part's name for its own.
        self.log_dict({f"train/{name}": mean for name, mean in means.items() if name != "loss"}, **options)
        if self._recipe is not None:
            # Theirs is the sum over devices and accumulated batches, where Lightning takes the mean.
            loss = loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one batch into the metric."""
        self._evaluate(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one batch into the metric."""
        self._evaluate(batch)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Detections | Tensor:
        """Detect or classify by the defaults, in a batch dict, a sequence that starts with images, or images."""
        if isinstance(batch, Mapping):
            batch = batch["img"]
        elif isinstance(batch, Sequence):
            batch = batch[0]
        return self.detect(batch) if self.task.finds_objects else self.classify(batch)

    def calibration_batch(self, batch: Any) -> CalibrationBatch:
        """Tell the criteria that look at activations what a batch shows: its objects, or its images' classes."""
        if isinstance(batch, Mapping):
            if not self.task.finds_objects:
                batch = (batch["img"], batch["cls"])
            elif batch["bboxes"].shape[1] == 5:
                batch = {**batch, "bboxes": upright_targets(batch)}
        return read_batch(batch)

    def configure_callbacks(self) -> list[Callback]:
        """Keep a moving average of the weights, if Ultralytics' hyperparameters are given."""
        if self._recipe is None:
            return []
        # All else works with Lightning releases that lack what it builds on.
        require("The moving average that LitYOLO(hyperparameters=...) keeps", "lightning>=2.6", extra="yolo")
        from lit_prune.yolo.moving_average import MovingAverage

        return [MovingAverage()]

    def on_fit_start(self) -> None:
        """Tell the loss how long the run is: end-to-end heads shift its weights over the epochs."""
        self.model.args.epochs = self.trainer.max_epochs if (self.trainer.max_epochs or -1) > 0 else 100
        if self.trainer.enable_validation:
            # A package that is missing for it is named before the first epoch, not after it.
            self.task.metric(self.model)

    def on_train_epoch_start(self) -> None:
        """Renew the loss, which remembers the device and the number of epochs it has seen."""
        criterion = self.model.criterion = self.model.init_criterion()
        if hasattr(criterion, "update"):
            criterion.updates = self.current_epoch - 1
            criterion.update()
        if self._recipe is not None:
            self._recipe.train_(self.model)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Warm up as Ultralytics does, if its hyperparameters are given."""
        if self._recipe is not None:
            self._recipe.before_batch(self.trainer, batch_idx)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients; Ultralytics' recipe does that by itself where a nominal batch begins."""
        if self._recipe is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_fit_end(self) -> None:
        """Leave the Trainer's accumulation as it was."""
        if self._recipe is not None:
            self.trainer.accumulate_grad_batches = 1

    def on_validation_epoch_start(self) -> None:
        """Reset the metric."""
        self._start_metric()

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the task: `val/map`, `val/map_50`, ..."""
        self._log_metric("val")

    def on_test_epoch_start(self) -> None:
        """Reset the metric."""
        self._start_metric()

    def on_test_epoch_end(self) -> None:
        """Log the scores of the task: `test/map`, `test/map_50`, ..."""
        self._log_metric("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the names of the classes, which an exported network carries along."""
        checkpoint["class_names"] = dict(self.model.names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take on the shapes of a pruned checkpoint before its weights are loaded, and its classes' names."""
        adopt_shapes_(self, checkpoint["state_dict"])
        self.model.names = checkpoint.get("class_names", self.model.names)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and a scheduler that steps with it; by Ultralytics' recipe, once per epoch."""
        if self._recipe is not None:
            check_trainer(self.trainer)
            optimizer, scheduler = self._recipe.configure(self.trainer, self.model)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
        groups = parameter_groups(self.parameters(), self.weight_decay)
        optimizer = build_optimizer(self.optimizer_name, groups, self.lr, self.momentum)
        scheduler = build_scheduler(optimizer, self.trainer, self.warmup_epochs, self.schedule, self.final_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says; to norm 10 when it says nothing (0 turns clipping off)."""
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif (scale := scale_of_gradients(optimizer, self.trainer)) is not None:
            clip_grad_norm_(self.parameters(), _CLIP_NORM * scale)
        else:
            self.clip_gradients(optimizer, _CLIP_NORM, "norm")

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        self._metric.update(run_network(self.model, batch["img"], self.task.validation), batch)

    def _start_metric(self) -> None:
        if self._metric is None:
            self._metric = self.task.metric(self.model)
        self._metric.to(self.device).reset()

    def _log_metric(self, stage: str) -> None:
        values = self._metric.compute()
        self._metric.reset()
        scores = {f"{stage}/{name}": value.to(self.device) for name, value in values.items()}
        self.log_dict(scores, prog_bar=True, sync_dist=True)


def _check_range(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise ArgumentError(f"{name} must be {expected}, but got {value}.")
