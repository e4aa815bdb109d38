"""`lit-prune`."""
