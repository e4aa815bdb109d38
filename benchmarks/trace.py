"""What a trace with its probe costs: the first and the second in a process, and how that grows with the network.

    python -m benchmarks.trace [NAME ...] [--sizes 96 320 640] [--peer-limit 30] [--no-growth]

Names are those of ``testing/zoo.py``. Seconds are CPU seconds of one thread, those of the second run the best of
several.
Each model and image size runs in a process of its own, so that its first run is the first in a process. What that pays
for is little: no module is imported in it, torch fills tables of its own (kernels found, rules looked up), and so does
`lit_prune`: by class, by operation, and what torch's meta kernels answer, which is the most of it. It did take one to
two seconds more where a dispatch mode or a stance on compiling made torch import its whole compiler: the tracer sees to
it that neither does.

Torch-Pruning builds its dependency graph of the same model in the same run where it can be imported (``PYTHONPATH``).
Where it fails or runs over its limit at the first image size it is not tried at the next.

Growth: chains of residual blocks, deeper at one width and wider at one depth. The exponent is that of a fit on
logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.zoo import in_a_process
from lit_prune import ChannelGraph

OUT = Path(__file__).with_suffix(".json")
MODELS = [
    *(
        f"ultralytics/{name}.yaml"
        for name in "yolov5n yolov6n yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n".split()
    ),
    "ultralytics/yolov8x.yaml",
    "torchvision/densenet201",
    "torchvision/convnext_base",
]
DEPTHS, WIDTHS = (8, 16, 32, 64, 128), (32, 64, 128, 256, 512, 1024)
DEPTH, WIDTH = 16, 64
LIMIT = 100


class Block(nn.Module):
    """Two convolutions with a shortcut past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.last(self.second(torch.relu(self.norm(self.first(x))))))


def chain(depth: int, width: int) -> nn.Module:
    """A network of ``depth`` such blocks."""
    return nn.Sequential(nn.Conv2d(3, width, 3), *(Block(width) for _ in range(depth)), nn.Conv2d(width, 4, 1)).eval()


def seconds(function: Callable[[nn.Module], Any], network: nn.Module) -> float:
    start = time.process_time()
    function(network)
    return time.process_time() - start


def runs(function: Callable[[nn.Module], Any], network: nn.Module) -> dict[str, float]:
    """The first run, on a copy of the network as all are, and the best of three to fifteen after it."""
    first = seconds(function, copy.deepcopy(network))
    others: list[float] = []
    while len(others) < 3 or (len(others) < 15 and sum(others) < 3):
        others.append(seconds(function, copy.deepcopy(network)))
    return {"first_s": round(first, 4), "second_s": round(min(others), 4)}


def case(name: str, size: int) -> tuple[nn.Module, Tensor]:
    from testing.zoo import build

    return build(name).network, torch.zeros(1, 3, size, size)


def trace(name: str, size: int) -> dict[str, Any]:
    network, images = case(name, size)
    found = runs(lambda copied: ChannelGraph.trace(copied, images), network)
    return found | {"groups": len(ChannelGraph.trace(network, images).groups)}


def build_dependencies(name: str, size: int) -> dict[str, Any]:
    import torch_pruning

    network, images = case(name, size)
    return runs(lambda copied: torch_pruning.DependencyGraph().build_dependency(copied, example_inputs=images), network)


def growth(depth: int, width: int) -> dict[str, Any]:
    network, images = chain(depth, width), torch.zeros(1, 3, 32, 32)
    return {"depth": depth, "width": width} | runs(lambda copied: ChannelGraph.trace(copied, images), network)


def exponent(rows: list[dict[str, Any]], over: str) -> float:
    """Of seconds as a power of depth or width."""
    slope, _ = np.polyfit([math.log(row[over]) for row in rows], [math.log(row["second_s"]) for row in rows], 1)
    return round(float(slope), 3)


def measure_model(name: str, sizes: list[int], peer_limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for size in sizes:
        row = {"model": name, "image_size": size} | in_a_process(trace, name, size, limit=LIMIT)
        before = rows[-1]["torch_pruning"] if rows else None
        if importlib.util.find_spec("torch_pruning") is None:
            row["torch_pruning"] = {"result": "not installed"}
        elif before is not None and "second_s" not in before:
            row["torch_pruning"] = before
        else:
            row["torch_pruning"] = in_a_process(build_dependencies, name, size, limit=peer_limit)
        rows.append(row)
    return rows


def table_of_models(rows: list[dict[str, Any]]) -> Table:
    table = Table("model", "image size", "first s", "second s", "Torch-Pruning s", "ratio", title="Trace and probe")
    for row in rows:
        peer = row["torch_pruning"]
        theirs = peer.get("second_s")
        mine = row.get("second_s")
        told = peer.get("why", peer.get("result", ""))[:40] if theirs is None else f"{theirs:.3f}"
        table.add_row(
            row["model"],
            str(row["image_size"]),
            f"{row['first_s']:.3f}" if mine else row.get("why", row.get("result", ""))[:40],
            f"{mine:.3f}" if mine else "",
            told,
            f"{theirs / mine:.1f}" if theirs and mine else "",
        )
    return table


def table_of_growth(rows: list[dict[str, Any]], over: str) -> Table:
    table = Table(over, "first s", "second s", title=f"Growth over {over}: exponent {exponent(rows, over)}")
    for row in rows:
        table.add_row(str(row[over]), f"{row['first_s']:.3f}", f"{row['second_s']:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[96, 320, 640], help="image sizes in pixels")
    parser.add_argument("--peer-limit", type=int, default=30, help="CPU seconds a model for Torch-Pruning")
    parser.add_argument("--no-growth", action="store_true", help="only the models")
    arguments = parser.parse_args()
    console = Console()
    models = [row for name in arguments.names for row in measure_model(name, arguments.sizes, arguments.peer_limit)]
    console.print(table_of_models(models))
    report: dict[str, Any] = {"models": models}
    if not arguments.no_growth:
        for over, pairs in (("depth", [(d, WIDTH) for d in DEPTHS]), ("width", [(DEPTH, w) for w in WIDTHS])):
            rows = [in_a_process(growth, depth, width, limit=LIMIT) for depth, width in pairs]
            console.print(table_of_growth(rows, over))
            report[f"growth_over_{over}"] = {"exponent": exponent(rows, over), "runs": rows}
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
