"""Packages that only an extra brings: whether they are there, and what to install where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from lightning_utilities.core.imports import RequirementCache
from packaging.requirements import Requirement

from lit_prune.errors import MissingPackageError


def require(purpose: str, *packages: str, extra: str = "", remark: str = "") -> None:
    """Raise an error that says what to install, unless all of these packages are there.

    Args:
        purpose: What needs them, as the user knows it: the beginning of the message.
        *packages: As pip knows them, with a version where an older one would not do. ``"opencv-python:cv2"`` is
            imported as well, for one that is installed may still be broken; and whatever else brings ``cv2`` will do.
        extra: The extra of lit_prune that brings all of them; without one, they are named themselves.
        remark: End of the message.

    Raises:
        MissingPackageError: If one is missing, too old, or can't be imported.

    Example:
        >>> require("A network", "torch>=2", "numpy:numpy")
        >>> require("Drawing", "easel", "torch>=99", extra="figures")
        Traceback (most recent call last):
        lit_prune.errors.MissingPackageError: Drawing needs easel (not installed) and torch>=99 (... is installed).
        Install what is missing with: pip install 'lit-prune[figures]'
    """
    missing = {}
    for package in packages:
        name, _, module = package.partition(":")
        if fault := _fault(name, module):
            missing[name] = fault
    if missing:
        raise missing_packages(purpose, missing, extra, remark)


def missing_packages(
    purpose: str, missing: Mapping[str, str], extra: str = "", remark: str = ""
) -> MissingPackageError:
    """The error about packages that are known to be missing.

    Args:
        purpose: As for :func:`require`.
        missing: Package to what is wrong with it.
        extra: As for :func:`require`.
        remark: As for :func:`require`.
    """
    names = " and ".join(f"{name} ({fault})" for name, fault in missing.items())
    wanted = f"'lit-prune[{extra}]'" if extra else " ".join(missing)
    end = f". {remark}" if remark else ""
    return MissingPackageError(f"{purpose} needs {names}. Install what is missing with: pip install {wanted}{end}")


def _fault(name: str, module: str) -> str:
    if RequirementCache(name, module or None):
        return ""
    if module:
        # It only remembers whether an import worked, be it long ago; the reason is told by another.
        try:
            import_module(module)
        except ImportError as error:
            return f"cannot be imported: {error}"
        return ""
    try:
        return f"{version(Requirement(name).name)} is installed"
    except PackageNotFoundError:
        return "not installed"
