"""What times networks: onnxruntime, OpenVINO, torch itself, or a function of yours."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn

from lit_prune.common.arguments import check_choice, check_positive
from lit_prune.common.packages import require
from lit_prune.cost.profile import timing
from lit_prune.cost.profile.exporting import numbered, owners, to_onnx
from lit_prune.cost.profile.runtime import Runtime, Timings
from lit_prune.cost.profile.torch_runtime import CudaGraphRuntime, TorchRuntime
from lit_prune.errors import ArgumentTypeError

Name = Literal["torch", "cudagraphs", "onnxruntime", "openvino"]
Stopwatch = Callable[[nn.Module, Tensor], float]
"""A network in eval mode and its input to the milliseconds of one forward."""


def runtime_of(given: Runtime | Name | Stopwatch, threads: int = 1, seconds: float = 0.3) -> Runtime:
    """The runtime of a name, or of a function.

    Args:
        given: What a user said.
        threads: Of the CPU; a function sees to that itself.
        seconds: How long a network runs each time.

    Raises:
        ArgumentError: If there is no runtime of that name.
        ArgumentTypeError: If it is something else.
        MissingPackageError: If its package is missing.
    """
    if isinstance(given, Runtime):
        return given
    if isinstance(given, str):
        check_choice("runtime", given, get_args(Name))
        if given in ("torch", "cudagraphs"):
            return (TorchRuntime if given == "torch" else CudaGraphRuntime)(threads, seconds)
        require(f"The runtime {given!r}", given, extra="export" if given == "onnxruntime" else "")
        return OnnxRuntime(given, threads, seconds)
    if not callable(given):
        raise ArgumentTypeError(
            f"runtime must be one of {', '.join(map(repr, get_args(Name)))}, or a function of a network and its input "
            f"that returns milliseconds, but is {given!r}."
        )
    return FunctionRuntime(given)


class OnnxRuntime(Runtime):
    """A runtime that takes ONNX files, and tells how long each node takes.

    Args:
        name: ``"onnxruntime"`` or ``"openvino"``.
        threads: Of the CPU.
        seconds: How long a network runs each time.
    """

    def __init__(self, name: str, threads: int = 1, seconds: float = 0.3) -> None:
        self.name, self.threads, self.seconds = name, threads, seconds

    def time(self, networks: Iterable[nn.Module], inputs: Tensor, layers: Collection[str]) -> Timings:
        """Times of networks, each exported first."""
        files = numbered(networks, inputs)
        found = timing.time_networks(files, self.name, self.threads, self.seconds)
        return by_layer(found, owners(files["0"], layers))

    def whole(self, network: nn.Module, inputs: Tensor) -> float:
        """The milliseconds of one forward, on the CPU."""
        return timing.time_one(to_onnx(network, inputs), self.name, self.threads, self.seconds)

    def conditions(self, inputs: Tensor) -> dict[str, Any]:
        """Where and by what it times."""
        return timing.conditions(self.name, self.threads)


class FunctionRuntime(Runtime):
    """A function of the user's.

    Args:
        stopwatch: A network and its input to milliseconds.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def time(self, networks: Iterable[nn.Module], inputs: Tensor, layers: Collection[str]) -> Timings:
        """Times of networks; nothing is known of layers."""
        wholes = [self.whole(network, inputs) for network in networks]
        return Timings(wholes, [{} for _ in wholes], self.conditions(inputs))

    def whole(self, network: nn.Module, inputs: Tensor) -> float:
        """What the function says."""
        ms = self.stopwatch(network, inputs)
        check_positive("The milliseconds that the runtime returns", ms)
        return float(ms)

    def conditions(self, inputs: Tensor) -> dict[str, Any]:
        """The function's name."""
        return {"runtime": getattr(self.stopwatch, "__qualname__", type(self.stopwatch).__name__)}


def by_layer(found: Mapping[str, Any], owner: Mapping[str, str]) -> Timings:
    """What :func:`lit_prune.cost.profile.timing.time_networks` found, by layers.

    Args:
        found: As it returned it, or a script of another device wrote it.
        owner: As :func:`lit_prune.cost.profile.exporting.owners` tells it of one of the networks.
    """
    result = Timings(conditions={key: value for key, value in found.items() if key != "networks"})
    for number in range(len(found["networks"])):
        measured = found["networks"][str(number)]
        mine: dict[str, float] = {}
        for node, ms in measured["nodes"].items():
            layer = owner.get(_plain(node), "")
            if layer:
                mine[layer] = mine.get(layer, 0.0) + ms
        result.wholes.append(measured["ms"])
        result.layers.append(mine)
    return result


def _plain(node: str) -> str:
    """A node's name without what runtimes add to it.

    Example:
        >>> _plain("fused /conv/Conv"), _plain("/conv/Conv_output_0_nchwc"), _plain("/conv/Conv/WithoutBiases")
        ('/conv/Conv', '/conv/Conv_output_0', '/conv/Conv')
    """
    return re.sub(r"^fused |/WithoutBiases$|_nchwc$", "", node)
