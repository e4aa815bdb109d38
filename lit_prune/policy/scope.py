"""Which groups of a network may be pruned: blocks, patterns, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lit_prune.common._compat import COMPILED, ConvNd
from lit_prune.common.choices import nearest
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.graph import ChannelGraph, ChannelGroup

# An nn.Sequential with more than this ratio of a network's convolutions and linear layers is its main one.
_MAIN = 0.75


class Scope:
    """The layers that a user allows to be pruned.

    A group takes part where all layers that make its channels are within ``blocks``, and none is in ``exclude``:
    coupled layers shrink together, so one outside keeps the others as they are.

    Args:
        blocks: Integers are children of the network's main ``nn.Sequential`` (for Ultralytics ``model.model[i]``),
            negative ones counted from its end; strings are patterns of :mod:`fnmatch` on qualified layer names.
            ``None`` is the whole network.
        exclude: Patterns of layers that must stay.

    Raises:
        ArgumentError: If ``blocks`` is an empty list.
        ArgumentTypeError: If an entry is neither an integer nor a string.
    """

    def __init__(self, blocks: Sequence[int | str] | None = None, exclude: Sequence[str] = ()) -> None:
        for name, entries, kinds in (("blocks", blocks, (int, str)), ("exclude", exclude, (str,))):
            if isinstance(entries, (int, str)):
                raise ArgumentTypeError(f"{name} must be a list, but got {entries!r}; write [{entries!r}].")
            for entry in entries or ():
                if not isinstance(entry, kinds) or isinstance(entry, bool):
                    raise ArgumentTypeError(
                        f"{name} takes {' and '.join(kind.__name__ for kind in kinds)}, but has {entry!r}."
                    )
        if blocks is not None and not blocks:
            raise ArgumentError("blocks is empty, so nothing could be pruned; leave it out to allow the whole network.")
        self.blocks = None if blocks is None else list(blocks)
        self.exclude = list(exclude)

    def check(self, network: nn.Module) -> None:
        """Raise unless every block and pattern names something in ``network``.

        Raises:
            ArgumentError: If the network has no convolution and no linear layer, if it has no such block, or if a
                pattern matches no layer; the message has the nearest names.
        """
        layers = _layers(network)
        if not layers:
            raise ArgumentError(
                f"{type(network).__name__} has no convolution and no linear layer, so there are no channels to prune."
            )
        for entry in [*(self.blocks or ()), *self.exclude]:
            matches = _matcher(network, [entry])
            if isinstance(entry, str) and not any(matches(layer) for layer in (*layers, *_others(network))):
                raise ArgumentError(
                    f"The pattern {entry!r} matches no layer of {type(network).__name__}. {nearest(entry, layers)}"
                )

    def pick(self, network: nn.Module, graph: ChannelGraph) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
        """The groups that take part, and for each that one of its layers would let in, why it does not.

        Raises:
            ArgumentError: If no group takes part.
        """
        allowed = _matcher(network, self.blocks)
        shut = _matcher(network, self.exclude)
        picked: dict[str, ChannelGroup] = {}
        left: dict[str, str] = {}
        for group in graph.groups:
            outside = [layer for layer in group.layers if not allowed(layer)]
            excluded = [layer for layer in (*group.layers, *group.followers) if shut(layer)]
            if len(outside) == len(group.layers):
                continue
            if outside:
                left[group.name] = f"coupled with {outside[0]}, which is outside of `blocks`"
            elif excluded:
                mine = group.name.partition("#")[0] in excluded
                left[group.name] = "is excluded" if mine else f"{excluded[0]} is excluded"
            else:
                picked[group.name] = group
        # Pieces of one split stay equally wide: all of them or none.
        for group in list(picked.values()):
            missing = [name for name in group.balanced if name not in picked]
            if missing:
                left[group.name] = f"must stay as wide as {missing[0]}, which does not take part"
        if not picked.keys() - left.keys():
            unprunable = {layer: why for layer, why in graph.unprunable.items() if allowed(layer) and not shut(layer)}
            raise ArgumentError(self._nothing({**left, **unprunable}))
        return tuple(group for group in picked.values() if group.name not in left), left

    def _nothing(self, reasons: Mapping[str, str]) -> str:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        wider = [*(["widen `blocks`"] if self.blocks else []), *(["shorten `exclude`"] if self.exclude else [])]
        advice = f" {' or '.join(wider).capitalize()}." if wider else ""
        return (
            f"blocks={self.blocks} and exclude={self.exclude} leave nothing that could be pruned"
            f"{f' ({listed})' if listed else ''}.{advice} `lit-prune inspect` lists all groups."
        )


def largest_independent(groups: Iterable[ChannelGroup], number: int) -> tuple[ChannelGroup, ...]:
    """Of ``groups`` the ``number`` with the most channels that have no tensor in common.

    What one of them loses then changes nothing that a decision about another rests on. Balanced groups come together.

    Args:
        groups: Candidates; of equally large ones the first comes first.
        number: How many layers, at least 1.
    """
    by_name = {group.name: group for group in groups}
    chosen: dict[str, ChannelGroup] = {}
    taken: set[str] = set()
    for group in sorted(by_name.values(), key=lambda group: -group.size):
        together = [by_name[name] for name in group.balanced or (group.name,) if name in by_name]
        tensors = {name for member in together for name, _ in member.slots}
        if group.name in chosen or tensors & taken:
            continue
        chosen.update((member.name, member) for member in together)
        taken |= tensors
        number -= 1
        if number <= 0:
            break
    return tuple(group for group in by_name.values() if group.name in chosen)


def main_sequential(network: nn.Module) -> str:
    """The name of the network's main ``nn.Sequential``: the outermost with most of the layers.

    Raises:
        ArgumentError: If there is none.
    """
    layers = _layers(network)
    candidates: list[tuple[int, str]] = [
        (name.count("."), name)
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential)
        and sum(layer.startswith(f"{name}.") or not name for layer in layers) > _MAIN * len(layers)
    ]
    if not candidates:
        raise ArgumentError(
            f"Blocks as integers count the children of the network's main nn.Sequential, but {type(network).__name__} "
            f"has none with most of its layers. Give patterns of layer names instead, such as {layers[0]!r}."
        )
    _, name = min(candidates)
    return name


def _matcher(network: nn.Module, entries: Sequence[int | str] | None) -> Callable[[str], bool]:
    """Whether a layer lies in one of ``entries``; always so where they are ``None``."""
    if entries is None:
        return lambda layer: True
    # A pattern that names a module is one for all that is inside of it.
    forms = [form for entry in entries if isinstance(entry, str) for form in (entry, f"{entry}.*")]
    blocks = tuple(_block(network, entry) for entry in entries if isinstance(entry, int))
    only_child = _only_child(network)

    def matches(layer: str) -> bool:
        if any(layer == block or layer.startswith(f"{block}.") for block in blocks):
            return True
        # A compiled submodule has its layers one level further down; its user may not know.
        full = (layer, layer.replace(f"{COMPILED}.", ""))
        names = {*full, *(name.removeprefix(only_child) for name in full)}
        return any(fnmatchcase(name, form) for form in forms for name in names)

    return matches


def _block(network: nn.Module, index: int) -> str:
    main = main_sequential(network)
    children = [name for name, _ in network.get_submodule(main).named_children()]
    if not -len(children) <= index < len(children):
        raise ArgumentError(
            f"There is no block {index}: {main or type(network).__name__} has blocks 0 to {len(children) - 1}."
        )
    return f"{main}.{children[index]}".removeprefix(".")


def _layers(network: nn.Module) -> list[str]:
    """Names of all convolutions; of linear layers where there are none."""
    for kind in (ConvNd, nn.Linear):
        layers = [name for name, module in network.named_modules() if isinstance(module, kind)]
        if layers:
            return layers
    return []


def _others(network: nn.Module) -> list[str]:
    """Names of all else that has a matrix of weights: linear layers beside convolutions, recurrent ones, embeddings."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or any(each.dim() > 1 for each in module.parameters(recurse=False))
    ]


def _only_child(network: nn.Module) -> str:
    """The prefix that all layers share where a wrapper, such as a LightningModule, holds one network."""
    children = [name for name, child in network.named_children() if any(True for _ in child.parameters())]
    return f"{children[0]}." if len(children) == 1 else ""
