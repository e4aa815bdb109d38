"""A selection that makes the values of a forward fit into a memory."""

from __future__ import annotations

from typing import get_args

from lit_prune.common.arguments import check_choice, check_whole
from lit_prune.cost.activation_memory import Precision, Timeline, timeline
from lit_prune.criteria import Evidence
from lit_prune.errors import SelectionError
from lit_prune.select.base import Bundle, Target, Widths
from lit_prune.select.budget import Budget, removal_of
from lit_prune.select.spread import Cost, Spread

_FOUND = "memory"
_FOUND_DENSE = "dense_memory"


class MemoryBudget(Budget):
    """As many channels as it takes for the values of one forward to fit into a memory.

    At every operation count all values that are alive then: the input, what is kept for a later layer, what the
    operation reads and makes; not weights, and not what a kernel takes for itself while it runs. Only those layers lose
    channels of which something is alive where the memory is too small.

    Args:
        spread: As for :class:`Budget`, among those layers.
        at_most: As for :class:`Budget`: ``"4 MB"``, ``"512 KiB"``, or a number of bytes. Without it the amount says
            which ratio goes of what the dense network takes.
        precision: In which values are kept: ``"float32"``, ``"float16"`` or ``"int8"``.
        batch_size: Number of examples that are computed at once, of the size that the network is trained on.

    Attributes:
        findings: Of the last choice ``memory``, and ``dense_memory``, of the dense network; both in bytes.

    Raises:
        ArgumentError: As for :class:`Budget`, or if the precision is unknown or the batch size below 1.

    Example:
        >>> MemoryBudget(at_most="512 KiB", precision="int8").at_most
        524288.0
    """

    unit = "B"
    adds_up = False

    def __init__(
        self,
        spread: Spread | str = "uniform",
        at_most: float | str | None = None,
        precision: Precision = "float32",
        batch_size: int = 1,
    ) -> None:
        super().__init__(spread, at_most)
        check_choice("precision", precision, get_args(Precision))
        check_whole("batch_size", batch_size)
        self.precision = precision
        self.batch_size = batch_size

    @property
    def counted(self) -> str:
        """Bytes, but of another kind than a file's."""
        return "B of activations"

    def cost(self, evidence: Evidence) -> Cost:
        """Bytes at the operation at which they are most."""
        known: dict[tuple[tuple[str, int], ...], float] = {}

        def cost(widths: Widths) -> float:
            key = tuple(sorted(widths.items()))
            if key not in known:
                known[key] = float(self._timeline(evidence, widths).max())
            return known[key]

        return cost

    def dense(self, evidence: Evidence, target: Target) -> float:
        """Bytes of the dense network: of this one before the first event, and as found at the last one after it.

        Raises:
            SelectionError: If channels went by another selection before, which has not found it out.
        """
        if _FOUND_DENSE in target.findings:
            return target.findings[_FOUND_DENSE]
        if any(target.widths.get(group.name, group.size) > group.size for group in evidence.graph.groups):
            raise SelectionError(
                "The network has lost channels before, so it is not known how much memory the dense one took: say by "
                "`at_most` how much is to be left."
            )
        return self.cost(evidence)({})

    def concerned(self, bundles: list[Bundle], evidence: Evidence, target: Target, limit: float) -> list[Bundle]:
        """Those that take less where the limit is exceeded when they are narrower."""
        now = self._timeline(evidence, {})
        above = now > limit

        def helps(bundle: Bundle) -> bool:
            narrow = self._timeline(evidence, {group.name: target.allowed(group, 0) for group in bundle})
            # A forward may have other operations at other widths; then nothing can be told apart.
            return len(narrow) != len(now) or bool((narrow < now)[above].any())

        return [bundle for bundle in bundles if helps(bundle)] if above.any() else bundles

    def found(self, evidence: Evidence, target: Target, limit: float, left: float) -> dict[str, float]:
        """The memory before the first event as well: later ones can't tell."""
        known = super().found(evidence, target, limit, left)
        try:
            return {**known, _FOUND: left, _FOUND_DENSE: self.dense(evidence, target)}
        except SelectionError:
            return {**known, _FOUND: left}

    def _timeline(self, evidence: Evidence, widths: Widths) -> Timeline:
        graph = evidence.graph
        found = timeline(graph, graph.plan(removal_of(evidence, widths)), self.precision)
        return -(-found * self.batch_size // graph.batch_size)
