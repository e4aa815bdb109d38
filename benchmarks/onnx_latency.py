"""ONNX in onnxruntime: do pruned networks compute the same as torch, and how much faster are they at half the MACs?

Widths are chosen in several ways: the same ratio of every layer, unrounded or in multiples of 8 and 16, and by what
the device says. For that, each convolution of the network is timed by itself with few and many output channels, as
the time falls in steps that differ from processor to processor. All that remains of the network's time grows with the
elements that move through it. Channels go where they cost most time for their MACs. Weights are random: the time does
not depend on them. Dense and pruned networks take turns; ratios are dense over pruned.

    python -m benchmarks.onnx_latency [--models yolov8n.yaml yolov8s.yaml] [--repeats 40] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch import nn

from lit_prune import ChannelGraph, shrink_
from lit_prune.criteria import Evidence
from lit_prune.report.tables import save_json
from lit_prune.select import MacsBudget, Target
from lit_prune.yolo import build_detector
from lit_prune.yolo.export import export_detector

OUT = Path(__file__).with_suffix(".json")
SIZE = 320
LEAST = 0.35  # of its channels each layer keeps at least, where the device chooses
BLOCK, RUN = 8, 4  # channels that a processor computes together, and how many such blocks at once


def open_session(model: str | bytes, threads: int, profile: str | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def node_times(model: str | bytes, feeds: Mapping[str, Any], runs: int) -> dict[str, tuple[str, float]]:
    """Node to its operation and the shortest of its times, in microseconds, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, 1, f"{folder}/profile")
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, float]] = {}
    for event in events:
        name, _, kind = event["name"].rpartition("_kernel_")
        if kind == "time":
            known = found.get(name, ("", float("inf")))[1]
            found[name] = event["args"]["op_name"], min(known, float(event["dur"]))
    return found


@dataclass(frozen=True)
class Layer:
    """A convolution of the network, and the size of what enters and leaves it."""

    name: str
    weight: tuple[int, int]
    kernel: int
    stride: int
    entering: tuple[int, int]
    leaving: tuple[int, int]


def convolutions(network: nn.Module) -> list[Layer]:
    found: list[Layer] = []
    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}

    def note(module: Any, inputs: Any, output: Any) -> None:
        weight = module.weight
        sizes = tuple(inputs[0].shape[2:]), tuple(output.shape[2:])
        found.append(Layer(names[module], tuple(weight.shape[:2]), weight.shape[2], module.stride[0], *sizes))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, SIZE, SIZE))
    finally:
        for handle in handles:
            handle.remove()
    return found


def few_outputs(layers: list[Layer], runs: int) -> dict[Layer, list[float]]:
    """How long each convolution takes with 0 to `RUN` blocks of output channels, in microseconds, on one thread."""
    same: dict[Any, list[Layer]] = defaultdict(list)
    for layer in layers:
        same[layer.weight[1], layer.kernel, layer.stride, layer.entering].append(layer)
    nodes, inputs, outputs, weights, feeds = [], [], [], [], {}
    generator = np.random.default_rng(0)
    for number, (channels, kernel, stride, size) in enumerate(same):
        shape = [1, channels, *size]
        inputs.append(helper.make_tensor_value_info(f"in{number}", TensorProto.FLOAT, shape))
        feeds[f"in{number}"] = generator.random(shape, dtype=np.float32)
        for blocks in range(1, RUN + 1):
            name = f"c{number}_{blocks}"
            filters = generator.random((BLOCK * blocks, channels, kernel, kernel), dtype=np.float32)
            weights.append(numpy_helper.from_array(filters, f"w{name}"))
            options = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
            nodes.append(helper.make_node("Conv", [f"in{number}", f"w{name}"], [name], name=name, **options))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "convolutions", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    times = {
        name.removesuffix("_nchwc"): taken
        for name, (_, taken) in node_times(model.SerializeToString(), feeds, runs).items()
    }
    return {
        layer: [0.0, *(times[f"c{number}_{blocks}"] for blocks in range(1, RUN + 1))]
        for number, group in enumerate(same.values())
        for layer in group
    }


