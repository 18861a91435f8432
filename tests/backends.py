"""The backends that tests run on."""

# conftest.py skips what does not run here.
GPU_KERNELS = ["triton", "cuda"]
KERNELS = ["cpu", *GPU_KERNELS]
BACKENDS = [*KERNELS, "eager"]
