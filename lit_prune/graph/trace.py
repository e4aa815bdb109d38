"""Run a network once and let every aten operation say which channel labels belong together."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from lit_prune.graph.labels import Labels, Row
from lit_prune.surgery import qualified_names

Rows = list[Row | None]
Slot = tuple[str, int]

# Outputs, by the class of a module inside the network, of which callers read nothing but the size. Ultralytics' heads
# hand their input maps on under this key, and the losses take only height and width from them.
_SIZE_ONLY_OUTPUTS = {
    "ultralytics.nn.modules.head.Detect": frozenset({"feats"}),
}
# A meta tensor carries under this attribute what it stands for, where that is a few numbers outside the weights.
_VALUE = "_lit_prune_value"
_MOST_VALUES = 256
_CONSTANTS = ("other", "value", "alpha", "beta", "scale", "exponent", "fill_value")


class TraceError(RuntimeError):
    """The network could not be run on the example inputs."""


@dataclass(frozen=True)
class Call:
    """One call of a module: how the network is entered.

    Attributes:
        module: Qualified name of the called module; empty for the network itself.
        args: Positional inputs.
        kwargs: Keyword inputs.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Size of dimension 0 of the first tensor: what costs are divided by."""
        tensors = [leaf for leaf in tree_flatten((self.args, dict(self.kwargs)))[0] if isinstance(leaf, Tensor)]
        return tensors[0].shape[0] if tensors and tensors[0].dim() else 1


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product: ``factor`` times the length of each row, in multiply-adds."""

    factor: float
    rows: tuple[Row, ...]


@dataclass
class Recording:
    """What a trace leaves behind.

    Attributes:
        labels: Joined, frozen and balanced labels.
        slots: Row of labels of each traced (tensor name, dimension), in the order of the forward pass.
        produced: Rows that leave a layer: its output channels.
        products: What the cost is summed from.
        unsupported: Operations without a rule, with their number.
        constants: For each operation the numbers that it was given; a shrunk network must give the same.
    """

    labels: Labels = field(default_factory=Labels)
    slots: dict[Slot, Row] = field(default_factory=dict)
    produced: list[Row] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)
    constants: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)


