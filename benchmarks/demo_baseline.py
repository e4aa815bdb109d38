"""The demo's recipe, pruned and dense, over seeds: what the pruning costs in accuracy.

The dense network has the same weights at the start, the same scenes in the same order, the same schedule and the same
length. As nothing differs before the first pruning, it goes on from a checkpoint of the pruned run at that point.

With ``--recipe plain`` the training is the same, and the pruning is that of README's ten lines. A dense network is not
trained again for it: those of ``demo_baseline.json`` were trained in the same way.

Seeds that ``demo_baseline.json`` or ``demo_baseline_plain.json`` has by the same recipe are not run again.

    python -m benchmarks.demo_baseline [--recipe demo plain] [--seeds 0 1 2] [--epochs 24] [--threads 1]
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

from lit_prune.demo.runs import Run, train
from lit_prune.demo.settings import PLAIN, Recipe
from lit_prune.report.tables import human, save_json

OUT = {
    "demo": Path(__file__).with_suffix(".json"),
    "plain": Path(__file__).with_name("demo_baseline_plain.json"),
}
RECIPES = {"demo": Recipe(), "plain": PLAIN}


def figures(run: Run) -> dict[str, Any]:
    """The last epoch of a run, and how long it took."""
    return {**run.epochs[-1], "seconds": round(run.seconds, 1)}


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    """A line a seed."""
    result = Table(title=f"{name}: dense and pruned networks, trained alike")
    for heading in ("seed", "dense mAP50-95", "pruned mAP50-95", "change", "MACs", "dense s", "pruned s"):
        result.add_column(heading, justify="right")
    for row in rows:
        dense, pruned = row.get("dense"), row["pruned"]
        cells = [
            str(row["seed"]),
            "",
            f"{pruned['map']:.4f}",
            "",
            human(pruned["macs"]),
            "",
            f"{pruned['seconds']:.0f}",
        ]
        if dense:
            cut = 1 - pruned["macs"] / dense["macs"]
            cells[1], cells[3] = f"{dense['map']:.4f}", f"{pruned['map'] - dense['map']:+.4f}"
            cells[4], cells[5] = f"{human(dense['macs'])} → {cells[4]} (−{cut:.0%})", f"{dense['seconds']:.0f}"
        result.add_row(*cells)
    return result


def one_seed(recipe: Recipe, dense: bool) -> dict[str, Any]:
    """The last epoch and the course of both runs; of the pruned one alone where no dense one is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before.ckpt"
        runs = {"pruned": train(recipe, prune=True, snapshot=before)}
        history = {"pruned": [epoch["map"] for epoch in runs["pruned"].epochs]}
        if dense:
            runs["dense"] = train(recipe, prune=False, start=before)
            shared = history["pruned"][: recipe.prune_at[0]]
            history["dense"] = shared + [epoch["map"] for epoch in runs["dense"].epochs]
    return {"seed": recipe.seed, **{name: figures(run) for name, run in runs.items()}, "history": history}


def run_recipe(name: str, seeds: list[int], epochs: int, threads: int) -> list[dict[str, Any]]:
    """Run the seeds that are missing, and write each as soon as it is there."""
    recipe, out = RECIPES[name].scaled_to(epochs), OUT[name]
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    # JSON has lists where a recipe has tuples.
    settings = json.loads(json.dumps(asdict(recipe)))
    rows: list[dict[str, Any]] = known["runs"] if known.get("recipe") == settings else []
    for seed in seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        rows.append({**one_seed(replace(recipe, seed=seed), dense=name == "demo"), "threads": threads})
        rows.sort(key=lambda row: row["seed"])
        report: dict[str, Any] = {"recipe": settings, "torch": torch.__version__}
        if name == "demo":
            changes = [row["pruned"]["map"] - row["dense"]["map"] for row in rows]
            report["mean_change_of_map"] = statistics.mean(changes)
            report["deviation_of_the_change"] = statistics.stdev(changes) if len(changes) > 1 else None
        save_json({**report, "runs": rows}, out)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.recipe:
        Console().print(table(name, run_recipe(name, options.seeds, options.epochs, options.threads)))


if __name__ == "__main__":
    main()
