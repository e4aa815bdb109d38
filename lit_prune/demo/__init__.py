"""Train a detector, see what is left of it right after a cut, and fine-tune it while it loses half of its work."""

from lit_prune.demo.run import run_demo
from lit_prune.demo.settings import Recipe

__all__ = ["Recipe", "run_demo"]
