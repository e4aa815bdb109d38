"""The metric by which a pruning is judged, as the run logs it."""

from __future__ import annotations

from lit_prune.common.choices import nearest
from lit_prune.errors import PruningError
from lit_prune.training.host import Host


class Monitor:
    """Remembers the latest value of one metric: a resumed run has none until its first validation.

    Args:
        name: Of the metric; ``None`` where none is asked for.

    Attributes:
        value: Its latest value; ``None`` where it was never logged.
        validated: Whether this run has had a validation.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.value: float | None = None
        self.validated = False

    def read(self, host: Host, validated: bool = False) -> float | None:
        """Its value now, or the latest.

        Args:
            host: The run.
            validated: Whether a validation has just ended.
        """
        self.validated |= validated
        # Without a name the host is not asked: it would compute all metrics.
        if self.name is not None and (value := host.metrics().get(self.name)) is not None:
            self.value = float(value)
        return self.value

    def check(self, host: Host) -> None:
        """Raise where metrics are logged, those of a validation too if there is one, but not this one.

        Raises:
            PruningError: The message has the nearest names.
        """
        if self.name is None or self.read(host) is not None:
            return
        logged = [name for name in host.metrics() if not name.startswith("pruning/")]
        if logged and (self.validated or not host.validates):
            raise PruningError(f"monitor={self.name!r} is not logged. {nearest(self.name, logged)}")
