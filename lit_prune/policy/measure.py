"""What a decision wants to know of activations, and where that comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lit_prune.activations import Arrivals, Calibration, Moments
from lit_prune.criteria import Criterion, Evidence
from lit_prune.errors import ArgumentError
from lit_prune.select import Selection


@dataclass(frozen=True)
class Measure:
    """How activations are looked at, where there is data.

    Attributes:
        moments: Layers to their class-wise statistics.
        arrivals: Weights to what arrives there; with covariances or not.
    """

    moments: Callable[[list[str], Calibration], Mapping[str, Moments]] = lambda layers, calibration: {}
    arrivals: Callable[[list[str], Calibration, bool], Mapping[str, Arrivals]] = (
        lambda weights, calibration, covariances: {}
    )


NOTHING = Measure()
"""Where there is no data."""


def by_class(criterion: Criterion, selection: Selection) -> Calibration | None:
    """How much data is looked at for class-wise statistics, for which it needs objects; ``None`` without them."""
    return (None if criterion.needs_arrivals else criterion.calibration) or selection.calibration


def measured(
    evidence: Evidence, criterion: Criterion, selection: Selection, measure: Measure, batches: int | None = None
) -> Evidence:
    """The same evidence, with what a criterion and a selection want to know of activations.

    Args:
        evidence: What is known without.
        criterion: The one.
        selection: The other.
        measure: Looks.
        batches: At how many batches; by default at as many as they want.
    """

    def of(calibration: Calibration) -> Calibration:
        return calibration if batches is None else replace(calibration, batches=batches)

    if criterion.needs_arrivals and criterion.calibration is not None:
        read = dict.fromkeys(slot[0] for group in evidence.groups for slot, _ in evidence.readers_of(group))
        arrivals = measure.arrivals([*read], of(criterion.calibration), criterion.needs_covariances)
        if not arrivals and measure is not NOTHING:
            raise ArgumentError(
                f"{type(criterion).__name__} can judge none of the {len(evidence.groups)} groups: no layer that reads "
                "their channels runs on the calibration batches with a weight of its own (weight norm makes it anew). "
                "Take another criterion, such as 'magnitude'."
            )
        evidence = replace(evidence, arrivals=arrivals)
    calibration = by_class(criterion, selection)
    if calibration is not None:
        layers = dict.fromkeys(layer for group in evidence.groups for layer in group.layers)
        evidence = replace(evidence, moments=measure.moments([*layers], of(calibration)))
    return evidence
