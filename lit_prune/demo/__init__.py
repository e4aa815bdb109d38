"""Train a detector that is pruned meanwhile, and compare it with a dense one that is trained as long."""

from lit_prune.demo.recipe import Recipe
from lit_prune.demo.run import run_demo

__all__ = ["Recipe", "run_demo"]
