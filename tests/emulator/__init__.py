"""Runs compiled GPU kernels on a CPU: a PTX interpreter in numpy, and a Triton driver on it."""
