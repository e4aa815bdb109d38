"""Every architecture of the zoo: how much of it can be pruned, whether that is exact, and how long it takes.

    python -m benchmarks.zoo [NAME ...] [--again] [--peers {families,all,none}] [--limit S] [--peer-limit S]

Names are those of ``testing/zoo.py`` (patterns too: ``timm/resnet*``), or a source: ``ultralytics``, ``torchvision``,
``timm``, or a package of the extra ``zoo`` (``smp``, ``transformers``, ``monai`` and so on). Each model runs in a
process of its own, so that one that takes too long or too much memory is a row and not the end. Rows are kept in
``zoo.json`` beside this file: a second run measures only what is missing there, ``--again`` measures all of the names
again. Seconds are CPU seconds of one thread.

Peers are measured on the same model where they can be imported (``PYTHONPATH``): Torch-Pruning builds its dependency
graph and prunes 30 % of all but the output layers; NVIDIA ModelOpt converts the model for FastNAS. ``families``, the
default, tries them on one model a family, ``all`` on every one.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import importlib.util
import json
import logging
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from testing import packages

SOURCES = ("ultralytics", "torchvision", "timm", *packages.SOURCES)
RESULTS = Path(__file__).with_suffix(".json")
# Where a model's channels are linear ones, they are counted apart.
CONVOLUTIONAL = 0.5
# Networks of which less can be pruned are listed, each with what keeps the rest.
LITTLE = 0.8
FAMILIES = """
ultralytics/yolov3-tiny.yaml ultralytics/yolov5n.yaml ultralytics/yolov8n.yaml ultralytics/yolov8n-seg.yaml
ultralytics/yolov9t.yaml ultralytics/yolov10n.yaml ultralytics/yolo11n.yaml ultralytics/yolo12n.yaml
ultralytics/yolo26n.yaml ultralytics/rtdetr-resnet50.yaml
torchvision/resnet50 torchvision/vgg11_bn torchvision/densenet121 torchvision/mobilenet_v3_small torchvision/googlenet
torchvision/shufflenet_v2_x0_5 torchvision/efficientnet_b0 torchvision/regnet_y_400mf torchvision/convnext_tiny
torchvision/swin_t torchvision/vit_b_32 torchvision/fcn_resnet50 torchvision/fcos_resnet50_fpn
timm/ghostnet_100 timm/hrnet_w18_small timm/repvgg_a0 timm/deit_tiny_patch16_224 timm/mixer_s32_224 timm/dla34
timm/res2net50_26w_4s
""".split()


def measure(name: str) -> dict[str, Any]:
    """One model, in this process."""
    from lit_prune import ChannelGraph, shrink_
    from testing.zoo import TOLERANCE, build, check, shares, trains

    try:
        case = build(name)
    except Exception as error:
        return {"result": "not built", "why": _message(error)}
    seconds = []
    for _ in range(2):
        start = time.process_time()
        graph = ChannelGraph.trace(case.network, *case.args)
        seconds.append(round(time.process_time() - start, 3))
    found = check(case, graph)
    share = shares(graph, case.network)
    row = {
        "result": "exact" if found.worst <= TOLERANCE else "wrong",
        "error": found.worst,
        "prunable_share": round(share.channels, 4),
        "prunable_share_of_convolutions": round(share.convolutions, 4),
        "convolutional": share.convolutional >= CONVOLUTIONAL,
        "groups": len(graph.groups),
        "unprunable": share.reasons,
        "unsupported": graph.unsupported,
        "first_s": seconds[0],
        "second_s": seconds[1],
    }
    try:
        trains(replace(case, network=shrink_(copy.deepcopy(case.network), found.plan)))
        row["trains"] = True
    except Exception as error:
        row |= {"trains": False, "why": _message(error)}
    return row


def measure_torch_pruning(name: str) -> dict[str, Any]:
    """Torch-Pruning on the same model: the time of its dependency graph, and whether the pruned model runs."""
    import torch_pruning

    from testing.zoo import build

    case = build(name)
    row: dict[str, Any] = {}
    for key in ("first_s", "second_s"):
        network = copy.deepcopy(case.network)
        start = time.process_time()
        torch_pruning.DependencyGraph().build_dependency(network, example_inputs=case.args[0])
        row[key] = round(time.process_time() - start, 3)
    try:
        torch_pruning.pruner.BasePruner(
            case.network,
            case.args[0],
            importance=torch_pruning.importance.MagnitudeImportance(),
            pruning_ratio=0.3,
            ignored_layers=_outputs(case),
        ).step()
        case.network(*case.args)
    except Exception as error:
        return row | {"result": "built", "why": _message(error)}
    return row | {"result": "runs"}


def measure_modelopt(name: str) -> dict[str, Any]:
    """NVIDIA ModelOpt on the same model: whether FastNAS, its pruning of convolutional networks, takes it."""
    import modelopt.torch.nas as search

    from testing.zoo import build

    case = build(name)
    start = time.process_time()
    search.convert(case.network, mode="fastnas")
    return {"result": "converted", "first_s": round(time.process_time() - start, 3)}


def _outputs(case: Any) -> list[Any]:
    """The layers that make a network's output, which no one wants to prune."""
    from lit_prune import ChannelGraph

    graph = ChannelGraph.trace(case.network, *case.args)
    layers = [layer for layer, reason in graph.unprunable.items() if reason.startswith("reaches the network's output")]
    return [case.network.get_submodule(layer) for layer in layers]


KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "lit_prune": measure,
    "torch_pruning": measure_torch_pruning,
    "modelopt": measure_modelopt,
}

_PRELOADED = ["torch", "torchvision", "timm", "ultralytics.nn.tasks", "lit_prune", "testing.invariant", "testing.zoo"]


