"""What `benchmarks.budgets`, `studies` and `repair` measured, as the tables of docs/accuracy.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, median
from typing import Any


def clock_table(results: Mapping[str, Any]) -> str:
    """A row for each network and budget: what was asked, what the table said, what the clock said; then corrected."""
    lines = [
        "| network, runtime | profiled in | asked | table | clock | corrected: table | clock |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, found in results.items():
        kind, _, rest = key.partition(", ")
        if kind != "clock":
            continue
        for number, each in enumerate(found["budgets"]):
            name = f"{rest}: {found['dense_ms']:.1f} ms | {found['profile_s']:.0f} s" if number == 0 else " | "
            if "out_of_reach" in each:
                lines.append(f"| {name} | {each['asked']:.2f} | out of reach | | | |")
                continue
            lines.append(
                f"| {name} | {each['asked']:.2f} | {each['predicted']:.3f} | {_spread(each['clock'])} "
                f"| {each['corrected']:.3f} | {_spread(each['clock_corrected'])} |"
            )
    return "\n".join(lines)


def accuracy_table(result: Mapping[str, Any]) -> str:
    """A row for each budget, the fastest last of each kind; beside latency's what others take for the same score."""
    names = {"latency": "LatencyBudget", "macs": "MacsBudget, global"}
    lines = [
        f"| {result['measure']}: dense {result['dense']:.3f} | amount | {result['measure']} | clock | MACs "
        f"| MacsBudget's clock at that {result['measure']} |",
        "|---|---|---|---|---|---|",
    ]
    by_macs = [(1.0, result["dense"])]
    by_macs += [(mean(each["clock"]), mean(each["scores"])) for each in result["ways"] if each["budget"] == "macs"]
    for each in result["ways"]:
        score = mean(each["scores"])
        beside = _clock_at(score, by_macs) if each["budget"] == "latency" else None
        lines.append(
            f"| {names[each['budget']]} | {each['amount']:.2f} | {score:.3f} | {mean(each['clock']):.3f} "
            f"| {mean(each['macs']):.3f} | {'' if beside is None else f'{beside:.3f}'} |"
        )
    return "\n".join(lines)


def _clock_at(score: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The least clock at which networks have a score, between those that were measured; None beyond them."""
    rising = sorted(curve)
    for (fast, low), (slow, high) in pairwise(rising):
        if low <= score <= high and low < high:
            return fast + (score - low) / (high - low) * (slow - fast)
    return rising[0][0] if score == rising[0][1] else None


def repair_table(results: Mapping[str, Any]) -> str:
    """A row for each image size and cut: seconds, steps, and passes over the same images without a repair."""
    lines = [
        "| image size, images a step | a step | cut by magnitude | repair | steps | two plain forwards |",
        "|---|---|---|---|---|---|",
    ]
    for size, found in results["costs"].items():
        step, plain = found["step"]["median_s"], found["two plain forwards"]["median_s"]
        first = f"{size}, {found['step']['images']} | {step:.2f} s"
        for name, each in found.items():
            if name.startswith("-"):
                took = each["median_s"]
                cut = name.replace("-", "−")
                lines.append(f"| {first} | {cut} | {took:.1f} s | {took / step:.1f} | {took / plain:.1f} × |")
                first = " | "
    return "\n".join(lines)


def memory_table(result: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row for each network and amount."""
    lines = ["| network | amount | foretold | by the allocator | ratio | chosen in |", "|---|---|---|---|---|---|"]
    for name, rows in result.items():
        for each in rows:
            start = f"| {name if each is rows[0] else ''} | {each['amount'] or 'dense'} |"
            if "out_of_reach" in each:
                lines.append(f"{start} out of reach | | | |")
                continue
            chosen = f"{each['plan_s']:.1f} s" if each["amount"] else ""
            foretold, measured = each["predicted"] / 1e6, each["allocator"] / 1e6
            lines.append(f"{start} {foretold:.2f} MB | {measured:.2f} MB | {foretold / measured:.3f} | {chosen} |")
    return "\n".join(lines)


def sweeps_table(sweeps: Mapping[str, Mapping[str, Any]], metric: str = "val/map") -> str:
    """A row for each sweep, a column for each amount."""
    scores = {
        name: {point["amount"]: point["metrics"][metric] for point in sweep["points"]} for name, sweep in sweeps.items()
    }
    amounts = sorted({amount for each in scores.values() for amount in each if amount != "dense"}, key=float)
    dense = next(iter(scores.values()))["dense"]
    lines = [f"| mAP50-95: dense {dense:.3f} | {' | '.join(f'−{float(amount):.0%} MACs' for amount in amounts)} |"]
    lines.append("|---" * (1 + len(amounts)) + "|")
    for name, each in scores.items():
        cells = [f"{each[amount]:.3f}" if amount in each else "out of reach" for amount in amounts]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(measured: Sequence[float]) -> str:
    return f"{median(measured):.3f} ± {(max(measured) - min(measured)) / 2:.3f}"
