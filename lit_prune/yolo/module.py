"""LitYOLO: trains Ultralytics' detection networks, by their own losses, in a Lightning Trainer."""

import difflib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["cosine", "linear", "constant"]
Detections: TypeAlias = list[dict[str, Tensor]]

_HEADS = ("Detect", "v10Detect")
_CLIP_NORM = 10.0  # what Ultralytics trains with
_VALIDATION = {"confidence": 0.001, "iou": 0.7, "limit": 100, "multi_label": True}


class LitYOLO(LightningModule):
    """An Ultralytics detection network that any Lightning Trainer trains, validates and runs.

    Batches are dicts as `lit_prune.data.collate_detection` makes them: `img` (B, 3, H, W) in 0..1 with H and W
    multiples of the network's stride, `batch_idx` (M,), `cls` (M, 1), `bboxes` (M, 4; centre, width and height as
    shares of the image). The loss is Ultralytics' own, summed over the batch. Logged are `train/loss` and its parts
    (means per image and epoch), `val/map`, `val/map_50`, and the same under `test/`. Gradients are clipped to norm 10
    unless the Trainer has a `gradient_clip_val`.

    Args:
        model: A configuration that Ultralytics knows (`"yolov8n.yaml"`), or weights: a `.pt` file, pruned or not, or
            the name of one that Ultralytics offers for download (`"yolov8n.pt"`). A dict is a configuration, too.
        num_classes: Number of classes; by default that of the configuration or of the weights.
        optimizer: `"adamw"` or `"sgd"` (with Nesterov momentum).
        lr: The highest learning rate; by default 0.002 for AdamW and 0.01 for SGD.
        momentum: SGD's momentum or AdamW's beta1.
        weight_decay: Decay of weights; norms and biases are not decayed.
        warmup_epochs: Epochs of linear warm-up; a fraction will do.
        schedule: How the learning rate falls after warm-up, step by step: `"cosine"`, `"linear"` or `"constant"`.
        final_lr: Where it ends, as a share of `lr`.

    Attributes:
        model: The Ultralytics `DetectionModel`.

    Raises:
        ImportError: If Ultralytics is missing.
        FileNotFoundError: If there is no such configuration or file; near names are listed.
        ValueError: If an argument is out of range, or `model` is no detection network.

    Example:
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
    ) -> None:
        super().__init__()
        _check_choice("optimizer", optimizer, get_args(OptimizerName))
        _check_choice("schedule", schedule, get_args(ScheduleName))
        lr = {"adamw": 2e-3, "sgd": 1e-2}[optimizer] if lr is None else lr
        _check_range("lr", lr, lr > 0, "positive")
        _check_range("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        _check_range("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        _check_range("warmup_epochs", warmup_epochs, warmup_epochs >= 0, "0 or more")
        _check_range("final_lr", final_lr, 0 <= final_lr <= 1, "in [0, 1]")
        self.save_hyperparameters()
        self.model: Any = build_detector(model, num_classes)
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

    @property
    def num_classes(self) -> int:
        """Number of classes that the head tells apart."""
        return int(self.model.model[-1].nc)

    @property
    def end_to_end(self) -> bool:
        """Whether the head's answers are final (YOLOv10, YOLO26), so that no NMS follows."""
        return bool(self.model.end2end)

    def forward(self, images: Tensor) -> Any:
        """Run the network on images (B, 3, H, W) in 0..1; what returns is Ultralytics' own, by mode and head."""
        return self.model(images)

    def detect(self, images: Tensor, confidence: float = 0.25, iou: float = 0.7) -> Detections:
        """Find the objects of images, in eval mode and without gradients.

        Args:
            images: (B, 3, H, W), floating point in 0..1; H and W are multiples of the network's stride.
            confidence: The least score, in [0, 1].
            iou: Of two boxes of one class that overlap more than this, NMS keeps the better one, in [0, 1].

        Returns:
            For each image a dict of `boxes` (k, 4; x0, y0, x1, y1 in pixels, within the image), `scores` (k,; falling)
            and `labels` (k,; int64).

        Raises:
            ValueError: If the images have another shape or type, or an argument is out of range.
        """
        _check_range("confidence", confidence, 0 <= confidence <= 1, "in [0, 1]")
        _check_range("iou", iou, 0 <= iou <= 1, "in [0, 1]")
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                return self._detect(images, confidence=confidence, iou=iou)
        finally:
            for module, mode in modes:
                module.training = mode

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return Ultralytics' loss of one batch, the sum over its images."""
        if batch_idx == 0:  # once an epoch: it waits for the device
            self._check_batch(batch)
        parts, means = self.model.loss(batch)
        loss: Tensor = parts.sum()
        size = len(batch["img"])
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": size, "sync_dist": True}
        self.log("train/loss", loss.detach() / size, prog_bar=True, **options)
        self.log_dict({f"train/{name}": mean for name, mean in means.items()}, **options)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one batch into the metric."""
        self._evaluate(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one batch into the metric."""
        self._evaluate(batch)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Detections:
        """Detect with the defaults of `detect`, in a batch dict, a sequence that starts with images, or images."""
        if isinstance(batch, Mapping):
            batch = batch["img"]
        elif isinstance(batch, Sequence):
            batch = batch[0]
        return self.detect(batch)

    def on_fit_start(self) -> None:
        """Tell the loss how long the run is: end-to-end heads shift its weights over the epochs."""
        self.model.args.epochs = self.trainer.max_epochs if (self.trainer.max_epochs or -1) > 0 else 100

    def on_train_epoch_start(self) -> None:
        """Renew the loss, which remembers the device and the number of epochs it has seen."""
        criterion = self.model.criterion = self.model.init_criterion()
        if hasattr(criterion, "update"):
            criterion.updates = self.current_epoch - 1
            criterion.update()

    def on_validation_epoch_start(self) -> None:
        """Start the metric anew."""
        self._start_metric()

    def on_validation_epoch_end(self) -> None:
        """Log `val/map` and `val/map_50`."""
        self._log_metric("val")

    def on_test_epoch_start(self) -> None:
        """Start the metric anew."""
        self._start_metric()

    def on_test_epoch_end(self) -> None:
        """Log `test/map` and `test/map_50`."""
        self._log_metric("test")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take on the shapes of a pruned checkpoint before its weights are loaded."""
        from lit_prune.surgery import adopt_shapes_

        adopt_shapes_(self, checkpoint["state_dict"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer of two parameter groups, and a scheduler that steps with it."""
        groups = self.parameter_groups()
        optimizer: Optimizer
        if self.optimizer_name == "adamw":
            optimizer = AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999))
        else:
            optimizer = SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total) and self.schedule != "constant":
            raise ValueError(
                f"schedule={self.schedule!r} needs to know where the run ends, but the Trainer has no end. "
                f"Set max_epochs or max_steps, or use schedule='constant'."
            )
        batches = self.trainer.num_training_batches
        epoch = total if math.isinf(batches) else math.ceil(batches / self.trainer.accumulate_grad_batches)
        warmup = min(self.warmup_epochs * epoch, total) if self.warmup_epochs else 0
        factor = partial(lr_factor, warmup=warmup, total=total, schedule=self.schedule, final=self.final_lr)
        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says; to norm 10 when it says nothing (0 turns clipping off)."""
        if gradient_clip_val is None:
            gradient_clip_val, gradient_clip_algorithm = _CLIP_NORM, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Every trainable parameter in one of two groups: weights, decayed; biases and norms, not decayed."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        weights = [parameter for parameter in trainable if parameter.ndim > 1]
        others = [parameter for parameter in trainable if parameter.ndim <= 1]
        return [
            {"params": weights, "weight_decay": self.weight_decay, "name": "weights"},
            {"params": others, "weight_decay": 0.0, "name": "biases_and_norms"},
        ]

    def _detect(
        self, images: Tensor, *, confidence: float, iou: float, limit: int = 300, multi_label: bool = False
    ) -> Detections:
        from ultralytics.utils.nms import non_max_suppression

        self._check_images(images)
        predictions = self(images)[0]
        # The head keeps its anchors; made in inference mode, they would break a later backward pass.
        self.model.model[-1].shape = None
        rows = non_max_suppression(
            predictions.float(),
            conf_thres=confidence,
            iou_thres=iou,
            multi_label=multi_label,
            max_det=limit,
            nc=self.num_classes,
            max_time_img=math.inf,  # results must not depend on how busy the machine is
            end2end=self.end_to_end,
        )
        height, width = images.shape[2:]
        edges = torch.tensor([width, height, width, height], dtype=torch.float32, device=images.device)
        return [
            {"boxes": row[:, :4].clamp(min=0).minimum(edges), "scores": row[:, 4], "labels": row[:, 5].long()}
            for row in rows
        ]

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        found = self._detect(batch["img"], **_VALIDATION)  # type: ignore[arg-type]
        self._metric.update(found, box_targets(batch))

    def _start_metric(self) -> None:
        if self._metric is None:
            self._metric = _mean_average_precision()
        self._metric.to(self.device).reset()

    def _log_metric(self, stage: str) -> None:
        values = self._metric.compute()
        self._metric.reset()
        self.log_dict(
            {f"{stage}/{name}": values[name].to(self.device) for name in ("map", "map_50")},
            prog_bar=True,
            sync_dist=True,
        )

    def _check_images(self, images: Tensor) -> None:
        stride = int(self.model.stride.max())
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

    def _check_batch(self, batch: dict[str, Tensor]) -> None:
        missing = {"img", "batch_idx", "cls", "bboxes"} - set(batch)
        if missing:
            raise ValueError(
                f"a batch must have img, batch_idx, cls and bboxes, but lacks {', '.join(sorted(missing))}; "
                f"see lit_prune.data.collate_detection."
            )
        self._check_images(batch["img"])
        labels = batch["cls"]
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise ValueError(
                f"classes must be in 0..{self.num_classes - 1}, as the network has {self.num_classes} classes, but the "
                f"batch has {labels.min():.0f}..{labels.max():.0f}; pass num_classes to LitYOLO."
            )


def build_detector(model: str | dict[str, Any], num_classes: int | None = None) -> Any:
    """Build an Ultralytics `DetectionModel` that is ready to train.

    Its weights require gradients, it has the hyperparameters that its loss asks for, and in eval mode end-to-end
    heads answer end to end.

    Args:
        model: As for `LitYOLO`.
        num_classes: As for `LitYOLO`; weights of the last layer that do not fit another number are drawn anew.

    Raises:
        ImportError: If Ultralytics is missing.
        FileNotFoundError: If there is no such configuration or file; near names are listed.
        ValueError: If `model` is no detection network, or `num_classes` is below 1 or cannot be changed.
    """
    _require_ultralytics()
    from ultralytics.cfg import get_cfg

    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, but got {num_classes}.")
    if isinstance(model, str) and Path(model).suffix == ".pt":
        network = _from_weights(model, num_classes)
    else:
        network = _from_configuration(model, num_classes)
    network.args = get_cfg()
    if getattr(network.model[-1], "one2one_cv2", None) is not None:
        network.end2end = True
    return network


def lr_factor(step: int, *, warmup: float, total: float, schedule: ScheduleName, final: float) -> float:
    """Return the share of the highest learning rate at a step: a linear rise, then the schedule's fall to `final`.

    Example:
        >>> [lr_factor(step, warmup=2, total=6, schedule="linear", final=0.0) for step in range(7)]
        [0.333..., 0.666..., 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    height = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return final + (1 - final) * height


def box_targets(batch: dict[str, Tensor]) -> Detections:
    """Turn a batch's objects into one dict an image: `boxes` (n, 4; x0, y0, x1, y1 in pixels) and `labels` (n,)."""
    images = batch["img"]
    size = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32, device=images.device)
    centre, extent = batch["bboxes"].float().split(2, dim=1)
    boxes = torch.cat([(centre - extent / 2) * size, (centre + extent / 2) * size], dim=1)
    labels = batch["cls"].flatten().long()
    rows = [batch["batch_idx"] == image for image in range(len(images))]
    return [{"boxes": boxes[row], "labels": labels[row]} for row in rows]


