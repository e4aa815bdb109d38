"""A latency table from measurements on this device, or on another."""

from __future__ import annotations

import json
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_prune.common.arguments import check_whole
from lit_prune.cost.profile.drawn import Drawn, shapes_of
from lit_prune.cost.profile.exporting import numbered, owners, to_onnx, write_script
from lit_prune.cost.profile.fitting import fit_table
from lit_prune.cost.profile.latency_table import LatencyTable
from lit_prune.cost.profile.runtime import Runtime, Timings
from lit_prune.cost.profile.runtimes import Name, Stopwatch, by_layer, runtime_of
from lit_prune.errors import ArgumentError, MissingFileError

_FEWEST = 8
# A quiet machine comes to a third of it.
_USUAL = 0.1


def profile_latency(
    network: nn.Module,
    inputs: Tensor,
    runtime: Name | Stopwatch | Runtime = "onnxruntime",
    threads: int = 1,
    round_to: int = 8,
    networks: int = 32,
    seed: int = 0,
) -> LatencyTable:
    """Measure how long the layers of a network take on this device, for every combination of widths.

    Copies of the network are cut to many different widths, and timed as a whole and layer by layer while they run as
    they will: fused, in the runtime's own layout, with the caches as they are within a network. From that each layer's
    time is fitted as a function of its widths. It should be a quiet machine.

    Args:
        network: Any module whose forward takes one tensor; it stays as it is.
        inputs: The example input, with the batch that counts; for ``"torch"`` and ``"cudagraphs"`` also on the device,
            in the precision and in the memory format that count, whatever those of the network are.
        runtime: ``"onnxruntime"`` or ``"openvino"``, on the CPU; ``"torch"``, eagerly; ``"cudagraphs"``, torch on a GPU
            with norms folded, launched as one CUDA graph; or a function of a network and its input that returns
            milliseconds, which may run it elsewhere. Of a function nothing is known but the whole network, so its table
            is coarse.
        threads: Of the CPU.
        round_to: As for :class:`lit_prune.ChannelPruning`: of other widths than its multiples the table tells little,
            for devices compute channels in blocks. OpenVINO likes 16 or 32.
        networks: How many are timed.
        seed: Of their widths.

    Raises:
        ArgumentTypeError: If the network is none, or the inputs are no tensor.
        ArgumentError: If nothing in the network can be narrower, it can't be exported, or an argument is out of range.
        MissingPackageError: If the runtime is not installed.
        TraceError: If the network can't be run on this input.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))
        >>> table = profile_latency(net, torch.zeros(1, 3, 16, 16), lambda network, images: 1.0, networks=8)
        >>> round(table.ms({"0": (3, 16), "2": (16, 8)}), 6)
        1.0
    """
    check_whole("threads", threads)
    check_whole("networks", networks, _FEWEST)
    timer = runtime_of(runtime, threads)
    check_whole("round_to", round_to)
    drawn = Drawn(network, inputs, networks, round_to, seed)
    return _table(drawn, timer.time(drawn, inputs, drawn.work))


def export_profile(
    network: nn.Module,
    inputs: Tensor,
    path: str | PathLike[str],
    runtime: Name = "onnxruntime",
    round_to: int = 8,
    networks: int = 32,
) -> None:
    """Write a script that measures on another device, which needs Python, NumPy and the runtime.

    Args:
        network: As for :func:`profile_latency`.
        inputs: As for :func:`profile_latency`.
        path: The script to write.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        round_to: As for :func:`profile_latency`.
        networks: How many are timed.

    Raises:
        ArgumentError: As for :func:`profile_latency`, or if the runtime takes no files.
    """
    if runtime not in ("onnxruntime", "openvino"):
        raise ArgumentError(f"A script for another device is for onnxruntime or openvino, but not for {runtime!r}.")
    check_whole("networks", networks, _FEWEST)
    check_whole("round_to", round_to)
    drawn = Drawn(network, inputs, networks, round_to)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_script(numbered(drawn, inputs), runtime, drawn.made_of, Path(path))


def read_profile(network: nn.Module, inputs: Tensor, path: str | PathLike[str], round_to: int = 8) -> LatencyTable:
    """The table of what a script of :func:`export_profile` has measured.

    Args:
        network: The one that the script was written for.
        inputs: The same example input.
        path: What the script wrote.
        round_to: That of the script.

    Raises:
        MissingFileError: If there is no such file.
        ArgumentError: If it is not what such a script writes.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"There is no file {str(path)!r}: run the script on the device first.")
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        drawn = Drawn(network, inputs, len(found["networks"]), round_to)
        if found.pop("made_of", drawn.made_of) != drawn.made_of:
            raise ArgumentError(
                f"{path} was measured with another network, input or round_to than {type(network).__name__}, "
                f"{[*inputs.shape]} and {round_to}: give those that the script was written for."
            )
        timings = by_layer(found, owners(to_onnx(next(iter(drawn)), inputs), drawn.work))
    except ArgumentError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{path} is not what the script of `lit-prune profile --script` writes: {error!r}"
        ) from error
    return _table(drawn, timings)


def _table(drawn: Drawn, timings: Timings) -> LatencyTable:
    shapes = [shapes_of(cut, drawn.work) for cut in drawn]
    made_of = {"network": drawn.name, "input": [*drawn.inputs.shape], "round_to": drawn.round_to}
    table = fit_table(shapes, timings.wholes, timings.layers, drawn.work, made_of | timings.conditions)
    if (error := table.conditions["error"]) > _USUAL:
        warnings.warn(
            f"The networks that were timed differ from their table by {error:.0%} on average, so a budget by it will "
            "be missed by as much. Was the device busy? Profile again when nothing else runs there, or let the budget "
            "time what it chooses: LatencyBudget(table, runtime=...).",
            stacklevel=3,
        )
    return table
