"""Train a detector that is pruned meanwhile, and compare it with a dense one that is trained as long."""

from lit_prune.demo.run import run_demo
from lit_prune.demo.settings import Recipe

__all__ = ["Recipe", "run_demo"]