def _from_configuration(model: str | dict[str, Any], num_classes: int | None) -> Any:
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    with _quiet():
        if isinstance(model, dict):
            config = deepcopy(model)
        else:
            if Path(model).suffix not in {".yaml", ".yml"}:
                raise ValueError(f"model must end in .yaml or .pt, but got {model!r}.{_near(model)}")
            try:
                config = yaml_model_load(model)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"Ultralytics has no configuration {model!r}, and there is no such file.{_near(model)}"
                ) from None
        head = config["head"][-1][2]
        if head not in _HEADS:
            raise ValueError(
                f"LitYOLO trains detection networks (their head is one of {', '.join(_HEADS)}), but the head of "
                f"{model if isinstance(model, str) else 'this configuration'!r} is {head}."
            )
        return DetectionModel(config, nc=num_classes, verbose=False)


def _from_weights(path: str, num_classes: int | None) -> Any:
    source = _load_weights(path)
    config = getattr(source, "yaml", None)
    if not isinstance(config, dict) or source.is_fused():
        raise ValueError(
            f"{path!r} holds no network that can be trained (its normalization is fused into its convolutions, or "
            f"it was not written by Ultralytics' trainer or `lit-prune export`); use the file from before export."
        )
    classes = int(source.model[-1].nc)
    network = _from_configuration(config, classes)
    weights = source.state_dict()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    pruned = any(shapes.get(name, value.shape) != value.shape for name, value in weights.items())
    if pruned:
        from lit_prune.surgery import adopt_shapes_

        adopt_shapes_(network, weights)
    network.load_state_dict(weights)
    network.names = source.names
    if num_classes in {None, classes}:
        return network
    if pruned:
        raise ValueError(
            f"{path!r} is pruned and has {classes} classes; num_classes={num_classes} would need a new head. Train "
            f"the dense network for {num_classes} classes first, then prune it."
        )
    changed = _from_configuration(config, num_classes)
    with _quiet():
        changed.load(network, verbose=False)
    return changed


