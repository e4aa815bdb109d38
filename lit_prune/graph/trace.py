"""Run a network once and let every aten operation say which channel labels belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from lit_prune.attributes import qualified_names
from lit_prune.graph.labels import OUTPUT, Row
from lit_prune.graph.recording import Call, Product, Recording, Slot, TraceError
from lit_prune.graph.skeleton import remember, remembered
from lit_prune.graph.values import Block

__all__ = ["Call", "Operation", "Product", "Recording", "Rows", "Rule", "Slot", "TraceError", "Tracer", "record"]

Rows = list[Row | None]

# Outputs, by the class of a module inside the network, of which callers read nothing but the size. Ultralytics' heads
# hand their input maps on under this key, and the losses take only height and width from them.
_SIZE_ONLY_OUTPUTS = {
    "ultralytics.nn.modules.head.Detect": frozenset({"feats"}),
}
_CONSTANTS = ("other", "value", "alpha", "beta", "scale", "exponent", "fill_value")


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

    def outputs(self) -> list[Tensor]:
        """All tensors that come out."""
        return list(self.output) if isinstance(self.output, (list, tuple)) else [self.output]

    def numbers(self) -> tuple[float, ...]:
        """The constants of the arithmetic: one that is computed from a width changes when that width is pruned."""
        values = (self.get(name) for name in _CONSTANTS)
        return tuple(float(value) for value in values if isinstance(value, (int, float)))


Rule = Callable[["Tracer", Operation], None]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Labels the values of every operation that runs under it.

    Rules read what an operation's inputs carry (:meth:`rows`, or :meth:`blocks` where dimensions that were taken apart
    shall stay so), join or freeze labels, and say what its output carries (:meth:`assign`, :meth:`assign_blocks`). A
    row is ``None`` where a dimension is not tracked.
    """

    def __init__(self, network: nn.Module, recording: Recording, rules: Mapping[str, Rule]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self.recording = recording
        self.labels = recording.labels
        self.path: list[str] = []
        self._names = {id(tensor): name for name, tensor in (*network.named_parameters(), *network.named_buffers())}
        self._kernels = {id(module.weight) for module in network.modules() if isinstance(module, _ConvNd)}
        self._rules = rules
        # The tensors are held so that their ids stay theirs until the end of the trace.
        self._values: dict[int, tuple[Tensor, list[Block]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then its rule."""
        kwargs = kwargs or {}
        values = remembered((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and values is not None:
            return func(*values[0])
        output = func(*args, **kwargs)
        if values is not None and isinstance(output, Tensor):
            remember(output, func(*values[0], **values[1]))
        schema = func._schema
        arguments = {
            argument.name: args[index] if index < len(args) else kwargs.get(argument.name, argument.default_value)
            for index, argument in enumerate(schema.arguments)
        }
        # An in-place operation has the rule of its twin.
        name = schema.name.partition("::")[2].rstrip("_") if schema.name.startswith("aten::") else schema.name
        operation = Operation(name.lstrip("_"), arguments, output)
        if any(self._is_tracked(tensor) for tensor in operation.tensors()):
            numbers = operation.numbers()
            if numbers:
                self.recording.constants.append((operation.name, numbers, self.layer))
            self.apply(operation, schema.name)
        return output

    def apply(self, operation: Operation, qualified_name: str) -> None:
        """Run the rule of an operation; without one, freeze all that enters it."""
        rule = self._rules.get(operation.name)
        if rule is None:
            self.recording.unsupported[qualified_name] += 1
            self.freeze_inputs(operation, f"{qualified_name} is not understood")
        else:
            rule(self, operation)

    @property
    def layer(self) -> str:
        """Qualified name of the module at work."""
        return self.path[-1] if self.path else ""

    def blocks(self, tensor: Tensor | None) -> list[Block]:
        """What the dimensions of a value carry; a parameter or buffer gets fresh labels when first seen."""
        if tensor is None:
            return []
        known = self._values.get(id(tensor))
        if known is not None:
            return known[1]
        name = self._names.get(id(tensor))
        if name is None:
            return []
        blocks = []
        # Of a kernel nothing is ever cut.
        for dim, size in enumerate(tensor.shape[:2] if id(tensor) in self._kernels else tensor.shape):
            if size > 1:
                row = self.recording.slots[name, dim] = self.labels.fresh(size)
                blocks.append(Block((dim,), row))
        self._values[id(tensor)] = (tensor, blocks)
        return blocks

    def rows(self, tensor: Tensor | None) -> Rows:
        """The rows of a value, one a dimension.

        Where a block spans several, the innermost gets it, tied over the others: they lose nothing.
        """
        if tensor is None:
            return []
        rows: Rows = [None] * tensor.dim()
        for block in self.blocks(tensor):
            dim = block.dims[-1]
            if len(block.dims) == 1:
                rows[dim] = block.labels
            else:
                rows[dim] = self._tied(tensor, block, dim)
        return rows

    def row(self, tensor: Tensor, dim: int) -> Row | None:
        """The row of one dimension; a block that spans others too is tied over them."""
        dim %= max(1, tensor.dim())
        for block in self.blocks(tensor):
            if dim in block.dims:
                return block.labels if len(block.dims) == 1 else self._tied(tensor, block, dim)
        return None

    def heads(self, tensor: Tensor, dim: int) -> Row | None:
        """Labels that stand for whole pieces: what dimension ``dim`` carries when the rest of its block is gone."""
        for block in self.blocks(tensor):
            if dim in block.dims:
                if len(block.dims) == 1:
                    return block.labels
                pieces = block.led_by(dim)
                heads = self.labels.fresh(len(pieces))
                self.labels.fold(pieces, heads, may_be_whole=True)
                return heads
        return None

    def assign(self, tensor: Tensor, rows: Sequence[Row | None]) -> None:
        """Say what the dimensions of an operation's output carry, each by itself."""
        self.assign_blocks(tensor, [Block((dim,), row) for dim, row in enumerate(rows) if row is not None])

    def assign_blocks(self, tensor: Tensor, blocks: Sequence[Block]) -> None:
        """Say what the dimensions of an operation's output carry."""
        self._values[id(tensor)] = (tensor, list(blocks))

    def freeze(self, rows: Sequence[Row | None], reason: str) -> None:
        """Freeze all tracked rows among ``rows``, naming the layer at work."""
        where = f", in {self.layer}" if self.layer else ""
        for row in rows:
            if row is not None:
                self.labels.freeze(row, reason + where)

    def freeze_inputs(self, operation: Operation, reason: str) -> None:
        """Freeze all that enters an operation."""
        for tensor in operation.tensors():
            self.freeze([block.labels for block in self.blocks(tensor)], reason)

    def unite(self, rows: Sequence[Row | None], reason: str) -> Row | None:
        """Join all rows; where one is not tracked, freeze the others. Returns the row that the result carries."""
        tracked = [row for row in rows if row is not None]
        if not tracked:
            return None
        if len(tracked) < len(rows):
            self.freeze(tracked, reason)
        self.labels.tie(tracked)
        return tracked[0]

    def meet(self, shape: Sequence[int], tensors: Sequence[Tensor], reason: str) -> list[Block]:
        """Join values that are combined index by index, broadcast from the right to ``shape``.

        Returns:
            The blocks of the result.
        """
        moved = []
        for tensor in tensors:
            offset = len(shape) - tensor.dim()
            blocks = [block.moved({dim: dim + offset for dim in block.dims}) for block in self.blocks(tensor)]
            moved.append((blocks, {dim + offset for dim, size in enumerate(tensor.shape) if size > 1}))
        result = []
        for dims in _connected([block.dims for blocks, _ in moved for block in blocks]):
            arrays: list[Row] = []
            untracked = False
            for blocks, wide in moved:
                mine = [block for block in blocks if block.dims[0] in dims]
                arrays.extend(block.over(dims) for block in mine)
                reached = {dim for block in mine for dim in block.dims}
                # Rows of their own against one block over both: no removal of the one is one of the other.
                untracked |= len(mine) > 1 or bool((wide & set(dims)) - reached)
            if untracked:
                self.freeze(arrays, reason)
            arrays.sort(key=lambda array: -array.size)
            for array in arrays[1:]:
                self.labels.join(arrays[0], array)
            result.append(Block(tuple(dims), np.broadcast_to(arrays[0], [shape[dim] for dim in dims])))
        return result

    def _tied(self, tensor: Tensor, block: Block, dim: int) -> Row:
        pieces = block.led_by(dim)
        self.labels.join(pieces[:, :1], pieces)
        row = pieces[:, 0]
        others = [other for other in self.blocks(tensor) if other is not block]
        self.assign_blocks(tensor, [*others, Block((dim,), row)])
        return row

    def _is_tracked(self, tensor: Tensor) -> bool:
        known = self._values.get(id(tensor))
        return id(tensor) in self._names if known is None else bool(known[1])


class _Composites(TorchFunctionMode):
    """Keeps whole what torch would take apart before the tracer sees it: the parts say less, and cost more."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = _COMPOSITES.get(func)
        if known is None:
            return func(*args, **kwargs)
        name, places = known
        arguments = {**dict.fromkeys(places), **dict(zip(places, args, strict=False)), **kwargs}
        source = arguments[places[0]]
        if name != "rms_norm" and not (source.is_meta and _fits(name, arguments)):
            return func(*args, **kwargs)
        with _disable_current_modes():
            if name == "scaled_dot_product_attention":
                output = source.new_empty((*source.shape[:-1], arguments["value"].shape[-1]))
            else:
                output = torch.empty_like(source) if source.is_meta else func(*args, **kwargs)
        self._tracer.apply(Operation(name, arguments, output), f"aten::{name}")
        return output


_COMPOSITES: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    torch.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    F.scaled_dot_product_attention: (
        "scaled_dot_product_attention",
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"),
    ),
    F.batch_norm: ("batch_norm", ("input", "running_mean", "running_var", "weight", "bias", "training")),
}


def _fits(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an operation has what it takes; where not, torch itself shall say so."""
    if name == "batch_norm":
        own = [arguments[key] for key in ("running_mean", "running_var", "weight", "bias")]
        width = arguments["input"].shape[1]
        return not arguments["training"] and all(tensor is None or tensor.numel() == width for tensor in own)
    query, key, value, mask = (arguments[part] for part in ("query", "key", "value", "attn_mask"))
    if not query.dim() == key.dim() == value.dim() == 4 or arguments["is_causal"]:
        return False
    shape = (*query.shape[:3], key.shape[2])
    fitting = mask is None or all(size in (1, want) for size, want in zip(mask.shape[::-1], shape[::-1], strict=False))
    return query.shape[:2] == key.shape[:2] == value.shape[:2] and query.shape[3] == key.shape[3] and fitting


def _connected(spans: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Dimensions that some block spans together, each set sorted."""
    found: list[set[int]] = []
    for span in spans:
        joined = set(span)
        for other in [other for other in found if other & joined]:
            found.remove(other)
            joined |= other
        found.append(joined)
    return sorted(sorted(dims) for dims in found)


def record(network: nn.Module, calls: Sequence[Call], rules: Mapping[str, Rule]) -> Recording:
    """Trace ``calls`` of ``network`` in eval mode; and in train mode too where eval leaves parameters unseen.

    The network is changed (modes, caches): hand in a copy.

    Raises:
        TraceError: If the forward fails, naming the layer.
    """
    recording = Recording()
    tracer = Tracer(network, recording, rules)
    network.eval()
    with torch.no_grad(), _plain_attention():
        _run(network, calls, tracer)
        seen = {name for name, _ in recording.slots}
        if any(name not in seen and parameter.numel() > 1 for name, parameter in network.named_parameters()):
            # What it costs is what it costs to use.
            products = list(recording.products)
            network.train()
            for module in network.modules():
                # In train mode they would refuse a single value a channel; the labels are the same.
                if isinstance(module, _NormBase):
                    module.eval()
            _run(network, calls, tracer)
            recording.products = products
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
                with tracer, _Composites(tracer):
                    output = module(*call.args, **call.kwargs)
            except Exception as error:
                where = tracer.layer or type(network).__name__
                raise TraceError(f"{where}: {type(error).__name__}: {error}", tracer.layer) from error
            tracer.path[:] = []
            for tensor in _used_outputs(module, output):
                tracer.freeze([block.labels for block in tracer.blocks(tensor)], OUTPUT)


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
    names = {module: name for name, module in network.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        if module in names:
            path.append(names[module])

    def leave(module: nn.Module, *_: Any) -> None:
        if module in names:
            path.pop()

    # Two hooks for all modules: one pair for each would take longer than the trace.
    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
