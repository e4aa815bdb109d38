"""What `lit-prune sensitivity` and `lit-prune sweep` say of the demo's YOLOv8n, and whether the one helps the other.

    python -m benchmarks.studies --weights yolov8n.pt

The network is trained as the demo does, unless `--weights` has it. Each layer is cut alone, and the whole network by
several amounts: as it is, and with no layer beyond what it can lose alone (`Limited`). Written are `studies.json` and
two figures in `docs/`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import lightning
import torch
import yaml

from benchmarks.accuracy.rows import row
from lit_prune.cli import main as lit_prune
from lit_prune.data import DigitScenesDataModule
from lit_prune.yolo import LitYOLO

OUT = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[1] / "docs"
AMOUNTS = ("0.2", "0.4", "0.6", "0.7", "0.8")


def save_checkpoint(weights: Path | None, path: Path) -> None:
    """The trained network, as a Trainer saves it."""
    network = row("digits", network="yolov8n.yaml", **({"weights": weights} if weights else {})).network
    module = LitYOLO("yolov8n.yaml", num_classes=10)
    module.model.load_state_dict(network.state_dict())
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    trainer = lightning.Trainer(max_epochs=0, accelerator="cpu", **quiet)
    trainer.fit(module, DigitScenesDataModule(scenes=8, val_scenes=4))
    trainer.save_checkpoint(path)


def configuration(spread: Any) -> dict[str, Any]:
    selection = {"class_path": "lit_prune.select.MacsBudget", "init_args": {"spread": spread}}
    arguments = {"amount": 0.5, "epochs": [8], "criterion": "taylor", "repair": True, "selection": selection}
    return {
        "seed_everything": 0,
        "trainer": {"callbacks": [{"class_path": "lit_prune.ChannelPruning", "init_args": arguments}]},
        "model": {"class_path": "lit_prune.yolo.LitYOLO", "init_args": {"model": "yolov8n.yaml", "num_classes": 10}},
        "data": {"class_path": "lit_prune.data.DigitScenesDataModule"},
    }


def limited(file: Path, max_drop: float) -> dict[str, Any]:
    arguments = {"spread": "global", "limits": str(file), "max_drop": max_drop}
    return {"class_path": "lit_prune.select.Limited", "init_args": arguments}


def run(*arguments: str) -> None:
    if lit_prune([*arguments, "--metric", "val/map"]):
        raise SystemExit(f"lit-prune {' '.join(arguments)} has failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of a network that was trained as the demo does; kept there")
    parser.add_argument("--scenes", type=int, default=100, help="of the validation by which layers are judged")
    parser.add_argument("--folder", type=Path, help="for what comes of it, to go on after a kill; by default a new one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "dense.ckpt"
    if not checkpoint.exists():
        save_checkpoint(options.weights, checkpoint)
    files = {"global": folder / "global.yaml"}
    files["global"].write_text(yaml.safe_dump(configuration("global")))
    start, layers = ("--ckpt_path", str(checkpoint)), folder / "layers"
    few = ("--data.val_scenes", str(options.scenes), "--out", str(layers))
    run("sensitivity", str(files["global"]), *start, "--ratios", "0.25", "0.5", "0.75", *few)
    for drop in (0.01, 0.03):
        name = f"limited by {drop:g}"
        files[name] = folder / f"limited-{drop:g}.yaml"
        files[name].write_text(yaml.safe_dump(configuration(limited(layers / "sensitivity.json", drop))))
    sensitivity = json.loads((layers / "sensitivity.json").read_text())
    del sensitivity["arguments"]
    found: dict[str, Any] = {"sensitivity": sensitivity, "sweeps": {}}
    for name, file in files.items():
        out = folder / file.stem
        run("sweep", str(file), *start, "--amounts", *AMOUNTS, "--out", str(out))
        sweep = json.loads((out / "sweep.json").read_text())
        kept = ("amount", "metrics", "params", "macs", "seconds", "pareto")
        points = [{key: point[key] for key in kept if key in point} for point in sweep["points"]]
        found["sweeps"][name] = {"points": points, "failed": [each["amount"] for each in sweep["failed"]]}
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    shutil.copy(layers / "sensitivity.png", DOCS / "sensitivity.png")
    shutil.copy(folder / "global" / "sweep.png", DOCS / "sweep.png")


if __name__ == "__main__":
    main()