def _load_weights(path: str) -> Any:
    from ultralytics.nn.tasks import load_checkpoint
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    offered = Path(path).name == path and (path in GITHUB_ASSETS_NAMES or f"{path[:-3]}u.pt" in GITHUB_ASSETS_NAMES)
    if not Path(path).exists() and not offered:
        raise FileNotFoundError(f"There is no file {path!r}, and Ultralytics offers none of this name.{_near(path)}")
    try:
        return load_checkpoint(path)[0]
    except (OSError, RuntimeError) as error:
        if Path(path).exists():
            raise ValueError(f"{path!r} cannot be read as weights by Ultralytics: {error}") from error
        raise FileNotFoundError(
            f"{path!r} is not here, and Ultralytics could not download it ({error}). Put the file into the working "
            f"directory, or start from {Path(path).stem + '.yaml'!r} without weights."
        ) from error


def _near(name: str) -> str:
    """End of an error message: the known names that resemble this one."""
    import ultralytics
    from ultralytics.utils import YAML
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    stem, suffix = Path(name).stem, Path(name).suffix
    if suffix == ".pt":
        known = {asset for asset in GITHUB_ASSETS_NAMES if re.fullmatch(r"yolo[^-]*\.pt", asset)}
    else:
        suffix = ".yaml"
        known = set()
        for path in (Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"):
            config = YAML.load(path)
            if config["head"][-1][2] in _HEADS:
                scales = config.get("scales") or [""]
                known |= {re.sub(r"(\d+)(?=$|-)", rf"\g<1>{scale}", path.stem, count=1) + suffix for scale in scales}
    near = difflib.get_close_matches(stem + suffix, sorted(known), n=4, cutoff=0.4)
    return f" Did you mean {', '.join(near)}?" if near else f" Known are {', '.join(sorted(known))}."


def _mean_average_precision() -> Any:
    from torchmetrics.detection import MeanAveragePrecision

    try:
        metric = MeanAveragePrecision(backend="faster_coco_eval")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Validation needs faster-coco-eval. Install it with: pip install 'lit-prune[yolo]' ({error})"
        ) from error
    metric.warn_on_many_detections = False
    return metric


def _require_ultralytics() -> None:
    try:
        import ultralytics  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"LitYOLO builds its networks with Ultralytics, which cannot be imported ({error}). Install it with: "
            f"pip install 'lit-prune[yolo]'. Mind that Ultralytics is licensed under AGPL-3.0."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ultralytics' notes about building a network from the console."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def _check_range(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, but got {value}.")
