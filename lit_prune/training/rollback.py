"""The network before an event, kept while the event is on trial, and put back if it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.common._compat import tree_map_only
from lit_prune.common.names import tensors_of
from lit_prune.surgery.adoption import adopt_shapes_
from lit_prune.surgery.held import beside, optimizers_in
from lit_prune.surgery.shrink import _assign_
from lit_prune.training.averages import follow_shapes

Tensors = dict[str, Tensor]


@dataclass
class Trial:
    """A network as it was before an event, and its score.

    Attributes:
        score: The monitored metric before the event; ``None`` where it was not known.
        groups: The groups that the event pruned.
        plan: State of the plan before the event.
        weights: Parameters and buffers by name, on the CPU.
        states: For each optimizer, those inside of others included, parameter name to its state.
        beside: For each, where a tensor is that it holds beside its state, to that tensor.
        copies: Where an averaged copy is kept, to its tensors.

    Example:
        >>> import torch
        >>> net = nn.Linear(4, 4)
        >>> trial = Trial.begin(0.9, [], {}, net, [], {})
        >>> before = net.weight.clone()
        >>> _ = net.weight.data.zero_()
        >>> trial.roll_back_(net, [], {})
        >>> torch.equal(net.weight, before)
        True
    """

    score: float | None
    groups: list[str]
    plan: dict[str, Any]
    weights: Tensors
    states: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    beside: list[Tensors] = field(default_factory=list)
    copies: dict[str, Tensors] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        score: float | None,
        groups: Sequence[str],
        plan: Mapping[str, Any],
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        copies: Mapping[str, nn.Module],
    ) -> Trial:
        """Keep all that an event changes."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
        held = optimizers_in(optimizers)
        states = [
            {names[parameter]: _kept(state) for parameter, state in optimizer.state.items() if parameter in names}
            for optimizer in held
        ]
        return cls(
            score,
            list(groups),
            dict(plan),
            weights=_kept(dict(tensors_of(module))),
            states=states,
            beside=[_kept(_beside(optimizer)) for optimizer in held],
            copies={key: _kept(dict(tensors_of(copy))) for key, copy in copies.items()},
        )

    def roll_back_(self, module: nn.Module, optimizers: Sequence[Optimizer], copies: Mapping[str, nn.Module]) -> None:
        """Put back weights, optimizer state and averaged copies, in place; the tensors stay the same objects."""
        kept = [(copies[key], tensors) for key, tensors in self.copies.items() if key in copies]
        for network, tensors in ((module, self.weights), *kept):
            adopt_shapes_(network, tensors)
            for name, tensor in tensors_of(network):
                tensor.grad = None
                tensor.data.copy_(tensors[name])
        # An average that was begun since then starts again.
        follow_shapes(module, [copy for key, copy in copies.items() if key not in self.copies])
        parameters = dict(module.named_parameters())
        for optimizer, state in zip(optimizers_in(optimizers), self.states, strict=True):
            for name, parameter in parameters.items():
                optimizer.state.pop(parameter, None)
                if name in state:
                    optimizer.state[parameter] = _put_on(parameter.device, state[name])
        for optimizer, tensors in zip(optimizers_in(optimizers), self.beside, strict=False):
            for name, tensor in _beside(optimizer).items():
                if name in tensors:
                    _assign_(tensor, tensors[name].to(tensor.device, copy=True))

    def has_failed(self, score: float | None, mode: str, max_drop: float) -> bool:
        """Whether the metric has fallen by more than ``max_drop``; never where it is not known.

        Example:
            >>> trial = Trial(0.8, [], {}, {})
            >>> [trial.has_failed(score, "max", max_drop=0.05) for score in (0.7, 0.78)]
            [True, False]
        """
        if self.score is None or score is None:
            return False
        drop = self.score - score if mode == "max" else score - self.score
        # NaN counts as failed.
        return not drop <= max_drop

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint that is written while the trial lasts."""
        return dict(vars(self))


def _beside(optimizer: Optimizer) -> Tensors:
    return {held.name: held.value for held in beside(optimizer) if isinstance(held.value, Tensor)}


def _kept(tensors: Any) -> Any:
    """Copies on the CPU; step counters stay on their device, for fused optimizers want them there."""
    return tree_map_only(Tensor, lambda each: (each.detach().cpu() if each.dim() else each.detach()).clone(), tensors)


def _put_on(device: torch.device, state: Any) -> Any:
    return tree_map_only(Tensor, lambda each: each.to(device if each.dim() else each.device).clone(), state)
