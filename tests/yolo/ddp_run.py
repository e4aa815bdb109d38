"""LitYOLO and YOLODataModule on two ranks, started as users start theirs: `python ddp_run.py OUT DATA`.

Each rank writes which images it saw to OUT/rank<r>.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_prune.yolo import LitYOLO, YOLODataModule
from lit_prune.yolo.metrics import mean_average_precision
from lit_prune.yolo.tasks import task_named

torch.set_num_threads(1)


class Watching(LitYOLO):
    """Notes the images of each batch, and the shape that they have there."""

    def __init__(self) -> None:
        super().__init__("yolov8n.yaml", num_classes=10, hyperparameters={"optimizer": "SGD", "nbs": 4})
        self.seen: dict[str, list[Any]] = {"train": [], "val": []}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._note("train", batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._note("val", batch)
        super().validation_step(batch, batch_idx)

    def _note(self, split: str, batch: Any) -> None:
        names = [Path(file).name for file in batch["im_file"]]
        self.seen[split].append((self.current_epoch, names, tuple(batch["img"].shape[2:])))


def settings(ranks: int) -> dict[str, Any]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return {"accelerator": "cpu", "devices": ranks, "enable_checkpointing": False, "max_epochs": 2, **quiet}


def data_module(data: str, batch_size: int) -> YOLODataModule:
    return YOLODataModule(data, image_size=64, batch_size=batch_size, num_workers=0)


def scores_of(images: range) -> dict[str, float]:
    """What a metric says of made-up detections: of image k, with k + 1 boxes, one is found badly."""
    metric = mean_average_precision()
    for number in images:
        boxes = 10.0 * torch.arange(number + 1)[:, None] + torch.tensor([0.0, 0.0, 9.0, 9.0])
        truth = {"boxes": boxes, "labels": torch.arange(number + 1) % 3}
        found = {**truth, "boxes": boxes.clone(), "scores": torch.linspace(0.9, 0.5, number + 1) - number / 100}
        found["boxes"][0, 2] -= number
        metric.update([found], [truth])
    values = metric.compute()
    return {name: float(values[name]) for name in ("map", "map_50")}


def rotated_scores_of(images: range) -> dict[str, float]:
    """The same of rotated boxes, by Ultralytics' own validator."""
    network = LitYOLO("yolov8n-obb.yaml", num_classes=3).model
    metric = task_named("obb").metric(network)
    for number in images:
        truth = torch.rand(number + 1, 5, generator=torch.Generator().manual_seed(number)) / 4 + 0.3
        batch = {"img": torch.zeros(1, 3, 64, 64), "cls": torch.arange(number + 1)[:, None] % 3.0, "bboxes": truth}
        rotated = truth * torch.tensor([64, 64, 64, 64, 1])
        rotated[0, 0] += number
        scores = torch.linspace(0.9, 0.5, number + 1) - number / 100
        found = {"rotated": rotated, "scores": scores, "labels": batch["cls"].flatten()}
        metric.update([found], {**batch, "batch_idx": torch.zeros(number + 1)})
    return {name: float(value) for name, value in metric.compute().items()}


def main(out: Path, data: str) -> None:
    torch.manual_seed(0)
    model = Watching()
    trainer = Trainer(strategy="ddp", **settings(2))
    trainer.fit(model, data_module(data, 2))
    trainer.save_checkpoint(out / "net.ckpt")
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    weights = {name: value.detach() for name, value in model.model.named_parameters()}
    first = trainer.global_rank == 0
    made_up = {
        "uneven": scores_of(range(5) if first else range(5, 7)),
        "one saw nothing": scores_of(range(7 if first else 0)),
        "rotated": rotated_scores_of(range(5) if first else range(5, 7)),
        "rotated, one saw nothing": rotated_scores_of(range(7 if first else 0)),
    }
    found = {"seen": model.seen, "scores": scores, "weights": weights, "made up": made_up}
    torch.save(found, out / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
