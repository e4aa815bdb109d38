"""The demo over seeds: what one cut leaves at once, and what fine-tuning to half of the multiply-adds ends at.

The dense network is fine-tuned for as long too, by the same schedule, so that the two differ by the pruning alone.
Seeds that ``demo_baseline.json`` has by the same recipe are not run again.

    python -m benchmarks.demo_baseline [--seeds 0 1 2] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from rich.console import Console
from rich.table import Table

from lit_prune.demo.runs import Run, cuts, fine_tune, train
from lit_prune.demo.settings import Recipe
from lit_prune.report.tables import human, save_json

OUT = Path(__file__).with_suffix(".json")


def figures(run: Run) -> dict[str, Any]:
    """The last epoch of a run, and how long it took."""
    return {**run.epochs[-1], "seconds": round(run.seconds, 1)}


def one_seed(recipe: Recipe, threads: int) -> dict[str, Any]:
    dense = train(recipe)
    return {
        "seed": recipe.seed,
        "dense": figures(dense),
        "cuts": [cut.to_dict() for cut in cuts(recipe, dense)],
        "fine_tuned": figures(fine_tune(recipe, dense, prune=False)),
        "pruned": figures(fine_tune(recipe, dense)),
        "threads": threads,
    }


def run(recipe: Recipe, seeds: list[int], threads: int) -> list[dict[str, Any]]:
    """Run the seeds that are missing, and write each as soon as it is there."""
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    rows: list[dict[str, Any]] = known["runs"] if known.get("recipe") == asdict(recipe) else []
    for seed in seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        rows.append(one_seed(replace(recipe, seed=seed), threads))
        rows.sort(key=lambda row: row["seed"])
        changes = [row["pruned"]["map"] - row["fine_tuned"]["map"] for row in rows]
        report: dict[str, Any] = {
            "recipe": asdict(recipe),
            "torch": torch.__version__,
            "mean_change_of_map": statistics.mean(changes),
            "deviation_of_the_change": statistics.stdev(changes) if len(changes) > 1 else None,
        }
        save_json({**report, "runs": rows}, OUT)
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """A line a seed."""
    result = Table(title="mAP50-95")
    first = rows[0]["cuts"]
    ways = [f"{cut['criterion']}, {'repaired' if cut['repaired'] else 'sliced'}" for cut in first]
    for heading in ("seed", "dense", *ways, "dense, fine-tuned", "pruned, fine-tuned", "MACs"):
        result.add_column(heading, justify="right")
    for row in rows:
        scores = [row["dense"], *row["cuts"], row["fine_tuned"], row["pruned"]]
        result.add_row(str(row["seed"]), *(f"{each['map']:.4f}" for each in scores), human(row["pruned"]["macs"]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    Console().print(table(run(Recipe(), options.seeds, options.threads)))


if __name__ == "__main__":
    main()
