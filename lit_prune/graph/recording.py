"""What goes into a trace, and what it leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_prune.common._compat import tree_flatten
from lit_prune.graph.labels import Components, Labels, Row
from lit_prune.graph.values import Block
from lit_prune.plan import Slot

# Operation, its numbers, and the layer.
Constant = tuple[str, tuple[float, ...], str]
# Prefix of a module, with its dot, or name of a tensor, to that of another.
Pairs = Mapping[str, str]
# In the place of an operation: what enters the network was made by a forward itself.
MADE = "made"


@dataclass(frozen=True)
class Call:
    """One call of a module: how the network is entered.

    Attributes:
        module: Qualified name of the called module; empty for the network itself.
        args: Positional inputs.
        kwargs: Keyword inputs.
        examples: How many the batch had of which this is the first.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    examples: int = field(default=1, kw_only=True)

    is_step: ClassVar[bool] = False
    """Whether it is a step of a training: it can only be made in place, and has the last word on what is an output."""

    @property
    def in_train_mode(self) -> bool:
        """Whether modules are in the mode that they are trained in, but for norms."""
        return False

    def enter(self, network: nn.Module) -> Any:
        """Make the call, and return what it returns."""
        return network.get_submodule(self.module)(*self.args, **self.kwargs)

    @property
    def batch_size(self) -> int:
        """Size of dimension 0 of the first tensor: what costs are divided by."""
        tensors = [leaf for leaf in tree_flatten((self.args, dict(self.kwargs)))[0] if isinstance(leaf, Tensor)]
        return tensors[0].shape[0] if tensors and tensors[0].dim() else 1


def parted(calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """Forwards and steps."""
    return [call for call in calls if not call.is_step], [call for call in calls if call.is_step]


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product: ``factor`` times the number of live labels of each array, in multiply-adds."""

    factor: float
    rows: tuple[Row, ...]


@dataclass
class Recording:
    """What a trace leaves behind.

    Attributes:
        labels: Joined, held and folded labels.
        slots: Row of labels of each traced (tensor name, dimension), in the order of the forward pass.
        produced: Rows that leave a layer: its output channels.
        products: What the cost is summed from.
        unsupported: Operations without a rule, with their number.
        raw: The components of what the operations alone say, before folds are settled.
        views: For each layer its changes of shape: the shape that comes of it, and what is over more dimensions then.
        calls: How often each module was called, by its qualified name.
        followed: Modules that took no part, and are cut as one beside them that did.
        averages: Prefixes and names of what is an average of other weights: channels are those of what it averages.
        reduced: Layer and labels of what a statistic is taken over: of the labels that are left, once some go.
        pieces: Layer and labels of each piece that was taken out of a dimension.
        grouped: Rows that grouped convolutions take or make group by group.
        divisors: What the forward divides by: in order, a key each.
        constants: For each operation the numbers that it was given, and the layer; a shrunk network must give the same.
    """

    labels: Labels = field(default_factory=Labels)
    slots: dict[Slot, Row] = field(default_factory=dict)
    produced: list[Row] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)
    raw: Components = field(default_factory=lambda: Labels().components())
    reduced: list[tuple[str, Row]] = field(default_factory=list)
    pieces: list[tuple[str, Row]] = field(default_factory=list)
    grouped: list[Row] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    views: dict[str, list[tuple[Sequence[int], list[Block]]]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    followed: list[str] = field(default_factory=list)
    averages: tuple[str, ...] = ()
    divisors: dict[Slot, None] = field(default_factory=dict)
