"""The demo's recipe against a dense twin that is trained from its first epoch on, over seeds.

The demo itself lets both runs share the epochs before the first pruning, to save time; here nothing is shared. Both
have the same schedule, the same length, the same scenes and the same weights at the start.

    python benchmarks/demo_baseline.py [--seeds 0 1 2] [--epochs 24]
"""

from __future__ import annotations

import argparse
import os
import statistics
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
    """The last epoch of a run, and how long the run took."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    options = parser.parse_args()
    recipe = Recipe().scaled_to(options.epochs)
    console = Console()
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        mine = replace(recipe, seed=seed)
        console.print(f"seed {seed}: dense")
        dense = train(mine, prune=False)
        console.print(f"seed {seed}: pruned")
        pruned = train(mine, prune=True)
        rows.append({"seed": seed, "dense": figures(dense), "pruned": figures(pruned), "events": pruned.events})
        change = statistics.mean(row["pruned"]["map"] - row["dense"]["map"] for row in rows)
        save_json(
            {
                "recipe": asdict(recipe),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "mean_change_of_map": change,
                "runs": rows,
            },
            OUT,
        )
    console.print(table(rows))


if __name__ == "__main__":
    main()
