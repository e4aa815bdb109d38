"""Labels of channels, and what is known about them: joined, held, folded.

A label is an integer that stands for one index of one dimension of one parameter. Labels travel with the values of a
traced network. Rules only record pairs; everything is worked out at once at the end, in arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Row = npt.NDArray[np.int64]
OUTPUT = "reaches the network's output"
EMPTY = "is run on nothing for these inputs"
"""A part of a forward that was given no example, or none that it takes."""
RETURNED = "is returned by the training step"


@dataclass(frozen=True)
class Components:
    """Labels that are coupled.

    Attributes:
        of: ``(labels,)`` the component of each label.
        reason: ``(components,)`` index into :attr:`Labels.reasons` of why a component stays, -1 where it need not.
    """

    of: Row
    reason: Row

    @property
    def unprunable(self) -> npt.NDArray[np.bool_]:
        """``(components,)`` whether a component must stay."""
        return self.reason >= 0


@dataclass
class Fold:
    """A dimension taken apart into equal pieces, which must stay equal: halves, groups, attention heads.

    Attributes:
        labels: ``(pieces, width)``.
        heads: ``(pieces,)`` labels that stand for a whole piece where its width is contracted away, as in the scores
            of an attention.
        whole: Pieces go whole; otherwise all keep equally many, though not the same.
        may_be_whole: Whether losing whole pieces makes sense: of heads it does, of the halves of a ``chunk`` not.
    """

    labels: Row
    heads: Row | None = None
    whole: bool = False
    may_be_whole: bool = False


class Labels:
    """What one trace has found: a union of labels, reasons to freeze, and folds that must stay rectangular.

    Example:
        >>> labels = Labels()
        >>> conv, norm = labels.fresh(4), labels.fresh(4)
        >>> labels.join(conv, norm)
        >>> labels.freeze(norm[:1], "reaches the output")
        >>> components = labels.components()
        >>> bool((components.of[conv] == components.of[norm]).all())
        True
        >>> components.unprunable[components.of[conv]].tolist()
        [True, False, False, False]
    """

    def __init__(self) -> None:
        self.count = 0
        self.reasons: list[str] = []
        self.folds: list[Fold] = []
        self.pieces: list[Row] = []
        self._even: list[tuple[int, int]] = []
        self._loose: dict[int, int] = {}
        self._pairs: list[tuple[Row, Row]] = []
        self._held: list[tuple[Row, int]] = []
        self._known: Components | None = None

    def fresh(self, size: int) -> Row:
        """``size`` labels that nothing is known of."""
        row = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        self._known = None
        return row

    def even(self, size: int) -> Row:
        """``size`` labels of values that are alike however many there are: constants, noise, what was expanded."""
        row = self.fresh(size)
        self._even.append((int(row[0]), size))
        self._loose[int(row[0])] = size
        return row

    def is_even(self, row: Row) -> bool:
        """Whether all labels come from :meth:`even`."""
        return bool(self._even) and _inside(row, dict(self._even))

    def is_loose(self, row: Row) -> bool:
        """Whether all labels come from :meth:`even`, and nothing has been written there that carries others."""
        return bool(self._loose) and _inside(row, self._loose)

    def bind(self, row: Row) -> None:
        """Say that values where these labels are differ, or may: they count from now on."""
        for start, size in [*self._loose.items()]:
            if ((row >= start) & (row < start + size)).any():
                del self._loose[start]

    def join(self, first: Row, second: Row) -> None:
        """Index by index, the labels of two arrays of one shape (or that broadcast to one) are coupled."""
        if first is not second:
            if first.shape != second.shape:
                first, second = np.broadcast_arrays(first, second)
            self._pairs.append((first.ravel(), second.ravel()))
            self._known = None

    def freeze(self, row: Row, reason: str) -> None:
        """These labels, and all that are joined with them, stay.

        The first reason given is the one reported, but for :data:`OUTPUT`, which goes before all others.
        """
        self.bind(row)
        self._held.append((row.ravel(), len(self.reasons)))
        self.reasons.append(reason)
        self._known = None

    def fold(self, labels: Row, heads: Row | None = None, whole: bool = False, may_be_whole: bool = False) -> Fold:
        """Record that the pieces of ``labels`` ``(pieces, width)`` must stay equally wide."""
        fold = Fold(labels, heads, may_be_whole=may_be_whole)
        self.folds.append(fold)
        if whole:
            self.make_whole(fold)
        return fold

    def make_whole(self, fold: Fold) -> None:
        """Let the pieces of a fold go whole, together with what stands for them elsewhere."""
        fold.whole = True
        self.join(fold.labels[:, :1], fold.labels)
        if fold.heads is not None:
            self.join(fold.heads, fold.labels[:, 0])

    def part(self, pieces: Sequence[Row]) -> None:
        """Say that a dimension is taken apart into these pieces, which may lose independently of each other."""
        self.pieces.extend(pieces)

    def tie(self, rows: Sequence[Row]) -> None:
        """Join the i-th labels of all rows."""
        for row in rows[1:]:
            self.join(rows[0], row)

    def components(self) -> Components:
        """The connected components of all pairs, with the first reason that froze each."""
        if self._known is None:
            self._known = self._connected()
        return self._known

    def _connected(self) -> Components:
        if self._pairs:
            first = np.concatenate([pair[0] for pair in self._pairs])
            second = np.concatenate([pair[1] for pair in self._pairs])
            # Kept as one pair: the next call, after a tie, need not gather them again.
            self._pairs = [(first, second)]
        else:
            first = second = np.empty(0, dtype=np.int64)
        links = coo_array((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(self.count, self.count))
        number, of = connected_components(links, directed=False)
        reason = np.full(number, -1, dtype=np.int64)
        if self._held:
            # That a channel is the network's output says more than what it met on the way. The last one stays.
            held = sorted(self._held, key=lambda item: (self.reasons[item[1]] == OUTPUT, -item[1]))
            counts = [len(row) for row, _ in held]
            labels = np.concatenate([row for row, _ in held])
            reason[of[labels]] = np.repeat([index for _, index in held], counts)
        return Components(of.astype(np.int64), reason)


def _inside(row: Row, spans: dict[int, int]) -> bool:
    """Whether all labels lie in one of the stretches, given by their starts and sizes."""
    starts = np.fromiter(spans, dtype=np.int64)
    ends = starts + np.fromiter(spans.values(), dtype=np.int64)
    place = np.searchsorted(starts, row.ravel(), side="right") - 1
    return bool((place >= 0).all() and (row.ravel() < ends[place]).all())
