"""What the events of a run would leave of its network, as plain data and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lit_prune.report.tables import Event, add_costs, fold_groups, left_as_is

Foreseen = dict[str, Any]
"""``dense`` (``params``, ``macs``, ``channels``, ``widths`` by group; ``latency_ms`` where a table tells it), and
``events``: the same of each, with ``at`` (when it comes), ``gone``, ``skipped`` and ``seconds``."""


def foreseen(
    widths: Mapping[str, int],
    params: int,
    macs: int,
    events: Sequence[Event],
    unit: str,
    ms: Sequence[float] = (),
) -> Foreseen:
    """What is left of a network after each event.

    Args:
        widths: Group name to channels of the dense network.
        params: Its parameters.
        macs: Its multiply-adds.
        events: As for :func:`lit_prune.report.tables.event_table`, with ``epoch`` or ``step`` when they come.
        unit: ``"epoch"`` or ``"step"``.
        ms: Milliseconds before and after the last events, as far as a table tells them.

    Example:
        >>> event = {"epoch": 3, "channels": {"0": [8, 4]}, "params": [512, 256], "macs": [2000, 1000]}
        >>> seen = foreseen({"0": 8}, 512, 2000, [event], "epoch", ms=[2.0, 1.5])
        >>> seen["events"][0]["at"], seen["events"][0]["widths"], seen["events"][0]["latency_ms"]
        ('epoch 3', {'0': 4}, 1.5)
    """
    told: list[dict[str, float]] = [{}] * (len(events) + 1 - len(ms)) + [{"latency_ms": each} for each in ms]
    now = dict(widths)

    def state(params: int, macs: int) -> dict[str, Any]:
        return {"params": params, "macs": macs, "channels": sum(now.values()), "widths": dict(now)}

    dense, after = state(params, macs) | told[0], []
    for event, latency in zip(events, told[1:], strict=True):
        now |= {name: left for name, (_, left) in event["channels"].items()}
        known = {key: event[key] for key in ("gone", "skipped", "seconds", "findings") if key in event}
        costs = state(event["params"][1], event["macs"][1])
        after.append({"at": f"{unit} {event[unit]}", **costs, **latency, **known})
    return {"dense": dense, "events": after}


def foreseen_tables(seen: Foreseen, max_rows: int | None = 24) -> list[Table]:
    """What is left after each event, and how wide each group is then.

    Args:
        seen: Of :func:`foreseen`.
        max_rows: As for :func:`lit_prune.report.tables.event_table`.

    Example:
        >>> costs = {"params": 512, "macs": 2000, "channels": 8, "widths": {"0": 8}}
        >>> [table.row_count for table in foreseen_tables({"dense": costs, "events": [{"at": "epoch 3", **costs}]})]
        [2, 1]
    """
    return [_costs(seen), _widths(seen, max_rows)]


def _costs(seen: Foreseen) -> Table:
    stages = [seen["dense"], *seen["events"]]
    shown = Table(
        title="What would be left",
        title_style="bold",
        header_style="bold",
        caption="Chosen by the weights as they are now; training changes them until then.",
        caption_justify="left",
    )
    shown.add_column("after", no_wrap=True)
    columns = {"parameters": "params", "multiply-adds": "macs", "channels": "channels"}
    for stage, cells in zip(stages, add_costs(shown, stages, columns, "latency by the table", " ms"), strict=True):
        shown.add_row(stage.get("at", "dense"), *cells)
    return shown


def _widths(seen: Foreseen, max_rows: int | None) -> Table:
    dense = seen["dense"]["widths"]
    after = [
        fold_groups({name: [whole, event["widths"][name]] for name, whole in dense.items()}, max_rows)
        for event in seen["events"]
    ]
    rows = fold_groups({name: [whole, whole] for name, whole in dense.items()}, max_rows)
    folded = len(rows) < len(dense)
    stays = [line for event in seen["events"][-1:] for line in left_as_is(event)]
    shown = Table(header_style="bold", caption="\n".join(stays), caption_justify="left")
    shown.add_column("module (groups)" if folded else "group", no_wrap=True)
    for heading in ("dense", *(event["at"] for event in seen["events"])):
        shown.add_column(heading, justify="right")
    for name, (groups, whole, _) in rows.items():
        label = Text.assemble(name, (f" ({groups})", "dim")) if folded else Text(name)
        shown.add_row(label, f"{whole:,}", *(f"{event[name][2]:,}" for event in after))
    return shown
