"""Other packages, each driven as its documentation says."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.accuracy.peers.base import Peer
from benchmarks.accuracy.peers.fasterai import Fasterai
from benchmarks.accuracy.peers.lightning import LightningPruning
from benchmarks.accuracy.peers.torch_pruning import TorchPruning
from benchmarks.accuracy.rows.base import Row

PEERS: list[type[Peer]] = [TorchPruning, Fasterai, LightningPruning]


def installed(row: Row, round_to: int) -> tuple[list[Peer], list[str]]:
    """The peers that can be run, and the packages that are missing."""
    missing = [peer.package for peer in PEERS if find_spec(peer.package) is None]
    return [peer(row, round_to) for peer in PEERS if peer.package not in missing], missing
