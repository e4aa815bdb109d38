"""The whole story on real input: train a detector, prune it meanwhile, and compare it with its dense twin."""

from lit_prune.demo.recipe import Recipe
from lit_prune.demo.run import run_demo

__all__ = ["Recipe", "run_demo"]
