"""Torch itself as a runtime: operation by operation, or on a GPU as one CUDA graph."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lit_prune.common._compat import ConvNd, ConvTransposeNd, hold_device
from lit_prune.common.running import untouched
from lit_prune.cost.latency import device_name, synchronize
from lit_prune.cost.profile import timing
from lit_prune.cost.profile.runtime import Runtime, Timings
from lit_prune.errors import ArgumentError

Begun = list[tuple[str, float]]
"""Layers in the order in which they began in a forward, each with the milliseconds when; at the end ``""``."""

# A device that waits this many times as long as the host takes to tell it what to do never waits for the host.
_AHEAD = 2.0
_FORWARDS = 12
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Before a capture, libraries choose their kernels.
_BEFORE_CAPTURE = 3


class TorchRuntime(Runtime):
    """Torch itself, eagerly; networks run where their input is, in its precision and memory format.

    A layer's time is that until the next one begins; on a GPU by the device's own clock.

    Args:
        threads: Of the CPU.
        seconds: How long a network runs each time.
    """

    name = "torch"

    def __init__(self, threads: int = 1, seconds: float = 0.3) -> None:
        self.threads, self.seconds = threads, seconds

    def time(self, networks: Iterable[nn.Module], inputs: Tensor, layers: Collection[str]) -> Timings:
        """Times of networks, and of layers within them."""
        found = Timings(conditions=self.conditions(inputs))
        for network in networks:
            ready = self.ready(network, inputs)
            whole = timing.median_ms(self._repeated(ready, inputs))
            found.wholes.append(whole)
            found.layers.append(self._layers(ready, inputs, layers, whole))
        return found

    def whole(self, network: nn.Module, inputs: Tensor) -> float:
        """The milliseconds of one forward."""
        return timing.median_ms(self._repeated(self.ready(network, inputs), inputs))

    def conditions(self, inputs: Tensor) -> dict[str, Any]:
        """Where and by what it times."""
        return {
            "device": device_name(inputs.device) if inputs.device.type != "cpu" else timing.device(),
            "device_type": inputs.device.type,
            "runtime": self.name,
            "version": torch.__version__,
            "threads": self.threads,
            "precision": str(_precision(inputs)).removeprefix("torch."),
            "layout": "channels_last" if _is_channels_last(inputs) else "contiguous",
        }

    def ready(self, network: nn.Module, inputs: Tensor) -> nn.Module:
        """The same network, where and as it is to run; it is changed in place."""
        network = network.to(inputs.device, _precision(inputs))
        return network.to(memory_format=torch.channels_last) if _is_channels_last(inputs) else network

    def _call(self, network: nn.Module, inputs: Tensor) -> Callable[[], Any]:
        """What is timed."""
        return lambda: network(inputs)

    def _repeated(self, network: nn.Module, inputs: Tensor) -> list[float]:
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with untouched(network):
                call = self._call(network, inputs)

                def forward() -> None:
                    call()
                    synchronize(inputs.device)

                synchronize(inputs.device)
                return timing.repeat(forward, self.seconds)
        finally:
            torch.set_num_threads(threads)

    def _layers(self, network: nn.Module, inputs: Tensor, layers: Collection[str], whole: float) -> dict[str, float]:
        if inputs.is_cuda:
            return _of_layers(_by_events(network, inputs, layers), layers)
        begun: Begun = []
        with _noting(network, layers, lambda name: begun.append((name, 1e3 * time.perf_counter()))):
            self._repeated(network, inputs)
        return _of_layers(_forwards(begun)[timing.WARMUP :], layers)


class CudaGraphRuntime(TorchRuntime):
    """Torch on a GPU, a forward launched as one CUDA graph, with its norms folded into the convolutions before them.

    The host has no part in it, so that also a small batch takes the less the narrower its network is.
    """

    name = "cudagraphs"

    def conditions(self, inputs: Tensor) -> dict[str, Any]:
        """Where and by what it times."""
        if not inputs.is_cuda:
            raise ArgumentError(
                f"The runtime 'cudagraphs' runs on a GPU of NVIDIA, but the input lies on {inputs.device}: move it "
                'there, for example by images.to("cuda"), or take the runtime "torch".'
            )
        return super().conditions(inputs)

    def ready(self, network: nn.Module, inputs: Tensor) -> nn.Module:
        """The same network, where and as it is to run, with its norms folded; it is changed in place."""
        self.conditions(inputs)
        return fold_norms_(super().ready(network, inputs), inputs)

    def _call(self, network: nn.Module, inputs: Tensor) -> Callable[[], Any]:
        return captured(network, inputs)

    def _layers(self, network: nn.Module, inputs: Tensor, layers: Collection[str], whole: float) -> dict[str, float]:
        # Events between kernels take time of their own, and a graph leaves less between two kernels than a stream.
        forwards = _by_events(network, inputs, layers)
        factor = whole / median(forward[-1][1] for forward in forwards)
        return {name: factor * ms for name, ms in _of_layers(forwards, layers).items()}


def captured(network: nn.Module, inputs: Tensor) -> Callable[[], Any]:
    """A forward as one CUDA graph: what runs it again, on what the inputs hold by then.

    Args:
        network: On the inputs' device, in eval mode; gradients are off.
        inputs: The one tensor that it takes.

    Raises:
        ArgumentError: If the forward can't be captured: it waits for the device, or its steps depend on values.
    """
    graph = torch.cuda.CUDAGraph()
    beside = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream(inputs.device))
    try:
        with torch.cuda.stream(beside):
            for _ in range(_BEFORE_CAPTURE):
                network(inputs)
        torch.cuda.current_stream(inputs.device).wait_stream(beside)
        with torch.cuda.graph(graph):
            output = network(inputs)
    except RuntimeError as error:
        raise ArgumentError(
            f"The forward of {type(network).__name__} can't be captured as a CUDA graph, so take the runtime "
            f'"torch": {error}'
        ) from error

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def fold_norms_(network: nn.Module, inputs: Tensor) -> nn.Module:
    """Fold BatchNorms into the convolutions right before them, in place, as networks are deployed.

    What is folded is seen in a forward: a norm whose input is what a convolution has just returned. It is for the time
    that a network takes: were there another reader of that, it would get other numbers.

    Args:
        network: In eval mode.
        inputs: What it takes.

    Returns:
        The network.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> [type(layer).__name__ for layer in fold_norms_(net, torch.zeros(1, 3, 4, 4))]
        ['Conv2d', 'Identity', 'ReLU']
    """
    names = {module: name for name, module in network.named_modules()}
    made: dict[int, tuple[ConvNd, Tensor]] = {}
    pairs: dict[Any, ConvNd] = {}
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, ConvNd):
            made[id(output)] = module, output
        elif given and id(given[0]) in made:
            pairs[module] = made[id(given[0])][0]

    handles = [module.register_forward_hook(note) for module in names if isinstance(module, (ConvNd, *_NORMS))]
    try:
        with untouched(network):
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for norm, convolution in pairs.items():
        if calls[norm] == calls[convolution] == 1 and norm.running_mean is not None:
            is_transposed = isinstance(convolution, ConvTransposeNd)
            _replace(network, names[convolution], fuse_conv_bn_eval(convolution, norm, is_transposed))
            _replace(network, names[norm], nn.Identity())
    return network


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def placed(images: Tensor, device: str | torch.device, precision: str, layout: str) -> Tensor:
    """Images where and as :meth:`TorchRuntime.conditions` tells that they are.

    Args:
        images: Wherever they lie.
        device: Where to.
        precision: Such as ``"float16"``.
        layout: ``"channels_last"`` or ``"contiguous"``.
    """
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return images.to(device, getattr(torch, precision), memory_format=memory_format)


def _precision(inputs: Tensor) -> torch.dtype:
    return inputs.dtype if inputs.is_floating_point() else torch.float32


def _is_channels_last(inputs: Tensor) -> bool:
    return inputs.dim() == 4 and not inputs.is_contiguous() and inputs.is_contiguous(memory_format=torch.channels_last)


@contextmanager
def _noting(network: nn.Module, layers: Collection[str], note: Callable[[str], None]) -> Iterator[None]:
    """Within, a function is told the names of layers as they begin, and ``""`` when a forward is done."""
    handles = [
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: note(name)) for name in layers
    ]
    handles.append(network.register_forward_hook(lambda *_: note("")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_events(network: nn.Module, inputs: Tensor, layers: Collection[str]) -> list[Begun]:
    """When layers begin on a GPU that always has something to do, in each of some forwards."""
    events: list[tuple[str, torch.cuda.Event]] = []

    def note(name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        events.append((name, event))

    forwards: list[Begun] = []
    wait = 0.0
    with untouched(network), _noting(network, layers, note):
        for _ in range(_FORWARDS):
            events.clear()
            synchronize(inputs.device)
            hold_device(wait)
            started = time.perf_counter()
            network(inputs)
            wait = _AHEAD * (time.perf_counter() - started)
            synchronize(inputs.device)
            first = events[0][1]
            forwards.append([(name, first.elapsed_time(event)) for name, event in events])
    return forwards[timing.WARMUP :]


def _forwards(begun: Begun) -> list[Begun]:
    """What was noted, forward by forward."""
    ends = [number for number, (name, _) in enumerate(begun) if not name]
    return [begun[start:end] for start, end in pairwise([0, *(number + 1 for number in ends)])]


def _of_layers(forwards: list[Begun], layers: Collection[str]) -> dict[str, float]:
    """The milliseconds of each layer: the medians of several forwards."""
    taken: list[dict[str, float]] = []
    for forward in forwards:
        taken.append({})
        for (name, start), (_, end) in pairwise(forward):
            taken[-1][name] = taken[-1].get(name, 0.0) + end - start
    return {name: median(each.get(name, 0.0) for each in taken) for name in layers}
