"""How long it takes to choose the channels of every group of a YOLOv8s by clusters, and where the time goes.

The statistics are those of a network of random weights on DigitScenes; the time does not depend on what is learned.
Seconds of the processor count what all threads computed, whatever else the machine does; divided by the cores they are
the least that the wall clock can show. Beside it: how good t-SNE's picture is, against scikit-learn's own gradients,
and what is lost where not every number of clusters is tried.

    python -m benchmarks.choosing [--model yolov8s.yaml]
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
from sklearn.manifold import TSNE, trustworthiness
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader

from lit_prune import ChannelGraph
from lit_prune.activations import collect_moments, read_batch
from lit_prune.criteria import Evidence, Magnitude
from lit_prune.data import DigitScenes, collate_detection
from lit_prune.select import ClusterSelection, Target
from lit_prune.select.clustering import kmedoids as clusters
from lit_prune.select.clustering.kmedoids import (
    cluster,
    cluster_all,
    embed,
    find_knee,
    pairwise_distances,
    simplified_silhouettes,
)
from lit_prune.select.clustering.selection import separability_of
from lit_prune.select.clustering.tsne import DenseTSNE
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
    """Seconds of the processor for each step, over all groups, one after the other on one thread."""
    spent: Counter[str] = Counter()

    def timed(name: str, step: Any, *arguments: Any) -> Any:
        start = time.process_time()
        result = step(*arguments)
        spent[name] += time.process_time() - start
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


def pictures(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """t-SNE by each gradient, on one group of each width: time, divergence, neighbourhoods kept."""
    ways = {
        "ours, all pairs": DenseTSNE(random_state=0),
        "scikit-learn, angle=0.5": TSNE(perplexity=10, init="pca", random_state=0),
        "scikit-learn, angle=0.8": TSNE(perplexity=10, init="pca", angle=0.8, random_state=0),
    }
    firsts = {group.size: group for group in reversed(evidence.groups)}
    result: dict[str, dict[str, Any]] = {name: {} for name in ways}
    with threadpool_limits(1):
        for size, group in sorted(firsts.items()):
            rows = np.round(separability_of(group, evidence), 6)
            for name, way in ways.items():
                start = time.process_time()
                points = way.fit_transform(rows)
                result[name][str(size)] = {
                    "cpu_s": time.process_time() - start,
                    "divergence": float(way.kl_divergence_),
                    "trustworthiness": float(trustworthiness(rows, points)),
                }
    return result


def left_out(evidence: Evidence) -> list[dict[str, Any]]:
    """Knees of wide groups with every number of clusters tried, and with those that are tried by default."""
    result = []
    for group in evidence.groups:
        if group.size - 2 <= clusters._MOST_COUNTS:
            continue
        distances = pairwise_distances(embed(np.round(separability_of(group, evidence), 6)))
        row: dict[str, Any] = {"group": group.name, "channels": group.size}
        default = clusters._MOST_COUNTS
        for name, most in (("knee", default), ("knee_of_all", group.size)):
            clusters._MOST_COUNTS = most
            found = cluster_all(distances)
            counts = np.array([len(each.medoids) for each in found])
            row[name] = find_knee(counts, simplified_silhouettes(distances, found))
        clusters._MOST_COUNTS = default
        result.append(row)
    return result


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
            wall, cpu = time.perf_counter(), time.process_time()
            selection(evidence, scores, Target(share, widths, evidence.graph.macs))
            totals[f"{name}, {embedding}"] = {
                "wall_s": time.perf_counter() - wall,
                "cpu_s": time.process_time() - cpu,
            }
    spent = steps(evidence)
    result = {
        "model": options.model,
        "groups": len(evidence.groups),
        "widths": dict(sorted(Counter(widths.values()).items())),
        "cores": len(os.sched_getaffinity(0)),
        "all_groups": totals,
        "steps_cpu_s": dict(spent),
        "tsne": pictures(evidence),
        "wide_groups": left_out(evidence),
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"Choosing the channels of {len(evidence.groups)} groups of {options.model}")
    table.add_column("")
    table.add_column(f"wall s, {result['cores']} cores", justify="right")
    table.add_column("CPU s", justify="right")
    for name, taken in totals.items():
        table.add_row(name, f"{taken['wall_s']:.1f}", f"{taken['cpu_s']:.1f}")
    table.add_section()
    for name, seconds in spent.items():
        table.add_row(name, "", f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