class Operation:
    """One aten call, its arguments by the names of the schema."""

    __slots__ = ("arguments", "name", "output")

    def __init__(self, name: str, arguments: dict[str, Any], output: Any) -> None:
        self.name = name
        self.arguments = arguments
        self.output = output

    def __getitem__(self, key: str) -> Any:
        return self.arguments[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The argument, or ``default`` where this overload has none of that name."""
        return self.arguments.get(key, default)

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, those in lists as well."""
        found: list[Tensor] = []
        for value in self.arguments.values():
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                found.extend(item for item in value if isinstance(item, Tensor))
        return found

    def numbers(self) -> tuple[float, ...]:
        """The constants of the arithmetic: one that is computed from a width changes when that width is pruned."""
        values = (self.get(name) for name in _CONSTANTS)
        return tuple(float(value) for value in values if isinstance(value, (int, float)))


Rule = Callable[["Tracer", Operation], None]


class Tracer(TorchDispatchMode):
    """Labels the values of every operation that runs under it.

    Rules read the rows of an operation's inputs (:meth:`rows`), join, freeze or balance them, and set the rows of
    its output (:meth:`assign`). A row is ``None`` where a dimension is not tracked.
    """

    def __init__(self, names: Mapping[int, str], recording: Recording, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self.recording = recording
        self.labels = recording.labels
        self.path: list[str] = []
        self._names = names
        self._rules = rules
        # The tensors are held so that their ids stay theirs until the end of the trace.
        self._values: dict[int, tuple[Tensor, Rows]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then its rule."""
        kwargs = kwargs or {}
        values = _values_of((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and values is not None:
            return func(*values[0])
        output = func(*args, **kwargs)
        if values is not None and isinstance(output, Tensor):
            _remember(output, func(*values[0], **values[1]))
        schema = func._schema
        arguments = {
            argument.name: args[index] if index < len(args) else kwargs.get(argument.name, argument.default_value)
            for index, argument in enumerate(schema.arguments)
        }
        # An in-place operation has the rule of its twin.
        name = schema.name.partition("::")[2].rstrip("_") if schema.name.startswith("aten::") else schema.name
        operation = Operation(name.lstrip("_"), arguments, output)
        numbers = operation.numbers()
        if numbers:
            self.recording.constants.append((operation.name, numbers))
        if any(self._is_tracked(tensor) for tensor in operation.tensors()):
            rule = self._rules.get(operation.name)
            if rule is None:
                self.recording.unsupported[schema.name] += 1
                self.freeze_inputs(operation, f"{schema.name} is not understood")
            else:
                rule(self, operation)
        return output

    def rows(self, tensor: Tensor | None) -> Rows:
        """The rows of a value, one a dimension; a parameter or buffer gets fresh ones when first seen."""
        if tensor is None:
            return []
        known = self._values.get(id(tensor))
        if known is not None:
            return known[1]
        rows: Rows = [None] * tensor.dim()
        name = self._names.get(id(tensor))
        if name is not None:
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    rows[dim] = self.recording.slots[name, dim] = self.labels.fresh(size)
            self._values[id(tensor)] = (tensor, rows)
        return rows

    def assign(self, tensor: Tensor, rows: Rows) -> None:
        """Say what the dimensions of an operation's output carry."""
        self._values[id(tensor)] = (tensor, rows)

    def freeze(self, rows: Sequence[Row | None], reason: str) -> None:
        """Freeze all tracked rows among ``rows``, naming the layer at work."""
        where = f", in {self.path[-1]}" if self.path and self.path[-1] else ""
        for row in rows:
            if row is not None:
                self.labels.freeze(row, reason + where)

    def freeze_inputs(self, operation: Operation, reason: str) -> None:
        """Freeze all that enters an operation."""
        for tensor in operation.tensors():
            self.freeze(self.rows(tensor), reason)

    def unite(self, rows: Sequence[Row | None], reason: str) -> Row | None:
        """Join all rows; where one is not tracked, freeze the others. Returns the row that the result carries."""
        tracked = [row for row in rows if row is not None]
        if not tracked:
            return None
        if len(tracked) < len(rows):
            self.freeze(tracked, reason)
        self.labels.tie(tracked)
        return tracked[0]

    def _is_tracked(self, tensor: Tensor) -> bool:
        known = self._values.get(id(tensor))
        return id(tensor) in self._names if known is None else any(row is not None for row in known[1])


def record(network: nn.Module, calls: Sequence[Call], rules: Mapping[str, Rule]) -> Recording:
    """Trace ``calls`` of ``network`` in eval mode; and in train mode too where eval leaves parameters unseen.

    The network is changed (modes, caches): hand in a copy.

    Raises:
        TraceError: If the forward fails, naming the layer.
    """
    recording = Recording()
    names = {id(tensor): name for name, tensor in _tensors_by_name(network)}
    tracer = Tracer(names, recording, rules)
    network.eval()
    with torch.no_grad():
        _run(network, calls, tracer)
        seen = {name for name, _ in recording.slots}
        if any(name not in seen and parameter.numel() > 1 for name, parameter in network.named_parameters()):
            network.train()
            for module in network.modules():
                # In train mode they would refuse a single value a channel; the labels are the same.
                if isinstance(module, _NormBase):
                    module.eval()
            _run(network, calls, tracer)
    return recording


def skeleton(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on the meta device: all of its structure, none of its weights copied.

    Hooks stay behind, but for those of torch itself, which compute weights.
    """
    memo: dict[int, Any] = {}
    named = {id(tensor) for _, tensor in _tensors_by_name(network)}
    for module in network.modules():
        for value in vars(module).values():
            for tensor in _tensors_in(value):
                if id(tensor) in memo:
                    continue
                empty = torch.empty_like(tensor, device="meta", requires_grad=False)
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                elif id(tensor) not in named or not tensor.dim():
                    # Strides, scales and the like: a forward may read numbers from them.
                    _remember(empty, vars(tensor).get(_VALUE, tensor.detach()))
                memo[id(tensor)] = empty
    return _copy(network, memo)


def _remember(empty: Tensor, value: Tensor) -> None:
    if empty.is_meta and not value.is_meta and value.numel() <= _MOST_VALUES:
        setattr(empty, _VALUE, value)


def _values_of(arguments: Any) -> Any:
    """``arguments`` with the remembered value in place of each meta tensor; None unless every tensor has one."""
    tensors = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Tensor)]
    if not tensors or not all(_VALUE in vars(tensor) for tensor in tensors):
        return None
    return tree_map_only(Tensor, lambda tensor: vars(tensor)[_VALUE], arguments)


def replica(network: nn.Module) -> nn.Module:
    """A copy of ``network`` with its weights, without its hooks: for forwards that need values."""
    return _copy(network, {})


def on_meta(calls: Sequence[Call]) -> list[Call]:
    """The same calls with inputs that have a shape and no values."""

    def convert(value: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta", requires_grad=False), value)

    return [Call(call.module, convert(tuple(call.args)), convert(dict(call.kwargs))) for call in calls]


def _run(network: nn.Module, calls: Sequence[Call], tracer: Tracer) -> None:
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with _paths(network, tracer.path), ExitStack() as stack:
        if device.type == "meta":
            # What a forward makes anew (grids, masks) must lie where the weights are.
            stack.enter_context(torch.device("meta"))
        for call in calls:
            module = network.get_submodule(call.module)
            tracer.path[:] = [call.module]
            try:
                with tracer:
                    output = module(*call.args, **call.kwargs)
            except Exception as error:
                where = tracer.path[-1] or type(network).__name__
                raise TraceError(f"{where}: {type(error).__name__}: {error}") from error
            tracer.path[:] = []
            for tensor in _used_outputs(module, output):
                tracer.freeze(tracer.rows(tensor), "reaches the network's output")


def _used_outputs(module: nn.Module, output: Any) -> list[Tensor]:
    ignored: frozenset[str] = frozenset().union(
        *(
            _SIZE_ONLY_OUTPUTS.get(name, frozenset())
            for cls in {type(child) for child in module.modules()}
            for name in qualified_names(cls)
        )
    )

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(item) for key, item in value.items() if key not in ignored}
        if type(value) in (list, tuple):
            return [strip(item) for item in value]
        return value

    return [leaf for leaf in tree_flatten(strip(output))[0] if isinstance(leaf, Tensor)]


@contextmanager
def _paths(network: nn.Module, path: list[str]) -> Iterator[None]:
    """While open, ``path`` holds the names of the modules at work, innermost last."""
    handles = []

    def leave(*_: Any) -> None:
        path.pop()

    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
            handles.append(module.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors_by_name(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def _copy(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for module in network.modules():
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = vars(module)[table]
            # A hook of a callback or a tracker would be copied with all that it refers to, and run.
            kept = {key: hook for key, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils")}
            memo[id(hooks)] = type(hooks)(kept)
    return copy.deepcopy(network, memo)
