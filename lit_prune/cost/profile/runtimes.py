"""What times networks: onnxruntime, OpenVINO, torch itself, or a function of yours."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_prune.common.arguments import check_choice
from lit_prune.common.packages import require
from lit_prune.common.running import untouched
from lit_prune.cost.latency import device_name, synchronize
from lit_prune.cost.profile import timing
from lit_prune.cost.profile.exporting import numbered, owners, to_onnx
from lit_prune.errors import ArgumentTypeError

Name = Literal["torch", "onnxruntime", "openvino"]
Stopwatch = Callable[[nn.Module, Tensor], float]
"""A network in eval mode and its input to the milliseconds of one forward."""


@dataclass
class Timings:
    """What a runtime tells of some networks.

    Attributes:
        wholes: Of each network, the milliseconds of one forward.
        layers: Of each, the milliseconds of its layers, as far as the runtime tells them.
        conditions: ``device``, ``runtime``, ``version``, ``threads``.
    """

    wholes: list[float] = field(default_factory=list)
    layers: list[dict[str, float]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)


class Runtime(ABC):
    """Times networks."""

    @abstractmethod
    def time(self, networks: Iterable[nn.Module], inputs: Tensor, layers: Collection[str]) -> Timings:
        """Times of networks, and of layers within them."""

    @abstractmethod
    def whole(self, network: nn.Module, inputs: Tensor) -> float:
        """The milliseconds of one forward."""

    @abstractmethod
    def conditions(self, inputs: Tensor) -> dict[str, Any]:
        """Where and by what it times."""


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
        if given == "torch":
            return TorchRuntime(threads, seconds)
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


class TorchRuntime(Runtime):
    """Torch itself, eagerly, on the device of the input: a layer's time is that until the next one begins.

    Args:
        threads: Of the CPU.
        seconds: How long a network runs each time.
    """

    def __init__(self, threads: int = 1, seconds: float = 0.3) -> None:
        self.threads, self.seconds = threads, seconds

    def time(self, networks: Iterable[nn.Module], inputs: Tensor, layers: Collection[str]) -> Timings:
        """Times of networks, and of layers within them."""
        found = Timings(conditions=self.conditions(inputs))
        for network in networks:
            found.wholes.append(self.whole(network, inputs))
            found.layers.append(self._layers(network, inputs, layers))
        return found

    def whole(self, network: nn.Module, inputs: Tensor) -> float:
        """The milliseconds of one forward."""
        return timing.median_ms(self._repeated(network, inputs))

    def conditions(self, inputs: Tensor) -> dict[str, Any]:
        """Where and by what it times."""
        where = device_name(inputs.device) if inputs.device.type != "cpu" else timing.device()
        return {"device": where, "runtime": "torch", "version": torch.__version__, "threads": self.threads}

    def _repeated(self, network: nn.Module, inputs: Tensor) -> list[float]:
        def forward() -> None:
            network(inputs)
            synchronize(inputs.device)

        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with untouched(network):
                synchronize(inputs.device)
                return timing.repeat(forward, self.seconds)
        finally:
            torch.set_num_threads(threads)

    def _layers(self, network: nn.Module, inputs: Tensor, layers: Collection[str]) -> dict[str, float]:
        begun: list[tuple[str, float]] = []

        def note(name: str) -> Callable[..., None]:
            def begin(module: nn.Module, given: object) -> None:
                synchronize(inputs.device)
                begun.append((name, time.perf_counter()))

            return begin

        handles = [network.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
        handles.append(network.register_forward_hook(lambda *_: begun.append(("", time.perf_counter()))))
        try:
            self._repeated(network, inputs)
        finally:
            for handle in handles:
                handle.remove()
        forwards: list[dict[str, float]] = [{}]
        for (name, start), (_, end) in pairwise(begun):
            if not name:
                forwards.append({})
            else:
                forwards[-1][name] = forwards[-1].get(name, 0.0) + 1e3 * (end - start)
        return {name: median(each.get(name, 0.0) for each in forwards[timing.WARMUP :]) for name in layers}


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
        return float(self.stopwatch(network, inputs))

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
