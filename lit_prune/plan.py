"""What to keep of every tensor: plain data that composes, serialises and compares."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_prune.errors import ArgumentError

_FORMAT = 1

Slot = tuple[str, int]
"""A tensor by its name, and one of its dimensions."""


@dataclass(frozen=True)
class PruningPlan:
    """Which indices of which tensor dimensions stay.

    Args:
        kept: Tensor name to dimension to the kept indices, strictly increasing. Dimensions that keep everything
            are left out.
        sizes: Tensor name to dimension to its size before pruning. With it a plan refuses a network that it was
            not made for; plans of :meth:`ChannelGraph.plan` carry it.
        reduced_in: Names of the layers whose forward takes a statistic over channels that go, by operations of its
            own: a mean, a norm by hand. A masked network leaves them out there. No part of what plans are compared by.
        divisors: Which of what is cut the network divides by: :func:`lit_prune.mask_` leaves that as it is.

    Raises:
        ArgumentError: If indices are empty, negative, unsorted, repeated or beyond the size.

    Example:
        >>> plan = PruningPlan({"conv.weight": {0: torch.tensor([0, 2])}}, {"conv.weight": {0: 4}})
        >>> again = PruningPlan({"conv.weight": {0: torch.tensor([1])}}, {"conv.weight": {0: 2}})
        >>> plan.then(again).kept["conv.weight"][0]
        tensor([2])
    """

    kept: Mapping[str, Mapping[int, Tensor]]
    sizes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    reduced_in: frozenset[str] = frozenset()
    divisors: Collection[Slot] = ()

    def __post_init__(self) -> None:
        kept = {
            name: {int(dim): _checked(name, int(dim), indices, self.sizes) for dim, indices in sorted(dims.items())}
            for name, dims in self.kept.items()
            if dims
        }
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "sizes", {name: dict(dims) for name, dims in self.sizes.items() if dims})
        object.__setattr__(self, "divisors", tuple(dict.fromkeys((name, int(dim)) for name, dim in self.divisors)))

    def __bool__(self) -> bool:
        """True where the plan removes anything."""
        return bool(self.kept)

    def __len__(self) -> int:
        """The number of tensors that change."""
        return len(self.kept)

    def __eq__(self, other: object) -> bool:
        """Plans are equal where they keep the same indices of the same tensors."""
        return isinstance(other, PruningPlan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """A SHA-256 over names, dimensions and indices: equal on two ranks exactly where the plans are equal."""
        sha = hashlib.sha256()
        for name in sorted(self.kept):
            for dim, indices in self.kept[name].items():
                sha.update(f"{name}\0{dim}\0{len(indices)}\0".encode())
                sha.update(indices.numpy().tobytes())
        return sha.hexdigest()

    def then(self, second: PruningPlan) -> PruningPlan:
        """One plan against the first network that equals this plan followed by ``second``.

        Args:
            second: A plan made for the network that this plan leaves.

        Raises:
            ArgumentError: If ``second`` keeps indices that this plan has removed.
        """
        kept = {name: dict(dims) for name, dims in self.kept.items()}
        sizes = {name: dict(dims) for name, dims in self.sizes.items()}
        for name, dims in second.kept.items():
            for dim, indices in dims.items():
                mine = kept.setdefault(name, {})
                if dim in mine:
                    if int(indices[-1]) >= len(mine[dim]):
                        raise ArgumentError(
                            f"The second plan keeps index {int(indices[-1])} of {name} dim {dim}, but the first leaves "
                            f"only {len(mine[dim])}. Make it from a graph traced after the first pruning."
                        )
                    mine[dim] = mine[dim][indices]
                else:
                    mine[dim] = indices
                    if dim in second.sizes.get(name, {}):
                        sizes.setdefault(name, {})[dim] = second.sizes[name][dim]
        return PruningPlan(kept, sizes, self.reduced_in | second.reduced_in, [*self.divisors, *second.divisors])

    def with_prefix(self, prefix: str) -> PruningPlan:
        """The same plan for a module that holds the traced one under ``prefix`` (with its dot: ``"model."``)."""
        return PruningPlan(
            {prefix + name: dims for name, dims in self.kept.items()},
            {prefix + name: dims for name, dims in self.sizes.items()},
            frozenset(f"{prefix}{name}".removesuffix(".") for name in self.reduced_in),
            [(prefix + name, dim) for name, dim in self.divisors],
        )

    def only(self, names: Container[str]) -> PruningPlan:
        """What the plan says of the tensors of these names."""
        return PruningPlan(
            {name: dims for name, dims in self.kept.items() if name in names},
            {name: dims for name, dims in self.sizes.items() if name in names},
            self.reduced_in,
            [(name, dim) for name, dim in self.divisors if name in names],
        )

    def under(self, names: Iterable[Sequence[str]]) -> PruningPlan:
        """The same plan with every name of the tensors that it cuts.

        Args:
            names: The names of each tensor, as :func:`lit_prune.common.names.names_of_tensors` gives them.

        Example:
            >>> plan = PruningPlan({"a.weight": {0: torch.tensor([1])}})
            >>> sorted(plan.under([["a.weight", "b.weight"], ["c.weight"]]).kept)
            ['a.weight', 'b.weight']
        """
        kept, sizes = dict(self.kept), dict(self.sizes)
        for group in names:
            known = next((name for name in group if name in self.kept), "")
            for name in group if known and len(group) > 1 else ():
                kept.setdefault(name, self.kept[known])
                if known in self.sizes:
                    sizes.setdefault(name, self.sizes[known])
        return PruningPlan(kept, sizes, self.reduced_in, self.divisors)

    def state_dict(self) -> dict[str, Any]:
        """Plain dicts and tensors, readable by ``torch.load(weights_only=True)`` and without lit_prune."""
        return {
            "format": _FORMAT,
            "kept": {name: dict(dims) for name, dims in self.kept.items()},
            "sizes": {name: dict(dims) for name, dims in self.sizes.items()},
            "reduced_in": sorted(self.reduced_in),
            "divisors": list(self.divisors),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PruningPlan:
        """The plan that :meth:`state_dict` wrote.

        Raises:
            ArgumentError: If the state is not one of a plan, or of a newer format.
        """
        if "kept" not in state:
            raise ArgumentError(f"This is not a pruning plan: it has {sorted(state)} where 'kept' and 'sizes' belong.")
        if state.get("format", _FORMAT) > _FORMAT:
            raise ArgumentError(
                f"This plan has format {state['format']}, written by a newer lit_prune; this one reads up to {_FORMAT}."
            )
        reduced_in, divisors = frozenset(state.get("reduced_in", ())), state.get("divisors", ())
        return cls(state["kept"], state.get("sizes", {}), reduced_in, divisors)

    def __str__(self) -> str:
        """A table: tensor, dimension, indices before and after."""
        rows = [("tensor", "dim", "before", "after")]
        for name, dims in self.kept.items():
            for dim, indices in dims.items():
                before = self.sizes.get(name, {}).get(dim)
                rows.append((name, str(dim), "?" if before is None else str(before), str(len(indices))))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"{name:<{widths[0]}}  {dim:>{widths[1]}}  {before:>{widths[2]}}  {after:>{widths[3]}}"
            for name, dim, before, after in rows
        )

    def __repr__(self) -> str:
        return f"PruningPlan({len(self.kept)} tensors, digest {self.digest[:12]})"


def _checked(name: str, dim: int, indices: Tensor | Sequence[int], sizes: Mapping[str, Mapping[int, int]]) -> Tensor:
    kept = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
    numbers = kept.numpy()
    if numbers.ndim != 1 or not len(numbers):
        raise ArgumentError(f"The plan keeps nothing of {name} dim {dim}: at least one index must stay.")
    if numbers[0] < 0 or (numbers[1:] <= numbers[:-1]).any():
        raise ArgumentError(f"The kept indices of {name} dim {dim} must be non-negative and strictly increasing.")
    size = sizes.get(name, {}).get(dim)
    if size is not None and numbers[-1] >= size:
        raise ArgumentError(f"The plan keeps index {numbers[-1]} of {name} dim {dim}, which has only {size}.")
    return kept


def extended(plan: PruningPlan, pairs: Mapping[str, str]) -> PruningPlan:
    """A plan that cuts averages inside of a module as it cuts what they are averages of.

    Args:
        plan: Cuts the sources.
        pairs: Prefix of an average, with its dot, to that of its source; or one tensor to another.

    Example:
        >>> plan = PruningPlan({"net.weight": {0: torch.tensor([0, 2])}})
        >>> sorted(extended(plan, {"ema.module.": "net."}).kept)
        ['ema.module.weight', 'net.weight']
    """
    kept = {name: dict(dims) for name, dims in plan.kept.items()}
    sizes = {name: dict(dims) for name, dims in plan.sizes.items()}
    for target, source in pairs.items():
        for old, new in ((plan.kept, kept), (plan.sizes, sizes)):
            for name, dims in old.items():
                if belongs(name, source):
                    mine: dict[int, Any] = new.setdefault(target + name.removeprefix(source), {})
                    mine.update({dim: value for dim, value in dims.items() if dim not in mine})
    divisors = [
        (target + name.removeprefix(source), dim)
        for target, source in pairs.items()
        for name, dim in plan.divisors
        if belongs(name, source)
    ]
    return PruningPlan(kept, sizes, plan.reduced_in, [*plan.divisors, *divisors])


def belongs_to_any(name: str, sources: Iterable[str]) -> bool:
    """Whether a tensor is one of the sources, or lies under the prefix of one."""
    return any(belongs(name, source) for source in sources)


def belongs(name: str, source: str) -> bool:
    """Whether a tensor is the source, or lies under its prefix."""
    return name == source or (source.endswith(".") and name.startswith(source))