class Device:
    """What the network takes by each width, as one device says: a model that is fitted to its times.

    Args:
        graph: Of the dense network.
        layers: Its convolutions.
        steps: What :func:`few_outputs` returns.
        rest: Microseconds of all other nodes but those that don't depend on widths.
    """

    def __init__(self, graph: ChannelGraph, layers: list[Layer], steps: dict[Layer, list[float]], rest: float) -> None:
        # Groups that must stay equally wide change together.
        self.bundles = list(dict.fromkeys(group.bundle for group in graph.groups))
        bundle_of = {name: number for number, bundle in enumerate(self.bundles) for name in bundle}
        self.dense = np.array([graph[bundle[0]].size for bundle in self.bundles])
        rows = {layer.name: row for row, layer in enumerate(layers)}
        # How many outputs and inputs a convolution loses with a channel of each bundle.
        self.lost = np.zeros((2, len(layers), len(self.bundles)))
        for group in graph.groups:
            for (tensor, dim), members in group.members.items():
                name, _, kind = tensor.rpartition(".")
                if name in rows and kind == "weight":
                    self.lost[dim, rows[name], bundle_of[group.name]] += len(members.indices) / group.size
        self.wide = np.array([layer.weight for layer in layers]).T.astype(float)
        self.steps = np.array([steps[layer] for layer in layers])
        self.area = np.array([layer.leaving[0] * layer.leaving[1] for layer in layers], dtype=float)
        self.taps = np.array([layer.kernel**2 for layer in layers], dtype=float)
        self.rest = rest / float((self.wide[0] * self.area).sum())

    def costs(self, widths: np.ndarray) -> tuple[float, float]:
        """Predicted microseconds, and multiply-adds."""
        outputs, inputs = self.wide - self.lost @ (self.dense - widths)
        blocks = np.ceil(outputs / BLOCK).astype(int)
        taken = blocks // RUN * self.steps[:, RUN] + self.steps[np.arange(len(blocks)), blocks % RUN]
        time_of_all = (taken * inputs / self.wide[1]).sum() + self.rest * (outputs * self.area).sum()
        return float(time_of_all), float((outputs * inputs * self.area * self.taps).sum())

    def choose(self, share: float) -> dict[str, int]:
        """Group to width: at most this share of the multiply-adds, in the least time."""
        widths = self.dense.copy()
        least = np.ceil(self.dense * LEAST / BLOCK) * BLOCK
        taken, macs = self.costs(widths)
        budget = share * macs
        while macs > budget:
            best = None
            for bundle in range(len(widths)):
                # Several blocks at once, as the first of them may save nothing.
                for step in range(1, RUN + 1):
                    trial = widths.copy()
                    trial[bundle] = BLOCK * (-(-trial[bundle] // BLOCK) - step)
                    if trial[bundle] < least[bundle]:
                        break
                    costs = self.costs(trial)
                    gain = (taken - costs[0]) / (macs - max(costs[1], budget))
                    if best is None or gain > best[0]:
                        best = gain, trial, costs
            if best is None:
                raise ValueError(f"{share:.0%} of the MACs are out of reach with {LEAST:.0%} of each layer left.")
            _, widths, (taken, macs) = best
        return {name: int(width) for bundle, width in zip(self.bundles, widths, strict=True) for name in bundle}


def uniform(network: nn.Module, graph: ChannelGraph, share: float, round_to: int) -> dict[str, int]:
    scores = {group.name: torch.arange(group.size, dtype=torch.float64).flip(0) for group in graph.groups}
    widths = {group.name: group.size for group in graph.groups}
    target = Target(1 - share, widths, graph.macs, round_to)
    gone = MacsBudget()(Evidence(network, graph, graph.groups), scores, target)
    return {name: width - len(gone.get(name, ())) for name, width in widths.items()}


def build(model: str) -> nn.Module:
    torch.manual_seed(0)
    network = build_detector(model)
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(2, 3, 64, 64))  # normalizations that do something
    return network.eval()


def variants(model: str, share: float, runs: int) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    dense = build(model)
    layers = [layer for layer in convolutions(dense) if ".dfl" not in layer.name]
    graph = ChannelGraph.trace(dense, torch.zeros(1, 3, SIZE, SIZE))
    with tempfile.TemporaryDirectory() as folder:
        path = export_detector(dense, f"{folder}/dense.onnx", "onnx", image_size=SIZE)
        nodes = node_times(str(path), {"images": np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)}, runs)
    head = f"/model.{len(dense.model) - 1}/"
    rest = sum(t for name, (op, t) in nodes.items() if op != "Conv" and (op == "QuickGelu" or head not in name))
    device = Device(graph, layers, few_outputs(layers, runs), rest)
    ways: dict[str, Callable[[], dict[str, int]]] = {
        "uniform": lambda: uniform(dense, graph, share, 1),
        "uniform, of 8": lambda: uniform(dense, graph, share, 8),
        "uniform, of 16": lambda: uniform(dense, graph, share, 16),
        "by the device": lambda: device.choose(share),
    }
    networks, facts = {"dense": dense}, {"dense": {"macs": graph.macs, "predicted": 1.0}}
    for name, way in ways.items():
        widths = way()
        network = build(model)
        plan = graph.plan({group.name: range(widths[group.name], group.size) for group in graph.groups})
        networks[name] = shrink_(network, plan).eval()
        predicted = device.costs(device.dense)[0] / device.costs(np.array([widths[u[0]] for u in device.bundles]))[0]
        macs = ChannelGraph.trace(network, torch.zeros(1, 3, SIZE, SIZE)).macs
        facts[name] = {"macs": macs, "predicted": predicted, "widths": widths}
    return networks, facts


