"""Experiments on real data: ``python -m benchmarks.experiments NAME``, then ``... page``."""
