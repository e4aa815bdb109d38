"""Ultralytics' trainer and ours, trained alike on written-out DigitScenes: accuracy and seconds an epoch, over seeds.

Both start from the same weights, with the same hyperparameters and images; what is random (order, augmentation) is
drawn by each for itself. Neither validates while it trains. At the end one tool looks at the averaged weights of both.
The trainers take turns in going first. Seeds that ``yolo_parity.json`` has by the same settings are not run again.

    python -m benchmarks.yolo_parity [--seeds 0 1 2 3 4] [--epochs 40] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")

import lightning
import torch
from rich.console import Console
from rich.table import Table

from lit_prune.data import write_digits
from lit_prune.report.tables import save_json
from lit_prune.yolo import LitYOLO, YOLODataModule, build_detector
from lit_prune.yolo.export import export_detector

OUT = Path(__file__).with_suffix(".json")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Stopwatch(lightning.Callback):
    """Seconds of each epoch, on the wall and of the processor, without what lies between epochs."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def start(self, *_: Any) -> None:
        # Ultralytics sets the number by itself.
        torch.set_num_threads(self.threads)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, *_: Any) -> None:
        self.cpu.append(time.process_time() - self._cpu)
        self.wall.append(time.perf_counter() - self._wall)

    on_train_epoch_start, on_train_epoch_end = start, stop


def train_theirs(start: Path, data: Path, seed: int, settings: dict[str, Any], watch: Stopwatch) -> Any:
    from ultralytics import YOLO

    averages = {}
    yolo = YOLO(str(start))
    yolo.add_callback("on_train_epoch_start", watch.start)
    yolo.add_callback("on_train_epoch_end", watch.stop)
    # Its file would be in half precision.
    yolo.add_callback("on_train_epoch_end", lambda trainer: averages.update(last=trainer.ema.ema))
    quiet = {"plots": False, "val": False, "save": False, "verbose": False, "project": str(start.parent / "runs")}
    yolo.train(data=str(data), seed=seed, device="cpu", **quiet, **settings)
    return averages["last"]


def train_ours(start: Path, data: Path, seed: int, settings: dict[str, Any], watch: Stopwatch) -> Any:
    lightning.seed_everything(seed, verbose=False)
    lit = LitYOLO(str(start), hyperparameters=settings)
    trainer = lightning.Trainer(max_epochs=settings["epochs"], limit_val_batches=0, callbacks=[watch], **QUIET)
    trainer.fit(lit, YOLODataModule(str(data), hyperparameters=settings))
    return lit.model


TRAINERS: dict[str, Callable[..., Any]] = {"ours": train_ours, "theirs": train_theirs}


def evaluate(network: Any, path: Path, data: Path, settings: dict[str, Any]) -> dict[str, float]:
    lit = LitYOLO(str(export_detector(network, path)))
    (values,) = lightning.Trainer(**QUIET).validate(
        lit, YOLODataModule(str(data), hyperparameters=settings), verbose=False
    )
    return {name.removeprefix("val/"): value for name, value in values.items()}


def one_seed(seed: int, data: Path, settings: dict[str, Any], model: str, threads: int) -> dict[str, Any]:
    row: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        start = export_detector(build_detector(model, num_classes=10), Path(folder) / "start.pt")
        for name in sorted(TRAINERS, reverse=seed % 2 == 1):
            watch = Stopwatch(threads)
            network = TRAINERS[name](start, data, seed, settings, watch)
            row[name] = {
                **evaluate(network, Path(folder) / f"{name}.pt", data, settings),
                "epoch_wall_s": statistics.median(watch.wall),
                "epoch_cpu_s": statistics.median(watch.cpu),
                "epochs_cpu_s": watch.cpu,
            }
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    changes = [row["ours"]["map"] - row["theirs"]["map"] for row in rows]
    result: dict[str, Any] = {
        "mean_map": {name: statistics.mean(row[name]["map"] for row in rows) for name in TRAINERS},
        "mean_difference_of_map": statistics.mean(changes),
        "deviation_of_the_difference": statistics.stdev(changes) if len(changes) > 1 else None,
    }
    for clock in ("cpu", "wall"):
        taken = {name: statistics.median(row[name][f"epoch_{clock}_s"] for row in rows) for name in TRAINERS}
        result[f"ratio_of_epoch_{clock}_s"] = taken["ours"] / taken["theirs"]
    return result


def table(rows: list[dict[str, Any]], total: dict[str, Any]) -> Table:
    """A line a seed, and one for all."""
    result = Table(title="Trained by ours and by Ultralytics' trainer")
    for name in ("seed", "ours mAP50-95", "theirs", "difference", "ours s/epoch (CPU)", "theirs", "ratio"):
        result.add_column(name, justify="right")
    for row in rows:
        ours, theirs = row["ours"], row["theirs"]
        result.add_row(
            str(row["seed"]),
            f"{ours['map']:.4f}",
            f"{theirs['map']:.4f}",
            f"{ours['map'] - theirs['map']:+.4f}",
            f"{ours['epoch_wall_s']:.2f} ({ours['epoch_cpu_s']:.2f})",
            f"{theirs['epoch_wall_s']:.2f} ({theirs['epoch_cpu_s']:.2f})",
            f"{ours['epoch_wall_s'] / theirs['epoch_wall_s']:.2f} ({ours['epoch_cpu_s'] / theirs['epoch_cpu_s']:.2f})",
        )
    result.add_section()
    means = (f"{total['mean_map'][name]:.4f}" for name in ("ours", "theirs"))
    ratio = f"{total['ratio_of_epoch_wall_s']:.2f} ({total['ratio_of_epoch_cpu_s']:.2f})"
    result.add_row("all", *means, f"{total['mean_difference_of_map']:+.4f}", "", "", ratio)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--scenes", type=int, default=1200)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {
        "epochs": options.epochs,
        "imgsz": options.image_size,
        "batch": 16,
        "nbs": 16,
        "optimizer": "AdamW",
        "lr0": 0.001,
        "momentum": 0.9,
        "warmup_epochs": 3.0,
        "warmup_bias_lr": 0.0,
        "close_mosaic": options.epochs - 2,  # the digits of a mosaic are too small to be told apart
        "fliplr": 0.0,  # digits are not their mirror images
        "workers": 0,
        "amp": False,
        "deterministic": False,
    }
    recipe = {"model": options.model, "scenes": options.scenes, "threads": options.threads, "settings": settings}
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    rows: list[dict[str, Any]] = known["runs"] if known.get("recipe") == recipe else []
    with tempfile.TemporaryDirectory() as folder:
        data = write_digits(folder, options.scenes, image_size=options.image_size)
        for seed in options.seeds:
            if any(row["seed"] == seed for row in rows):
                continue
            rows.append(one_seed(seed, data, settings, options.model, options.threads))
            rows.sort(key=lambda row: row["seed"])
            save_json({"recipe": recipe, "torch": torch.__version__, **summary(rows), "runs": rows}, options.out)
    Console().print(table(rows, summary(rows)))


if __name__ == "__main__":
    main()