def difference(session: Any, network: nn.Module, images: torch.Tensor) -> float:
    """The largest difference between onnxruntime and torch, relative to what is above 1."""
    with torch.no_grad():
        expected = network(images)[0]
    (answer,) = session.run(None, {"images": images.numpy()})
    return float(((torch.from_numpy(answer) - expected).abs() / expected.abs().clamp(min=1)).max())


def side_by_side(sessions: Mapping[str, Any], images: Any, repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    for turn in range(-3, repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            sessions[name].run(None, {"images": images})
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(networks: dict[str, nn.Module], batches: list[int], threads: list[int], repeats: int) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            images = torch.rand(batch, 3, SIZE, SIZE)
            paths = {
                name: str(export_detector(network, f"{folder}/{number}.onnx", "onnx", SIZE, batch=batch))
                for number, (name, network) in enumerate(networks.items())
            }
            for count in threads:
                sessions = {name: open_session(path, count) for name, path in paths.items()}
                wrong = {name: difference(session, networks[name], images) for name, session in sessions.items()}
                taken = side_by_side(sessions, images.numpy(), repeats)
                for name, seconds in taken.items():
                    yield {
                        "widths": name,
                        "batch": batch,
                        "threads": count,
                        "median_ms": 1e3 * statistics.median(seconds),
                        "fastest_ms": 1e3 * min(seconds),
                        "faster": statistics.median(taken["dense"]) / statistics.median(seconds),
                        "faster_by_fastest": min(taken["dense"]) / min(seconds),
                        "difference_from_torch": wrong[name],
                    }


def where_it_goes(networks: dict[str, nn.Module], runs: int) -> dict[str, dict[str, float]]:
    """Operation to microseconds on one thread, of the dense network and of the one by the device."""
    feeds = {"images": np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)}
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("dense", "by the device"):
            path = export_detector(networks[name], f"{folder}/net.onnx", "onnx", image_size=SIZE)
            spent: dict[str, float] = defaultdict(float)
            for op, taken in node_times(str(path), feeds, runs).values():
                spent[op] += taken
            result[name] = dict(sorted(spent.items(), key=lambda item: -item[1]))
    return result


def table(model: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    """A line for each way to choose widths, a column for each condition."""
    conditions = list(dict.fromkeys((row["batch"], row["threads"]) for row in rows))
    result = Table(
        title=f"{model} at {SIZE}×{SIZE} in onnxruntime: times as fast as dense, by medians (by the fastest)"
    )
    result.add_column("widths")
    result.add_column("MACs", justify="right")
    for batch, threads in conditions:
        result.add_column(f"batch {batch}, {threads} thread{'s' * (threads > 1)}", justify="right")
    result.add_column("predicted", justify="right")
    result.add_column("off torch", justify="right")
    for name, fact in facts.items():
        mine = [row for row in rows if row["widths"] == name]
        cells = [f"{row['faster']:.2f} ({row['faster_by_fastest']:.2f})" for row in mine]
        if name == "dense":
            cells = [f"{row['median_ms']:.1f} ms" for row in mine]
        worst = max(row["difference_from_torch"] for row in mine)
        share = f"{fact['macs'] / facts['dense']['macs']:.1%}"
        result.add_row(name, share, *cells, f"{fact['predicted']:.2f}", f"{worst:.0e}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["yolov8n.yaml", "yolov8s.yaml"])
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs that are left")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--runs", type=int, default=30, help="of each profile")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "onnxruntime": onnxruntime.__version__,
        "image_size": SIZE,
        "cores": len(os.sched_getaffinity(0)),
        "models": {},
    }
    for model in options.models:
        networks, facts = variants(model, options.share, options.runs)
        rows = list(measure(networks, options.batches, options.threads, options.repeats))
        spent = where_it_goes(networks, options.runs)
        report["models"][model] = {"widths": facts, "timings": rows, "microseconds_by_operation": spent}
        save_json(report, options.out)
        Console(width=150).print(table(model, facts, rows))


if __name__ == "__main__":
    main()
