"""Two recordings side by side: does a narrower network couple and compute what the one before foretells?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from lit_prune.errors import TraceError
from lit_prune.graph.labels import Row
from lit_prune.graph.recording import MADE, Constant, Recording
from lit_prune.plan import PruningPlan


def compare(recording: Recording, again: Recording, plan: PruningPlan) -> None:
    """Hold the recording of a narrower network against the one that its plan was made by.

    Args:
        recording: Of the network before.
        again: Of the network once it was cut.
        plan: What was kept of it.

    Raises:
        TraceError: If it does not couple exactly what is left of the couplings before; the message names the layer.
    """
    old, new = recording.raw, again.raw
    owners: list[str] = []
    before: list[Row] = []
    after: list[Row] = []
    kept: list[Row] = []
    alone = np.zeros(len(old.reason), dtype=np.bool_)
    for slot, row in recording.slots.items():
        indices = plan.kept.get(slot[0], {}).get(slot[1])
        left = row if indices is None else row[indices.numpy()]
        kept.append(left)
        if slot in again.slots:
            before.append(left)
            after.append(again.slots[slot])
            owners.append(slot[0])
        elif len(left) == 1:
            # A dimension of one is not tracked, so nothing is said of what it is coupled with.
            alone[old.of[left]] = True
    missing = again.slots.keys() - recording.slots.keys()
    if missing:
        name = min(missing)[0]
        raise TraceError(f"{name} is used only once the network is narrower", name.rpartition(".")[0])
    if not before:
        _compare_constants(recording, again)
        return
    old_of, new_of = old.of[np.concatenate(before)], new.of[np.concatenate(after)]
    layer = np.repeat(np.arange(len(owners)), [len(row) for row in before])
    compared = ~alone[old_of]
    old_of, new_of, layer = old_of[compared], new_of[compared], layer[compared]
    for ours, theirs in ((old_of, new_of), (new_of, old_of)):
        wrong = _ambiguous(ours, theirs)
        if wrong.any():
            name = owners[int(layer[wrong].min())].rpartition(".")[0]
            raise TraceError(f"the narrower network couples other channels, of {name}", name)
    colder = new.unprunable[new_of] & ~old.unprunable[old_of]
    if colder.any():
        name = owners[int(layer[colder].min())].rpartition(".")[0]
        raise TraceError(f"the narrower network freezes channels of {name} that were free", name)
    _compare_pieces(recording, again, old_of, new_of)
    _compare_views(recording, again, old.of[np.concatenate(kept)])
    _compare_constants(recording, again)


def _compare_pieces(recording: Recording, again: Recording, before: Row, after: Row) -> None:
    """What is cut out of a dimension must be what is left of what was cut out before."""
    old, new = recording.raw, again.raw
    now = np.full(len(old.reason), -1, dtype=np.int64)
    now[before] = after
    slots = np.concatenate([old.of[row] for row in recording.slots.values()])
    gone = np.zeros(len(old.reason), dtype=np.bool_)
    gone[slots] = now[slots] < 0
    counts = [Counter(layer for layer, _ in found) for found in (recording.pieces, again.pieces)]
    found: dict[str, Iterator[Row]] = {}
    for layer, piece in recording.pieces:
        narrower = found.setdefault(layer, iter([piece for name, piece in again.pieces if name == layer]))
        left = now[old.of[piece][~gone[old.of[piece]]]]
        known = left >= 0
        # Where there are as many as before each is the one in its place; else some may be whole now, or nothing.
        candidates = [next(narrower)] if counts[0][layer] == counts[1][layer] else narrower
        if not any(len(left) == len(c) and (left == new.of[c])[known].all() for c in candidates) and known.any():
            raise _elsewhere(layer)


def _compare_views(recording: Recording, again: Recording, kept: Row) -> None:
    """What is left of the pieces that a dimension was taken apart into must be what it is taken apart into now."""
    if not any(folds for views in recording.views.values() for _, folds in views):
        return
    of = recording.raw.of
    # What stands for a whole piece (a score of a head) is no channel's.
    known, stays = np.zeros((2, len(recording.raw.reason)), dtype=np.bool_)
    known[of[np.concatenate([*recording.slots.values()])]] = True
    stays[kept] = True
    gone = known & ~stays
    if not gone.any():
        return
    for layer, before in recording.views.items():
        # How often a value is laid out in another way may depend on its strides, so some may be passed over.
        shapes = iter([shape for shape, _ in again.views.get(layer, [])])
        for _, folds in before:
            # Where nothing has gone a size may follow from values: how many boxes were matched, say.
            cut = [b for b in folds if known[of[b.labels]].all() and gone[of[b.labels]].any()]
            wanted = [(b.dims, _sizes(~gone[of[b.labels]])) for b in cut]
            if wanted and not any(_has(shape, wanted) for shape in shapes):
                raise _elsewhere(layer)


def _elsewhere(layer: str) -> TraceError:
    where = f", in {layer}" if layer else ""
    return TraceError(f"the narrower network takes its channels apart in other places{where}", layer)


def _sizes(left: np.ndarray) -> list[int]:
    """How many there are along each axis of an array of equal pieces, of which some have gone."""
    sizes = []
    while left.ndim:
        alive = left.reshape(len(left), -1).any(1)
        sizes.append(int(alive.sum()))
        left = left[alive.argmax()]
    return sizes


def _has(shape: Sequence[int], wanted: Sequence[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether a shape has the sizes that are wanted of some of its dimensions."""
    return all(
        dim < len(shape) and shape[dim] == size for dims, sizes in wanted for dim, size in zip(dims, sizes, strict=True)
    )


def _ambiguous(ours: Row, theirs: Row) -> np.ndarray:
    """Where an element of ``ours`` stands beside several different ones of ``theirs``."""
    first = np.zeros(int(ours.max(initial=0)) + 1, dtype=np.int64)
    first[ours] = theirs
    return np.asarray(first[ours] != theirs)


def _compare_constants(recording: Recording, again: Recording) -> None:
    if recording.constants == again.constants:
        return
    before, after = _by_layer(recording), _by_layer(again)
    for layer in before.keys() | after.keys():
        (numbers, made), (numbers_now, made_now) = before.get(layer, ([], [])), after.get(layer, ([], []))
        # A cache that was filled when the network ran before (anchors) is filled again where it is keyed by a shape.
        if numbers != numbers_now or Counter(made) - Counter(made_now):
            raise TraceError(f"{layer or 'it'} computes with a number that depends on a width", layer)


def _by_layer(recording: Recording) -> dict[str, tuple[list[Constant], list[Constant]]]:
    """For each layer the constants of its arithmetic, and those that it makes new tensors of."""
    found: dict[str, tuple[list[Constant], list[Constant]]] = {}
    for constant in recording.constants:
        name, _, layer = constant
        found.setdefault(layer, ([], []))[name == MADE or "full" in name].append(constant)
    return found
