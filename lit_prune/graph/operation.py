"""One aten call as rules see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from lit_prune.common._compat import schema_of

# Arguments that are shapes, or places along a dimension: they follow widths wherever a forward is written well.
_SHAPES = frozenset(
    "size shape sizes self_size stride storage_offset split_size split_sizes start end length repeats normalized_shape "
    "N C HxW group groups num_weights dim dims dim0 dim1 source destination input_size hidden_size proj_size".split()
)
# Strides are numbers of the arithmetic where a window moves, and layouts elsewhere.
_WINDOWS = ("conv", "pool", "unfold", "im2col", "col2im")
# What goes from a start to an end has these as values; of whole numbers the end tells how many there are.
_VALUES = {**dict.fromkeys(("linspace", "logspace"), ("start", "end")), "arange": ("start",)}
# Operations that a forward may do without where a value lies otherwise in memory.
_LAYOUT = frozenset(
    "view reshape reshape_alias unsafe_view clone expand permute transpose t unsqueeze squeeze contiguous detach "
    "alias to_copy copy slice select split split_with_sizes unbind as_strided mm bmm addmm baddbmm linear "
    "cudnn_rnn_flatten_weight".split()
)


class Operation:
    """One aten call, its arguments by the names of the schema."""

    __slots__ = ("_tensors", "arguments", "name", "output")

    def __init__(self, name: str, arguments: Mapping[str, Any], output: Any) -> None:
        self.name = name
        self.arguments = arguments
        self.output = output
        self._tensors: list[Tensor] | None = None

    def __getitem__(self, key: str) -> Any:
        return self.arguments[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The argument, or ``default`` where this overload has none of that name."""
        return self.arguments.get(key, default)

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, those in lists as well."""
        if self._tensors is None:
            self._tensors = tensors_among(self.arguments.values())
        return self._tensors

    def outputs(self) -> list[Tensor]:
        """All tensors that come out."""
        outputs = self.output if isinstance(self.output, (list, tuple)) else [self.output]
        # What is not asked for, such as a workspace of the backward pass, is None.
        return [output for output in outputs if isinstance(output, Tensor)]


@dataclass(frozen=True)
class Signature:
    """What the schema of an overload says, worked out once.

    Attributes:
        name: The name that rules are found by: without namespace and underscores for aten.
        qualified_name: The name of the schema.
        defaults: Each argument's default, in the order of the schema; None where there is none.
        constants: The arguments that are numbers of the arithmetic, or may be.
        written: The arguments that the operation writes into.
    """

    name: str
    qualified_name: str
    defaults: Mapping[str, Any]
    constants: tuple[str, ...]
    written: tuple[str, ...] = ()

    def operation(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Operation:
        """A call with these arguments."""
        return Operation(self.name, {**self.defaults, **dict(zip(self.defaults, args, strict=False)), **kwargs}, output)

    def numbers(self, operation: Operation) -> tuple[float, ...]:
        """The constants of the arithmetic: one that is computed from a width changes when that width is pruned.

        Those that are as the schema has them say nothing, whatever way an operation came.
        """
        found: list[float] = []
        for name in self.constants:
            value = operation.arguments[name]
            if isinstance(value, (int, float)):
                if value != self.defaults[name]:
                    found.append(float(value))
            elif isinstance(value, (list, tuple)) and value != self.defaults[name]:
                found.extend([float(item) for item in value if isinstance(item, (int, float))])
        return tuple(found)

    @property
    def counts(self) -> bool:
        """Whether a forward that runs the operation another number of times computes something else."""
        return self.name not in _LAYOUT


@cache
def signature(func: Any) -> Signature:
    """The signature of an operator overload."""
    schema = schema_of(func)
    name = str(schema.name)
    # An in-place operation has the rule of its twin.
    short = name.partition("::")[2].rstrip("_") if name.startswith("aten::") else name
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    values = _VALUES.get(short, ("stride",) if any(word in short for word in _WINDOWS) else ())
    constants = tuple(key for key in defaults if key not in _SHAPES or key in values)
    written = tuple(each.name for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write)
    return Signature(short.lstrip("_"), name, defaults, constants, written)


def tensors_among(values: Any) -> list[Tensor]:
    """All tensors among some arguments, those in lists as well."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend([item for item in value if isinstance(item, Tensor)])
    return found
