"""What was pruned, as a table, as JSON and as figures; all from plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lit_prune.common.findings import SPENT, allowances
from lit_prune.errors import ArgumentTypeError

Event = Mapping[str, Any]
"""One pruning: ``epoch``, ``step``, ``ratio`` (aimed at so far; ``None`` where the selection decided), ``channels``
(group name to [before, after]), ``params`` and ``macs`` ([before, after]), ``gone`` (the ratios of the dense network's
``macs`` and of these groups' dense ``channels`` that are gone so far), ``seconds``, ``skipped`` (group name to the
reason), ``findings`` (what else the selection found out, by name)."""
History = Mapping[str, Sequence[Mapping[str, float]]]
"""Name of a run to its epochs: ``epoch``, ``map`` and ``macs`` of each."""

_BAR = 12  # characters of a bar in a table
_UNITS = {"ms": "the latency", "B": "the size", "B of activations": "the peak memory of activations"}
_SUMS = frozenset(("MACs", "params", "B"))  # to which every layer adds
_NEAR = 0.02  # the difference between two ratios that nobody minds
_ROUNDED = "kept widths are multiples of `round_to`, and at least `min_channels`"


def event_table(event: Event, max_rows: int | None = 24) -> Table:
    """One pruning as a table: channels of every group before and after, then parameters and multiply-adds.

    Args:
        event: What :class:`lit_prune.ChannelPruning` keeps of an event.
        max_rows: Where there are more groups, those of one module (names that begin alike) share a row;
            ``None`` gives every group its own.

    Example:
        >>> event = {"epoch": 3, "step": 90, "ratio": 0.5, "channels": {"0": [8, 4]}, "params": [512, 256],
        ...           "macs": [20000, 10000], "seconds": 0.1, "skipped": {}}
        >>> event_table(event).row_count
        3
    """
    rows = fold_groups(event["channels"], max_rows)
    table = Table(
        title=f"Pruned at epoch {event['epoch']}, {_aim(event)}",
        title_style="bold",
        caption=_caption(event),
        caption_justify="left",
        header_style="bold",
    )
    folded = len(rows) < len(event["channels"])
    table.add_column("module (groups)" if folded else "group", no_wrap=True)
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    table.add_column("kept", no_wrap=True)
    for name, (groups, before, after) in rows.items():
        label = Text.assemble(name, (f" ({groups})", "dim")) if folded else Text(name)
        table.add_row(label, f"{before:,}", f"{after:,}", ratio_bar(after, before))
    table.add_section()
    for title, key in (("parameters", "params"), ("multiply-adds", "macs")):
        before, after = event[key]
        table.add_row(title, human(before), human(after), ratio_bar(after, before), style="bold")
    return table


def fold_groups(channels: Mapping[str, Sequence[int]], max_rows: int | None) -> dict[str, tuple[int, int, int]]:
    """Sum groups whose names begin alike, no more than needed: row name to (groups, channels before, after).

    Example:
        >>> fold_groups({"net.0.a": [8, 4], "net.0.b": [8, 6], "net.1": [4, 2]}, max_rows=2)
        {'net.0': (2, 16, 10), 'net.1': (1, 4, 2)}
    """
    depth = max((name.count(".") + 1 for name in channels), default=1)
    while True:
        rows: dict[str, tuple[int, int, int]] = {}
        for name, (before, after) in channels.items():
            key = ".".join(name.split(".")[:depth])
            groups, all_before, all_after = rows.get(key, (0, 0, 0))
            rows[key] = groups + 1, all_before + before, all_after + after
        if max_rows is None or len(rows) <= max_rows or depth == 1:
            return rows
        depth -= 1


def ratio_bar(part: float, whole: float) -> Text:
    """A bar and a percentage, for a table's cell."""
    ratio = part / whole if whole else 0.0
    full = round(_BAR * min(1.0, ratio))
    return Text.assemble(("█" * full, "cyan"), ("░" * (_BAR - full), "bright_black"), f" {ratio:4.0%}")


def human(number: float) -> str:
    """A count in three digits and an SI prefix.

    Example:
        >>> human(812), human(3012798), human(96_400_000), human(4.1e9)
        ('812', '3.01 M', '96.4 M', '4.10 G')
    """
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            value = number / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {prefix}"
    return f"{number:.0f}"


def add_costs(
    table: Table, networks: Sequence[Mapping[str, Any]], costs: Mapping[str, str], latency: str, unit: str = ""
) -> list[list[str]]:
    """Add a column for each cost to a table, and for the latency where it is known of a network.

    Args:
        table: The table.
        networks: Their costs by key, those of the whole one first.
        costs: Heading of a column to the key.
        latency: Heading of the latency's.
        unit: What stands behind its milliseconds.

    Returns:
        The cells of each network, with what each cost is of the whole one's.
    """
    timed = {latency: "latency_ms"} if any("latency_ms" in each for each in networks) else {}
    columns = {**costs, **timed}
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)

    def cell(key: str, network: Mapping[str, Any]) -> str:
        value, whole = network.get(key), networks[0].get(key)
        if value is None:
            return ""
        text = f"{value:.4g}{unit}" if key == "latency_ms" else human(value)
        return f"{text} ({value / whole:.0%})" if whole else text

    return [[cell(key, each) for key in columns.values()] for each in networks]


