"""What a forward chooses by its values, experts or queries or boxes: what is left is to choose as the whole did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_prune.common._compat import tree_flatten, tree_map_only

Choice = tuple[str, int, int]
"""Name of a function, number of the batch, and of the call in it."""
Made = dict[Choice, tuple[torch.Size, Any]]
"""What was chosen, and the shape of what it was chosen by."""

_BY_VALUE = frozenset(
    ("argmax", "argmin", "argsort", "max", "min", "multinomial", "nms", "nonzero", "sort", "topk", "where")
)
# Masks of examples, tokens and places; of more dimensions they are of features, as a ReLU has them.
_COMPARISONS, _MOST_DIMENSIONS = frozenset(("eq", "ge", "gt", "isin", "le", "lt", "ne")), 3
# Where the dimension is among the positional arguments of what gives values in the order of its choice.
_DIM = {"topk": 2, "sort": 1}
# More indices than these say how features are arranged, and take memory.
_MOST = 2**20


class Choices:
    """Runs functions, and notes what those choose that choose by values; or lets them choose what was noted.

    Rows that a layer is run on by such a choice would be other rows in another network, and its answers could not be
    compared. Along what has another size now, indices mean something else: there is chosen anew.

    Args:
        made: What the whole network chose; ``None`` to note it.

    Attributes:
        made: What is known.

    Example:
        >>> whole, left = torch.tensor([0.1, 0.9, 0.4]), torch.tensor([0.1, 0.4, 0.9])
        >>> noting = Choices()
        >>> noting.run(torch.topk, (whole, 1), {}).indices, noting.run(torch.argmax, (whole,), {})
        (tensor([1]), tensor(1))
        >>> again = Choices(noting.made)
        >>> again.run(torch.topk, (left, 1), {}), again.run(torch.argmax, (left,), {})
        (torch.return_types.topk(
        values=tensor([0.4000]),
        indices=tensor([1])), tensor(1))
    """

    def __init__(self, made: Made | None = None) -> None:
        self.made: Made = {} if made is None else made
        self._notes = made is None
        self._batch = 0
        self._calls: Counter[str] = Counter()

    def next_batch(self) -> None:
        """Another batch begins."""
        self._batch += 1
        self._calls.clear()

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the function gives, with the choices of the whole network where it makes the same."""
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if name not in _BY_VALUE | _COMPARISONS or not args or not isinstance(args[0], Tensor):
            return output
        has_values = not isinstance(output, Tensor) and hasattr(output, "indices")
        own = output.indices if has_values else output
        chosen = self._settled(name, args[0].shape, own)
        if not has_values:
            return chosen
        if chosen is own:
            return output
        # A largest value stays one, whatever it is chosen for.
        values = output.values
        if name in _DIM:
            dim = kwargs.get("dim", args[_DIM[name]] if len(args) > _DIM[name] else -1)
            values = args[0].gather(dim, chosen)
        return type(output)((values, chosen))

    def _settled(self, name: str, shape: torch.Size, own: Any) -> Any:
        """What the whole network chose there; what is chosen now, where that is not known or something else."""
        if not _is_choice(own) or (name in _COMPARISONS and own.dim() > _MOST_DIMENSIONS):
            return own
        self._calls[name] += 1
        key = name, self._batch, self._calls[name]
        if self._notes:
            # Who has chosen may go on to write into it.
            self.made[key] = shape, tree_map_only(Tensor, lambda each: each.detach().clone(), own)
            return own
        noted = self.made.get(key)
        return own if noted is None or noted[0] != shape else noted[1]


def _is_choice(own: Any) -> bool:
    leaves = tree_flatten(own)[0]
    return all(isinstance(leaf, Tensor) and not leaf.is_floating_point() and leaf.numel() <= _MOST for leaf in leaves)
