"""From model to pruned model, beside other libraries: ``python -m benchmarks.peers``."""
