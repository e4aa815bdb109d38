"""Every architecture of the zoo: how much of it can be pruned, whether that is exact, and how long it takes.

    python -m benchmarks.zoo [NAME ...] [--limit SECONDS]

Each model runs in a process of its own, so that one that takes too long or too much memory is a row and not the end.
Where Torch-Pruning can be imported (``PYTHONPATH``), the time of its dependency graph on the same model is beside
ours.
Writes ``zoo.json`` beside this file. Names are those of ``tests/zoo.py``, or a source: ``ultralytics``,
``torchvision``, ``timm``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
SOURCES = ("ultralytics", "torchvision", "timm")


def measure(name: str) -> dict[str, Any]:
    """One model, in this process."""
    import torch

    from lit_prune import ChannelGraph, shrink_
    from tests.networks import check_invariant, prunable_share
    from tests.zoo import Case, build, trains

    torch.set_num_threads(1)
    try:
        case = build(name)
    except Exception as error:
        return {"result": "not built", "why": f"{type(error).__name__}: {error}"[:200]}
    start = time.perf_counter()
    graph = ChannelGraph.trace(case.network, *case.args)
    first = time.perf_counter() - start
    start = time.perf_counter()
    ChannelGraph.trace(case.network, *case.args)
    second = time.perf_counter() - start
    check = check_invariant(case.network, *case.args, forward=case.forward)
    row = {
        "result": "exact" if check.worst <= TOLERANCE else "wrong",
        "error": check.worst,
        "prunable_share": round(prunable_share(case.network, graph), 4),
        "groups": len(graph.groups),
        "frozen": len(graph.frozen),
        "unsupported": graph.unsupported,
        "first_s": round(first, 3),
        "second_s": round(second, 3),
    }
    try:
        trains(Case(shrink_(copy.deepcopy(case.network), check.plan), case.args))
        row["trains"] = True
    except Exception as error:
        row |= {"trains": False, "why": f"{type(error).__name__}: {error}"[:200]}
    return row


def measure_torch_pruning(name: str) -> dict[str, Any]:
    """The same model's dependency graph by Torch-Pruning, in this process."""
    import torch
    import torch_pruning

    from tests.zoo import build

    torch.set_num_threads(1)
    case = build(name)
    start = time.perf_counter()
    torch_pruning.DependencyGraph().build_dependency(case.network, example_inputs=case.args[0])
    return {"result": "built", "second_s": round(time.perf_counter() - start, 3)}


def in_a_process(name: str, kind: str, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.zoo", "--one", kind, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"result": f"over {limit:.0f} s"}
    with contextlib.suppress(ValueError, IndexError):
        return dict(json.loads(done.stdout.splitlines()[-1]))
    return {"result": "failed", "why": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for source in SOURCES:
        mine = [row for row in rows if row["model"].startswith(source) and row["result"] != "not built"]
        shares = [row["prunable_share"] for row in mine if "prunable_share" in row]
        if mine:
            found[source] = {
                "built": len(mine),
                "exact": sum(row["result"] == "exact" for row in mine),
                "wrong": sum(row["result"] == "wrong" for row in mine),
                "trains": sum(bool(row.get("trains")) for row in mine),
                "median_prunable_share": statistics.median(shares) if shares else None,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SOURCES))
    parser.add_argument("--limit", type=float, default=100, help="seconds a model")
    parser.add_argument("--one", choices=["lit_prune", "torch_pruning"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("YOLO_OFFLINE", "true")
    if arguments.one:
        row = (measure if arguments.one == "lit_prune" else measure_torch_pruning)(arguments.names[0])
        print(json.dumps(row))
        return
    from tests.zoo import names

    beside = importlib.util.find_spec("torch_pruning") is not None
    rows = []
    for name in [model for given in arguments.names for model in (names(given) if given in SOURCES else [given])]:
        row = {"model": name, **in_a_process(name, "lit_prune", arguments.limit)}
        if beside:
            row["torch_pruning"] = in_a_process(name, "torch_pruning", arguments.limit)
        rows.append(row)
        print(
            f"{name:48s} {row['result']:10s} share {row.get('prunable_share', 0):.3f} error {row.get('error', 0):.1e} "
            f"{row.get('second_s', 0):7.3f} s {row.get('torch_pruning', {}).get('result', '')}",
            flush=True,
        )
        report = {"summary": summary(rows), "models": rows}
        Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["summary"], indent=2))


if __name__ == "__main__":
    main()
