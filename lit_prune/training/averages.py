"""Averages follow the network: what is cut beside it, and inside of it, when it shrinks.

A module with the layers of the network may be its average or a fixed teacher, which must stay as it is. An average is
one that has been seen to change though nobody trains it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lit_prune.common.names import tensors_of
from lit_prune.common.ranks import warn_once
from lit_prune.plan import PruningPlan
from lit_prune.surgery.adoption import accept_for_now, adopt_shapes_
from lit_prune.training.averaged_copies import copies_beside, twins_within, wrapped_within
from lit_prune.training.kept_weights import check_kept, named_after

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class Averages:
    """Knows which copies follow the network when it shrinks.

    Attributes:
        known: Keys of copies that were seen to change; a resumed run has to know them before it can see it.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.known = set(known)
        self._seen: dict[str, _Look] = {}

    def watch(self, trainer: Trainer) -> None:
        """Remember what the copies look like now."""
        for key, module in _unsure(trainer):
            if key not in self.known and (key not in self._seen or self._seen[key].module is not module):
                self._seen[key] = _Look(module, _fingerprint(module), _is_frozen(module), trainer.global_step)

    def notice(self) -> set[str]:
        """Look at the copies again; the keys of all that have changed."""
        for key, look in list(self._seen.items()):
            if _fingerprint(look.module) != look.fingerprint:
                # What is no longer frozen changes because it is trained.
                if _is_frozen(look.module) == look.frozen:
                    self.known.add(key)
                del self._seen[key]
        return self.known

    def beside(self, trainer: Trainer) -> dict[str, nn.Module]:
        """What has to be cut together with the network: where it is kept, to a view under the network's names."""
        network, known = trainer.lightning_module, self.notice()
        copies = copies_beside(trainer)
        for copy in copies:
            if not copy.sure and copy.key not in known and copy.fits(network):
                self._warn_of(copy.key, trainer)
        return {copy.key: copy.view for copy in copies if copy.sure or (copy.key in known and copy.fits(network))}

    def within(self, trainer: Trainer, warn: bool = True) -> dict[str, str]:
        """Prefix, or name, of each average inside of the LightningModule to that of what it is an average of."""
        network, known = trainer.lightning_module, self.notice()
        pairs = wrapped_within(network)
        for child, source in twins_within(network).items():
            if child in known:
                pairs[f"{child}."] = f"{source}."
            elif warn:
                self._warn_of(child, trainer)
        return pairs | named_after(network)

    def check(self, trainer: Trainer, plan: PruningPlan) -> None:
        """Raise an UnsupportedError for what looks like a copy of weights that ``plan`` cuts, and is known for none."""
        check_kept(trainer.lightning_module, plan, [copy.view for copy in copies_beside(trainer)])

    def follow(self, trainer: Trainer) -> None:
        """Bring averages that a checkpoint had nothing for in line with a network that came from it pruned."""
        copies = copies_beside(trainer)
        follow_shapes(trainer.lightning_module, [copy.view for copy in copies if copy.sure or copy.key in self.known])

    def forget(self) -> None:
        """Start again, in another run."""
        self._seen.clear()

    def _warn_of(self, key: str, trainer: Trainer) -> None:
        # Where steps were taken and nothing has changed, it is no average.
        if key not in self._seen or self._seen[key].step == trainer.global_step:
            warn_once(
                f"{key} has the same layers as the network, and no step was taken that would show whether it is an "
                "average of it: it stays as it is. If it is one, wrap it in torch.optim.swa_utils.AveragedModel, "
                "which is known to shrink in step."
            )


def accept_in_copies(trainer: Trainer) -> list[Any]:
    """Let copies that are modules load what a pruned run has saved; the handles to remove that by."""
    return accept_for_now(copy.module for copy in copies_beside(trainer) if copy.module is not None)


def follow_shapes(network: nn.Module, copies: Iterable[nn.Module]) -> None:
    """Give copies of other shapes than the network's its weights."""
    state = network.state_dict(keep_vars=True)
    for copy in copies:
        mine = {name: state[name].detach() for name, _ in tensors_of(copy) if name in state}
        if any(tensor.shape != mine[name].shape for name, tensor in tensors_of(copy) if name in mine):
            adopt_shapes_(copy, mine)
            with torch.no_grad():
                for name, tensor in tensors_of(copy):
                    if name in mine:
                        tensor.copy_(mine[name])


def _unsure(trainer: Trainer) -> Iterator[tuple[str, nn.Module]]:
    network = trainer.lightning_module
    for copy in copies_beside(trainer):
        if copy.module is not None and not copy.sure:
            yield copy.key, copy.module
    for name in twins_within(network):
        yield name, network.get_submodule(name)


class _Look(NamedTuple):
    """What a copy was like at a step."""

    module: nn.Module
    fingerprint: float
    frozen: bool
    step: int


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def _fingerprint(module: nn.Module) -> float:
    with torch.no_grad():
        return float(sum(parameter.double().abs().sum().cpu() for parameter in module.parameters()))
