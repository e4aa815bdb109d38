"""Looks at how the steps of a training enter its network, and at what enters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lit_prune.common._compat import in_backward, runs_compiled
from lit_prune.common.names import find_module
from lit_prune.repair.entering import Entering, Usual
from lit_prune.training.entry import Entry

# One more is enough to tell that the step is to be made itself.
_MOST = 4


class EntryWatch:
    """Knows how a training enters its network, beyond what its first batch has shown.

    Attributes:
        later: Ways of later steps that were not known.
        resumed: Ways that a resumed run knows from its checkpoint.

    Example:
        >>> net, batch = nn.Linear(2, 1), torch.rand(4, 2)
        >>> watch = EntryWatch()
        >>> watch.look(net, [Entry.of("", (batch,), {}, batch)], batch)
        >>> _ = net(batch), net(2 * batch)
        >>> watch.end_look(net)
        >>> [entry.is_whole for entry in watch.later]
        [False]
    """

    def __init__(self) -> None:
        self.later: list[Entry] = []
        self.resumed: Sequence[Entry] = ()
        self._entering = Entering()
        self._new: dict[str, None] = {}
        self._handles: list[Any] = []

    @property
    def usual(self) -> Usual:
        """What enters modules in training, as far as that is known."""
        return self._entering.found

    def note_values(self, network: nn.Module, names: Iterable[str]) -> None:
        """Wait for what enters some modules in a training step."""
        self._entering.watch(network, names)

    def look(self, network: nn.Module, known: Sequence[Entry], batch: Any) -> None:
        """Look at how modules are entered until it ends.

        Args:
            network: What they are in.
            known: How they are entered, as far as that is known.
            batch: Of the step that comes.
        """
        self._unhook()
        for name in dict.fromkeys(entry.module for entry in known):
            # A resumed run may have other modules.
            module = find_module(network, name)
            if module is not None and not runs_compiled(module):
                hook = partial(self._note, name, known, batch)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def end_look(self, network: nn.Module) -> None:
        """Look no more; what enters in another way by now is other than what was noted."""
        self._unhook()
        for name in self._new:
            if self._entering.found.pop(name, None) is not None:
                self.note_values(network, [name])
        self._new = {}

    def taken(self) -> list[Entry]:
        """The ways of later steps, which are known from now on."""
        later, self.later = self.later, []
        return later

    def state_dict(self, known: Sequence[Entry]) -> dict[str, Any]:
        """What is known, and what has come since, as plain data."""
        entries = [*(known or self.resumed), *self.later]
        return {"entries": [vars(entry) for entry in entries], "entering": dict(self.usual)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` wrote; checkpoints of earlier releases tell less."""
        self.resumed = [Entry(**entry) for entry in state.get("entries", ())]
        self._entering = Entering(state.get("entering"))

    def close(self) -> None:
        """Detach from the run."""
        self._unhook()
        self._entering.close()
        self.resumed = ()

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, name: str, known: Sequence[Entry], batch: Any, _: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled() and not in_backward() and len(self.later) < _MOST:
            entry = Entry.of(name, args, kwargs, batch)
            if entry not in known and entry not in self.later:
                self.later.append(entry)
                self._new[name] = None
