"""How a network is seen: by the first calls and steps that it can be traced by, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import nn

from lit_prune.common.names import find_tensor
from lit_prune.common.ranks import gather, sent_by_rank_zero, together, warn_once
from lit_prune.errors import PruningError, TraceError
from lit_prune.graph import Call, ChannelGraph
from lit_prune.graph.labels import EMPTY
from lit_prune.graph.recording import Pairs, parted
from lit_prune.policy.policy import PruningEvent
from lit_prune.training.entry import Entry
from lit_prune.training.inputs import calls_from_state, calls_to_state, several_examples


@dataclass(frozen=True)
class Sight:
    """What is known of a network by how training enters it; nothing, until it was seen.

    Attributes:
        graph: The channels of the network as it is.
        calls: How it is entered, as it was traced.
        known: All calls and steps that are known.
        entries: What of its batch a step enters the network with.
    """

    graph: ChannelGraph | None = None
    calls: Sequence[Call] = ()
    known: Sequence[Call] = ()
    entries: Sequence[Entry] = ()

    @classmethod
    def of(
        cls,
        network: nn.Module,
        calls: Sequence[Call],
        steps: Sequence[Call] = (),
        averages: Pairs = MappingProxyType({}),
        entries: Sequence[Entry] = (),
    ) -> Sight:
        """Trace the network as it is.

        Args:
            network: The live network.
            calls: How it is entered.
            steps: Whole steps of the training, which say more.
            averages: As for :meth:`ChannelGraph.trace_calls`.
            entries: What of its batch a step enters it with; those of rank 0 count.

        Raises:
            PruningError: If there is no call, or the network can't be run on one.
        """
        steps = of_rank_zero(network, steps)
        ways = ways_to_see(calls, steps)
        if not ways:
            raise PruningError(
                f"No layer of {type(network).__name__} was called in the first batch, so its channels can't be traced. "
                "Set `example_input_array` on the LightningModule."
            )
        graph, used, failure = together(lambda: whole_graph(network, ways, averages))
        if steps and not any(call.is_step for call in used):
            warn_once(
                f"The training step of {type(network).__name__} can't be run on stand-ins: {failure}. Channels are "
                "judged by the forward alone: where the step does more with features than that, leave their layers out "
                "by `exclude`."
            )
        return cls(graph, used, [*calls, *steps], sent_by_rank_zero(entries))

    def again(self, network: nn.Module, averages: Pairs) -> Sight:
        """Trace the network anew in the way that it was seen, as these averages are known now."""
        return replace(self, graph=together(lambda: ChannelGraph.trace_calls(network, self.calls, averages)))

    def with_steps(self, network: nn.Module, steps: Sequence[Call], averages: Pairs) -> Sight:
        """Trace the network by more steps, those of every rank."""
        more = of_all_ranks(network, steps)
        if not more:
            return self
        forwards, known = parted(self.known)
        return Sight.of(network, forwards, [*known, *more], averages, self.entries)

    def with_entries(self, entries: Sequence[Entry]) -> Sight:
        """With other ways in which later steps have entered the network, on whatever rank."""
        found = [*self.entries]
        for of_rank in gather([*entries]):
            found += [entry for entry in of_rank if entry not in found]
        return self if len(found) == len(self.entries) else replace(self, entries=found)

    @property
    def idle(self) -> tuple[str, ...]:
        """Layers that have taken no part so far."""
        return () if self.graph is None else self.graph.idle + self.graph.followed

    @property
    def knows_a_step(self) -> bool:
        """Whether the network was seen in a whole step, or tried to be."""
        return any(call.is_step for call in self.known)

    @property
    def forwards(self) -> list[Call]:
        """How a step enters the network."""
        return parted(self.known)[0]


def ways_to_see(forwards: Sequence[Call], steps: Sequence[Call]) -> list[Sequence[Call]]:
    """In which ways a network may be traced, the one that says most first.

    A step that enters one network uses what that returns; one that enters several passes values between them, which are
    no outputs then.
    """
    ways: list[Sequence[Call]] = [steps, forwards]
    if steps and len({call.module for call in forwards}) == 1:
        ways.insert(0, [*forwards, *steps])
    return [way for way in ways if way]


def of_rank_zero(network: nn.Module, calls: Sequence[Call]) -> Sequence[Call]:
    """The calls of rank 0, on every rank, where they are plain: batches differ, and graphs must not."""
    states = gather(calls_to_state(calls))
    if len(states) == 1 or None in states:
        return calls
    return calls_from_state(states[0] or (), next(network.parameters()).device)


def of_all_ranks(network: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """The calls of each rank, on every rank."""
    states = gather(calls_to_state(calls))
    if len(states) == 1:
        return list(calls)
    device = next(network.parameters()).device
    return calls_from_state([state for of_rank in states for state in of_rank or ()], device)


def whole_graph(
    network: nn.Module, ways: Sequence[Sequence[Call]], averages: Pairs
) -> tuple[ChannelGraph, Sequence[Call], TraceError | None]:
    """As :func:`first_graph` has it; of several examples where parts of a forward have nothing to do with one.

    Raises:
        PruningError: As for it.
    """
    can_have_more = any(call.examples > 1 and not call.is_step for way in ways for call in way)

    def with_several() -> tuple[ChannelGraph, Sequence[Call], TraceError | None]:
        return first_graph(network, [[several_examples(call) for call in way] for way in ways], averages)

    try:
        found = first_graph(network, ways, averages)
    except PruningError:
        if not can_have_more:
            raise
        return with_several()
    if can_have_more and any(EMPTY in reason for reason in found[0].unprunable.values()):
        with suppress(PruningError):
            other = with_several()
            if len(other[0].groups) > len(found[0].groups):
                return other
    return found


def first_graph(
    network: nn.Module, ways: Sequence[Sequence[Call]], averages: Pairs
) -> tuple[ChannelGraph, Sequence[Call], TraceError | None]:
    """The graph by the first way in which the network can be run, and what failed before.

    Raises:
        PruningError: If there is none.
    """
    failure = None
    for calls in ways:
        try:
            return ChannelGraph.trace_calls(network, calls, averages), calls, failure
        except TraceError as error:
            failure = error
    entered = [call.module or "its example inputs" for call in ways[-1]]
    raise PruningError(
        f"The network can't be run on {entered}: {failure}. Give the LightningModule an `example_input_array` that its "
        "forward takes."
    ) from failure


def warn_of_idle(network: nn.Module, decision: PruningEvent) -> None:
    """Say which layers might break: no batch has shown what they are fed with, and it may be what was cut."""
    cut = {group.size: group.name for group in decision.groups if group.width_under(decision.plan) < group.size}
    for name in decision.before.idle:
        weight = find_tensor(network, f"{name}.weight")
        # Averages are cut in step with what they are of.
        if weight is None or not weight.requires_grad or f"{name}.weight" in decision.plan.kept:
            continue
        fed = cut.get(weight.shape[1])
        if fed is not None:
            warn_once(
                f"{name} has taken part in no step so far. If a later step gives it the channels of {fed}, which "
                f"are cut now, that step fails. Add {fed!r} to `exclude`, or give an `example_input_array` that "
                f"uses {name}."
            )
