"""What is traced: copies of a network, or the network itself with other tensors in the place of its own.

A copy is cheap and far from what trains. But it has no hooks of a user's, and functions that close over layers lead to
those of the original: what needs these is traced in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from lit_prune.common._compat import tree_map_only
from lit_prune.common.names import OF_EVERY_MODULE, modules_of
from lit_prune.common.running import restored
from lit_prune.graph.copying import CopyTensor
from lit_prune.graph.recording import Call, Pairs
from lit_prune.graph.skeleton import NOTHING, cloned, emptied, has_values, on_meta, replica, skeleton, twin, with_values
from lit_prune.modules.remembered import note_widths_
from lit_prune.plan import PruningPlan
from lit_prune.surgery.mask import zero_
from lit_prune.surgery.shrink import shrink_


class Subject(Protocol):
    """A network that can be run in the shapes of any plan, and comes to no harm.

    Attributes:
        network: Its modules, by the names that a recording has.
        calls: How it is entered.
        has_values: Whether its tensors hold numbers.
        averages: Prefix, or name, of each average inside of the network to that of what it is an average of.
    """

    network: nn.Module
    has_values: bool
    averages: Pairs

    @property
    def calls(self) -> Sequence[Call]: ...  # noqa: D102

    def running(self, plan: PruningPlan = NOTHING, masked: bool = False) -> AbstractContextManager[nn.Module]:
        """A context in which the network, cut to ``plan`` or masked, can be run once."""

    def cut(self, plan: PruningPlan) -> Subject:
        """The subject that is left by a plan."""


class Copies:
    """Copies of a network without weights, or with them where a forward needs values.

    Args:
        network: As :func:`skeleton` or :func:`replica` made it.
        calls: How it is entered.
        averages: As for :class:`Subject`.
    """

    def __init__(self, network: nn.Module, calls: Sequence[Call], averages: Pairs) -> None:
        self.network = network
        self.calls: Sequence[Call] = calls
        self.averages = averages
        self.has_values = has_values(network)

    @classmethod
    def of(cls, model: nn.Module, calls: Sequence[Call], averages: Pairs, values: bool) -> Copies:
        """Copies of a live network, in eval mode."""
        network = (replica if values else skeleton)(model)
        if any(module.training for _, module in modules_of(network)):
            network.eval()
        # What is cut later follows its widths as the live network will.
        note_widths_(network)
        return cls(network, calls if values else on_meta(calls), averages)

    @contextmanager
    def running(self, plan: PruningPlan = NOTHING, masked: bool = False) -> Iterator[nn.Module]:
        """A copy that is thrown away: a forward leaves caches behind (anchors, positions)."""
        network = twin(self.network, NOTHING if masked else plan)
        if masked:
            zero_(network, plan)
        yield network

    def cut(self, plan: PruningPlan) -> Copies:
        """Copies of what is left by a plan."""
        return Copies(twin(self.network, plan), self.calls, self.averages)


@dataclass
class InPlace:
    """The live network itself; while it runs, its parameters and buffers are others, and afterwards its own again.

    Attributes:
        network: The live network.
        given: How it is entered.
        averages: As for :class:`Subject`.
        has_values: Whether what stands in has numbers.
        plan: What it was cut to before.
    """

    network: nn.Module
    given: Sequence[Call]
    averages: Pairs
    has_values: bool
    plan: PruningPlan = field(default_factory=lambda: NOTHING)

    @classmethod
    def of(cls, model: nn.Module, calls: Sequence[Call], averages: Pairs, values: bool) -> InPlace:
        """A live network, entered by ``calls``."""
        return cls(model, calls, averages, values)

    @property
    def calls(self) -> Sequence[Call]:
        """How it is entered, made when it is asked for: a batch of images is too large to be kept."""
        if not self.has_values:
            return on_meta(self.given)
        return with_values(self.given, next(self.network.parameters()).device)

    @contextmanager
    def running(self, plan: PruningPlan = NOTHING, masked: bool = False) -> Iterator[nn.Module]:
        """The network with tensors that stand in for its own; each time the random numbers are the same."""
        with restored(self.network, seed=0, contents=True):
            _replace_tensors_(self.network, cloned if self.has_values else emptied)
            if self.plan:
                shrink_(self.network, self.plan)
            if plan:
                (zero_ if masked else shrink_)(self.network, plan)
            yield self.network

    def cut(self, plan: PruningPlan) -> InPlace:
        """The same network, from now on in the shapes of a plan."""
        return InPlace(self.network, self.given, self.averages, self.has_values, self.plan.then(plan))


def _replace_tensors_(network: nn.Module, copy_tensor: CopyTensor) -> None:
    """Put a copy in the place of each parameter, buffer and tensor in an attribute."""
    # By the tensors themselves: what shares one goes on sharing one, and what stands in already stays.
    known: dict[Tensor, Tensor] = {}

    def copied(tensor: Tensor, is_buffer: bool = False) -> Tensor:
        if tensor not in known:
            copy = known[tensor] = copy_tensor(tensor, is_buffer)
            known[copy] = copy
        return known[tensor]

    for _, module in modules_of(network):
        # A class of its own way to set attributes keeps a second list of its weights (`nn.LSTM`), or is a script.
        plain = type(module).__setattr__ is nn.Module.__setattr__
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in tables:
            for name, tensor in list(own.items()):
                if tensor is not None:
                    copy = copied(tensor, own is module._buffers)
                    if plain:
                        own[name] = copy
                    else:
                        setattr(module, name, copy)
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                vars(module)[name] = copied(value)
            elif type(value) in (dict, list) and name not in OF_EVERY_MODULE:
                # In the container itself: a hook may hold it too.
                for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                    if isinstance(item, (Tensor, list, tuple, dict)):
                        value[key] = tree_map_only(Tensor, copied, item)
