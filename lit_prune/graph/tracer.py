"""Watch a network at work, operation by operation, and know after each operation which value carries which labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_prune.common._compat import ITEM, ConvNd, DispatchMode, memory_of
from lit_prune.common.names import modules_of
from lit_prune.graph.labels import EMPTY, Row
from lit_prune.graph.made import ALIKE, values_made
from lit_prune.graph.meeting import meet_blocks
from lit_prune.graph.memo import output_of
from lit_prune.graph.operation import Operation, signature, tensors_among
from lit_prune.graph.origins import Entry, Origins
from lit_prune.graph.penalties import Penalties
from lit_prune.graph.recording import MADE, Recording
from lit_prune.graph.skeleton import MOST_VALUES, on_numbers, remember, remembered
from lit_prune.graph.values import Block
from lit_prune.graph.vanishing import Vanishing

Rows = list[Row | None]
Rule = Callable[["Tracer", Operation], None]
_PLAIN = nullcontext()


class Tracer(DispatchMode):  # type: ignore[no-untyped-call]
    """Labels the values of every operation that runs under it.

    Rules read what an operation's inputs carry (:meth:`rows`, or :meth:`blocks` where dimensions that were taken apart
    shall stay so), join or freeze labels, and say what its output carries (:meth:`assign`, :meth:`assign_blocks`). A
    row is ``None`` where a dimension is not tracked.
    """

    def __init__(self, network: nn.Module, recording: Recording, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self.network = network
        self.recording = recording
        self.labels = recording.labels
        self.path: list[str] = []
        # What a reason says where no layer is at work.
        self.outside = ""
        # Modules that return the very input that they were given.
        self.passing: set[nn.Module] = set()
        self._names: dict[int, str] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._kernels: set[int] = set()
        self.modules: dict[nn.Module, str] = {module: name for name, module in modules_of(network)}
        for module, path in self.modules.items():
            prefix = f"{path}." if path else ""
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._names.setdefault(id(tensor), prefix + name)
                    self._shapes[id(tensor)] = tuple(tensor.shape)
            if isinstance(module, ConvNd):
                below = (*module.parameters(), *module.buffers()) if module._modules else ()
                own = below or [tensor for tensor in module._parameters.values() if tensor is not None]
                self._kernels.update(id(tensor) for tensor in own if tensor.dim() == len(module.kernel_size) + 2)
        self._rules = rules
        self.vanishing = Vanishing(self._names, recording, self.blocks)
        # The tensors are held so that their ids stay theirs until the end of the trace.
        self._values: dict[int, tuple[Tensor, list[Block]]] = {}
        # Values that no operation may take, if some rows shall stay free.
        self._forbidden: dict[int, tuple[Tensor, Sequence[Row], str]] = {}
        # What stands for the statistics of whole pieces (groups, heads), by its first label.
        self.statistics: dict[int, Row] = {}
        # Pieces that were cut out of a dimension, each with the memory that it lies in.
        self.cuts: list[tuple[int, Row]] = []
        self.origins = Origins(network, self._names)
        self._penalties = Penalties()
        # Values of which it counts whether an operation reads them.
        self._watched: dict[int, Tensor] = {}
        self._read: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then its rule."""
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        tensors = tensors_among((*args, *kwargs.values()))
        values = remembered((args, kwargs)) if tensors and all(map(self.origins.is_known, tensors)) else None
        if func is ITEM and values is not None:
            return func(*values[0])
        output = self.result_of(func, args, kwargs)
        self._see(func, args, kwargs, tensors, output)
        if isinstance(output, Tensor) and output.is_meta and output.numel() <= MOST_VALUES:
            made = values_made(func, args, kwargs, output) if values is None else on_numbers(func, values)
            if made is not None:
                remember(output, made)
        return output

    def result_of(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What an operation returns."""
        return output_of(func, args, kwargs)

    def foresee(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What an operation on tensors without values returns, its rule run; None where torch has to say what it is."""
        tensors = tensors_among((*args, *kwargs.values()))
        if not all(tensor.is_meta for tensor in tensors) or all(map(self.origins.is_known, tensors)):
            return None
        try:
            output = output_of(func, args, kwargs)
        except Exception:
            # The function takes what its operation does not (an alias, a word for a padding), or says what is wrong.
            return None
        self._see(func, args, kwargs, tensors, output)
        return output

    def is_derived(self, tensor: Tensor) -> bool:
        """Whether weights or inputs have entered a value, and it is none of the network's own tensors."""
        if id(tensor) in self._names:
            return False
        return (id(tensor) in self._values or self.origins.is_other(tensor)) and not self.origins.is_made(tensor)

    def watch(self, values: Iterable[Tensor]) -> None:
        """Note from now on which of these values are read."""
        self._watched = {id(value): value for value in values}

    def was_read(self, value: Tensor) -> bool:
        """Whether an operation has read a value that is watched."""
        return id(value) in self._read

    def is_own(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or buffer of the network itself."""
        return id(tensor) in self._names

    def _see(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Sequence[Tensor], output: Any
    ) -> None:
        """Run the rule of an operation that channels enter."""
        known = signature(func)
        operation = known.operation(args, kwargs, output)
        entries = [*map(self.origins.entry, tensors)]
        if None not in entries:
            # Numbers on their way to where they count, and grids that a forward makes or has made before.
            self.origins.follow(func, known, operation, entries)
            self._follow(operation, known.qualified_name, tensors)
            return
        in_step = self.is_between_networks
        weighed = in_step or self._penalties
        with self._penalties.weighed(operation, tensors, in_step, self._is_without_data) if weighed else _PLAIN:
            self.note(operation, known.numbers(operation), known.counts, tensors, entries)
            self._follow(operation, known.qualified_name, tensors)
        self.origins.leave(func, known, operation)
        if isinstance(output, Tensor) and not output.numel():
            # A forward may go on by a loop over what it has found, and this time there was nothing.
            self.freeze([block.labels for block in self.blocks(output)], EMPTY)

    def _is_without_data(self, tensor: Tensor) -> bool:
        return id(tensor) in self._names or self.origins.is_made(tensor)

    def _follow(self, operation: Operation, qualified_name: str, tensors: Sequence[Tensor]) -> None:
        """Run the rule of an operation that labels enter, or that makes values which are alike."""
        for tensor in tensors if self._forbidden else ():
            if id(tensor) in self._forbidden:
                _, rows, reason = self._forbidden[id(tensor)]
                self.freeze(rows, reason)
        if operation.name in ALIKE or any(map(self._is_tracked, tensors)):
            self.apply(operation, qualified_name)

    def note(
        self,
        operation: Operation,
        numbers: Sequence[float],
        counts: bool,
        tensors: Sequence[Tensor],
        entries: Sequence[Entry | None],
    ) -> None:
        """Record what numbers an operation computes with.

        Args:
            operation: The operation.
            numbers: Those among its arguments.
            counts: Whether it is of interest without numbers, too.
            tensors: Those that may stand for more of them.
            entries: What is known of where each comes from.
        """
        small: tuple[float, ...] = ()
        origins: tuple[float, ...] = ()
        made = [(tensor, entry) for tensor, entry in zip(tensors, entries, strict=True) if entry is not None]
        if made:
            blank = {id(tensor) for tensor, _ in made if not self._values.get(id(tensor), (None, []))[1]}
            small, origins = self.origins.numbers(made, blank)
        if numbers or small or counts:
            self._say(operation.name, (*numbers, *small))
        if origins:
            self._say(MADE, origins)

    def _say(self, name: str, numbers: tuple[float, ...]) -> None:
        self._penalties.say(self.recording.constants.append, (name, numbers, self.layer))

    def apply(self, operation: Operation, qualified_name: str) -> None:
        """Run the rule of an operation; without one, freeze all that enters it."""
        if self._watched:
            self._read.update(id(tensor) for tensor in operation.tensors() if id(tensor) in self._watched)
        rule = self._rules.get(operation.name)
        if rule is None:
            if not any(self.has_channels(tensor) for tensor in operation.tensors()):
                return
            self.recording.unsupported[qualified_name] += 1
            self.freeze_inputs(operation, f"{qualified_name} is not understood")
        else:
            rule(self, operation)
        self.vanishing.follow(operation)

    @property
    def is_between_networks(self) -> bool:
        """Whether it is a step of training itself that computes, and none of the layers."""
        return bool(self.outside) and not self.layer

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
                row = self.labels.fresh(size)
                blocks.append(Block((dim,), row))
                # One that grows with the first forward has nothing to cut before.
                if tuple(tensor.shape) == self._shapes[id(tensor)]:
                    self.recording.slots[name, dim] = row
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

    def channels(self, tensor: Tensor, dim: int = 1) -> Rows:
        """The rows of a value that is an image: a block that spans space too is tied over it."""
        self.row(tensor, dim)
        return self.rows(tensor)

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
        tracked = [row for row in rows if row is not None]
        if tracked:
            reason += f", in {self.layer}" if self.layer else self.outside
        for row in tracked:
            self._penalties.say(self.labels.freeze, row, reason)

    def forbid(self, tensor: Tensor, rows: Sequence[Row], reason: str) -> None:
        """Freeze some rows as soon as an operation takes ``tensor``, or the network returns it."""
        self._forbidden[id(tensor)] = (tensor, rows, reason)

    def freeze_output(self, tensor: Tensor, reason: str) -> None:
        """Freeze all that a value carries which leaves the network."""
        self.freeze([block.labels for block in self.blocks(tensor)], reason)
        if id(tensor) in self._forbidden:
            self.freeze(*self._forbidden[id(tensor)][1:])

    def freeze_inputs(self, operation: Operation, reason: str) -> None:
        """Freeze all that enters an operation."""
        for tensor in operation.tensors():
            self.freeze([block.labels for block in self.blocks(tensor)], reason)

    def has_channels(self, tensor: Tensor) -> bool:
        """Whether a value carries labels other than those of values that are alike."""
        return self._is_tracked(tensor) and not all(self.labels.is_loose(b.labels) for b in self.blocks(tensor))

    def is_piece(self, tensor: Tensor, row: Row) -> bool:
        """Whether a row of a value lies in a piece that was cut out of a dimension of another in the same memory."""
        memory = memory_of(tensor) if self.cuts else 0
        return any(memory == other and np.isin(row, piece).all() for other, piece in self.cuts)

    def is_firm(self, tensor: Tensor, dims: Collection[int]) -> bool:
        """Whether values differ along any of these dimensions, counted from the last: those are wide, and not alike."""
        wide = {dim for dim in dims if tensor.dim() + dim >= 0 and tensor.shape[dim] > 1}
        for block in self.blocks(tensor):
            if self.labels.is_loose(block.labels):
                wide.difference_update(dim - tensor.dim() for dim in block.dims)
        return bool(wide)

    def unite(self, rows: Sequence[Row | None], reason: str) -> Row | None:
        """Join all rows; where one is not tracked, freeze the others. Returns the row that the result carries."""
        # What is alike however long it is fits to any.
        rows = [row for row in rows if row is None or not self.labels.is_loose(row)]
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
        return self.meet_blocks(shape, [(tensor.shape, self.blocks(tensor)) for tensor in tensors], reason)

    def meet_blocks(
        self, shape: Sequence[int], values: Sequence[tuple[Sequence[int], Sequence[Block]]], reason: str
    ) -> list[Block]:
        """:meth:`meet` for values of which the shape and the blocks are known."""
        return meet_blocks(self.labels, self.statistics, lambda rows: self.freeze(rows, reason), shape, values)

    def _tied(self, tensor: Tensor, block: Block, dim: int) -> Row:
        pieces = block.led_by(dim)
        self.labels.join(pieces[:, :1], pieces)
        row = pieces[:, 0]
        others = [other for other in self.blocks(tensor) if other is not block]
        self.assign_blocks(tensor, [*others, Block((dim,), row)])
        return row

    def leaves_unseen(self) -> bool:
        """Whether there is a parameter that no operation has met."""
        parameters = (parameter for module in self.modules for parameter in module._parameters.values())
        return any(p is not None and id(p) not in self._values and p.numel() > 1 for p in parameters)

    def _is_tracked(self, tensor: Tensor) -> bool:
        if id(tensor) in self._names:
            # However often a layer is called, each time costs, of one channel as well.
            return True
        known = self._values.get(id(tensor))
        return known is not None and bool(known[1])
