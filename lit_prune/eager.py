"""Running networks without the parts of them that were compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def eagerly() -> Iterator[None]:
    """While open, what ``torch.compile`` has taken runs as it was written: hooks are seen, and nothing is compiled.

    Example:
        >>> net = torch.compile(torch.nn.Linear(2, 1))
        >>> with eagerly():
        ...     net(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    if "torch._dynamo" not in sys.modules:
        # Nothing can have been compiled, and to ask for a stance imports the whole compiler: one to two seconds.
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
