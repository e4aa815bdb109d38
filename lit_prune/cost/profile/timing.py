"""Times ONNX networks, and each node of them, where they are to run.

It needs NumPy and the runtime alone, not even PyTorch: a script for another device is made of this file.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Times = dict[str, list[float]]
WARMUP, _FEWEST, _MOST = 3, 9, 100


def time_networks(
    networks: Mapping[str, bytes],
    runtime: str = "onnxruntime",
    threads: int = 1,
    seconds: float = 0.3,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time each network as a whole, and its nodes.

    A machine is slower for minutes while others are at work on it. So the first network runs before and after each
    turn of another, and counts for how fast the machine is then. All are gone through twice, and the mean counts.

    Args:
        networks: ONNX files with inputs of fixed shapes, by name.
        runtime: ``"onnxruntime"`` or ``"openvino"``, on the CPU.
        threads: Of the CPU.
        seconds: How long a network runs, each time.
        say: Is told how far it is.

    Returns:
        ``device``, ``runtime``, ``version``, ``threads``, and as ``networks`` for each name its milliseconds ``ms`` and
        those of each node, ``nodes``.
    """
    open_network = OPENERS[runtime]
    first, _ = open_network(next(iter(networks.values())), threads, False)

    def pace() -> float:
        return median_ms(repeat(first, seconds / 4))

    measured: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    paces = [pace()]
    for turn in (0, 1):
        for number, (name, network) in enumerate(networks.items()):
            say(f"{number + 1 + turn * len(networks)} of {2 * len(networks)}")
            call, _ = open_network(network, threads, False)
            whole = median_ms(repeat(call, seconds))
            paces.append(pace())
            call, nodes = open_network(network, threads, True)
            repeat(call, seconds)
            parts = {node: statistics.median(times[WARMUP:] or times) for node, times in nodes().items()}
            paces.append(pace())
            before, between, after = paces[-3:]
            of_whole, of_parts = 2 / (before + between), 2 / (between + after)
            measured[name].append({"": whole * of_whole, **{node: ms * of_parts for node, ms in parts.items()}})
    usual = statistics.median(paces)
    found = {}
    for name, turns in measured.items():
        means = {node: usual * statistics.mean(each[node] for each in turns if node in each) for node in turns[0]}
        found[name] = {"ms": means.pop(""), "nodes": means}
    # The network by which the others are known was timed most often.
    found[next(iter(networks))]["ms"] = usual
    return {**conditions(runtime, threads), "networks": found}


def time_one(network: bytes, runtime: str, threads: int, seconds: float = 0.3) -> float:
    """The median milliseconds of one run of a network."""
    call, _ = OPENERS[runtime](network, threads, False)
    return median_ms(repeat(call, seconds))


def conditions(runtime: str, threads: int) -> dict[str, Any]:
    """Where and by what it is timed: ``device``, ``runtime``, ``version``, ``threads``."""
    return {"device": device(), "runtime": runtime, "version": _version(runtime), "threads": threads}


def device() -> str:
    """The name of this machine's processor."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def main(packed: str, runtime: str, made_of: str) -> None:
    """The command of a script that carries its networks with it.

    Args:
        packed: A ZIP file of ONNX files, in base 64.
        runtime: As for :func:`time_networks`.
        made_of: Written beside what is measured.
    """
    parser = argparse.ArgumentParser(description="Time networks on this device; `lit-prune profile` reads the result.")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="how long each network runs, each time")
    options = parser.parse_args()
    if Path(options.out).is_dir() or not Path(options.out).absolute().parent.is_dir():
        parser.error(f"--out {options.out} can't be a file: it is a folder, or there is none to hold it")
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))) as archive:
        networks = {name: archive.read(name) for name in archive.namelist()}

    def say(text: str) -> None:
        sys.stderr.write(f"\r{text}")

    found = time_networks(networks, runtime, options.threads, options.seconds, say)
    found["made_of"] = made_of
    Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"\nWritten: {options.out}\n")


def repeat(call: Callable[[], Any], seconds: float) -> list[float]:
    """The milliseconds of each call, for a while; the first few are for warming up."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < WARMUP + _FEWEST or (len(taken) < _MOST and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def median_ms(taken: list[float]) -> float:
    """The median of what :func:`repeat` returns, but for warming up."""
    return statistics.median(taken[WARMUP:])


def _in_onnxruntime(network: bytes, threads: int, by_node: bool) -> tuple[Callable[[], Any], Callable[[], Times]]:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    folder = tempfile.TemporaryDirectory() if by_node else None
    if folder is not None:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder.name}/profile"
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    feeds = {value.name: _some(value.shape) for value in session.get_inputs()}

    def nodes() -> Times:
        assert folder is not None
        with folder:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        found: Times = {}
        for event in events:
            name, _, kind = event["name"].rpartition("_kernel_")
            if kind == "time":
                found.setdefault(name, []).append(event["dur"] / 1e3)
        return found

    return lambda: session.run(None, feeds), nodes


def _in_openvino(network: bytes, threads: int, by_node: bool) -> tuple[Callable[[], Any], Callable[[], Times]]:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": by_node,
    }
    compiled = core.compile_model(core.read_model(io.BytesIO(network)), "CPU", settings)
    request = compiled.create_infer_request()
    feeds = [_some([*value.shape]) for value in compiled.inputs]
    found: Times = {}

    def call() -> None:
        request.infer(feeds, share_inputs=True)
        if by_node:
            for node in request.get_profiling_info():
                found.setdefault(node.node_name, []).append(1e3 * node.real_time.total_seconds())

    return call, lambda: found


def _some(shape: list[int]) -> Any:
    return np.random.default_rng(0).random(shape, np.float32)


OPENERS: dict[str, Any] = {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino}
"""Runtime to what opens a file: a function that runs it, and one that tells the times of its nodes."""


def _version(runtime: str) -> str:
    from importlib.metadata import version

    return version(runtime)
