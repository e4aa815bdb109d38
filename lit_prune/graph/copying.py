"""Copies of modules that share nothing a forward could alter, an order of magnitude faster than ``copy.deepcopy``."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_prune.common._compat import COMPILED, COMPILED_CALL, RUN_HOOKS, STATE_HOOKS, has_slots, is_compiled
from lit_prune.common.names import OURS, modules_of

# Values of these types can't change, or mean the same wherever they are.
_IMMUTABLE = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, range, slice, type(...)}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
    | {types.FunctionType, types.BuiltinFunctionType, types.ModuleType}
)
# The containers that every module has.
_OWN = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_COPY_PROTOCOL = ("__deepcopy__", "__copy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__new__")


CopyTensor = Callable[[Tensor, bool], Tensor]


def copy_module(network: nn.Module, copy_tensor: CopyTensor) -> nn.Module:
    """A copy of ``network`` and of all that its modules hold.

    Modules and tensors that are one stay one. Nothing in it is compiled. Hooks stay behind, but for those of torch
    itself, which compute weights; data sets, and what can't be copied (locks, open files, generators), are shared with
    the copy.

    Args:
        network: Any module.
        copy_tensor: Gives the copy of a tensor, told whether it is a buffer; called once for each.
    """
    return _Copier(network, copy_tensor).copy()


class _Copier:
    def __init__(self, network: nn.Module, copy_tensor: CopyTensor) -> None:
        self._network = network
        self._copy_tensor = copy_tensor
        # From the id of what is copied to its copy, as `copy.deepcopy` keeps it.
        self._memo: dict[int, Any] = {}

    def copy(self) -> nn.Module:
        modules = [module for _, module in modules_of(self._network)]
        plain = [module for module in modules if _is_plain(type(module))]  # type: ignore[arg-type]
        for module in plain:
            self._memo[id(module)] = object.__new__(type(module))
        wrappers = [module for module in modules if _is_wrapper(type(module))]  # type: ignore[arg-type]
        for module in wrappers:
            self._memo[id(module)] = _Uncompiled()
        for module in modules:
            if id(module) not in self._memo:
                self._prepare(module)
        for module in plain:
            self._fill(module)
        for module in wrappers:
            shell = self._memo[id(module)]
            setattr(shell, COMPILED, self._value(getattr(module, COMPILED)))
            shell.training = module.training
        copied: nn.Module = self._value(self._network)
        if len(plain) < len(modules):
            for _, module in modules_of(copied):
                vars(module)[COMPILED_CALL] = None
        return copied

    def _fill(self, module: nn.Module) -> None:
        """Give the shell that stands for ``module`` its contents."""
        state = dict(module.__dict__)
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in _IMMUTABLE or (kind is tuple and _IMMUTABLE.issuperset(map(type, value))):
                continue
            if name in _OWN:
                # Most are empty; no two modules share one.
                state[name] = self._own(name, value) if value else kind()
            elif not name.startswith(OURS):
                state[name] = self._value(value)
        # Compiled in place, a copy would run the module that it was copied from.
        state[COMPILED_CALL] = None
        # Past `nn.Module.__setattr__`, which looks at what is set.
        object.__setattr__(self._memo[id(module)], "__dict__", state)

    def _own(self, name: str, value: Any) -> Any:
        """The copy of what ``nn.Module`` itself holds under a name."""
        if name == "_buffers":
            return type(value)([(key, self._value(buffer, is_buffer=True)) for key, buffer in value.items()])
        if name in RUN_HOOKS:
            return _kept(value)
        # Nothing is loaded into a copy, or saved from it, and these may hold a whole Trainer.
        return OrderedDict() if name in STATE_HOOKS else self._value(value)

    def _prepare(self, module: nn.Module) -> None:
        """Have ``copy.deepcopy`` find what it must not copy by itself, in a module with a way of its own."""
        for name in RUN_HOOKS:
            hooks = module.__dict__[name]
            self._memo[id(hooks)] = _kept(hooks)
        for value in module.__dict__.values():
            for item in _held(value):
                self._value(item)

    def _value(self, value: Any, is_buffer: bool = False) -> Any:
        kind = type(value)
        if kind in _IMMUTABLE:
            return value
        known = self._memo.get(id(value))
        if known is not None:
            return known
        if kind is nn.Parameter or isinstance(value, Tensor):
            result: Any = self._copy_tensor(value, is_buffer)
        elif kind is dict or kind is OrderedDict:
            # In the memo before its items are: it may hold itself.
            result = self._memo[id(value)] = kind()
            for key, item in value.items():
                result[key if type(key) is str else self._value(key)] = self._value(item)
        elif kind is list:
            result = self._memo[id(value)] = []
            result.extend(value if _IMMUTABLE.issuperset(map(type, value)) else [self._value(item) for item in value])
        elif kind is tuple:
            if _IMMUTABLE.issuperset(map(type, value)):
                return value
            result = tuple([self._value(item) for item in value])
            if all(ours is theirs for ours, theirs in zip(result, value, strict=True)):
                result = value
        elif kind is set:
            result = {self._value(item) for item in value}
        elif isinstance(value, (Dataset, DataLoader)):
            result = value
        elif isinstance(value, nn.Module) and _is_plain(kind):  # type: ignore[arg-type]
            # It is no submodule, but kept in a list or an object.
            result = self._memo[id(value)] = object.__new__(kind)
            self._fill(value)
        else:
            result = self._copied(value)
        self._memo[id(value)] = result
        return result

    def _copied(self, value: Any) -> Any:
        before = len(self._memo)
        try:
            return copy.deepcopy(value, self._memo)
        except Exception:
            # Parts of it may have been copied, without what belongs to them.
            for key in list(self._memo)[before:]:
                del self._memo[key]
        if not isinstance(value, nn.Module):
            return value
        shell = self._memo[id(value)] = object.__new__(type(value))
        self._fill(value)
        return shell


class _Uncompiled(nn.Module):
    """In the place of what ``torch.compile`` returned: the names of its parts stay what they are."""

    def __getattr__(self, name: str) -> Any:
        if name == COMPILED:
            return self._modules[name]
        return getattr(getattr(self, COMPILED), name)

    def __len__(self) -> int:
        return len(getattr(self, COMPILED))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, COMPILED)(*args, **kwargs)


_is_wrapper = cache(is_compiled)


@cache
def _is_plain(kind: Any) -> bool:
    """Whether a module class is copied by its ``__dict__`` alone."""
    if has_slots(kind):
        return False
    own = [name for name in _COPY_PROTOCOL if getattr(kind, name, None) is not getattr(nn.Module, name, None)]
    # Torch's layers only fill in, after unpickling, what older versions lacked; recurrent ones do more.
    harmless = own == ["__setstate__"] and kind.__setstate__.__module__.startswith("torch.nn.modules.")
    return not own or (harmless and not issubclass(kind, nn.RNNBase))


def _kept(hooks: Mapping[int, Any]) -> OrderedDict[int, Any]:
    # A hook of a callback or a tracker would be copied with all that it refers to, and run.
    return OrderedDict((key, hook) for key, hook in hooks.items() if is_torch_hook(hook))


def is_torch_hook(hook: Any) -> bool:
    """Whether a hook is one of torch's own, which compute weights."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _held(value: Any) -> Iterator[Any]:
    """Tensors and data sets in plain containers."""
    if isinstance(value, (Tensor, Dataset, DataLoader)):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _held(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _held(item)
