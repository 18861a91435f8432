"""Steps timed beside those of other libraries: `spectramind bench`, and `benchmarks/`."""
