"""Commands that take the arguments of `lit-prune fit`, the configuration file first, and some of their own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_prune.cli.given import check_file, fit_arguments

STUDIES = {
    "plan": "tell what a fit by the same arguments would leave of the network, without training",
    "sensitivity": "cut each layer of a trained network alone, and tell what that costs",
    "sweep": "cut a trained network by several amounts, and draw what it is worth against what it costs",
}


def run_study(arguments: Sequence[str]) -> None:
    """Run one of :data:`STUDIES`.

    Args:
        arguments: The command, its own arguments and those of `fit`, in any order but the file first.

    Raises:
        LitPruneError: If the user has to change something.
    """
    command, *given = arguments
    parser = argparse.ArgumentParser(
        prog=f"lit-prune {command}",
        usage=f"lit-prune {command} [CONFIG] [own arguments] [arguments of lit-prune fit]",
        description=f"{STUDIES[command][0].upper()}{STUDIES[command][1:]}. Takes the arguments of `lit-prune fit`, a "
        "YAML file first, and these:",
        allow_abbrev=False,
    )
    run = _ARGUMENTS[command](parser)
    options, fit = parser.parse_known_args(given)
    run(options, fit_arguments(fit))


def _plan(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace, list[str]], None]:
    _add_table(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="a JSON file for what is printed")

    def run(options: argparse.Namespace, fit: list[str]) -> None:
        from lit_prune.cli.stages import look_ahead
        from lit_prune.report.foreseen import foreseen_tables
        from lit_prune.report.tables import save_json

        if options.out is not None:
            check_file(options.out)
        seen = look_ahead(fit, _table(options))
        console = Console()
        for each in foreseen_tables(seen):
            console.print(each)
        if options.out is not None:
            save_json(seen, options.out)
            console.print(f"Written: {options.out}", highlight=False, soft_wrap=True, markup=False)

    return run


def _sweep(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace, list[str]], None]:
    parser.add_argument(
        "--amounts",
        nargs="+",
        required=True,
        metavar="A",
        help='ratios, or limits of the selection\'s budget such as "8 ms"',
    )
    parser.add_argument("--epochs", type=int, default=0, help="how long to train after each cut (default: 0)")
    _add_metric(parser)
    _add_table(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("sweep"), metavar="DIR", help="for all that comes of it (default: sweep)"
    )

    def run(options: argparse.Namespace, fit: list[str]) -> None:
        from lit_prune.cli.sweep import Sweep

        Sweep(
            fit,
            options.amounts,
            options.out,
            epochs=options.epochs,
            metric=options.metric,
            mode=options.mode,
            table=_table(options),
        ).run(Console())

    return run


def _sensitivity(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace, list[str]], None]:
    parser.add_argument(
        "--ratios",
        nargs="+",
        type=float,
        default=[0.25, 0.5, 0.75],
        metavar="R",
        help="of a layer's channels (default: 0.25 0.5 0.75)",
    )
    _add_metric(parser)
    parser.add_argument("--without-repair", action="store_true", help="measure only what is left by the cut itself")
    parser.add_argument(
        "--out", type=Path, default=Path("sensitivity"), metavar="DIR", help="where it goes (default: sensitivity)"
    )

    def run(options: argparse.Namespace, fit: list[str]) -> None:
        from lit_prune.cli.sensitivity import Sensitivity

        Sensitivity(
            fit,
            options.ratios,
            options.out,
            metric=options.metric,
            mode=options.mode,
            repair=not options.without_repair,
        ).run(Console())

    return run


def _add_metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", metavar="NAME", help="what counts, as the validation logs it")
    parser.add_argument("--mode", choices=("max", "min"), default="max", help="which is better (default: max)")


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="a latency table of `lit-prune profile`, to tell milliseconds by"
    )


def _table(options: argparse.Namespace) -> Any:
    from lit_prune.cost.profile import LatencyTable

    return None if options.table is None else LatencyTable.load(options.table)


_ARGUMENTS = {"plan": _plan, "sensitivity": _sensitivity, "sweep": _sweep}
