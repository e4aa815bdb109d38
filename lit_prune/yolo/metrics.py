"""How good predictions are: each metric takes what a network found in a batch, and the batch."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_prune.common.packages import require
from lit_prune.yolo.batches import Detections, box_targets
from lit_prune.yolo.gathering import GathersUnevenly


def mean_average_precision() -> Any:
    """Build torchmetrics' `MeanAveragePrecision`, on the fast backend that the yolo extra installs."""
    require("Validation", "faster-coco-eval:faster_coco_eval", "torchvision:torchvision", extra="yolo")
    from lit_prune.yolo.mean_average_precision import GatheredMeanAveragePrecision

    metric = GatheredMeanAveragePrecision(backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    return metric


class BoxPrecision(Metric):
    """COCO's mean average precision of boxes: `map` (IoU 0.50 to 0.95) and `map_50`, by torchmetrics."""

    full_state_update = False

    def __init__(self, network: Any = None) -> None:
        super().__init__()
        self._metric = mean_average_precision()

    def update(self, found: Detections, batch: dict[str, Tensor]) -> None:
        """Take the objects that were found in one batch."""
        self._metric.update(found, box_targets(batch))

    def compute(self) -> dict[str, Tensor]:
        """Return the scores over all batches."""
        values = self._metric.compute()
        return {name: values[name] for name in ("map", "map_50")}

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._metric.reset()


class UltralyticsPrecision(GathersUnevenly):
    """Mean average precision by Ultralytics' own validator of a task, over all ranks.

    Scores are `map` and `map_50` of boxes (rotated ones of OBB), and the same of what else a task finds:
    `mask_map`, `mask_map_50`, `pose_map`, `pose_map_50`.

    Args:
        network: The network that is validated: its classes' names, and the shape of its keypoints.
        validator: The name of the validator in `ultralytics.models.yolo`, such as `"segment.SegmentationValidator"`.
        extra: The name of Ultralytics' second list of right answers, and the prefix of its scores.
    """

    full_state_update = False

    def __init__(self, network: Any, validator: str, extra: tuple[str, str] | None = None) -> None:
        super().__init__()
        self._kinds = {"tp": "", **({extra[0]: extra[1]} if extra else {})}
        for name in (*self._kinds, "conf", "pred_cls", "target_cls"):
            self.add_state(name, default=[])
        self._validator = _build_validator(network, validator)

    def update(self, found: Detections, batch: Mapping[str, Any]) -> None:
        """Take the objects that were found in one batch, with masks a quarter as large as the images."""
        images = batch["img"]
        size = tuple(images.shape[2:])
        # What only a data set of files knows, and the validator asks for: where its images came from.
        unknown = {"ori_shape": [size] * len(images), "ratio_pad": [None] * len(images), "im_file": [""] * len(images)}
        whole = {**unknown, **batch}
        for name in {"masks", "keypoints"} & set(whole):
            whole[name] = whole[name].float()
        validator = self._validator
        validator.device = images.device
        validator.update_metrics([_as_ultralytics(entry) for entry in found], whole)
        for name in (*self._kinds, "conf", "pred_cls", "target_cls"):
            values = np.concatenate(validator.metrics.stats[name])
            kind = torch.bool if name in self._kinds else torch.float32
            getattr(self, name).append(torch.from_numpy(values).to(images.device, kind))
        validator.metrics.clear_stats()
        validator.metrics.clear_image_metrics()

    def compute(self) -> dict[str, Tensor]:
        """Return the scores over all batches."""
        from ultralytics.utils.metrics import Metric as Scores
        from ultralytics.utils.metrics import ap_per_class

        conf, predicted, true = (_joined(getattr(self, name)) for name in ("conf", "pred_cls", "target_cls"))
        values: dict[str, Tensor] = {}
        for name, prefix in self._kinds.items():
            scores = Scores()
            scores.update(ap_per_class(_joined(getattr(self, name)), conf, predicted, true)[2:])
            values |= {f"{prefix}map": torch.tensor(float(scores.map), device=self.device)}
            values |= {f"{prefix}map_50": torch.tensor(float(scores.map50), device=self.device)}
        return values


class Accuracy(MetricCollection):
    """How often an image's class is the network's first choice, and among its first five, by torchmetrics.

    Args:
        network: The network that is validated: its number of classes.
    """

    def __init__(self, network: Any) -> None:
        classes: int = network.model[-1].linear.out_features

        def among_first(choices: int) -> Metric:
            return MulticlassAccuracy(
                # Of one class it makes none.
                num_classes=max(classes, 2),
                top_k=min(choices, classes),
                average="micro",
                validate_args=False,
            )

        # Groups would be guessed from the first batch: where both counts are equal they would stay so.
        super().__init__({"accuracy": among_first(1), "accuracy_top5": among_first(5)}, compute_groups=False)

    def update(self, found: Tensor, batch: dict[str, Tensor]) -> None:  # type: ignore[override]
        """Take the probabilities (B, C) that were given to the classes of one batch."""
        super().update(found, batch["cls"].view(-1).long())


def _build_validator(network: Any, name: str) -> Any:
    import ultralytics.models.yolo as tasks

    from lit_prune.yolo.package import quiet_ultralytics

    module, _, validator = name.partition(".")
    # It makes a folder for its plots, of which there are none here.
    with tempfile.TemporaryDirectory() as folder, quiet_ultralytics():
        built = getattr(getattr(tasks, module), validator)(save_dir=Path(folder), args={"plots": False})
    built.data = {"kpt_shape": getattr(network, "kpt_shape", None)}
    built.data["kpt_oks_sigmas"] = getattr(network, "kpt_oks_sigmas", None)
    built.args.overlap_mask = network.args.overlap_mask
    built.init_metrics(network)
    return built


def _as_ultralytics(entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"boxes": "bboxes", "scores": "conf", "labels": "cls"}
    renamed = {names.get(name, name): value for name, value in entry.items()}
    if "rotated" in renamed:
        renamed["bboxes"] = renamed.pop("rotated")
    return renamed


def _joined(values: Any) -> Any:
    return torch.cat(values).cpu().numpy()
