"""What a study is given: checked before anything is made of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lit_prune.common.choices import nearest
from lit_prune.errors import ArgumentError


def fit_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments of `fit`, of which the first may be the configuration file.

    Example:
        >>> fit_arguments(["train.yaml", "--model.lr", "0.1"])
        ['--config', 'train.yaml', '--model.lr', '0.1']
    """
    return [*(["--config"] if arguments and not arguments[0].startswith("-") else []), *arguments]


def fingerprint(arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments and the files that they name, for the question whether something was made in the same way."""
    files = {}
    for argument in arguments:
        path = Path(argument.rpartition("=")[2])
        if path.is_file():
            content = path.read_bytes() if path.stat().st_size < 2**20 else repr(path.stat().st_mtime_ns).encode()
            files[str(path)] = hashlib.sha256(content).hexdigest()
    return {"arguments": [*arguments], "files": files}


def make_folder(path: Path) -> None:
    """Make the folder that `--out` names.

    Raises:
        ArgumentError: If that can't be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {path} can't be a folder: {error.strerror}.") from error


def check_file(path: Path) -> None:
    """Raise unless a file can be written there.

    Raises:
        ArgumentError: If it is a folder, there is none to hold it, or that takes no files.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentError(f"--out {path} can't be a file: {'it is a folder' if path.is_dir() else 'no such folder'}.")
    try:
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ArgumentError(f"--out {path} can't be a file: {error.strerror}.") from error


def check_amounts(amounts: Sequence[str]) -> None:
    """Raise unless each is a ratio in (0, 1), or a number with a unit.

    Raises:
        ArgumentError: If one is neither, or is given twice.

    Example:
        >>> check_amounts(["0.2", "8 ms"])
        >>> check_amounts(["train.yaml"])
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: An amount is a ratio in (0, 1), or a limit such as '8 ms', but is 'train.yaml'.
    """
    for amount in amounts:
        if is_limit(amount):
            fits = re.fullmatch(r"\s*[\d.]+(?:[eE][+-]?\d+)?\s*[a-zA-Z]+\s*", amount) is not None
        else:
            fits = 0 < float(amount) < 1
        if not fits:
            raise ArgumentError(f"An amount is a ratio in (0, 1), or a limit such as '8 ms', but is {amount!r}.")
    if len({*amounts}) < len(amounts):
        raise ArgumentError(f"Each amount is to be given once, but got {' '.join(amounts)}.")


def is_limit(amount: str) -> bool:
    """Whether an amount is no number, and so a limit of a budget.

    Example:
        >>> is_limit("8 ms"), is_limit("0.2")
        (True, False)
    """
    try:
        float(amount)
    except ValueError:
        return True
    return False


def metric_among(metrics: Mapping[str, float], name: str | None) -> str:
    """Which of some metrics counts.

    Args:
        metrics: By name.
        name: The one that was asked for; may be left out where there is one.

    Raises:
        ArgumentError: If it is not among them, there are several, or none.

    Example:
        >>> metric_among({"loss": 0.3}, None)
        'loss'
    """
    if not metrics:
        raise ArgumentError("A validation logs no metric: `validation_step` is to call `self.log`.")
    if name is None and len(metrics) == 1:
        return next(iter(metrics))
    if name is None or name not in metrics:
        asked = "" if name is None else f"{name!r} is not logged. {nearest(name, metrics)} "
        raise ArgumentError(f"{asked}Say by --metric what counts; a validation logs {', '.join(sorted(metrics))}.")
    return name
