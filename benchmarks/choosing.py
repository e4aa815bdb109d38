"""How long it takes to choose the channels of every group of a YOLOv8s by clusters, and where the time goes.

The statistics are those of a network of random weights on DigitScenes; the time does not depend on what is learned.

    python benchmarks/choosing.py [--model yolov8s.yaml]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader

from lit_prune import ChannelGraph
from lit_prune.activations import collect_moments, read_batch
from lit_prune.activations.clusters import (
    cluster,
    cluster_all,
    embed,
    find_knee,
    pairwise_distances,
    simplified_silhouettes,
)
from lit_prune.criteria import Evidence, Magnitude
from lit_prune.data import DigitScenes, collate_detection
from lit_prune.select import ClusterSelection, Target
from lit_prune.select.clusters import separability_of
from lit_prune.yolo import build_detector

OUT = Path(__file__).with_suffix(".json")


def gather(model: str) -> Evidence:
    torch.manual_seed(0)
    network = build_detector(model, 10).eval()
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 96, 96))
    layers = dict.fromkeys(layer for group in graph.groups for layer in group.layers)
    loader = DataLoader(DigitScenes(scenes=256, image_size=96), batch_size=32, collate_fn=collate_detection)
    moments = collect_moments(network, list(layers), map(read_batch, loader), num_classes=10, match_iou=None)
    return Evidence(network, graph, graph.groups, moments)


def steps(evidence: Evidence) -> Counter[str]:
    """Seconds of each step over all groups, one after the other on one core."""
    spent: Counter[str] = Counter()

    def timed(name: str, step: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = step(*arguments)
        spent[name] += time.perf_counter() - start
        return result

    with threadpool_limits(1):
        for group in evidence.groups:
            rows = timed("separability", separability_of, group, evidence)
            points = timed("t-SNE", embed, np.round(rows, 6))
            distances = timed("distances", pairwise_distances, points)
            timed("k-medoids, one k", cluster, distances, max(1, group.size // 2))
            found = timed("k-medoids, all k", cluster_all, distances)
            curve = timed("silhouettes", simplified_silhouettes, distances, found)
            timed("knee", find_knee, np.array([len(each.medoids) for each in found]), curve)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov8s.yaml")
    options = parser.parse_args()
    evidence = gather(options.model)
    scores = Magnitude()(evidence)
    widths = {group.name: group.size for group in evidence.groups}
    totals = {}
    for name, share in (("amount=0.5", 0.5), ("amount=None, by the knee", None)):
        for embedding in ("tsne", "pca"):
            selection = ClusterSelection(embedding=embedding)
            start = time.perf_counter()
            selection(evidence, scores, Target(share, widths, evidence.graph.macs))
            totals[f"{name}, {embedding}"] = time.perf_counter() - start
    spent = steps(evidence)
    result = {
        "model": options.model,
        "groups": len(evidence.groups),
        "widths": dict(sorted(Counter(widths.values()).items())),
        "cores": len(os.sched_getaffinity(0)),
        "all_groups_s": totals,
        "steps_on_one_core_s": dict(spent),
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"Choosing the channels of {len(evidence.groups)} groups of {options.model}")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for name, taken in totals.items():
        table.add_row(f"{name}, {result['cores']} cores", f"{taken:.1f}")
    table.add_section()
    for name, taken in spent.items():
        table.add_row(f"{name}, one core", f"{taken:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