def relative_change(before: float, after: float) -> str:
    """How much more or less a cost is than it was, as a percentage of what it was.

    Example:
        >>> relative_change(200, 100), relative_change(1000, 998), relative_change(7, 7)
        ('-50%', '-0.2%', 'no change')
    """
    change = after / before - 1 if before else 0.0
    if after == before:
        return "no change"
    if abs(change) >= 0.005:
        return f"{change:+.0%}"
    return f"{change:+.1%}" if abs(change) >= 0.0005 else "under 0.1%"


def score_change(before: float, after: float) -> str:
    """How much better or worse a score is than it was.

    Example:
        >>> score_change(0.5, 0.25), score_change(0.5, 0.5001), score_change(0.5, 0.5)
        ('-0.250', 'under 0.001', 'no change')
    """
    if after == before:
        return "no change"
    return f"{after - before:+.3f}" if abs(after - before) >= 0.0005 else "under 0.001"


def speedup(before: float, after: float) -> str:
    """How much faster or slower something is than it was, from the times that both take.

    Example:
        >>> speedup(3.0, 2.0), speedup(2.0, 3.0), speedup(2.0, 2.001)
        ('1.50× faster', '1.50× slower', 'as fast')
    """
    ratio, word = (before / after, "faster") if before >= after else (after / before, "slower")
    return "as fast" if f"{ratio:.2f}" == "1.00" else f"{ratio:.2f}× {word}"


def save_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report as indented JSON, whole or not at all; numbers of torch and NumPy become plain ones."""
    part = Path(f"{path}.{os.getpid()}.part")
    part.write_text(json.dumps(report, indent=2, default=_plain) + "\n", encoding="utf-8")
    part.replace(path)


def _aim(event: Event) -> str:
    """How far the event was to go; files of earlier versions call it share."""
    ratio = event.get("ratio", event.get("share"))
    if ratio is not None:
        unit = _UNITS.get(event.get("unit", ""), event.get("unit"))
        return f"target so far {float(ratio):.0%}{f' of {unit}' if unit else ''}"
    if "part" in event:
        return "to the limit" if event["part"] == 1 else f"{float(event['part']):.0%} of the way to the limit"
    before, after = (sum(widths[side] for widths in event["channels"].values()) for side in (0, 1))
    return f"{before - after:,} of {before:,} channels by the selection's decision"


def _outcome(event: Event) -> list[str]:
    """What is gone so far; where that is not what was aimed at, why."""
    gone, ratio = event.get("gone"), event.get("ratio")
    if gone is None:
        return []
    told = f"gone so far: {gone['channels']:.0%} of these channels, {gone['macs']:.0%} of the multiply-adds"
    # A budget says by itself what is left of it, and of other units than these it is not known how much is gone.
    if (
        event.get("unit", "MACs") == "MACs"
        and "MACs" not in allowances(event.get("findings", {}))
        and ratio is not None
        and all(abs(part - ratio) > _NEAR for part in gone.values())
    ):
        told += f"\nnot the target: {_ROUNDED}"
    return [told]


def _caption(event: Event) -> str:
    lines = [f"took {float(event['seconds']):.1f} s", *_outcome(event)]
    found = event.get("findings", {})
    if "table_ms" in found:
        clock = f", {found['clock_ms']:.4g} ms by the clock" if "clock_ms" in found else ""
        lines.append(f"latency: {found['table_ms']:.4g} ms by the table{clock}")
    lines.extend(_budgets(found))
    return "\n".join([*lines, *left_as_is(event)])


def _budgets(found: Mapping[str, float]) -> list[str]:
    """What budgets allow and what is left; where that is less of all of them, why."""
    lines, budgets = [], allowances(found)
    for counted, (allowed, left) in budgets.items():
        shown, most = (f"{each:.4g} " if each < 100 else human(each) for each in (left, allowed))
        lines.append(f"budget: {shown}{counted}, {most}{counted} allowed")
    if budgets and budgets.keys() <= _SUMS and all(left < SPENT * allowed for allowed, left in budgets.values()):
        lines.append(f"no layer could be a step wider within it: {_ROUNDED}")
    return lines


def left_as_is(event: Event) -> list[str]:
    """The groups that an event leaves as they are, in a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in event.get("skipped", {}).items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"left as is: {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)} ({reason})"
        for reason, names in by_reason.items()
    ]


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise ArgumentTypeError(f"A report holds plain data, but got {type(value).__name__}.")
