"""`lit-prune sweep`: from one trained network the curve of a metric against what the network costs."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from lit_prune.cli.given import check_amounts, fingerprint, is_limit, make_folder, metric_among
from lit_prune.cli.stages import check_amount, cut, measure, train_on
from lit_prune.common.arguments import check_whole
from lit_prune.cost.profile import LatencyTable
from lit_prune.errors import ArgumentError, PruningError
from lit_prune.report.curve import Point, curve_figure, curve_table, with_front
from lit_prune.report.tables import save_json

DENSE = "dense"
_POINT, _SETTINGS = "point.json", "settings.json"


class Sweep:
    """Points of a curve, each in a folder of its own: what is there is not made again, and processes share the work.

    Args:
        arguments: Of `fit`.
        amounts: Ratios, or limits of the selection's budget.
        out: The folder.
        epochs: How long to train after each cut; the dense network as long.
        metric: What counts; may be left out where only one is logged.
        mode: ``"max"`` or ``"min"``: which is better.
        table: For the latency of each network.

    Raises:
        ArgumentError: If an amount is given twice, or is neither a ratio in (0, 1) nor a limit.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        amounts: Sequence[str],
        out: Path,
        *,
        epochs: int = 0,
        metric: str | None = None,
        mode: str = "max",
        table: LatencyTable | None = None,
    ) -> None:
        check_whole("epochs", epochs, least=0)
        check_amounts(amounts)
        self.arguments = [*arguments]
        self.names = [DENSE, *amounts]
        self.out = out
        self.epochs = epochs
        self.metric = metric
        self.mode = mode
        self.table = table
        self._settings = {**fingerprint(self.arguments), "epochs": epochs}

    def run(self, console: Console) -> list[Point]:
        """Make the points that nobody has made or is making, and write what is known so far.

        Returns:
            All points that there are.

        Raises:
            LitPruneError: If the user has to change something.
        """
        make_folder(self.out)
        self._check_settings()
        self._check_amounts()
        for name in self.names:
            folder = self._folder(name)
            if not (folder / _POINT).exists():
                folder.mkdir(exist_ok=True)
                try:
                    # The lock of a process that is killed is free again.
                    with FileLock(folder / "in_work.lock", timeout=0):
                        if not (folder / _POINT).exists():
                            console.rule(name if name == DENSE else f"amount {name}", style="dim")
                            point = self._made(name, folder)
                            save_json(self._settings, self.out / _SETTINGS)
                            save_json(point, folder / _POINT)
                except Timeout:
                    console.print(f"{name}: another process is at it.", highlight=False, markup=False)
        return self._report(console)

    def _folder(self, name: str) -> Path:
        return self.out / re.sub(r"[^\w.-]+", "-", name)

    def _made(self, name: str, folder: Path) -> Point:
        started = time.perf_counter()
        if name == DENSE and self.epochs:
            # A wrong name shows before something is trained.
            metric_among(measure(self.arguments), self.metric)
        saved, known = None, {}
        try:
            if name != DENSE:
                saved = folder / "cut.ckpt"
                known = cut(self.arguments, name, saved, self.table)
        except PruningError as error:
            return {"amount": name, "failed": str(error)}
        if self.epochs:
            weights, saved = saved, folder / "trained.ckpt"
            train_on(self.arguments, self.epochs, saved, weights)
        metrics = measure(self.arguments, saved)
        metric_among(metrics, self.metric)
        where = {} if saved is None else {"checkpoint": str(saved.relative_to(self.out))}
        return {"amount": name, "metrics": metrics, **known, **where, "seconds": time.perf_counter() - started}

    def _check_amounts(self) -> None:
        """Refuse what the selection does not take before anything is measured, or trained."""
        missing = [name for name in self.names if name != DENSE and not (self._folder(name) / _POINT).exists()]
        ratios = [name for name in missing if not is_limit(name)]
        # As a ratio any is as good as another.
        for name in [*ratios[:1], *(name for name in missing if is_limit(name))]:
            check_amount(self.arguments, name)

    def _check_settings(self) -> None:
        """Refuse a folder whose points were made in another way."""
        path = self.out / _SETTINGS
        if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != self._settings:
            raise ArgumentError(
                f"{self.out} has a sweep of other arguments or files ({' '.join(before['arguments'])}, --epochs "
                f"{before['epochs']}): give another folder by --out."
            )

    def _report(self, console: Console) -> list[Point]:
        files = sorted(self.out.glob("*/point.json"), key=os.path.getmtime)
        made = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        whole: dict[str, Any] = next((each["dense"] for each in made if "dense" in each), {})
        points = [{**({} if each["amount"] != DENSE else whole), **each} for each in made if "failed" not in each]
        failed = [each for each in made if "failed" in each]
        for each in failed:
            console.print(f"{each['amount']}: {each['failed']}", highlight=False, soft_wrap=True, markup=False)
        if not points:
            return []
        metric = metric_among(points[0]["metrics"], self.metric)
        told = with_front(points, metric, self.mode)
        console.print(curve_table(told, metric))
        save_json({"metric": metric, "mode": self.mode, "points": told, "failed": failed}, self.out / "sweep.json")
        written = "sweep.json"
        if len(told) > 1:
            curve_figure(told, metric).savefig(self.out / "sweep.png")
            written += " and sweep.png"
        there = sum((self._folder(name) / _POINT).exists() for name in self.names)
        console.print(
            f"Written: {written} in {self.out}; {there} of {len(self.names)} points are there.",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        if failed and len(told) == 1:
            raise PruningError(f"No amount could be cut: {failed[0]['failed']}")
        return told