def in_a_process(work: Callable[..., dict[str, Any]], *arguments: Any, limit: int) -> dict[str, Any]:
    """Measure one model in a process that ends after ``limit`` CPU seconds."""
    # The server has imported the packages once; what it forks need not again.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, arguments, limit))
    process.start()
    theirs.close()
    # A busy machine takes longer than the CPU seconds.
    answered = mine.poll(10 * limit)
    try:
        row: dict[str, Any] = mine.recv() if answered else {}
    except EOFError:
        row = {}
    if not answered:
        process.kill()
    process.join()
    return row or {"result": f"over {limit} s"} | ({"why": f"exit code {process.exitcode}"} if answered else {})


def _work(answer: Connection, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], limit: int) -> None:
    import torch

    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        row = work(*arguments)
    except Exception as error:
        row = {"result": "fails", "why": _message(error)}
    answer.send(row)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts a source, and the median share of the convolutions' channels that can be pruned."""
    found: dict[str, Any] = {}
    for source in SOURCES:
        mine = [row for row in rows if row["model"].startswith(source) and row["result"] != "not built"]
        traced = [row for row in mine if "prunable_share" in row]
        if traced:
            convolutional = [row["prunable_share_of_convolutions"] for row in traced if row["convolutional"]]
            found[source] = {
                "built": len(mine),
                "exact": sum(row["result"] == "exact" for row in mine),
                "wrong": sum(row["result"] == "wrong" for row in mine),
                "failed": len(mine) - len(traced),
                "trains": sum(bool(row.get("trains")) for row in mine),
                "nothing_prunable": sum(row["groups"] == 0 for row in traced),
                "median_prunable_share": statistics.median(row["prunable_share"] for row in traced),
                "median_prunable_share_of_convolutions": statistics.median(convolutional) if convolutional else None,
            }
            for peer in KINDS.keys() - {"lit_prune"}:
                theirs = [row[peer] for row in mine if peer in row]
                if theirs:
                    found[source][peer] = {
                        "tried": len(theirs),
                        **{
                            result: sum(row["result"] == result for row in theirs)
                            for result in sorted({row["result"] for row in theirs})
                        },
                    }
    return found


def little(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Networks of which less than 80 % can be pruned, least first, with the reasons why the rest stays.

    Of a convolutional network its convolutions count, of another all layers.
    """
    found = []
    for row in rows:
        share = row.get("prunable_share_of_convolutions" if row.get("convolutional") else "prunable_share", 1)
        if share < LITTLE:
            found.append({"model": row["model"], "share": share, "unprunable": row["unprunable"]})
    return sorted(found, key=lambda row: row["share"])


def _line(row: dict[str, Any]) -> str:
    measured = [kind for kind in KINDS if isinstance(row.get(kind), dict)]
    peers = " ".join(f"{kind}: {row[kind]['result']} {row[kind].get('second_s', '')}" for kind in measured)
    return (
        f"{row['model']:44s} {row['result']:10s} share {row.get('prunable_share', 0):.3f} "
        f"conv {row.get('prunable_share_of_convolutions', 0):.3f} error {row.get('error', 0):.1e} "
        f"{row.get('second_s', 0):7.3f} s {'trains' if row.get('trains') else ''} {row.get('why', '')} {peers}"
    )


def _stored() -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in json.loads(RESULTS.read_text())["models"]} if RESULTS.exists() else {}


def _store(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ordered = sorted(rows.values(), key=lambda row: (SOURCES.index(row["model"].partition("/")[0]), row["model"]))
    report = {"summary": summary(ordered), "little": little(ordered), "models": ordered}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _asked(given: list[str]) -> list[str]:
    from testing.zoo import names

    known = [name for source in SOURCES for name in names(source)]
    found = []
    for pattern in given:
        matching = [name for name in known if fnmatch.fnmatch(name, f"{pattern}/*" if pattern in SOURCES else pattern)]
        # A name that is in no list is tried all the same.
        found.extend(matching or [pattern])
    return list(dict.fromkeys(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SOURCES))
    parser.add_argument("--again", action="store_true", help="measure what has been measured before, too")
    parser.add_argument("--peers", choices=["families", "all", "none"], default="families")
    parser.add_argument("--limit", type=int, default=100, help="CPU seconds a model")
    parser.add_argument("--peer-limit", type=int, default=100, help="CPU seconds a model for each peer")
    arguments = parser.parse_args()
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    beside = [kind for kind in KINDS if kind != "lit_prune" and importlib.util.find_spec(kind) is not None]
    rows = _stored()
    for name in _asked(arguments.names):
        row = rows.get(name, {"model": name})
        peers = beside if arguments.peers == "all" or (arguments.peers == "families" and name in FAMILIES) else []
        missing = [kind for kind in ("lit_prune", *peers) if arguments.again or kind not in _measured(row)]
        for kind in missing:
            if kind == "lit_prune":
                kept = {peer: row[peer] for peer in KINDS if peer in row}
                row = {"model": name, **in_a_process(measure, name, limit=arguments.limit), **kept}
            else:
                row[kind] = in_a_process(KINDS[kind], name, limit=arguments.peer_limit)
        if missing:
            rows[name] = row
            _store(rows)
            print(_line(row), flush=True)
    report = _store(rows)
    print(json.dumps(report["summary"], indent=2))
    for row in report["little"]:
        why = "; ".join(f"{number} {reason}" for reason, number in row["unprunable"].items())
        print(f"{row['model']:44s} {row['share']:.3f} {why[:300]}")


def _measured(row: dict[str, Any]) -> set[str]:
    return {kind for kind in KINDS if kind in row} | ({"lit_prune"} if "result" in row else set())


if __name__ == "__main__":
    main()
