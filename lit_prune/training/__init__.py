"""All that knows a training run: its host, the pruner, and what hangs on it."""
