"""What tests and benchmarks share: networks of all kinds, and the invariant that they must hold."""
