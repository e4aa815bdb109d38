"""A dense and a pruned network side by side, on the user's own validation images: table, report and figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.table import Table
from torch import Tensor

from lit_prune.common.packages import require
from lit_prune.cost.side_by_side import measure_side_by_side
from lit_prune.errors import ArgumentError
from lit_prune.report.tables import human, relative_change, save_json, score_change, speedup
from lit_prune.yolo.batches import Detections, box_targets
from lit_prune.yolo.datamodule import YOLODataModule
from lit_prune.yolo.drawing import draw_detections
from lit_prune.yolo.lit_yolo import LitYOLO

_CONFIDENCE = 0.25
_SHOWN = 6  # images in the figure
_SCORES = {
    "map": "mAP50-95",
    "map_50": "mAP50",
    "mask_map": "mAP50-95 of masks",
    "mask_map_50": "mAP50 of masks",
    "pose_map": "mAP50-95 of poses",
    "pose_map_50": "mAP50 of poses",
    "accuracy": "accuracy",
    "accuracy_top5": "accuracy, first five",
}


def compare_networks(
    dense: str | Path, pruned: str | Path, data: YOLODataModule, out: str | Path, batches: tuple[int, ...] = (1, 8)
) -> dict[str, Any]:
    """Measure two networks on one data set: parameters, multiply-adds, scores, latency; and draw what they find.

    Written are `report.json` and `detections.png`, with the true objects that a network misses dashed, and what is no
    object crossed.

    Args:
        dense: A file of Ultralytics (`.pt`) or of a Trainer with `LitYOLO` (`.ckpt`).
        pruned: Another one, of the same task and classes.
        data: The data; its validation images are taken, letterboxed to squares of its image size (to be stretched for
            RT-DETR, cropped for classification), which is also the size at which all else is measured.
        out: The folder; it is made if need be.
        batches: Batch sizes at which latency is measured, on the CPU.

    Returns:
        What `report.json` holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ArgumentError: If the networks are of different tasks, or can't work on the data.
        MissingPackageError: If Ultralytics or matplotlib is missing.
    """
    require("compare_networks", "matplotlib", extra="figures")
    out = Path(out)
    # What is measured has one size: images padded to rectangles have others.
    data = YOLODataModule(**{**data.hparams, "rectangular": False})
    modules = {"dense": LitYOLO(str(dense)), "pruned": LitYOLO(str(pruned))}
    tasks = {name: module.task.name for name, module in modules.items()}
    if len(set(tasks.values())) > 1:
        raise ArgumentError(
            f"Only networks of one task can be compared, but these are of {' and '.join(tasks.values())}."
        )
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    scores: dict[str, Mapping[str, float]] = {}
    for name, module in modules.items():
        # More devices would be processes that compare all over again.
        (scores[name],) = Trainer(devices=1, **quiet).validate(module, data, verbose=False)
        module.cpu().eval()
    batch = _most_to_see(data)
    side = data.image_size
    networks = {name: module.model for name, module in modules.items()}
    channels = batch["img"].shape[1]
    report: dict[str, Any] = {
        name: {**costs, **{key.removeprefix("val/"): value for key, value in scores[name].items()}}
        for name, costs in measure_side_by_side(networks, (channels, side, side), batches).items()
    }
    report |= {"data": str(data.data), "task": tasks["dense"], "image_size": side, "torch": torch.__version__}
    out.mkdir(parents=True, exist_ok=True)
    save_json(report, out / "report.json")
    rows = {
        f"{name} · {human(report[name]['macs'])} MACs": as_objects(module.predict_step(batch["img"]), batch["img"])
        for name, module in modules.items()
    }
    figure = draw_detections(batch["img"], rows, targets_of(batch), names=networks["dense"].names)
    figure.savefig(out / "detections.png")
    return report


def comparison_table(report: Mapping[str, Any]) -> Table:
    """The dense and the pruned network of a report as a table."""
    dense, pruned = report["dense"], report["pruned"]
    table = Table(title="Before and after", title_style="bold", header_style="bold", caption_justify="left")
    table.add_column("")
    for name, side in (("dense", dense), ("pruned", pruned)):
        after = f", after {side['epochs']} epochs" if "epochs" in side else ""
        table.add_column(f"{name}{after}", justify="right")
    table.add_column("change", justify="right")
    for title, key in (("parameters", "params"), ("multiply-adds", "macs")):
        table.add_row(title, human(dense[key]), human(pruned[key]), relative_change(dense[key], pruned[key]))
    for key, title in _SCORES.items():
        if key in dense:
            table.add_row(title, f"{dense[key]:.3f}", f"{pruned[key]:.3f}", score_change(dense[key], pruned[key]))
    for before, after in zip(dense["latency"], pruned["latency"], strict=True):
        old, new = before["median_ms"], after["median_ms"]
        title = f"latency, batch {before['batch_size']}"
        table.add_row(title, f"{old:.1f} ms", f"{new:.1f} ms", speedup(old, new))
    first = dense["latency"][0]
    threads = f", {first['threads']} thread{'s' * (first['threads'] != 1)}" if first["device"] == "cpu" else ""
    height, width = first["image_size"]
    where = f"{first['device']}{threads}, median of {first['repeats']}, side by side"
    table.caption = f"all at {height}×{width} pixels; latency: {where}"
    return table


def as_objects(found: Detections | Tensor, images: Tensor) -> Detections:
    """What was found as objects to be drawn: of a classified image its class, in a box of the image's size.

    Example:
        >>> as_objects(torch.tensor([[0.25, 0.75]]), torch.zeros(1, 3, 32, 64))[0]["boxes"].tolist()
        [[0.0, 0.0, 64.0, 32.0]]
    """
    if not isinstance(found, Tensor):
        return found
    scores, labels = found.max(1)
    return [
        {"boxes": _whole(images), "scores": score[None], "labels": label[None]}
        for score, label in zip(scores, labels, strict=True)
    ]


def targets_of(batch: Mapping[str, Any]) -> Detections:
    """The true objects of a batch, to be drawn."""
    if "bboxes" in batch:
        return box_targets(dict(batch))
    return [{"boxes": _whole(batch["img"]), "labels": label[None]} for label in batch["cls"].long()]


def _whole(images: Tensor) -> Tensor:
    return torch.tensor([[0.0, 0.0, images.shape[3], images.shape[2]]])


def _most_to_see(data: YOLODataModule) -> dict[str, Any]:
    """The images of the first validation batch that show most, at most as many as are drawn."""
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    if "bboxes" not in batch:
        return {"img": batch["img"][:_SHOWN], "cls": batch["cls"][:_SHOWN]}
    counts = batch["batch_idx"].long().bincount(minlength=len(batch["img"]))
    chosen = counts.argsort(descending=True, stable=True)[:_SHOWN]
    rows = [(batch["batch_idx"] == image).nonzero().flatten() for image in chosen]
    shown = {name: torch.cat([batch[name][row] for row in rows]) for name in ("cls", "bboxes")}
    index = torch.arange(len(chosen)).repeat_interleave(counts[chosen]).float()
    return {"img": batch["img"][chosen], "batch_idx": index, **shown}
