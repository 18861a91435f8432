"""Timings, run as modules: `python -m benchmarks.step`."""
