"""What two runs came to: costs, accuracy and latency side by side, as plain data and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lit_prune.cost.side_by_side import measure_side_by_side
from lit_prune.data import DigitScenes, collate_detection
from lit_prune.demo.runs import Run
from lit_prune.demo.settings import Recipe
from lit_prune.report.figures import channels_figure, history_figure
from lit_prune.report.tables import human
from lit_prune.yolo import draw_detections
from lit_prune.yolo.batches import box_targets

_BATCHES = (1, 32)  # batch sizes at which latency is measured
_SHOWN = 6  # scenes in the figure of detections


def compare(recipe: Recipe, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Measure the networks of several runs side by side, and put all that is known of them into plain data."""
    networks = {name: run.detector.model.cpu().eval() for name, run in runs.items()}
    measured = measure_side_by_side(networks, (3, recipe.image_size, recipe.image_size), _BATCHES)
    report: dict[str, Any] = {}
    for name, run in runs.items():
        report[name] = {
            **measured[name],
            "epochs": len(run.epochs),
            "map": run.epochs[-1]["map"],
            "map_50": run.epochs[-1]["map_50"],
            "latency_ms": measured[name]["latency"][0]["median_ms"],
            "training_seconds": run.seconds,
        }
    report["events"] = [event for run in runs.values() for event in run.events]
    report["history"] = {name: run.epochs for name, run in runs.items()}
    report["recipe"] = asdict(recipe)
    report["torch"] = torch.__version__
    return report


def save_figures(out: Path, recipe: Recipe, runs: Mapping[str, Run]) -> None:
    """Write ``detections.png``, ``channels.png`` and ``history.png``."""
    scenes = DigitScenes("val", 100, recipe.image_size, recipe.seed)
    # Scenes with much to find say more.
    chosen = [scene for scene in (scenes[k] for k in range(100)) if len(scene["cls"]) >= 3][:_SHOWN]
    batch = collate_detection(chosen)
    rows = {
        f"{name} · {human(run.epochs[-1]['macs'])} MACs": run.detector.cpu().detect(batch["img"], confidence=0.4)
        for name, run in runs.items()
    }
    draw_detections(batch["img"], rows, box_targets(batch)).savefig(out / "detections.png")
    events = [event for run in runs.values() for event in run.events]
    channels_figure(events).savefig(out / "channels.png")
    history_figure({name: run.epochs for name, run in runs.items()}, events).savefig(out / "history.png")
