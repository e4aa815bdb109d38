"""What the runs came to: costs, accuracy and latency side by side, as plain data, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from lit_prune.cost.side_by_side import measure_side_by_side
from lit_prune.data import DigitScenes, collate_detection
from lit_prune.demo.runs import Cut, Run
from lit_prune.demo.settings import Recipe
from lit_prune.report.figures import channels_figure, history_figure
from lit_prune.report.tables import human
from lit_prune.yolo import draw_detections
from lit_prune.yolo.batches import box_targets

_BATCHES = (1, 32)  # batch sizes at which latency is measured
_SHOWN = 6  # scenes in the figure of detections


def compare(recipe: Recipe, runs: Mapping[str, Run], cuts: Sequence[Cut]) -> dict[str, Any]:
    """Measure the networks of several runs side by side, and put all that is known of them into plain data."""
    networks = {name: run.detector.model.cpu().eval() for name, run in runs.items()}
    measured = measure_side_by_side(networks, (3, recipe.image_size, recipe.image_size), _BATCHES)
    report: dict[str, Any] = {}
    for name, run in runs.items():
        report[name] = {
            **measured[name],
            "epochs": int(run.epochs[-1]["epoch"]) + 1,
            "map": run.epochs[-1]["map"],
            "map_50": run.epochs[-1]["map_50"],
            "latency_ms": measured[name]["latency"][0]["median_ms"],
            "training_seconds": run.seconds,
        }
    report["cuts"] = [cut.to_dict() for cut in cuts]
    report["events"] = [event for run in runs.values() for event in run.events]
    report["history"] = {name: run.epochs for name, run in runs.items()}
    report["recipe"] = asdict(recipe)
    report["torch"] = torch.__version__
    return report


def cuts_table(cuts: Sequence[Cut], dense: Run) -> Table:
    """What each cut leaves at once, beside the whole network."""
    table = Table(title="Right after the cut", title_style="bold", header_style="bold")
    table.add_column("channels go by")
    for name in ("multiply-adds", "mAP50-95, sliced alone", "repaired"):
        table.add_column(name, justify="right")
    whole = dense.epochs[-1]
    table.add_row("(dense)", human(whole["macs"]), f"{whole['map']:.3f}", "")
    for sliced, repaired in zip(cuts[::2], cuts[1::2], strict=True):
        by = f"{sliced.criterion}, {sliced.spread}"
        table.add_row(by, human(sliced.macs), f"{sliced.map:.3f}", f"{repaired.map:.3f}")
    return table


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
    steps = -(-recipe.scenes // recipe.batch_size)
    timed = [{**event, "epoch": recipe.epochs + event["step"] / steps} for event in events]
    history = {name: run.epochs for name, run in runs.items()}
    # From where the dense network ends.
    history["pruned"] = [*runs["dense"].epochs[-1:], *history["pruned"]]
    history_figure(history, timed).savefig(out / "history.png")
