"""What a trace costs: the first and the second in a process, beside a plain forward in the same run.

    python benchmarks/trace.py [MODEL ...]

Writes ``trace.json`` beside this file. Models are Ultralytics YAMLs (``yolov8n.yaml``) or torchvision names.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from torch import nn

from lit_prune import ChannelGraph
from lit_prune.graph.recording import Call
from lit_prune.graph.rules import RULES
from lit_prune.graph.skeleton import on_meta, skeleton
from lit_prune.graph.trace import record

MODELS = ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov8x.yaml", "densenet201", "convnext_base"]
SIZE = 640


def network(name: str) -> nn.Module:
    if name.endswith(".yaml"):
        from ultralytics.nn.tasks import DetectionModel

        return DetectionModel(name, verbose=False).eval()
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval()


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(name: str) -> dict[str, Any]:
    model, images = network(name), torch.zeros(1, 3, SIZE, SIZE)
    first = seconds(lambda: ChannelGraph.trace(model, images))
    again = [seconds(lambda: ChannelGraph.trace(model, images)) for _ in range(3)]
    calls = on_meta([Call("", (images,))])
    alone = min(seconds(lambda: record(skeleton(model), calls, RULES)) for _ in range(3))
    with torch.no_grad():
        model(images)
        forward = min(seconds(lambda: model(images)) for _ in range(3))
    graph = ChannelGraph.trace(model, images)
    return {
        "model": name,
        "image_size": SIZE,
        "threads": torch.get_num_threads(),
        "first_trace_and_probe_s": round(first, 3),
        "trace_and_probe_s": round(min(again), 3),
        "trace_alone_s": round(alone, 3),
        "forward_s": round(forward, 3),
        "groups": len(graph.groups),
        "frozen": len(graph.frozen),
    }


def main() -> None:
    rows = []
    for name in sys.argv[1:] or MODELS:
        rows.append(measure(name))
        print(json.dumps(rows[-1]), flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
