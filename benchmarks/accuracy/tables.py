"""What was found, as tables."""

from __future__ import annotations

from typing import Any


def markdown(result: dict[str, Any]) -> str:
    """A row's table: means and half the spread over draws, and where measured the latency beside the dense one's."""
    by_way: dict[str, dict[float, dict[str, Any]]] = {}
    for each in result["ways"]:
        by_way.setdefault(each["way"], {})[each["amount"]] = each
    # What has no amount is the same beside each.
    whole = {way: cells[0.0] for way, cells in by_way.items() if 0.0 in cells}
    amounts = sorted({amount for cells in by_way.values() for amount in cells if amount})
    reference = "; ".join(f"{way} {_shown(cell)}" for way, cell in whole.items())
    lines = [f"| {result['measure']}: {reference} | {' | '.join(f'−{a:.0%} MACs' for a in amounts)} |"]
    lines.append("|---" * (1 + len(amounts)) + "|")
    for way in (way for way in by_way if way not in whole):
        shown = [_shown(by_way[way][amount]) if amount in by_way[way] else "" for amount in amounts]
        lines.append(f"| {way} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(cell: dict[str, Any]) -> str:
    if "failed" in cell:
        return "fails"
    scores = cell["scores"]
    mean = f"{sum(scores) / len(scores):.3f}"
    if len(scores) > 1:
        mean += f" ± {(max(scores) - min(scores)) / 2:.3f}"
    return mean + (f", {cell['latency']:.2f}" if "latency" in cell else "")
