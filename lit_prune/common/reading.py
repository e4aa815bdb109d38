"""Reading a file with weights; where one can't be read, the true reason and what to do."""

from __future__ import annotations

import pickle
import re
import zipfile
from os import PathLike
from typing import Any

import torch

from lit_prune.errors import ArgumentTypeError, CheckpointError, MissingFileError

# How torch's messages name what it refuses to load, call or build besides weights.
_REFUSED = re.compile(r"\bGLOBAL (\S+)|unrecognized function (.+)|but got <class '([^']+)'>|(\S+) must be imported")


def read_checkpoint(
    path: str | PathLike[str], map_location: Any = "cpu", weights_only: bool = True, remedy: str = ""
) -> dict[str, Any]:
    """Read a file that holds a dict: a checkpoint of a Trainer, or a state dict.

    Args:
        path: The file.
        map_location: As for :func:`torch.load`.
        weights_only: As for :func:`torch.load`: ``False`` lets the file run code, so it takes a trusted one.
        remedy: What a caller who trusts the file can do about objects that are refused, for the message.

    Raises:
        CheckpointError: If it is damaged, holds something else, or something that is not loaded by ``weights_only``;
            or if it can't be opened.
        MissingFileError: If there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(2)}, f"{folder}/net.pt")
        ...     read_checkpoint(f"{folder}/net.pt")
        {'weight': tensor([1., 1.])}
    """
    if not isinstance(path, (str, PathLike)):
        raise ArgumentTypeError(f"A checkpoint is named by its path, but got {path!r}.")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=weights_only)
    except FileNotFoundError as error:
        raise MissingFileError(f"There is no file {str(path)!r}.") from error
    except Exception as error:
        reason = unreadable(path, error, remedy)
        if reason is None:
            raise
        raise reason from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, where a checkpoint or state dict belongs.")
    return checkpoint


def unreadable(path: str | PathLike[str], error: Exception, remedy: str) -> CheckpointError | None:
    """Why a file could not be read, with what to do; ``None`` where ``error`` is not about the file.

    Args:
        path: The file.
        error: What torch raised.
        remedy: As for :func:`read_checkpoint`.
    """
    if isinstance(error, OSError) and error.filename is not None:
        # Where the archive is broken, torch's OSError names no file.
        return CheckpointError(f"{path} can't be read: {error.strerror}.")
    refused = _refused(path, error)
    if refused:
        names = ", ".join(refused)
        return CheckpointError(
            f"{path} is whole, but besides weights it holds what torch only loads from a trusted file, as loading "
            f"it can run code: {names}. If you trust the file, {remedy}, or allow these before: "
            f"torch.serialization.add_safe_globals([{names}])."
        )
    if isinstance(error, ImportError) or "Can't get attribute" in str(error):
        return CheckpointError(
            f"{path} is whole, but holds an object whose class is not found here ({error}). Install or import what "
            "defines it, under the name that it had when the file was written."
        )
    if zipfile.is_zipfile(path) and "PytorchStreamReader" not in str(error):
        return None
    # Of torch's long messages, the sentence that is about the file.
    told = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    cause = f"{type(error).__name__}: {re.split(r'[.] |$', told, flags=re.MULTILINE)[0]}".rstrip(": ")
    return CheckpointError(
        f"{path} can't be read as a checkpoint: it is cut short, damaged, or of another kind ({cause})."
    )


def _refused(path: str | PathLike[str], error: Exception) -> list[str]:
    """Names of all that ``weights_only=True`` has refused to load."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    found = _REFUSED.search(str(error))
    if found is None:
        return []
    first = next(name for name in found.groups() if name)
    try:
        # torch's message names the first alone.
        listed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        listed = []
    return sorted({first.strip("`"), *listed})
