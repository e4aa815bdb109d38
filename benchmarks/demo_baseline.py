"""The demo's recipe, pruned and dense, over seeds: what the pruning costs in accuracy.

The dense twin has the same weights at the start, the same scenes in the same order, the same schedule and the same
length. As nothing differs before the first pruning, it goes on from a checkpoint of the pruned run at that point.
Seeds that ``demo_baseline.json`` has by the same recipe are not run again.

    python -m benchmarks.demo_baseline [--seeds 0 1 2] [--epochs 24] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from rich.console import Console
from rich.table import Table

from lit_prune.demo import Recipe
from lit_prune.demo.training import Run, train
from lit_prune.report import human, save_json

OUT = Path(__file__).with_suffix(".json")


def figures(run: Run) -> dict[str, Any]:
    """The last epoch of a run, and how long it took."""
    return {**run.epochs[-1], "seconds": round(run.seconds, 1)}


def table(rows: list[dict[str, Any]]) -> Table:
    """A line a seed."""
    result = Table(title="Dense twin and pruned run, trained alike")
    for name in ("seed", "dense mAP50-95", "pruned mAP50-95", "change", "MACs", "dense s", "pruned s"):
        result.add_column(name, justify="right")
    for row in rows:
        dense, pruned = row["dense"], row["pruned"]
        cut = 1 - pruned["macs"] / dense["macs"]
        result.add_row(
            str(row["seed"]),
            f"{dense['map']:.4f}",
            f"{pruned['map']:.4f}",
            f"{pruned['map'] - dense['map']:+.4f}",
            f"{human(dense['macs'])} → {human(pruned['macs'])} (−{cut:.0%})",
            f"{dense['seconds']:.0f}",
            f"{pruned['seconds']:.0f}",
        )
    return result


def one_seed(recipe: Recipe) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before.ckpt"
        pruned = train(recipe, prune=True, snapshot=before)
        dense = train(recipe, prune=False, start=before)
    history = {
        "pruned": [epoch["map"] for epoch in pruned.epochs],
        "dense": [epoch["map"] for epoch in pruned.epochs[: recipe.prune_at[0]] + dense.epochs],
    }
    return {"seed": recipe.seed, "dense": figures(dense), "pruned": figures(pruned), "history": history}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe().scaled_to(options.epochs)
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    # JSON has lists where a recipe has tuples.
    settings = json.loads(json.dumps(asdict(recipe)))
    rows: list[dict[str, Any]] = known["runs"] if known.get("recipe") == settings else []
    for seed in options.seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        rows.append({**one_seed(replace(recipe, seed=seed)), "threads": options.threads})
        rows.sort(key=lambda row: row["seed"])
        changes = [row["pruned"]["map"] - row["dense"]["map"] for row in rows]
        report = {
            "recipe": settings,
            "torch": torch.__version__,
            "mean_change_of_map": statistics.mean(changes),
            "deviation_of_the_change": statistics.stdev(changes) if len(changes) > 1 else None,
            "runs": rows,
        }
        save_json(report, OUT)
    Console().print(table(rows))


if __name__ == "__main__":
    main()
