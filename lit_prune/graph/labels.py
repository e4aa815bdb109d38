"""Labels of channels, and what is known about them: joined, frozen, balanced.

A label is an integer that stands for one index of one dimension of one parameter. Rows of labels travel with the
values of a traced network. Rules only record pairs; everything is worked out at once at the end, in arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Row = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """Labels that live and die together.

    Attributes:
        of: ``(labels,)`` the component of each label.
        reason: ``(components,)`` index into :attr:`Labels.reasons` of why a component is frozen, -1 where it is not.
    """

    of: Row
    reason: Row

    @property
    def frozen(self) -> npt.NDArray[np.bool_]:
        """``(components,)`` whether a component must stay."""
        return self.reason >= 0


class Labels:
    """The record of one trace: a union of labels, reasons to freeze, and pieces that must stay equally wide.

    Example:
        >>> labels = Labels()
        >>> conv, norm = labels.fresh(4), labels.fresh(4)
        >>> labels.join(conv, norm)
        >>> labels.freeze(norm[:1], "reaches the output")
        >>> components = labels.components()
        >>> bool((components.of[conv] == components.of[norm]).all()), components.frozen[components.of[conv]].tolist()
        (True, [True, False, False, False])
    """

    def __init__(self) -> None:
        self.count = 0
        self.reasons: list[str] = []
        self.pieces: list[list[Row]] = []
        self._pairs: list[tuple[Row, Row]] = []
        self._frozen: list[tuple[Row, int]] = []

    def fresh(self, size: int) -> Row:
        """``size`` labels that nothing is known of."""
        row = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return row

    def join(self, first: Row, second: Row) -> None:
        """Index by index, the labels of two rows live and die together."""
        if first is not second:
            self._pairs.append((first, second))

    def freeze(self, row: Row, reason: str) -> None:
        """These labels, and all that are joined with them, stay. The first reason given is the one reported."""
        self._frozen.append((row.ravel(), len(self.reasons)))
        self.reasons.append(reason)

    def balance(self, pieces: list[Row]) -> None:
        """These rows, of one size, must keep equally many labels, though not the same."""
        self.pieces.append(pieces)

    def tie(self, pieces: list[Row]) -> None:
        """Join the i-th labels of all pieces: stricter than balance, and always sufficient for it."""
        for piece in pieces[1:]:
            self.join(pieces[0], piece)

    def components(self) -> Components:
        """The connected components of all pairs, with the first reason that froze each."""
        if self._pairs:
            first = np.concatenate([pair[0].ravel() for pair in self._pairs])
            second = np.concatenate([pair[1].ravel() for pair in self._pairs])
            # Kept as one pair: the next call, after a tie, need not gather them again.
            self._pairs = [(first, second)]
        else:
            first = second = np.empty(0, dtype=np.int64)
        links = coo_array((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(self.count, self.count))
        number, of = connected_components(links, directed=False)
        reason = np.full(number, -1, dtype=np.int64)
        for row, index in reversed(self._frozen):
            reason[of[row]] = index
        return Components(of.astype(np.int64), reason)
