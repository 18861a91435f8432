"""One training run: data, model, loop, report."""
