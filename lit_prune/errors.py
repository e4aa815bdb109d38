"""All errors that lit_prune raises on purpose: each says what was expected, what was given, and what to do.

Every one is also of the built-in class that fits it, so that code which knows nothing of lit_prune can catch it.
"""

from __future__ import annotations


class LitPruneError(Exception):
    """Something that a user can mend; whatever else is raised is a fault of lit_prune or of the user's own code."""


class ArgumentError(LitPruneError, ValueError):
    """An argument, or what a criterion, selection or schedule answers, is out of range or does not fit."""


class ArgumentTypeError(LitPruneError, TypeError):
    """An argument is of the wrong type."""


class UnknownNameError(LitPruneError, KeyError):
    """There is nothing of this name; the message has the nearest."""

    def __str__(self) -> str:
        # A KeyError shows its message in quotes.
        return str(self.args[0]) if self.args else ""


class MissingPackageError(LitPruneError, ImportError):
    """A package that is not among the requirements is needed here; the message says how to install it."""


class MissingFileError(LitPruneError, FileNotFoundError):
    """There is no such file."""


class ExistingFileError(LitPruneError, FileExistsError):
    """There is something already where a file is to be written."""


class CheckpointError(LitPruneError, ValueError):
    """A checkpoint can't be read, or its tensors are not those that its record tells of."""


class TraceError(LitPruneError, RuntimeError):
    """The network could not be run on the example inputs.

    Attributes:
        layer: Qualified name of the layer at work; empty where it is not known.
    """

    def __init__(self, message: str, layer: str = "") -> None:
        super().__init__(message)
        self.layer = layer


class SelectionError(LitPruneError, ValueError):
    """The wanted amount can't be removed from these groups."""


class CalibrationError(LitPruneError, RuntimeError):
    """Statistics of activations could not be had."""


class NoObjectsError(CalibrationError):
    """The calibration data shows nothing that counts."""


class UnsupportedError(LitPruneError, RuntimeError):
    """The run has something that can't follow when the network shrinks."""


class RanksError(LitPruneError, RuntimeError):
    """Another rank failed, or ranks disagree."""


class PruningError(LitPruneError, RuntimeError):
    """A pruning could not be carried out; the network is as it was."""


class RehearsalError(PruningError):
    """An event can't be carried out as things are at the start of the run; nothing has been changed."""


class HalfPrunedError(LitPruneError, RuntimeError):
    """A pruning broke off after the first tensor was cut, on this rank or another: training can't go on with it."""
