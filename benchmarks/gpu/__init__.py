"""Proves and measures everything on the GPU of a bare machine: `make gpu`."""
