"""`lit-prune sensitivity`: what a metric says of each layer's channels, when that layer alone is cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.progress import track

from lit_prune.activations import CalibrationBatch
from lit_prune.cli.foresight import AllIsSeen, Foresight
from lit_prune.cli.given import fingerprint, make_folder, metric_among
from lit_prune.cli.stages import look, naming_what_lacks
from lit_prune.common.arguments import check_ratio
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError
from lit_prune.plan import PruningPlan
from lit_prune.policy.history import Record
from lit_prune.repair import Repair, repaired
from lit_prune.report.layers import layers_figure, layers_table
from lit_prune.report.tables import save_json
from lit_prune.select.base import Bundle, Target, bundled, lowest
from lit_prune.surgery import shrink_
from lit_prune.training.entrance import entrance
from lit_prune.training.lightning import LightningHost


class Sensitivity:
    """The metric for each group at some ratios, cut and repaired; what is known already is not measured again.

    Args:
        arguments: Of `fit`; its `ckpt_path` is the trained network.
        ratios: Of a group's channels, each in (0, 1).
        out: The folder.
        metric: As for :class:`lit_prune.cli.sweep.Sweep`.
        mode: Likewise.
        repair: Whether to measure after a repair as well.

    Raises:
        ArgumentError: If a ratio is out of range.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        ratios: Sequence[float],
        out: Path,
        *,
        metric: str | None = None,
        mode: str = "max",
        repair: bool = True,
    ) -> None:
        for ratio in ratios:
            check_ratio("a ratio", ratio)
        self.arguments = [*arguments]
        self.ratios = sorted({*ratios})
        self.out = out
        self.metric = metric
        self.mode = mode
        self.ways = ["cut", "repaired"] if repair else ["cut"]

    def run(self, console: Console) -> dict[str, Any]:
        """Measure what is not known yet, and write it after each measurement.

        Returns:
            What the file holds, as :data:`lit_prune.report.layers.Layers` has it.

        Raises:
            LitPruneError: If the user has to change something.
        """
        make_folder(self.out)
        path = self.out / "sensitivity.json"
        try:
            with FileLock(self.out / "in_work.lock", timeout=0):
                found = self._measured(path, console)
        except Timeout:
            raise ArgumentError(f"Another process writes to {self.out}: give another folder by --out.") from None
        console.print(layers_table(found))
        layers_figure(found).savefig(self.out / "sensitivity.png")
        console.print(f"Written: sensitivity.json and sensitivity.png in {self.out}", highlight=False, markup=False)
        return found

    def _measured(self, path: Path, console: Console) -> dict[str, Any]:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        made = fingerprint(self.arguments)
        if known and {key: known[key] for key in made} != made:
            raise ArgumentError(
                f"{path} was measured by other arguments or files ({' '.join(known['arguments'])}): give another "
                "folder by --out."
            )
        bench = _Bench.of(self.arguments)
        metrics = bench.measure(bench.module)
        metric = metric_among(metrics, self.metric)
        if known and known["metric"] != metric:
            raise ArgumentError(f"{path} was measured by {known['metric']}: give another folder by --out.")
        found: dict[str, Any] = {
            **made,
            "metric": metric,
            "mode": self.mode,
            "dense": metrics[metric],
            "groups": known.get("groups", {}),
        }
        trials = [*bench.trials(self.ratios)]
        if not trials:
            raise ArgumentError(
                f"Rounded, no ratio ({' '.join(f'{ratio:g}' for ratio in self.ratios)}) removes a channel of a layer: "
                "give larger ones, or lower `round_to`."
            )
        for names, ratio, plan in track(trials, "measuring", console=console):
            for way in self.ways:
                scores = [found["groups"].setdefault(name, {}).setdefault(f"{ratio:g}", {}) for name in names]
                if any(way not in each for each in scores):
                    score = bench.measure(bench.left(plan, way == "repaired"))[metric]
                    for each in scores:
                        each[way] = score
                    save_json(found, path)
        save_json(found, path)
        return found


class _Bench(Foresight):
    """Takes from a fit what it takes to cut its network in many ways, and measures what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.trainer: Trainer
        self.module: LightningModule
        self._evidence: Evidence
        self._target: Target
        self._batches: list[Any] = []

    @classmethod
    def of(cls, arguments: Sequence[str]) -> _Bench:
        bench = cls()
        look(arguments, bench)
        bench.trainer.callbacks.clear()  # type: ignore[attr-defined]
        # Detached, it can be copied.
        bench.module.trainer = None
        return bench

    def look_ahead(self, trainer: Trainer, waits: bool = True) -> None:
        """Take what is needed, and carry out nothing."""
        if not self.is_ready(waits):
            return
        pruner, host = self.pruning.pruner, LightningHost(trainer, self.pruning.averages)
        self.trainer, self.module = trainer, trainer.lightning_module
        self.restore(self.module)
        self._evidence = pruner.evidence(host)
        self._target = pruner.policy.target(self.module, self._evidence.graph, None, Record())
        self._scores = pruner.policy.scores(self._evidence)
        self._repair = pruner.repair or Repair()
        as_they_come = host.batches(self._repair.calibration, True, lambda batch: CalibrationBatch((batch,)))
        self._batches = [batch.inputs[0] for batch in as_they_come]
        self._sight = pruner.sight
        raise AllIsSeen

    def trials(self, ratios: Sequence[float]) -> Iterator[tuple[list[str], float, PruningPlan]]:
        """For each layer that takes part, with those that lose as many, and each ratio: what is left."""
        for bundle in bundled(self._evidence.groups, self._scores):
            before: list[int] = []
            for ratio in ratios:
                widths = {group.name: self._target.keep(group, ratio) for group in bundle}
                # Rounded, several ratios may be the same.
                if [*widths.values()] != before and any(widths[group.name] < group.size for group in bundle):
                    yield [group.name for group in bundle], ratio, self._plan(bundle, widths)
                before = [*widths.values()]

    def _plan(self, bundle: Bundle, widths: dict[str, int]) -> PruningPlan:
        return self._evidence.graph.plan(lowest(bundle, self._scores, widths))

    def left(self, plan: PruningPlan, is_repaired: bool) -> LightningModule:
        """A copy of what a plan leaves."""
        module = copy.deepcopy(self.module)
        fits = None
        if is_repaired:
            # A step may ask for it.
            module.trainer = self.trainer
            enters, number = entrance(module, self._sight), self._repair.batches
            fits = repaired(module, plan, lambda: map(enters.read, self._batches), number, self._repair, enters.forward)
            module.trainer = None
        shrink_(module, plan)
        if fits is not None:
            fits.apply_(module)
        return module

    def measure(self, module: LightningModule) -> dict[str, float]:
        """The metrics of a validation."""
        with naming_what_lacks():
            self.trainer.validate(module, datamodule=self.trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
        module.trainer = None
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}
