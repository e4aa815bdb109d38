"""Run a network once and let every aten operation say which channel labels belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lit_prune.common._compat import NormBase
from lit_prune.common.running import eagerly
from lit_prune.errors import TraceError
from lit_prune.graph.composites import Composites
from lit_prune.graph.labels import OUTPUT, RETURNED
from lit_prune.graph.memories import forgetting
from lit_prune.graph.operation import Operation
from lit_prune.graph.outputs import left_in_attributes, tensors_in, used_outputs
from lit_prune.graph.recording import Call, Product, Recording, parted
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
    """Trace ``calls`` of ``network`` in eval mode; steps, and what eval leaves unseen, in train mode too.

    The network is changed (modes, caches): hand in one that may be.

    Raises:
        TraceError: If the forward fails, naming the layer.
        Reached: If it came as far as ``until``.
    """
    recording = Recording()
    tracer = Tracer(network, recording, rules)
    modes = {module: module.training for module in tracer.modules}
    forwards, steps = parted(calls)
    if any(modes.values()):
        network.eval()
    with torch.no_grad(), eagerly(), _plain_attention(), forgetting(network):
        _run(network, forwards, tracer, until)
        # What it costs is what it costs to use.
        products = list(recording.products)
        if not steps and tracer.leaves_unseen():
            _run_in_train_mode(network, forwards, tracer, until)
        left = [] if steps else _left_behind(network, tracer)
        for place, tensor in left:
            # Nothing shows whether anybody reads it.
            tracer.freeze_output(tensor, f"is kept in the attribute {place}")
        if left:
            # But the network may, when it runs again.
            network.eval()
            _run(network, forwards, tracer, until)
        for step in steps:
            for module, training in modes.items():
                module.training = training and step.in_train_mode
            _still_(tracer)
            _run(network, [step], tracer, until)
        if forwards:
            recording.products = products
    tracer.vanishing.settle()
    return recording


def _run_in_train_mode(network: nn.Module, calls: Sequence[Call], tracer: Tracer, until: Until | None) -> None:
    """Run once more, for what eval mode has not shown."""
    recording = tracer.recording
    seen, made = set(recording.slots), len(recording.produced)
    network.train()
    _still_(tracer)
    try:
        _run(network, calls, tracer, until)
    except TraceError as error:
        # It works in eval mode. Of parts that are trained alone nobody knows what would come next.
        unseen = {id(row) for slot, row in recording.slots.items() if slot not in seen}
        for row in recording.produced[made:]:
            if id(row) in unseen:
                recording.labels.freeze(row, f"takes part in train mode alone, which fails: {error}")


def _still_(tracer: Tracer) -> None:
    """Put norms in eval mode, and what draws random masks.

    Norms would refuse a single value a channel in train mode; the labels are the same. What lets its input pass in eval
    mode, and learns nothing, draws masks.
    """
    for module in tracer.modules:
        if isinstance(module, NormBase) or (module in tracer.passing and not [*module.parameters()]):
            module.eval()


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
    composites = Composites(tracer, on_meta=tracer.origins.on_meta)
    with _paths(tracer, until):
        for call in calls:
            tracer.path[:] = [call.module]
            tracer.outside = ", in the training step" if call.is_step else ""
            output = _entered(network, call, tracer, composites)
            tracer.path[:] = []
            if call.is_step:
                for tensor in tensors_in(output):
                    tracer.freeze_output(tensor, RETURNED)
                _hold_state(network, call, tracer, composites)
                continue
            module = network.get_submodule(call.module)
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


def _entered(network: nn.Module, call: Call, tracer: Tracer, composites: Composites) -> Any:
    tracer.origins.enter(tensors_in([call.args, dict(call.kwargs)]))
    try:
        with tracer, composites:
            return call.enter(network)
    except Exception as error:
        where = tracer.layer or type(network).__name__
        raise TraceError(f"{where}: {type(error).__name__}: {error}", tracer.layer) from error


def _left_behind(network: nn.Module, tracer: Tracer) -> list[tuple[str, Tensor]]:
    return [(place, tensor) for place, tensor in left_in_attributes(network) if tracer.is_derived(tensor)]


def _hold_state(network: nn.Module, step: Call, tracer: Tracer, composites: Composites) -> None:
    """Freeze what one step leaves in an attribute and the next one reads: it would have the old width then."""
    left = _left_behind(network, tracer)
    if not left:
        return
    tracer.watch(tensor for _, tensor in left)
    products = list(tracer.recording.products)
    _entered(network, step, tracer, composites)
    tracer.path[:], tracer.outside, tracer.recording.products = [], "", products
    for place, tensor in left:
        if tracer.was_read(tensor):
            tracer.freeze_output(tensor, f"is kept in the attribute {place} between steps")


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
