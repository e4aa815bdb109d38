"""Pruning by what channels see against magnitude and chance, at the same MACs, from the two YAML files in `configs/`.

Every run of a seed starts from the same network, trained up to the first event. The three methods cut every layer to
the same width; they differ in which channels stay. mAP50-95 is measured right before and right after each event, and
after the last epoch.

    python benchmarks/selection.py [--seeds 0 1 2] [--epochs 20] [--scenes 2000]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lit_prune import ChannelPruning
from lit_prune.activations.untouched import untouched
from lit_prune.cli import run_trainer
from lit_prune.yolo.batches import box_targets
from lit_prune.yolo.evaluation import find_objects, mean_average_precision

OUT = Path(__file__).with_suffix(".json")
CONFIGS = {"block 1": "yolov8n_block1.yaml", "all blocks": "yolov8n_all_blocks.yaml"}
METHODS = ("clusters", "magnitude", "random")


class Watch(Callback):
    """Notes mAP at each event and at the end, and saves a checkpoint before the first event.

    Args:
        notes: File to add a line of JSON to for each figure.
        place: `"before"` or `"after"`: on which side of ChannelPruning this callback stands.
        snapshot: Where to save the checkpoint, unless there is one.
    """

    def __init__(self, notes: str, place: str, snapshot: str = "") -> None:
        self.notes = Path(notes)
        self.place = place
        self.snapshot = snapshot

    @property
    def state_key(self) -> str:
        """One for each place."""
        return f"Watch-{self.place}"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where an event is due."""
        if trainer.current_epoch in self._events(trainer):
            self._note(trainer, epoch=trainer.current_epoch, place=self.place, map=self._map(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what all methods start from."""
        first = min(self._events(trainer))
        if self.snapshot and trainer.current_epoch == first - 1 and not Path(self.snapshot).exists():
            trainer.save_checkpoint(self.snapshot)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the result."""
        if self.place == "after":
            macs = float(trainer.callback_metrics["pruning/macs"])
            self._note(trainer, place="end", map=self._map(trainer, pl_module), macs=macs)

    def _note(self, trainer: Trainer, **figures: Any) -> None:
        with self.notes.open("a") as file:
            file.write(json.dumps(figures) + "\n")

    @staticmethod
    def _events(trainer: Trainer) -> dict[int, float]:
        pruning = next(callback for callback in trainer.callbacks if isinstance(callback, ChannelPruning))
        return pruning.schedule.events(trainer.max_epochs)

    @staticmethod
    def _map(trainer: Trainer, pl_module: LightningModule) -> float:
        metric = mean_average_precision()
        with untouched(pl_module):
            for loaded in trainer.datamodule.val_dataloader():
                batch = pl_module.transfer_batch_to_device(loaded, pl_module.device, 0)
                found = find_objects(
                    pl_module.model, batch["img"], confidence=0.001, iou=0.7, limit=100, multi_label=True
                )
                metric.update(found, box_targets(batch))
        return float(metric.compute()["map"])


def config_of(name: str, method: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The YAML as it is, with another method, seed or length, and the watching callbacks around it."""
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / CONFIGS[name]).read_text())
    config["seed_everything"] = seed
    pruning = config["trainer"]["callbacks"][0]
    arguments = pruning["init_args"]
    if method == "clusters":
        arguments["selection"]["init_args"]["seed"] = seed
        if options.every_object:
            arguments["selection"]["init_args"]["calibration"]["match_iou"] = None
    else:
        arguments["selection"] = "uniform"
        arguments["criterion"] = "magnitude"
    if method == "random":
        arguments["criterion"] = {"class_path": "lit_prune.criteria.Random", "init_args": {"seed": seed}}
    scale = options.epochs / config["trainer"]["max_epochs"]
    arguments["epochs"] = sorted({max(1, round(epoch * scale)) for epoch in arguments["epochs"]})
    notes = str(folder / f"{name}-{method}.jsonl")
    snapshot = str(folder / "dense.ckpt")
    watches = [
        {"class_path": "selection.Watch", "init_args": {"notes": notes, "place": place, "snapshot": snapshot}}
        for place in ("before", "after")
    ]
    config["trainer"] |= {
        "max_epochs": options.epochs,
        "callbacks": [watches[0], pruning, watches[1]],
        "logger": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "devices": 1,
    }
    config["data"]["init_args"] |= {"scenes": options.scenes, "seed": seed}
    if Path(snapshot).exists():
        config["ckpt_path"] = snapshot
    return config


def run(name: str, method: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = config_of(name, method, seed, options, folder)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    run_trainer(["fit", "--config", str(path)])
    notes = [json.loads(line) for line in (folder / f"{name}-{method}.jsonl").read_text().splitlines()]
    events = {note["epoch"]: {"epoch": note["epoch"]} for note in notes if "epoch" in note}
    for note in notes:
        if "epoch" in note:
            events[note["epoch"]][note["place"]] = note["map"]
    end = notes[-1]
    return {
        "config": CONFIGS[name],
        "method": method,
        "seed": seed,
        "events": list(events.values()),
        "map": end["map"],
        "macs": end["macs"],
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """A line a configuration and method: means over the seeds, and the spread of the last column."""
    result = Table(title="mAP50-95, mean over seeds (±: standard deviation)")
    for column in ("", "method", "MACs", "before and after each event", "at the end"):
        result.add_column(column)
    for name, file in CONFIGS.items():
        for method in METHODS:
            mine = [row for row in rows if row["config"] == file and row["method"] == method]
            if not mine:
                continue
            ends = [row["map"] for row in mine]
            steps = []
            for events in zip(*(row["events"] for row in mine), strict=True):
                before, after = (statistics.mean(event[place] for event in events) for place in ("before", "after"))
                steps.append(f"{before:.3f} → {after:.3f}")
            spread = f" ± {statistics.stdev(ends):.4f}" if len(ends) > 1 else ""
            macs = sorted({row["macs"] for row in mine})
            result.add_row(
                name,
                method,
                ", ".join(f"{value / 1e6:.1f} M" for value in macs),
                "   ".join(steps),
                f"{statistics.mean(ends):.4f}{spread}",
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--every-object", action="store_true", help="match_iou=None, for runs too short to detect")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    console = Console()
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            for name in CONFIGS:
                for method in METHODS:
                    rows.append(run(name, method, seed, options, Path(folder)))
                    result = {
                        "epochs": options.epochs,
                        "scenes": options.scenes,
                        "seeds": options.seeds,
                        "torch": torch.__version__,
                        "runs": rows,
                    }
                    OUT.write_text(json.dumps(result, indent=2) + "\n")
                    console.print(f"seed {seed}, {name}, {method}: mAP50-95 {rows[-1]['map']:.4f}", highlight=False)
    console.print(table(rows))
    macs = {name: {row["macs"] for row in rows if row["config"] == file} for name, file in CONFIGS.items()}
    if any(len(values) > 1 for values in macs.values()):
        raise SystemExit(f"The methods did not reach the same MACs: {macs}")


if __name__ == "__main__":
    main()
