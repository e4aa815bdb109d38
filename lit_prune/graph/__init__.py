"""Which channels are coupled, found by tracing labels."""

from lit_prune.errors import TraceError
from lit_prune.graph.channel_graph import ChannelGraph
from lit_prune.graph.groups import ChannelGroup
from lit_prune.graph.recording import Call
from lit_prune.graph.reference import mask_
from lit_prune.graph.rules import register_rule
from lit_prune.modules.registry import register_ties

__all__ = ["Call", "ChannelGraph", "ChannelGroup", "TraceError", "mask_", "register_rule", "register_ties"]
