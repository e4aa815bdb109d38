"""Pruning by what channels see against magnitude and chance, at the same MACs, from the two YAML files in `configs/`.

The network of a seed is trained up to the first event once; every run of that seed starts from this snapshot. The three
ways to choose cut every layer to the same width; they differ in which channels stay. mAP50-95 is measured right before
and right after each event, and after the last epoch.

Runs whose rows are in the JSON file already are not run again, so what was interrupted goes on where it was.

    python -m benchmarks.selection [--seeds 0 1 2] [--epochs 20] [--scenes 2000] [--threads 1] [--fresh]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lit_prune import ChannelPruning
from lit_prune.cli import run_trainer
from lit_prune.common.running import untouched
from lit_prune.yolo.batches import box_targets
from lit_prune.yolo.evaluation import find_objects
from lit_prune.yolo.metrics import mean_average_precision

OUT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[1]
CONFIGS = {"block 1": "yolov8n_block1.yaml", "all blocks": "yolov8n_all_blocks.yaml"}
METHODS = ("clusters", "magnitude", "random")

Row = dict[str, Any]


class Snapshot(Callback):
    """Saves a checkpoint before the first event, and ends the run there.

    Args:
        path: Where to save it.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what all methods start from."""
        if trainer.current_epoch == min(events_of(trainer)) - 1:
            # Whole or not at all: a run may be interrupted here.
            part = self.path.with_suffix(".part")
            trainer.save_checkpoint(part)
            part.replace(self.path)
            trainer.should_stop = True


class Watch(Callback):
    """Notes mAP at each event and at the end.

    Args:
        notes: File to add a line of JSON to for each figure.
        place: `"before"` or `"after"`: on which side of ChannelPruning this callback stands.
    """

    def __init__(self, notes: str, place: str) -> None:
        self.notes = Path(notes)
        self.place = place

    @property
    def state_key(self) -> str:
        """One for each place."""
        return f"Watch-{self.place}"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where an event is due."""
        events, epoch = events_of(trainer), trainer.current_epoch
        if self.place == "before" and epoch == min(events):
            self._note(start=digest(pl_module), epoch=epoch, step=trainer.global_step)
        if epoch in events:
            self._note(epoch=epoch, place=self.place, map=measure(trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the result."""
        if self.place == "after":
            macs = float(trainer.callback_metrics["pruning/macs"])
            self._note(place="end", map=measure(trainer, pl_module), macs=macs)

    def _note(self, **figures: Any) -> None:
        with self.notes.open("a") as file:
            file.write(json.dumps(figures) + "\n")


def events_of(trainer: Trainer) -> dict[int, float]:
    pruning = next(callback for callback in trainer.callbacks if isinstance(callback, ChannelPruning))
    return pruning.schedule.events(trainer.max_epochs)


def measure(trainer: Trainer, pl_module: LightningModule) -> float:
    """mAP50-95 on the validation scenes."""
    metric = mean_average_precision()
    with untouched(pl_module):
        for loaded in trainer.datamodule.val_dataloader():
            batch = pl_module.transfer_batch_to_device(loaded, pl_module.device, 0)
            found = find_objects(pl_module.model, batch["img"], confidence=0.001, iou=0.7, limit=100, multi_label=True)
            metric.update(found, box_targets(batch))
    return float(metric.compute()["map"])


def digest(module: LightningModule) -> str:
    """Of all weights: equal in two runs that start from the same network."""
    result = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()[:16]


def config_of(name: str, seed: int, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The YAML as it is, with another seed or length, and quiet."""
    config = yaml.safe_load((ROOT / "configs" / CONFIGS[name]).read_text())
    config["seed_everything"] = seed
    arguments = config["trainer"]["callbacks"][0]["init_args"]
    arguments["selection"]["init_args"]["seed"] = seed
    if settings["every_object"]:
        arguments["selection"]["init_args"]["calibration"]["match_iou"] = None
    scale = settings["epochs"] / config["trainer"]["max_epochs"]
    arguments["epochs"] = sorted({max(1, round(epoch * scale)) for epoch in arguments["epochs"]})
    config["trainer"] |= {
        "max_epochs": settings["epochs"],
        "logger": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "devices": 1,
    }
    config["data"]["init_args"] |= {key: settings[key] for key in ("scenes", "image_size", "batch_size")}
    config["data"]["init_args"]["seed"] = seed
    return config


def callback(kind: type[Callback], **arguments: str) -> dict[str, Any]:
    # Lightning's command line imports it: under this name, whatever this module is called while it runs.
    return {"class_path": f"benchmarks.selection.{kind.__name__}", "init_args": arguments}


def fit(config: dict[str, Any], folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    run_trainer(["fit", "--config", str(path)])


def snapshot_path(seed: int, settings: dict[str, Any]) -> Path:
    # Where it outlives an interruption, and is no one's of other settings.
    key = hashlib.sha256(json.dumps([settings, torch.__version__]).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"lit_prune-selection-{key}-{seed}.ckpt"


def snapshot_of(seed: int, settings: dict[str, Any]) -> Path:
    """The checkpoint right before the first event; it is made where there is none."""
    path = snapshot_path(seed, settings)
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            config = config_of("block 1", seed, settings, Path(folder))
            config["trainer"]["callbacks"].append(callback(Snapshot, path=str(path)))
            fit(config, Path(folder))
    return path


def run(name: str, method: str, seed: int, settings: dict[str, Any]) -> Row:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = config_of(name, seed, settings, folder)
        pruning = config["trainer"]["callbacks"][0]
        if method != "clusters":
            criterion = {"class_path": "lit_prune.criteria.Random", "init_args": {"seed": seed}}
            pruning["init_args"]["criterion"] = criterion if method == "random" else method
            pruning["init_args"]["selection"] = "uniform"
        notes = folder / "notes.jsonl"
        before, after = (callback(Watch, notes=str(notes), place=place) for place in ("before", "after"))
        config["trainer"]["callbacks"] = [before, pruning, after]
        config["ckpt_path"] = str(snapshot_of(seed, settings))
        fit(config, folder)
        begun, *measured, end = map(json.loads, notes.read_text().splitlines())
    events: dict[int, dict[str, Any]] = {}
    for note in measured:
        events.setdefault(note["epoch"], {"epoch": note["epoch"]})[note["place"]] = note["map"]
    return {
        "config": CONFIGS[name],
        "method": method,
        "seed": seed,
        "start": {"weights": begun["start"], "epoch": begun["epoch"], "step": begun["step"]},
        "events": list(events.values()),
        "map": end["map"],
        "macs": end["macs"],
        "seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__,
    }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """All that a row depends on beside its configuration, method and seed; what is not given is the YAML's."""
    data, *others = (
        yaml.safe_load((ROOT / "configs" / file).read_text())["data"]["init_args"] for file in CONFIGS.values()
    )
    if any(other != data for other in others):
        raise SystemExit(f"{', '.join(CONFIGS.values())} must have the same data: their runs share a snapshot.")
    given = {key: getattr(options, key) for key in ("scenes", "image_size", "batch_size")}
    return {
        "epochs": options.epochs,
        **{key: data[key] if value is None else value for key, value in given.items()},
        "every_object": options.every_object,
        "threads": options.threads,
    }


def known_rows(out: Path, settings: dict[str, Any]) -> list[Row]:
    """Rows of an earlier call with the same settings."""
    if not out.exists():
        return []
    found = json.loads(out.read_text())
    if found["settings"] != settings:
        raise SystemExit(
            f"{out} has rows of other settings, {found['settings']}, and not {settings}. Name another file by --out, "
            "or replace them by --fresh."
        )
    rows: list[Row] = found["runs"]
    return rows


def write(out: Path, settings: dict[str, Any], rows: list[Row]) -> None:
    part = out.with_suffix(".part")
    part.write_text(json.dumps({"settings": settings, "runs": rows}, indent=2) + "\n")
    part.replace(out)


def table(rows: list[Row]) -> Table:
    """A line a configuration and method: means over the seeds, and the spread of the last column."""
    result = Table(title="mAP50-95, mean over seeds (±: standard deviation)")
    for column in ("", "method", "seeds", "MACs", "before → after each event", "at the end"):
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
                str(len(mine)),
                ", ".join(f"{value / 1e6:.1f} M" for value in macs),
                "   ".join(steps),
                f"{statistics.mean(ends):.4f}{spread}",
            )
    return result


def check(rows: list[Row]) -> None:
    """The comparison is fair: one network a seed to start from, and the same MACs at the end."""
    for seed in {row["seed"] for row in rows}:
        starts = {json.dumps(row["start"]) for row in rows if row["seed"] == seed}
        if len(starts) > 1:
            raise SystemExit(f"Runs of seed {seed} did not start from the same network: {starts}")
    for file in CONFIGS.values():
        macs = {row["macs"] for row in rows if row["config"] == file}
        if len(macs) > 1:
            raise SystemExit(f"The methods did not reach the same MACs with {file}: {macs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--scenes", type=int, help="training scenes; by default those of the YAML")
    parser.add_argument("--image-size", type=int, help="pixels; by default that of the YAML")
    parser.add_argument("--batch-size", type=int, help="by default that of the YAML")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--every-object", action="store_true", help="match_iou=None, for runs too short to detect")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file of the rows; those in it are not run again")
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = settings_of(options)
    rows = [] if options.fresh else known_rows(options.out, settings)
    console = Console()
    for seed in options.seeds:
        if options.fresh:
            snapshot_path(seed, settings).unlink(missing_ok=True)
        done = {(row["config"], row["method"]) for row in rows if row["seed"] == seed}
        for name, file in CONFIGS.items():
            for method in METHODS:
                if (file, method) in done:
                    continue
                row = run(name, method, seed, settings)
                rows.append(row)
                write(options.out, settings, rows)
                console.print(f"seed {seed}, {name}, {method}: mAP50-95 {row['map']:.4f}", highlight=False)
        snapshot_path(seed, settings).unlink(missing_ok=True)
    console.print(table(rows))
    check(rows)


if __name__ == "__main__":
    main()
