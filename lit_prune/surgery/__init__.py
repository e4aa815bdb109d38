"""Cutting networks, and all that hangs on them."""

from lit_prune.modules import register_attributes
from lit_prune.surgery.adoption import accept_pruned, adopt_shapes_
from lit_prune.surgery.shrink import shrink_

__all__ = ["accept_pruned", "adopt_shapes_", "register_attributes", "shrink_"]
