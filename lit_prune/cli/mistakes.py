"""What is wrong with a Trainer command's arguments: one sentence, where jsonargparse lists all that it has tried."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lit_prune.common.choices import nearest

_KEY = re.compile(r'Parser key "([^"]+)"')
_UNKNOWN = re.compile(r"class_path '([\w.]+)':\s+(?:No module named|module '\S+' has no attribute)")
_SHORT = re.compile(r"Expected a dot import path string: (\w+)")
_OPTION = re.compile(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
_OTHER = re.compile(r"Import path (\S+) does not correspond to a subclass of (\S+)")


def explain(message: str) -> str:
    """The one thing that is wrong, with near names; jsonargparse's own message where it is about something else.

    Example:
        >>> message = '''Parser key "trainer.callbacks":
        ...     - Problem with given class_path 'lit_prune.ChanelPruning':
        ...         module 'lit_prune' has no attribute 'ChanelPruning'
        ...     - Not a valid subclass of Callback'''
        >>> explain(message)
        "trainer.callbacks: there is no class 'lit_prune.ChanelPruning'. Did you mean 'ChannelPruning' or ..."
    """
    key = _KEY.search(message)
    where = f"{key[1]}: " if key else ""
    if found := _UNKNOWN.search(message):
        return where + _unknown(found[1])
    if found := _OPTION.search(message):
        path, option = found.groups()
        return f"{where}{path} takes no argument {option!r}. {nearest(option, _parameters(path))}"
    if found := _OTHER.search(message):
        return f"{where}{found[1]} is not a {found[2]}."
    if found := _SHORT.search(message):
        known = {kind.__name__ for base in (Callback, LightningModule, LightningDataModule) for kind in _below(base)}
        return f"{where}there is no class {found[1]!r}. {nearest(found[1], known)} Others take a class path."
    return message


def _unknown(path: str) -> str:
    place, _, name = path.rpartition(".")
    try:
        module = import_module(place)
    except ImportError as error:
        return f"{path} can't be imported: {error}."
    classes = [known for known in dir(module) if isinstance(getattr(module, known), type)]
    return f"there is no class {path!r}. {nearest(name, classes)}"


def _parameters(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    kind: Any = getattr(import_module(module), name)
    return [known for known in inspect.signature(kind.__init__).parameters if known != "self"]


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    child: type[Any]
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
