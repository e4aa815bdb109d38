"""Run a network once and let every aten operation say which channel labels belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lit_prune.common._compat import NormBase
from lit_prune.common.running import eagerly
from lit_prune.errors import TraceError
from lit_prune.graph.composites import Composites
from lit_prune.graph.labels import OUTPUT
from lit_prune.graph.operation import Operation
from lit_prune.graph.outputs import left_in_attributes, used_outputs
from lit_prune.graph.recording import Call, Product, Recording
from lit_prune.graph.tracer import Rows, Rule, Tracer
from lit_prune.plan import Slot

__all__ = [
    "Call",
    "Operation",
    "Product",
    "Reached",
    "Recording",
    "Rows",
    "Rule",
    "Slot",
    "Tracer",
    "Until",
    "record",
]


class Reached(BaseException):
    """A trace came as far as it was meant to; no error, so that no forward catches it."""


@dataclass(frozen=True)
class Until:
    """Where a trace may end: once a module was called a number of times."""

    module: str
    calls: int


def record(
    network: nn.Module, calls: Sequence[Call], rules: Mapping[str, Rule], until: Until | None = None
) -> Recording:
    """Trace ``calls`` of ``network`` in eval mode; and in train mode too where eval leaves parameters unseen.

    The network is changed (modes, caches): hand in a copy.

    Raises:
        TraceError: If the forward fails, naming the layer.
        Reached: If it came as far as ``until``.
    """
    recording = Recording()
    tracer = Tracer(network, recording, rules)
    if any(module.training for module in tracer.modules):
        network.eval()
    with torch.no_grad(), eagerly(), _plain_attention():
        _run(network, calls, tracer, until)
        if tracer.leaves_unseen():
            # What it costs is what it costs to use.
            products, seen = list(recording.products), set(recording.slots)
            made = len(recording.produced)
            network.train()
            for module in tracer.modules:
                # In train mode they would refuse a single value a channel; the labels are the same. What lets its input
                # pass in eval mode, and learns nothing, draws random masks.
                if isinstance(module, NormBase) or (module in tracer.passing and not [*module.parameters()]):
                    module.eval()
            try:
                _run(network, calls, tracer, until)
            except TraceError as error:
                # It works in eval mode. Of parts that are trained alone nobody knows what would come next.
                unseen = {id(row) for slot, row in recording.slots.items() if slot not in seen}
                for row in recording.produced[made:]:
                    if id(row) in unseen:
                        recording.labels.freeze(row, f"takes part in train mode alone, which fails: {error}")
            recording.products = products
    tracer.vanishing.settle()
    return recording


@contextmanager
def _plain_attention() -> Iterator[None]:
    """While open, ``nn.MultiheadAttention`` takes the path that it trains on, not one fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _run(network: nn.Module, calls: Sequence[Call], tracer: Tracer, until: Until | None) -> None:
    first = next(network.parameters(), None)
    composites = Composites(tracer, on_meta=first is not None and first.is_meta)
    with _paths(tracer, until):
        for call in calls:
            module = network.get_submodule(call.module)
            tracer.path[:] = [call.module]
            try:
                with tracer, composites:
                    output = module(*call.args, **call.kwargs)
            except Exception as error:
                where = tracer.layer or type(network).__name__
                raise TraceError(f"{where}: {type(error).__name__}: {error}", tracer.layer) from error
            tracer.path[:] = []
            outputs = used_outputs(module, output)
            for tensor in outputs:
                tracer.freeze_output(tensor, OUTPUT)
            # A list of what was found may be empty.
            nothing_found = isinstance(output, (list, tuple, dict)) and not output
            if not outputs and len(calls) == 1 and not nothing_found:
                raise TraceError(
                    f"{type(module).__name__} returns a {type(output).__name__} that holds no tensor: what its "
                    "channels are for can't be told. Let its forward return what it has computed"
                )
        for place, tensor in left_in_attributes(network):
            if tracer.is_derived(tensor):
                tracer.freeze_output(tensor, f"is kept in the attribute {place}")


@contextmanager
def _paths(tracer: Tracer, until: Until | None) -> Iterator[None]:
    """While open, the tracer's path holds the names of the modules at work, innermost last."""
    names, path, called = tracer.modules, tracer.path, tracer.recording.calls

    def enter(module: nn.Module, _: Any) -> None:
        if module in names:
            path.append(names[module])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module in names:
            name = path.pop()
            if args and output is args[0]:
                tracer.passing.add(module)
            called[name] += 1
            if until is not None and name == until.module and called[name] == until.calls:
                raise Reached

    # Two hooks for all modules: one pair for each would take longer than the trace.
    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
