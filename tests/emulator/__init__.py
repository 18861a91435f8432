"""Runs compiled GPU kernels on a CPU: a PTX machine in C++, and a Triton driver on it."""
