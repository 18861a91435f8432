"""One step of an optimizer: planned once, then launched. Knows no class of `optim`."""
