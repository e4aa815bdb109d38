"""Do budgets of latency and memory hold? Four measurements, each written to `budgets.json` as soon as it is done.

    python -m benchmarks.budgets clock --networks yolov8n.yaml torchvision:resnet50 --runtimes onnxruntime openvino
    python -m benchmarks.budgets accuracy --row fashion --networks resnet20 --weights resnet20.pt
    python -m benchmarks.budgets solver
    python -m benchmarks.budgets memory --networks yolov8n.yaml torchvision:resnet50

- `clock`: what the table of a network says of the widths that it chose, against the clock, at three budgets; and again
  after the table was corrected once by what the clock said. Dense and pruned networks run by turns, in a runtime on one
  thread; what counts is the ratio of both.
- `accuracy`: a trained network of `benchmarks.accuracy` after a cut, repaired, by a budget of latency and by one of
  multiply-adds: what is left of its measure, at once or after some epochs, and how much faster it is on the clock.
- `solver`: choices under a budget against a search through all of them, on small networks.
- `memory`: the peak of a forward's values as `MemoryBudget` foretells it, against torch's allocator on the CPU, of the
  dense network and at two budgets, eight images at once.

It takes a quiet machine. OpenVINO comes by `pip install openvino`.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.accuracy.rows import KINDS
from benchmarks.accuracy.rows import row as row_of
from benchmarks.accuracy.rows.base import Row
from benchmarks.accuracy.ways import REPAIRS, Ours, macs_of
from lit_prune import plan_pruning, shrink_
from lit_prune.cli.networks import load_network
from lit_prune.cost import Cost, LatencyTable, peak_memory, profile_latency
from lit_prune.cost.profile import timing
from lit_prune.cost.profile.exporting import to_onnx
from lit_prune.errors import SelectionError
from lit_prune.select import LatencyBudget, MacsBudget, MemoryBudget
from lit_prune.select.clock_search import table_ms_for
from testing.allocator import measured_peak
from testing.knapsacks import excess, problem

OUT = Path(__file__).with_suffix(".json")
ROUNDS = 9
_IMAGES = 8


def side_by_side(dense: nn.Module, pruned: nn.Module, inputs: Tensor, runtime: str, threads: int = 1) -> list[float]:
    """The pruned network's time beside the dense one's, in each of several rounds; both run just before and after."""
    calls = [timing.OPENERS[runtime](to_onnx(network, inputs), threads, False)[0] for network in (dense, pruned)]

    def taken(call: Any) -> float:
        return timing.median_ms(timing.repeat(call, 0.15))

    ratios = []
    before = taken(calls[0])
    for _ in range(ROUNDS):
        between, after = taken(calls[1]), taken(calls[0])
        ratios.append(2 * between / (before + after))
        before = after
    return ratios


def cut(
    network: nn.Module, inputs: Tensor, table: LatencyTable, amount: float, round_to: int
) -> tuple[nn.Module, float]:
    """What is left by the table, and the part of the dense latency that it then says."""
    plan = plan_pruning(
        network, inputs, amount=amount, criterion="magnitude", selection=LatencyBudget(table), round_to=round_to
    )
    left = shrink_(copy.deepcopy(network), plan).eval()
    return left, table.ms_of(left) / table.dense_ms


def against_clock(name: str, runtime: str, ratios: list[float], round_to: int, threads: int = 1) -> dict[str, Any]:
    torch.manual_seed(0)
    network, images = load_network(name, 320 if name.startswith("yolo") else None)
    started = time.perf_counter()
    table = profile_latency(network, images, runtime, threads, round_to)
    found: dict[str, Any] = {
        "profile_s": time.perf_counter() - started,
        "error_of_fit": table.conditions["error"],
        "dense_ms": table.dense_ms,
        "version": table.conditions["version"],
    }

    def clock(left: nn.Module) -> list[float]:
        return side_by_side(network, left, images, runtime, threads)

    found["budgets"] = [at_ratio(network, images, table, ratio, round_to, clock) for ratio in ratios]
    return found


def at_ratio(
    network: nn.Module,
    inputs: Tensor,
    table: LatencyTable,
    ratio: float,
    round_to: int,
    clock: Callable[[nn.Module], Any],
) -> dict[str, Any]:
    """What the table says of its choice for a ratio of the dense latency, and the clock; before and after a correction.

    Args:
        network: The whole network.
        inputs: What it takes.
        table: Its table.
        ratio: What may be left.
        round_to: Of the widths.
        clock: A network to its latency beside that of the whole one: a number, or several of which the median counts.
    """
    try:
        left, predicted = cut(network, inputs, table, 1 - ratio, round_to)
        measured = clock(left)
        allowed = table_ms_for(ratio, (1.0, 1.0), (predicted, float(np.median(measured))))
        again, corrected = cut(network, inputs, table, 1 - allowed, round_to)
    except SelectionError as error:
        return {"asked": ratio, "out_of_reach": str(error)}
    return {
        "asked": ratio,
        "predicted": predicted,
        "clock": measured,
        "corrected": corrected * ratio / allowed,
        "clock_corrected": clock(again),
        "macs": Cost.of(left, inputs).macs / Cost.of(network, inputs).macs,
    }


def accuracies(
    row: Row, runtime: str, draws: int, round_to: int, epochs: float, amounts: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    table = profile_latency(row.network, row.image, runtime, round_to=round_to)
    ours = Ours(row, round_to, {"latency": LatencyBudget(table), "macs": MacsBudget("global")})
    found = []
    for name, amount in ((kind, amount) for kind in ours.selections for amount in amounts[kind]):
        scores, clocks, macs = [], [], []
        for draw in range(draws):
            left, _ = ours.cut("taylor", name, REPAIRS["repaired"], amount, draw)
            if epochs:
                left = row.train(left, epochs, draw)
            scores.append(row.score(left))
            clocks.append(statistics.median(side_by_side(row.network.eval(), left.eval(), row.image, runtime)))
            macs.append(macs_of(row, left) / macs_of(row, row.network))
        found.append({"budget": name, "amount": amount, "scores": scores, "clock": clocks, "macs": macs})
        Console().print(found[-1], highlight=False)
    return {"dense": row.score(row.network), "measure": row.measure, "dense_ms": table.dense_ms, "ways": found}


def searches() -> dict[str, Any]:
    found = [
        excess(*problem(seed, items, options), part)
        for items, options in ((3, 8), (4, 6), (5, 5))
        for seed in range(40)
        for part in (0.25, 0.5, 0.8)
    ]
    return {"searches": len(found), "worst": max(found), "mean": statistics.mean(found)}


def against_allocator(
    name: str,
    image_size: int = 320,
    peak: Callable[[nn.Module, Tensor], int] = measured_peak,
    amounts: tuple[float, ...] = (0.0, 0.3, 0.5),
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    network, images = load_network(name, image_size if name.startswith("yolo") else None)
    images = images.expand(_IMAGES, *images.shape[1:]).contiguous()
    found = []
    for amount in amounts:
        started = time.perf_counter()
        try:
            plan = (
                plan_pruning(network, images, amount=amount, selection=MemoryBudget("global", batch_size=_IMAGES))
                if amount
                else None
            )
        except SelectionError as error:
            found.append({"amount": amount, "out_of_reach": str(error)})
            continue
        seconds = time.perf_counter() - started
        left = shrink_(copy.deepcopy(network), plan) if plan else network
        predicted, measured = peak_memory(left, images), peak(left, images)
        found.append({"amount": amount, "predicted": predicted, "allocator": measured, "plan_s": seconds})
    return found


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    if options.what == "solver":
        yield "solver", searches()
    elif options.what == "memory":
        yield "memory", {name: against_allocator(name) for name in options.networks}
    elif options.what == "accuracy":
        given = {"network": options.networks[0], "weights": options.weights, "data": options.data}
        row, runtime = (
            row_of(options.row, **{name: value for name, value in given.items() if value}),
            options.runtimes[0],
        )
        amounts = {"latency": options.latency_amounts, "macs": options.macs_amounts}
        after = f", {options.epochs:g} epochs after" if options.epochs else ""
        found = accuracies(row, runtime, options.draws, options.round_to, options.epochs, amounts)
        yield f"accuracy, {row.name}, {runtime}{after}", found
    else:
        for name in options.networks:
            for runtime in options.runtimes:
                found = against_clock(name, runtime, options.ratios, options.round_to, options.threads)
                threads = f", {options.threads} threads" if options.threads > 1 else ""
                yield f"clock, {name}, {runtime}, widths of {options.round_to}{threads}", found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clock", "accuracy", "solver", "memory"))
    parser.add_argument("--networks", nargs="+", default=["yolov8n.yaml"])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime"])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.7, 0.5, 0.35], help="of the dense latency")
    parser.add_argument("--row", choices=KINDS, default="digits", help="of benchmarks.accuracy, for `accuracy`")
    parser.add_argument("--weights", type=Path, help="of that row's network, which is trained first if there are none")
    parser.add_argument("--data", type=Path, help="of that row")
    parser.add_argument("--latency-amounts", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    parser.add_argument("--macs-amounts", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--epochs", type=float, default=0, help="of training after the cut, for `accuracy`")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of the runtime, for `clock`")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for key, found in measurements(options):
        results = json.loads(OUT.read_text()) if OUT.exists() else {}
        results[key] = found
        OUT.write_text(json.dumps(results, indent=1) + "\n")
        Console().print(key, found, highlight=False)


if __name__ == "__main__":
    main()
